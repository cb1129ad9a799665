"""Two calls timed against each other: their ratio, from interleaved rounds, with its interval."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

from ..collector import paused
from ..ledger import Figure
from ..stats import median, median_interval

Call = Callable[[], object]

# The interval of the median of 15 leaves out three rounds at either end, that of 7 none.
MOST_ROUNDS, LEAST_ROUNDS = 15, 7
# A difference below 3 % is left to the layout of memory: it is no speed-up, however narrow the interval.
MATTERS = 0.97
MIN_VISIT_NS = 200_000  # as in meters.time: reading the clock is then below 0.1 % of it


@dataclass(frozen=True)
class Ratio:
    """The time of one call over that of another: the median of the rounds and its 95 % interval."""

    middle: float
    low: float
    high: float
    head_ms: float
    base_ms: float

    @property
    def faster(self) -> bool:
        """The first call is clearly the faster one, and by enough to matter."""
        return self.high < MATTERS

    @property
    def slower(self) -> bool:
        """The same the other way round."""
        return self.low > 1 / MATTERS

    def figure(self, what: str) -> Figure:
        return Figure(what=what, value=self.middle, unit="×", low=self.low, high=self.high)


def compare(head: Call, base: Call, seconds: float) -> Ratio:
    """Time ``head`` over ``base`` within about ``seconds``; seven rounds are made however long they take.

    A round visits base, head, head, base, so that a machine that drifts slows both down alike, and gives one ratio. The
    collector is off. The interval is that of rounds in one process; other processes may differ by more.
    """
    once = [_warm(base), _warm(head)]
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds * 1e9 / (2 * sum(once)))))
    visit_ns = max(MIN_VISIT_NS, seconds * 1e9 / (4 * rounds))
    loops = [max(1, round(visit_ns / ns)) for ns in once]
    found: list[tuple[float, float]] = []
    gc.collect()
    with paused():
        for _ in range(rounds):
            order = ((base, loops[0]), (head, loops[1]), (head, loops[1]), (base, loops[0]))
            b1, h1, h2, b2 = (_elapsed(call, n) / n for call, n in order)
            found.append((h1 + h2, b1 + b2))
    middle, low, high = median_interval([h / b for h, b in found], rounds=(1,) * rounds)
    head_ms, base_ms = (median(sorted(column)) / 2e6 for column in zip(*found, strict=True))
    return Ratio(middle, low, high, head_ms, base_ms)


def _warm(call: Call) -> int:
    """Nanoseconds of the fastest of three calls."""
    return max(1, min(_elapsed(call, 1) for _ in range(3)))


def _elapsed(call: Call, loops: int) -> int:
    start = perf_counter_ns()
    for _ in itertools.repeat(None, loops):
        call()
    return perf_counter_ns() - start
