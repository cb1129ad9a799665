"""Does the tool's own timer tell the truth on this CPU, and how small a difference can it tell?"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..meters import time as timer
from ..record import Timing
from ..spec import Budget
from ..stats import median_interval
from .check import Check, graded, ok
from .machine import QUIET, ROOT, read

Call = Callable[[], object]

COST_NS, RESOLUTION_NS = (1_000, 10_000), (1_000, 10_000)  # of a sample of 200 µs, the shortest: 0.5 %, 5 %
DRIFT_PPM = (500.0, 5_000.0)  # time servers slew a clock by 500 ppm at most
PROPORTION = (0.05, 0.20)  # how far 2 × and 4 × the work may be from 2 × and 4 × the time
SLEEP_MS = 3.0
# A/A: what is called a difference though nothing differs. Rounds as in the budget's default.
DETECTABLE = (0.05, 0.25)
PAIRS, ROUNDS = 10, 6
NOISE = "A/A noise"
# (t at 97.5 % + t at 80 %) / √rounds for 5 degrees of freedom: what a paired comparison of 6 rounds finds in 4 of
# 5 cases while it cries wolf in 1 of 20.
POWER = (2.571 + 0.920) / math.sqrt(ROUNDS)


def clock(read_ns: Callable[[], int] = time.perf_counter_ns, reads: int = 20_000, root: Path = ROOT) -> Iterator[Check]:
    """Resolution and cost of reading the clock, whether it ever goes back, and what it is made of."""
    readings = [read_ns() for _ in range(reads)]
    steps = [after - before for before, after in itertools.pairwise(readings)]
    source = read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource").strip()
    named = f" (clock source {source})" if source else ""
    if min(steps) < 0:
        found = f"perf_counter_ns went back by {-min(steps)} ns{named}"
        yield Check(name="clock", status="fail", found=found, remedy="no timing of this machine can be trusted")
        return
    cost, resolution = statistics.median(steps), min((step for step in steps if step), default=0)
    remedy = "a slow clock source costs every sample: let the kernel use the CPU's own"
    yield graded(
        "clock", f"a reading takes {cost:.0f} ns, never goes back{named}", cost, "ns", COST_NS, remedy,
        "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource",
    )  # fmt: skip
    yield graded(
        "resolution", f"{resolution} ns is the smallest step seen", resolution, "ns", RESOLUTION_NS,
        "steps as large as this are in every sample: use longer samples, or another clock source",
    )  # fmt: skip


def drift(window_ns: int, raw_ns: int) -> Check:
    """The clock against the one that no time server corrects, over the same stretch."""
    parts = abs(window_ns / raw_ns - 1) * 1e6
    found = f"{parts:.0f} ppm off the uncorrected clock"
    return graded("drift", found, parts, "ppm", DRIFT_PPM, "a time server is moving the clock: measure when it is done")


def both_clocks() -> tuple[int, int] | None:
    """(perf_counter_ns, the raw clock), read together; None where there is no raw clock."""
    if not hasattr(time, "CLOCK_MONOTONIC_RAW"):
        return None
    return time.perf_counter_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def measured(call: Call, seconds: float, device: torch.device | None = None) -> Timing:
    """The samples of ``call`` that the tool's own timer takes in about ``seconds``."""
    budget = Budget(measure_s=seconds, warmup_s=0.0, min_samples=6, ci=1e-9, rounds=1, timers=("cold",))
    return timer.measure(call, budget, device or torch.device("cpu"), lambda: False)


def per_call(timing: Timing) -> list[float]:
    """Nanoseconds per call of each sample."""
    return [sample / timing.loops for sample in timing.samples_ns]


def sleeping(seconds: float) -> Check:
    """A call that sleeps must not come out shorter than it slept."""
    timing = measured(lambda: time.sleep(SLEEP_MS / 1e3), seconds)
    shortest, middle = min(per_call(timing)) / 1e6, statistics.median(per_call(timing)) / 1e6
    found = f"a sleep of {SLEEP_MS:g} ms is timed as {middle:.2f} ms, at least {shortest:.2f}"
    if shortest < SLEEP_MS:
        return Check(
            name="known time", status="fail", found=found, value=shortest, unit="ms",
            remedy="the timer reports less than passed: no timing of this machine can be trusted",
        )  # fmt: skip
    return ok("known time", found, middle, "ms")


def proportion(seconds: float, work: Callable[[int], Call] | None = None) -> Check:
    """Twice and four times the work must take twice and four times the time."""
    repeated = work or _products
    # In two passes: others may hold the core for the fifth of a second that one stretch takes.
    passes = [{n: min(per_call(measured(repeated(n), seconds / 6))) for n in (1, 2, 4)} for _ in range(2)]
    took = {n: min(each[n] for each in passes) for n in (1, 2, 4)}
    return proportional({times: took[times] / took[1] for times in (2, 4)}, took[1] / 1e3)


def proportional(ratios: dict[int, float], unit_us: float) -> Check:
    """The verdict on {times the work: times the time}."""
    off = max(abs(ratio / times - 1) for times, ratio in ratios.items())
    told = ", ".join(f"{times}× the work {ratio:.2f}×" for times, ratio in ratios.items())
    found = f"{told} the time of {unit_us:.0f} µs"
    remedy = f"clocks change while samples are taken, or others compute: {QUIET}"
    return graded("proportion", found, 100 * off, "%", (100 * PROPORTION[0], 100 * PROPORTION[1]), remedy)


def _products(times: int) -> Call:
    """A call of ``times`` small matrix products, 0.1 ms each on one core."""
    a, b = torch.rand(192, 192), torch.rand(192, 192)
    out = torch.empty(192, 192)

    def call() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return call


@dataclass(frozen=True)
class Pairs:
    """The same call measured as A and as B, in alternation: the log of each pair's ratio, and all timings."""

    logs: tuple[float, ...]
    timings: tuple[Timing, ...]
    call_ns: float


def same_twice(call: Call, seconds: float, device: torch.device | None = None, pairs: int = PAIRS) -> Pairs:
    """Measure ``call`` in ``pairs`` pairs, A first and B first in turn, in about ``seconds``."""
    logs, timings = [], []
    for number in range(pairs):
        first, second = (measured(call, seconds / (2 * pairs), device) for _ in range(2))
        a, b = (first, second) if number % 2 == 0 else (second, first)
        logs.append(math.log(statistics.median(per_call(b)) / statistics.median(per_call(a))))
        timings += [first, second]
    middle = statistics.median(statistics.median(per_call(timing)) for timing in timings)
    return Pairs(tuple(logs), tuple(timings), middle)


def noise(pairs: Pairs) -> Check:
    """The smallest difference that a run could tell here, from pairs that do not differ at all.

    A lower bound: pairs of one process lie closer together than those of two (METHODOLOGY.md, "doctor").
    """
    spread, smallest = statistics.stdev(pairs.logs), detectable(pairs.logs)
    middle, low, high = (math.exp(x) for x in median_interval(pairs.logs))
    told = (
        f"differences below {smallest:.1%} cannot be told here in one run ({len(pairs.logs)} pairs of the same call "
        f"of {pairs.call_ns / 1e6:.2f} ms: median ratio {middle:.3f}, spread {spread:.1%})"
    )
    if not low <= 1 <= high and abs(middle - 1) > 0.01:
        return Check(
            name=NOISE, status="warn", found=f"{told}; A and B are the same and differ", value=100 * smallest, unit="%",
            remedy=f"something changes in step with the order: {QUIET}",
        )  # fmt: skip
    limits = (100 * DETECTABLE[0], 100 * DETECTABLE[1])
    return graded(NOISE, told, 100 * smallest, "%", limits, f"{QUIET}; four times the rounds halve it")


def detectable(logs: Sequence[float]) -> float:
    """The relative difference that 6 paired rounds find in 4 of 5 cases, given the spread of pairs without one."""
    return math.expm1(POWER * statistics.stdev(logs))


def attention() -> Call:
    """Scaled dot product attention of about half a millisecond on one core."""
    q, k, v = (torch.randn(1, 8, 128, 64) for _ in range(3))
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def delays(timings: Sequence[Timing]) -> tuple[list[int], list[int]]:
    """(run delays, samples), in ns, of the timings whose kernel tells."""
    known = [timing for timing in timings if timing.run_delay_ns]
    return [ns for t in known for ns in t.run_delay_ns], [ns for t in known for ns in t.samples_ns]
