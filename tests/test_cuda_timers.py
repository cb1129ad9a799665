"""The CUDA timers against a device that is made up: what is inside a timing, what is not, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fusionbench.meters import control, cuda_time, time
from fusionbench.meters.sampler import TimerError
from fusionbench.record import TIMED_AS, Timing
from fusionbench.spec import Budget, Timer

CUDA = torch.device("cuda")
BUDGET = Budget(measure_s=60, warmup_s=0.0, min_samples=6, max_samples=6, ci=1e-9)


@dataclass
class Device:
    """A device whose every call takes ``us`` microseconds by its events, and the log of what it was asked to do."""

    us: float = 100.0
    log: list[str] = field(default_factory=list)

    def call(self) -> None:
        self.log.append("call")

    def replay(self) -> None:
        self.log.append("replay")

    def measure(self, timer: Timer, budget: Budget = BUDGET, **other: Any) -> Timing:
        return time.measure(self.call, budget, CUDA, lambda: False, timer=timer, **other)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()

    class Event:
        def record(self) -> None:
            made.log.append("event")

        def elapsed_time(self, other: Event) -> float:
            return made.us / 1e3

    cache = SimpleNamespace(zero_=lambda: made.log.append("flush"))
    monkeypatch.setattr(cuda_time, "event_pair", lambda: (Event(), Event()))
    monkeypatch.setattr(cuda_time, "flush_buffer", lambda device: cache)
    monkeypatch.setattr(cuda_time, "_captured", lambda call, device: made.replay)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: made.log.append("wait"))
    return made


def test_cold_flushes_and_waits_before_every_call_so_that_the_gap_to_the_launch_is_timed(device: Device) -> None:
    timing = device.measure("cold")
    assert (timing.timer, timing.cache, timing.loops) == ("cuda_event", "cold", 1)
    assert timing.samples_ns == (100_000,) * 6
    assert (timing.run_delay_ns, timing.stop) == ((), "samples")
    warm_up, once = ["call", "wait"] * 2, ["flush", "wait", "event", "call", "event", "wait"]
    assert device.log == warm_up + once * (cuda_time.PROBES + 6)


def test_hot_is_the_same_without_the_flush(device: Device) -> None:
    timing = device.measure("hot")
    assert (timing.timer, timing.cache) == ("cuda_event", "hot")
    assert device.log[4:] == ["wait", "event", "call", "event", "wait"] * (cuda_time.PROBES + 6)


def test_replays_are_queued_behind_flushes_and_the_host_waits_once(device: Device) -> None:
    timing = device.measure("graph")
    assert (timing.timer, timing.cache) == ("cuda_graph", "cold")
    once = ["flush", "event", "replay", "event"]
    assert device.log[4:] == ["flush", *once * cuda_time.PROBES, "wait", "flush", *once * 6, "wait"]


def test_host_has_no_wait_between_the_two_looks_at_the_clock(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0, 700)

    def clock() -> int:
        device.log.append("clock")
        return next(now)

    monkeypatch.setattr(cuda_time, "perf_counter_ns", clock)
    timing = device.measure("host")
    assert (timing.timer, timing.cache, timing.samples_ns) == ("host", "hot", (700,) * 6)
    assert device.log[4:] == ["wait", "clock", "call", "clock", "wait"] * 6


def test_the_budgets_first_timer_counts_where_none_is_named(device: Device) -> None:
    timing = time.measure(device.call, Budget(max_samples=10, timers=("hot", "cold")), CUDA, lambda: False)
    assert (timing.timer, timing.cache) == TIMED_AS["hot"]


@pytest.mark.parametrize("timer", ["cold", "hot", "graph"])
def test_calls_shorter_than_the_resolution_allows_are_added_up(device: Device, timer: Timer) -> None:
    device.us = 4.0
    timing = device.measure(timer)
    assert timing.loops == 13  # 50 µs, 100 times what events resolve
    assert timing.samples_ns == (52_000,) * 6
    flushes = (13 * 6 + cuda_time.PROBES) * (timer != "hot") + 2 * (timer == "graph")
    assert device.log.count("flush") == flushes  # each of them finds the cache as a single one would


def test_later_rounds_keep_the_loops_of_the_first(device: Device) -> None:
    timing = device.measure("cold", loops=3)
    assert (timing.loops, timing.samples_ns[0]) == (3, 300_000)
    assert device.log.count("event") == 2 * 3 * 6  # nothing is probed again


@pytest.mark.parametrize("us", [0.3, 0.0, -1.0])
@pytest.mark.parametrize("timer", ["cold", "hot", "graph"])
def test_what_events_cannot_resolve_is_said_and_not_recorded(device: Device, timer: Timer, us: float) -> None:
    device.us = us
    with pytest.raises(TimerError, match=r"^below resolution: a call takes .* ns, CUDA events resolve 500"):
        device.measure(timer)
    if us <= 0:
        with pytest.raises(TimerError, match=r"^below resolution: a sample of"):
            device.measure(timer, loops=1)


class Thermometer:
    """Says of each block in turn whether the device throttled; of those after the last that it did not."""

    def __init__(self, *answers: bool) -> None:
        self.answers, self.log = iter(answers), list[str]()

    def restart(self) -> None:
        self.log.append("restart")

    def throttled(self) -> bool:
        self.log.append("asked")
        return next(self.answers, False)

    def keep(self) -> None:
        self.log.append("kept")


def test_throttled_samples_are_taken_again_and_after_five_blocks_kept(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    budget = Budget(measure_s=60, warmup_s=0.0, min_samples=30, max_samples=30, ci=1e-9)
    once, always = Thermometer(True), Thermometer(*[True] * 100)
    timing = device.measure("hot", budget, monitor=once)
    assert (len(timing.samples_ns), timing.discarded, pauses) == (30, 10, [0.05])
    assert once.log == ["restart", "asked", "restart", "asked", "asked", "asked"]
    pauses.clear()
    timing = device.measure("hot", budget, monitor=always)
    assert (len(timing.samples_ns), timing.discarded) == (30, 50)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5]
    assert always.log[-6:] == ["asked", "kept"] * 3


def test_a_throttled_block_does_not_use_up_the_budget(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "PAUSE_S", 0.02)
    monkeypatch.setattr(Device, "call", lambda device: setattr(device, "us", 100 + device.us % 7))  # never precise
    clock = itertools.count(0, 1_000_000)  # every look at it is a millisecond later
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(clock))
    budget = Budget(measure_s=0.03, warmup_s=0.0, min_samples=6, max_samples=1000, ci=1e-9)
    calm, hot = (device.measure("hot", budget, monitor=Thermometer(*answers)) for answers in ((), (True, True)))
    assert (calm.stop, hot.stop, hot.discarded) == ("budget", "budget", 20)
    assert abs(len(hot.samples_ns) - len(calm.samples_ns)) <= 3


def test_what_an_interruption_leaves_is_kept_throttled_or_not(device: Device) -> None:
    asked = iter([False, False, True])
    monitor = Thermometer(True)
    timing = time.measure(device.call, BUDGET, CUDA, lambda: next(asked), timer="hot", monitor=monitor)
    assert (timing.stop, len(timing.samples_ns), timing.discarded) == ("interrupted", 3, 0)
    assert monitor.log == ["restart", "asked", "kept"]


def test_after_its_inputs_have_changed_a_graph_replays_once_untimed(device: Device) -> None:
    budget = Budget(measure_s=60, warmup_s=0.0, min_samples=20, max_samples=20, ci=1e-9)
    device.measure("graph", budget, turn=lambda: device.log.append("turn"))
    turned = device.log.index("turn")
    assert device.log[turned - 1 : turned + 4] == ["wait", "turn", "replay", "wait", "flush"]
    assert device.log.count("turn") == 1  # between the two blocks, not after the last


# --- by turns -------------------------------------------------------------------------------------------------------


class Referee:
    """Gives so many turns, and notes what each has brought."""

    slice_s, root = 0.002, 1

    def __init__(self, turns: int) -> None:
        self.left, self.brought = turns, list[tuple[int, bool]]()

    def next(self, taken: list[tuple[int, int | None]], loops: int, throttled: bool) -> bool:
        self.brought.append((len(taken), throttled))
        self.left -= 1
        return self.left >= 0


@pytest.fixture
def clock(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes with the calls: each takes as long by the host's clock as by the device's."""
    monkeypatch.setattr(
        time,
        "perf_counter_ns",
        lambda: round((device.log.count("call") + device.log.count("replay")) * device.us * 1e3),
    )


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("us", "samples"), [(100.0, 21), (700.0, 3), (5000.0, 1)])
def test_a_turn_is_no_longer_than_it_should_be_though_replays_are_queued(
    device: Device, us: float, samples: int
) -> None:
    device.us = us
    referee = Referee(3)
    timing = device.measure("graph", turns=referee)
    assert [taken for taken, _ in referee.brought[:2]] == [0, samples]
    assert sum(taken for taken, _ in referee.brought) == len(timing.samples_ns)
    assert max(taken for taken, _ in referee.brought) * us <= 2 * referee.slice_s * 1e6 or samples == 1


@pytest.mark.usefixtures("clock")
def test_every_turn_begins_with_a_look_a_new_input_and_an_untimed_call(device: Device) -> None:
    referee, monitor = Referee(2), Thermometer(False, True)
    device.measure("cold", monitor=monitor, turns=referee, turn=lambda: device.log.append("turn"))
    assert device.log.count("turn") == 2
    turned = device.log.index("turn")
    assert device.log[turned : turned + 5] == ["turn", "call", "wait", "flush", "wait"]
    assert monitor.log == ["restart", "asked", "kept"] * 2
    assert [throttled for _, throttled in referee.brought] == [False, False, True]


# --- the profiler ---------------------------------------------------------------------------------------------------


def event(name: str, start: float, end: float, where: str = "CUDA", annotation: bool = False) -> Any:
    span, kind = SimpleNamespace(start=start, end=end), SimpleNamespace(name=where)
    return SimpleNamespace(name=name, time_range=span, device_type=kind, is_user_annotation=annotation)


def calls(*starts: float) -> list[Any]:
    """Calls of 100 µs: the range on the host, its shadow on the device, a copy and two kernels of 1, 20 and 30 µs."""
    return [
        made
        for t in starts
        for made in (
            event(cuda_time.RANGE, t, t + 100, "CPU", annotation=True),
            event(cuda_time.RANGE, t + 5, t + 90, annotation=True),
            event("Optimizer.step#SGD.step", t + 5, t + 90, annotation=True),
            event("aten::mm", t + 1, t + 9, "CPU"),
            event("Memcpy DtoD", t + 5, t + 6),
            event("gemm", t + 10, t + 30),
            event("backward, launched by another thread", t + 40, t + 70),
        )
    ]


def test_a_call_takes_as_long_as_its_kernels_copies_and_fills_together() -> None:
    assert cuda_time.kernel_times(calls(0.0, 200.0, 400.0), 3) == [51_000.0] * 3


def test_kernels_find_their_call_though_the_clocks_differ_by_less_than_half_the_gap() -> None:
    events = calls(0.0, 150.0)
    early = event("before the call by the clock of the host", 150.0 - 20, 150.0 - 10)
    assert cuda_time.kernel_times([*events, early], 2) == [51_000.0, 61_000.0]


def test_a_profiler_without_kernels_or_with_some_lost_is_an_error() -> None:
    host = [e for e in calls(0.0, 200.0) if e.device_type.name == "CPU"]
    with pytest.raises(TimerError, match="saw no kernels"):
        cuda_time.kernel_times(host, 2)
    with pytest.raises(TimerError, match="saw no kernels"):
        cuda_time.kernel_times([], 2)
    with pytest.raises(TimerError, match="kernels of 1 calls of 2"):
        cuda_time.kernel_times([*host, event("gemm", 210.0, 220.0)], 2)


def test_the_kernel_timer_profiles_ten_calls_at_a_time(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def profiled(call: Callable[[], object], where: torch.device, n: int) -> list[float]:
        asked.append(n)
        return [51_000.0] * n

    monkeypatch.setattr(cuda_time, "_profiled", profiled)
    budget = Budget(measure_s=60, warmup_s=0.0, min_samples=6, max_samples=25, ci=1e-9)
    timing = device.measure("kernel", budget)
    assert (timing.timer, timing.cache, timing.loops) == ("kernel", "hot", 1)
    assert timing.samples_ns == (51_000,) * 25
    assert asked == [1, 10, 10, 5]


def test_the_installed_profiler_has_the_fields_that_are_read() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as session:
        for _ in range(2):
            with record_function(cuda_time.RANGE):
                torch.ones(3) + 1
    ranges = [e for e in session.events() or [] if e.name == cuda_time.RANGE]
    assert [(e.device_type.name, e.is_user_annotation) for e in ranges] == [("CPU", True)] * 2
    assert ranges[0].time_range.end <= ranges[1].time_range.start
    with pytest.raises(TimerError, match="saw no kernels"):
        cuda_time.kernel_times(session.events() or [], 2)


def test_the_control_on_cuda_is_between_two_events(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "event_pair", cuda_time.event_pair)
    assert control._device_ns(device.call, CUDA) == 100_000
    assert device.log == ["wait", "event", "call", "event", "wait"]
