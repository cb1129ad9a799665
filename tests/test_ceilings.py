"""A run's rooflines: measured once per machine, stored with the records, and never held against a job in haste."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from fusionbench.ceilings import Ceilings
from fusionbench.engines import local
from fusionbench.record import Costs, Record, Roofline, Timing
from fusionbench.roofline import Probe
from fusionbench.spec import Case, Job, Shape

SHAPE = Shape(batch=1, image=3, text=2, image_width=8, text_width=8, width=8, heads=1)
JOB = Job(strategy="concat", backend="eager", case=Case(shape=SHAPE))
PROBE = Probe("cpu", "fp32", 1, "e1")
LOW = Roofline(
    device="cpu", dtype="fp32", threads=1, environment="e1", flops_per_s=1e9, bytes_per_s=((1 << 18, 1e9), (1 << 28, 1e9)),
    measured_at="2026-11-21T00:00:00",
)  # fmt: skip
HIGH = msgspec.structs.replace(LOW, flops_per_s=1e12, measured_at="2026-11-21T00:00:01")


def record(ms: float, flops: int = 10**9) -> Record:
    timing = Timing(
        timer="wall", cache="hot", loops=1, samples_ns=(round(ms * 1e6),) * 9, stop="precise", first_call_ns=1,
        warmup_calls=1, threads=1,
    )  # fmt: skip
    costs = Costs(flops=flops, params=1, min_bytes=100, activation_bytes=1)
    return Record(job=JOB, status="ok", time=timing, costs=costs)


class Lab:
    """A prober that hands out these rooflines one after another, and remembers what was kept and said."""

    def __init__(self, *found: Roofline | str) -> None:
        self.found = list(found)
        self.stored: list[Roofline] = []
        self.notes: list[str] = []

    def probe(self, probes: Sequence[Probe]) -> Iterator[tuple[Probe, Roofline | str]]:
        for each in probes:
            yield each, self.found.pop(0)

    def ceilings(self) -> Ceilings:
        return Ceilings(self.probe, self.stored.append, self.notes.append, threads=1, environment="e1")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))


def test_a_machine_is_probed_once_and_every_run_stores_what_it_was_judged_by() -> None:
    first, second = Lab(LOW), Lab()
    first.ceilings().prepare([JOB, JOB])
    second.ceilings().prepare([JOB])
    assert (first.stored, second.stored, first.found) == ([LOW], [LOW], [])


def test_a_result_below_its_ceiling_is_left_as_it_is() -> None:
    lab = Lab(LOW)
    ceilings = lab.ceilings()
    ceilings.prepare([JOB])
    assert ceilings.judged(record(1100.0)).status == "ok"


def test_what_is_faster_than_physics_is_wrong_after_a_second_look() -> None:
    lab = Lab(LOW, LOW)
    ceilings = lab.ceilings()
    ceilings.prepare([JOB])
    judged = ceilings.judged(record(1.0))
    assert (judged.status, judged.phase, lab.found) == ("wrong", "time", [])
    assert "faster than physics" in judged.reason


def test_a_probe_at_a_bad_moment_is_not_held_against_the_job() -> None:
    lab = Lab(LOW, HIGH)
    ceilings = lab.ceilings()
    ceilings.prepare([JOB])
    assert ceilings.judged(record(2.0)).status == "ok"
    assert [roofline.flops_per_s for roofline in lab.stored] == [1e9, 1e12]


def test_a_device_that_cannot_be_probed_is_one_note_and_judges_nothing() -> None:
    lab = Lab("no memory")
    ceilings = lab.ceilings()
    ceilings.prepare([JOB])
    assert ceilings.judged(record(1e-6)).status == "ok"
    assert lab.notes == ["no roofline of fp32 on cpu: no memory"]


def test_a_worker_measures_the_roofline_and_a_device_that_is_not_there_is_told() -> None:
    probes = [PROBE, Probe("cuda:7", "fp32", 1, "e1")]
    (one, here), (_, nowhere) = local.probe(probes)
    assert one == PROBE
    assert isinstance(here, Roofline)
    assert here.flops_per_s > 1e9
    assert isinstance(nowhere, str)
    assert nowhere.strip()
