"""Rounds of two sides that sampled by turns: by how much they differ, whether that is chance, and what would show.

A round is two fresh processes and counts once, however many samples it has: those of one process resemble each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from .stats import median

# What the Hodges-Lehmann estimate loses on the mean where noise is normal: (pi/3)^0.5.
_LOSS = 1.023327
MOST_ROUNDS = 1000  # nobody waits for more
_Z95, _Z80 = 1.959964, 0.841621  # normal quantiles: two-sided 95 %, and found 80 times in 100


class Estimate(Struct, frozen=True, kw_only=True, gc=False):
    """Head over base with its exact 95 % interval; ``p`` is how often chance alone slows all rounds as much.

    ``detectable`` is the relative change that as many rounds as noisy as these show 80 times in 100.
    """

    ratio: float
    low: float
    high: float
    p: float
    detectable: float
    rounds: int


def effect(turns: Sequence[tuple[float, float]]) -> float:
    """The effect of one round: the median over neighbouring turns of log(head / base)."""
    return median(sorted(math.log(head / base) for base, head in turns))


def standard_error(turns: Sequence[tuple[float, float]]) -> float:
    """Of the effect of a round: from the median absolute deviation of its turns, as if these were normal."""
    middle = effect(turns)
    spread = median(sorted(abs(math.log(head / base) - middle) for base, head in turns))
    return 1.2533 * 1.4826 * spread / math.sqrt(len(turns))


def estimate(effects: Sequence[float]) -> Estimate:
    """What the effects of all rounds say together: the Hodges-Lehmann estimate and Wilcoxon's signed-rank test.

    Both take nothing for granted but that chance is symmetrical, and bear with a third of wild rounds (Hollander,
    Wolfe and Chicken, Nonparametric Statistical Methods, 3.1 to 3.3). Raises ValueError for no rounds at all.
    """
    n = len(effects)
    if not n:
        raise ValueError("no round to judge; measure at least one")
    averages = sorted((one + other) / 2 for i, one in enumerate(effects) for other in effects[i:])
    cut = _interval_rank(n)
    return Estimate(
        ratio=math.exp(median(averages)),
        low=math.exp(averages[cut]),
        high=math.exp(averages[-1 - cut]),
        p=signed_rank_p(effects),
        detectable=math.expm1(min(_detectable(_deviation(effects), n), 700.0)) if n > 1 else math.inf,
        rounds=n,
    )


def signed_rank_p(effects: Sequence[float]) -> float:
    """How often effects of no sign of their own have a signed-rank sum as large as these (one-sided, exact)."""
    sizes = sorted(range(len(effects)), key=lambda i: abs(effects[i]))
    total = sum(rank for rank, i in enumerate(sizes, 1) if effects[i] > 0)
    counts = _signed_rank_counts(len(effects))
    return sum(counts[total:]) / float(2 ** len(effects))


def rejected(p_values: Mapping[str, float], rate: float = 0.05) -> set[str]:
    """The names whose p is small enough that at most ``rate`` of those named are chance (Benjamini and Hochberg)."""
    ordered = sorted(p_values, key=p_values.__getitem__)
    passed = [place for place, name in enumerate(ordered, 1) if p_values[name] <= rate * place / len(ordered)]
    return set(ordered[: max(passed, default=0)])


def rounds_for(change: float, effects: Sequence[float]) -> int:
    """How many rounds as noisy as these show a relative ``change`` 80 times in 100; at most MOST_ROUNDS."""
    deviation, n = _deviation(effects), 2
    while n < MOST_ROUNDS and _detectable(deviation, n) > math.log1p(change):
        n += 1
    return n


def _detectable(deviation: float, n: int) -> float:
    """The effect that n rounds of this standard deviation show 80 times in 100."""
    return (_student(_Z95, n - 1) + _student(_Z80, n - 1)) * _LOSS * deviation / math.sqrt(n)


def _student(z: float, freedom: int) -> float:
    """The quantile of Student's t where the normal one is z (Abramowitz and Stegun 26.7.5; within 1 % from 5 on)."""
    square = z * z
    first = z * (square + 1) / 4
    second = z * (5 * square * square + 16 * square + 3) / 96
    return z + first / freedom + second / freedom**2


def _deviation(effects: Sequence[float]) -> float:
    mean = math.fsum(effects) / len(effects)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in effects) / max(len(effects) - 1, 1))


@functools.cache
def _signed_rank_counts(n: int) -> tuple[int, ...]:
    """In how many of the 2^n ways of giving signs to the ranks 1 to n the positive ones have each sum."""
    counts = [1]
    for rank in range(1, n + 1):
        longer = counts + [0] * rank
        for total, ways in enumerate(counts):
            longer[total + rank] += ways
        counts = longer
    return tuple(counts)


@functools.cache
def _interval_rank(n: int, confidence: float = 0.95) -> int:
    """The 0-based rank among the pairwise averages that bounds the interval; 0, the extremes, below 6 rounds."""
    tail, rank = 0.0, 0
    for ways in _signed_rank_counts(n):
        tail += ways / float(2**n)
        if tail > (1 - confidence) / 2:
            break
        rank += 1
    return max(rank - 1, 0)
