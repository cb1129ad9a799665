"""Energy: two refreshes of a counter, a second and more apart, and the calls between them; time is a fake one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionbench.meters import energy
from tests.fake_nvml import LIBRARY_NOT_FOUND, NOT_SUPPORTED, FakeGpu, FakeNvml

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
MS = 1_000_000


class Clock:
    """Time that passes only while the work of a fake device is done."""

    def __init__(self) -> None:
        self.ns = 0
        self.busy_ns = 0

    def work(self, ns: int) -> None:
        self.ns += ns
        self.busy_ns += ns


class Event:
    """Of a device that does what was queued when it is waited for, and no earlier."""

    queued: list[int]
    clock: Clock
    done: int
    most: int

    def __init__(self, blocking: bool = False) -> None:
        self.upto = 0

    def record(self) -> None:
        self.upto = len(Event.queued)

    def synchronize(self) -> None:
        waiting = len(Event.queued)
        Event.most = max(Event.most, waiting - self.upto)
        for n in range(Event.done, self.upto):
            Event.clock.work(Event.queued[n])
            Event.queued[n] = 0
        Event.done = max(Event.done, self.upto)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(energy, "perf_counter_ns", lambda: found.ns)
    return found


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[list[int]]:
    """A fake CUDA stream: calls append how long they take."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    Event.queued, Event.clock, Event.done, Event.most = [], clock, 0, 0
    monkeypatch.setattr(torch.cuda, "Event", Event)
    yield Event.queued
    assert sum(Event.queued) == 0  # nothing is left running when the measurement is over


def refreshed(clock: Clock, every_ns: int, watts: int) -> Callable[[], int]:
    """A counter in mJ that only moves every so often."""
    return lambda: clock.ns // every_ns * every_ns * watts // MS


def install(monkeypatch: pytest.MonkeyPatch, counter: Callable[[], int] | None, **options: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(energy_mj=counter), **options))


@pytest.mark.parametrize("refresh_ms", [20, 100])
@pytest.mark.parametrize("call_ns", [50_000, 700_000, 30 * MS])
def test_power_and_energy_per_call_come_out_as_they_are(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, queue: list[int], call_ns: int, refresh_ms: int
) -> None:
    install(monkeypatch, refreshed(clock, refresh_ms * MS, watts=400))
    found = energy.measure(lambda: queue.append(call_ns), CUDA, seconds=0)
    assert found is not None
    assert found.meter == "nvml"
    assert 1.0 <= found.window_s < 1.3
    # Each end is late by one look at most: 20 ms, as a batch doubles while it is shorter than half of 10 ms and two are
    # under way, or one call where that is longer, but never by more than a refresh.
    late_s = 2 * min(max(20e-3, call_ns / 1e9), refresh_ms / 1e3)
    assert found.joules / found.window_s == pytest.approx(400, rel=late_s)
    assert found.window_s / found.calls == pytest.approx(call_ns / 1e9, rel=1e-6)


def test_the_gpu_never_runs_dry_and_the_clock_is_looked_at_every_ten_ms(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, queue: list[int]
) -> None:
    reads: list[int] = []

    def counter() -> int:
        reads.append(clock.ns)
        return clock.ns // MS

    install(monkeypatch, counter)
    assert energy.measure(lambda: queue.append(50_000), CUDA, seconds=1) is not None
    assert Event.most > 0  # when the host waits for a batch, another is queued behind it
    assert len(reads) < 260  # and not once for each of the 20,000 calls


def test_the_window_is_as_long_as_asked_and_never_below_a_second(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, queue: list[int]
) -> None:
    install(monkeypatch, refreshed(clock, 50 * MS, watts=100))
    found = energy.measure(lambda: queue.append(MS), CUDA, seconds=3)
    assert found is not None
    assert 3.0 <= found.window_s < 3.2


def test_a_counter_that_is_stuck_is_none(monkeypatch: pytest.MonkeyPatch, clock: Clock, queue: list[int]) -> None:
    install(monkeypatch, lambda: 77)
    assert energy.measure(lambda: queue.append(MS), CUDA, seconds=1) is None
    assert clock.ns < 2_000 * MS


def test_a_long_call_is_waited_for_though_the_counter_stood_still(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, queue: list[int]
) -> None:
    install(monkeypatch, refreshed(clock, 100 * MS, watts=300))
    found = energy.measure(lambda: queue.append(2_500 * MS), CUDA, seconds=0)
    assert found is not None
    assert (found.calls, found.window_s, found.joules) == (1, 2.5, 750.0)


def test_an_interrupted_measurement_is_none(monkeypatch: pytest.MonkeyPatch, clock: Clock, queue: list[int]) -> None:
    install(monkeypatch, refreshed(clock, 20 * MS, watts=300))
    assert energy.measure(lambda: queue.append(MS), CUDA, 600, interrupted=lambda: clock.ns > 300 * MS) is None
    assert clock.ns < 400 * MS


def test_an_error_of_the_call_comes_out(monkeypatch: pytest.MonkeyPatch, clock: Clock, queue: list[int]) -> None:
    install(monkeypatch, refreshed(clock, 20 * MS, watts=300))

    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        energy.measure(fails, CUDA, 1)


def test_without_a_counter_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, lambda: 1)
    assert energy.unavailable(CUDA) is None
    install(monkeypatch, lambda: 1, broken={"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED})
    assert energy.measure(lambda: None, CUDA, 1) is None
    assert energy.unavailable(CUDA) == "energy: 'cuda:0' has no counter of its own (a MIG slice, or older than Volta)"
    install(monkeypatch, None, broken={"nvmlInit": LIBRARY_NOT_FOUND})
    assert energy.measure(lambda: None, CUDA, 1) is None
    assert (
        energy.unavailable(CUDA) == "energy: NVML says nothing (nvml shared library not found); see: fusionbench doctor"
    )
    assert energy.unavailable(CPU, tmp_path) == (
        f"energy: no RAPL counter that may be read in {tmp_path}; root can make energy_uj there readable, if there is one"
    )


def test_a_lost_gpu_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(lost=True)))
    assert "is lost" in (energy.unavailable(CUDA) or "")


def zone(root: Path, name: str, label: str, microjoules: int, full: int = 10**12) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, text in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", full)):
        (folder / file).write_text(f"{text}\n")
    return folder


def test_rapl_sums_packages_and_leaves_out_what_is_inside_them_or_around(tmp_path: Path) -> None:
    zones = [
        zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000),
        zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000),
        zone(tmp_path, "intel-rapl:2", "psys", 1_000_000),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000),
    ]
    joules = energy._rapl(tmp_path)
    assert joules is not None
    assert joules() == 0
    for folder in zones:
        counter = folder / "energy_uj"
        counter.write_text(str(int(counter.read_text()) + 2_000_000))
    assert joules() == 4.0


def test_rapl_counters_start_again_at_their_range(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, full=10_000_000) / "energy_uj"
    joules = energy._rapl(tmp_path)
    assert joules is not None
    for microjoules, total in ((500_000, 1.5), (9_500_000, 10.5), (0, 11.0)):
        counter.write_text(str(microjoules))
        assert joules() == total


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy._rapl(tmp_path / "missing") is None
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj"
    joules = energy._rapl(tmp_path)
    assert joules is not None
    counter.unlink()  # tests run as root, who may read everything
    counter.mkdir()
    assert joules() is None
    assert energy._rapl(tmp_path) is None


def test_energy_of_the_cpu_is_that_of_its_packages(tmp_path: Path, clock: Clock) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj"

    def call() -> None:
        clock.work(10 * MS)
        counter.write_text(str(clock.busy_ns // 1000 * 65))  # 65 W

    found = energy.measure(call, CPU, 0, root=tmp_path)
    assert found is not None
    assert found.meter == "rapl"
    assert found.joules / found.window_s == pytest.approx(65, rel=1e-9)  # this counter is always up to date
    assert found.window_s / found.calls == pytest.approx(1e-2, rel=1e-9)
    assert energy.unavailable(CPU, tmp_path) is None


def test_this_machine_answers_or_says_why_not() -> None:
    """On the real /sys: one of the two, and no error."""
    with energy._meter(CPU, energy.POWERCAP) as meter:
        assert (meter is None) == (energy.unavailable(CPU) is not None)
