"""The trace: every event as the format wants it, jobs where and when they were, steps inside their jobs."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fusionbench.export import trace
from fusionbench.record import DeviceState, Record
from tests.exporting import failed, run_of, timing
from tests.hostile import hostile_environments, hostile_records
from tests.synthetic import records, smoke

Event = dict[str, Any]
REQUIRED = {"X": {"ts", "dur"}, "M": set(), "C": {"ts"}, "i": {"ts", "s"}}


def events(path: Path, items: list[Record]) -> list[Event]:
    trace.write(run_of(items, hostile_environments()), path)
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found["displayTimeUnit"] == "ms"
    check(found["traceEvents"])
    return found["traceEvents"]  # type: ignore[no-any-return]


def check(found: list[Event]) -> None:
    """Required keys, no negative times, and on each track events that lie inside each other or apart."""
    tracks: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in found:
        assert {"name", "ph", "pid", "tid", "args"} <= set(event)
        assert REQUIRED[event["ph"]] <= set(event)
        assert event["ts"] >= 0
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
        if event["ph"] == "C":
            assert isinstance(event["args"]["value"], int | float)
    for track in tracks.values():
        open_until: list[int] = []
        for event in sorted(track, key=lambda e: (e["ts"], -e["dur"])):
            assert event["dur"] >= 0
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1]
            open_until.append(end)


def at(second: float, record: Record, **changes: Any) -> Record:
    return replace(record, started_at=f"2026-03-02T10:00:{second:06.3f}+00:00", **changes)


def of(found: list[Event], **wanted: Any) -> list[Event]:
    return [event for event in found if all(event.get(name) == value for name, value in wanted.items())]


def test_any_records_make_a_valid_trace(tmp_path: Path) -> None:
    assert len(events(tmp_path / "t", [*records(300), *failed(), *hostile_records()])) > 1000


def test_jobs_are_drawn_one_after_another_with_their_steps_inside(tmp_path: Path) -> None:
    one = at(5, smoke()[3], wall_s=2.0, phases_s={"build": 0.5, "time": 1.25})
    two = at(7.5, smoke()[4], wall_s=1.0, phases_s={})
    found = events(tmp_path / "t", [two, one])
    jobs = of(found, cat="job")
    assert [(job["ts"], job["dur"]) for job in jobs] == [(0, 2_000_000), (2_500_000, 1_000_000)]
    assert jobs[0]["args"]["key"] == one.job.key
    assert jobs[0]["args"]["median_ns"] > 0
    steps = of(found, cat="step")
    assert [(step["name"], step["ts"], step["dur"]) for step in steps] == [
        ("build", 0, 500_000),
        ("time", 500_000, 1_250_000),
    ]
    assert len({(event["pid"], event["tid"]) for event in jobs + steps}) == 1
    assert of(found, name="thread_name")[0]["args"] == {"name": "cpu"}


def test_of_several_rounds_the_first_is_drawn_and_all_are_told(tmp_path: Path) -> None:
    one = at(1, smoke()[3], wall_s=12.0, phases_s={"build": 1.0, "time": 1.0}, time=timing([5] * 6, rounds=(1,) * 6))
    (job,) = of(events(tmp_path / "t", [one]), cat="job")
    assert (job["dur"], job["args"]["wall_s"], job["args"]["rounds"]) == (2_000_000, 12.0, 6)


def test_a_start_that_was_cut_to_milliseconds_does_not_overlap(tmp_path: Path) -> None:
    found = [at(0, smoke()[3], wall_s=1.0007, phases_s={}), at(1, smoke()[4], wall_s=1.0, phases_s={})]
    jobs = of(events(tmp_path / "t", found), cat="job")
    assert [(job["ts"], job["tid"]) for job in jobs] == [(0, 1000), (1_000_700, 1000)]


def test_jobs_at_the_same_time_have_tracks_of_their_own(tmp_path: Path) -> None:
    cuda = replace(smoke()[5].job, case=replace(smoke()[5].job.case, device="cuda:1"))
    found = events(
        tmp_path / "t",
        [at(0, smoke()[3], wall_s=5.0), at(2, smoke()[4], wall_s=1.0), at(1, smoke()[5], job=cuda), at(7, smoke()[6])],
    )
    assert [event["args"]["name"] for event in of(found, name="thread_name")] == ["cpu", "cpu (2)", "cuda:1"]
    assert len({job["tid"] for job in of(found, cat="job")}) == 3


def test_what_nvml_said_are_counters_and_failures_are_marks(tmp_path: Path) -> None:
    state = DeviceState(sm_mhz=(1, 1980, 2000), power_watts=415.5, temperature_c=61)
    lost = at(3, failed(1)[0], wall_s=0.5, reason="CUDA out of memory", phase="time")
    found = events(tmp_path / "t", [at(0, smoke()[3], device=state), lost])
    assert {event["name"]: event["args"]["value"] for event in of(found, ph="C")} == {
        "cpu power (W)": 415.5,
        "cpu temperature (°C)": 61,
        "cpu SM clock (MHz)": 1980,
    }
    (mark,) = of(found, ph="i")
    assert (mark["name"], mark["cat"], mark["ts"]) == ("oom", "failure", 3_500_000)
    assert mark["args"] == {"key": lost.job.key, "reason": "CUDA out of memory", "phase": "time"}


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -5.0, 1e300])
def test_absurd_seconds_and_moments_make_a_valid_trace(seconds: float, tmp_path: Path) -> None:
    absurd = at(1, smoke()[3], wall_s=seconds, phases_s={"build": seconds, "time": 1e299})
    moments = [
        replace(smoke()[4], started_at=moment) for moment in ("", "yesterday", "0001-01-01", "9999-12-31T23:59:59Z")
    ]
    found = trace.write(run_of([absurd, *moments]), tmp_path / "t")
    check(json.loads((tmp_path / "t").read_text(), parse_constant=pytest.fail)["traceEvents"])
    assert found.jobs == 3
    assert found.notes == ("2 jobs do not say when they were begun",)
