"""Where a series of timings takes another level, and by how much: beyond what its own noise explains."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from .compare import TOLERANCE

Floats = npt.NDArray[np.float64]

# With fewer values on a side every change-point rule seen is late or noisy (shared research, harness 2.18 and 3).
MIN_SIDE = 10
# A change must explain more than this times the logarithm of the number of values, in units of the long-run variance.
# Of 1,000 series of nothing but noise 0 to 13 then have one (METHODOLOGY.md, History).
PENALTY = 3.0
# How much one value resembles the next: measured between neighbouring processes of one machine (shared research,
# harness 5.1: 0.5 to 0.86). A series says so itself only when it is long, so this counts as much as PRIOR values do.
PRIOR_CORRELATION, PRIOR, MOST_CORRELATION = 0.6, 120, 0.8
LIMIT = 3.0  # standard deviations from its neighbours' median beyond which a value counts no more
# A step is one difference or two among many; what exceeds so many standard deviations counts no more than that.
STEP_LIMIT, _LIMITED_POWER = 1.5, 0.778  # mean square of a normal variable that is cut there
_TO_SD = 1 / 0.6745  # of the median absolute deviation of a normal distribution
_95 = 1.96
MEDIAN_VARIANCE = math.pi / 2  # of a median, in units of the mean's


class ChangePoint(Struct, frozen=True, kw_only=True, gc=False):
    """``at`` is the first value of a new level; ``ratio`` its median over the one before, with its 95 % interval."""

    at: int
    ratio: float
    low: float
    high: float


def installed() -> bool:
    """Whether change points can be looked for here."""
    return importlib.util.find_spec("ruptures") is not None


def enough(values: int) -> bool:
    return values >= 2 * MIN_SIDE


def find(values: Sequence[float]) -> list[ChangePoint]:
    """The change points of positive values in their order; none where they are fewer than 2 MIN_SIDE.

    PELT's criterion with quadratic cost on the logarithms, solved exactly (ruptures' KernelCPD; Killick et al. 2012),
    each level at least MIN_SIDE values long. A change within the tolerance of 3 %, or whose interval holds 1, is none.
    Raises ModuleNotFoundError without ruptures.
    """
    if not enough(len(values)):
        return []
    logs = np.log(np.asarray(values, dtype=np.float64))
    tamed = tame(logs)
    deviation = long_run_deviation(tamed)
    if not deviation:  # the tolerance decides alone where there is no noise
        deviation = math.log1p(TOLERANCE) / 100
    return _told(logs, _settled(tamed, _levels(tamed / deviation)), deviation)


def _levels(scaled: Floats) -> list[int]:
    """Where each level but the first begins."""
    import ruptures  # imports scipy: 0.5 s

    search = ruptures.KernelCPD(kernel="linear", min_size=MIN_SIDE).fit(scaled.reshape(-1, 1))
    return [int(end) for end in search.predict(pen=PENALTY * math.log(len(scaled)))[:-1]]


def _settled(logs: Floats, starts: list[int]) -> list[int]:
    """``starts`` without those that are no level's yet: where two levels part best, one of them is too short.

    A step five runs ago would else be told ten runs ago, at the cost of another commit.
    """
    for a, b, c in _sides(starts, len(logs)):
        best = a + _parting(logs[a:c])
        if min(best - a, c - best) < MIN_SIDE:
            return _settled(logs, [start for start in starts if start != b])
    return starts


def _parting(logs: Floats) -> int:
    """Where two means, of at least two values each, explain most."""
    sums = np.cumsum(logs - logs.mean())[:-1]
    left = np.arange(1, len(logs))
    explained = sums**2 / (left * (len(logs) - left))
    return int(np.argmax(explained[1:-1])) + 2


def _told(logs: Floats, starts: list[int], deviation: float) -> list[ChangePoint]:
    """The changes that are large and sure enough; levels on both sides of one that is not are taken together."""
    while True:
        found = [_sized(logs[a:b], logs[b:c], b, deviation) for a, b, c in _sides(starts, len(logs))]
        doubtful = [each for each in found if not _counts(each)]
        if not doubtful:
            return found
        least = min(doubtful, key=lambda each: abs(math.log(each.ratio)))
        starts = [start for start in starts if start != least.at]


def _sides(starts: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    """For each change: where the level before it begins, where it is, and where the level after it ends."""
    ends = [0, *starts, length]
    return [(a, b, c) for (a, b), (_, c) in zip(pairwise(ends), pairwise(ends[1:]), strict=False)]


def _counts(change: ChangePoint) -> bool:
    return abs(change.ratio - 1) > TOLERANCE and not change.low <= 1 <= change.high


def _sized(before: Floats, after: Floats, at: int, deviation: float) -> ChangePoint:
    step = float(np.median(after) - np.median(before))
    half = _95 * deviation * math.sqrt(MEDIAN_VARIANCE * (1 / len(before) + 1 / len(after)))
    return ChangePoint(at=at, ratio=math.exp(step), low=math.exp(step - half), high=math.exp(step + half))


def tame(logs: Floats) -> Floats:
    """``logs`` with every value at most LIMIT standard deviations from the median of the five around it.

    One disturbed run is no new level; a level is there five runs later, too.
    """
    padded = np.concatenate([logs[2:0:-1], logs, logs[-2:-4:-1]])
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    room = LIMIT * _TO_SD * float(np.median(np.abs(logs - around)))
    return np.clip(logs, around - room, around + room)


def long_run_deviation(logs: Floats) -> float:
    """The standard deviation of a mean of ``n`` such values, times √n: with their correlation, without their steps.

    From the differences of neighbours, in which a step is one value of many.
    """
    steps = np.diff(logs)
    room = STEP_LIMIT * _TO_SD * float(np.median(np.abs(steps)))
    steps = np.clip(steps, -room, room) if room else steps
    power = float(steps @ steps)
    if not power:
        return 0.0
    n = len(logs)
    own = 1 + 2 * float(steps[1:] @ steps[:-1]) / power  # as in x(t) = rho x(t-1) + noise
    rho = min(MOST_CORRELATION, max(0.0, (n * own + PRIOR * PRIOR_CORRELATION) / (n + PRIOR)))
    variance = power / len(steps) / (_LIMITED_POWER if room else 1)
    return math.sqrt(variance * (1 + rho) / (2 * (1 - rho) ** 2))
