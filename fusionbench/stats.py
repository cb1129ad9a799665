"""The statistics of one sample: its median, and the interval that holds the true median 95 times in 100."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence


@functools.cache
def interval_ranks(n: int, confidence: float = 0.95) -> tuple[int, int] | None:
    """The 0-based ranks of the order statistics that bound the median of ``n`` values, or None when n is too small.

    Distribution-free: P(X_(j) < median < X_(n-j+1)) = 1 - 2·P(Bin(n, ½) < j), so the interval needs
    n ≥ 6 at 95 % (David & Nagaraja, Order Statistics, 7.1).
    """
    tail, limit, rank = 0.0, (1 - confidence) / 2, 0
    while rank <= n // 2:
        tail += math.comb(n, rank) * 0.5**n if n < 1000 else math.exp(_log_binomial(n, rank))
        if tail > limit:
            break
        rank += 1
    return (rank - 1, n - rank) if rank > 0 else None


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)


def median(ordered: Sequence[float]) -> float:
    """The median of values that are already sorted."""
    n = len(ordered)
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high) at 95 %; low and high are the extremes when there are fewer than 6 values."""
    ordered = sorted(values)
    ranks = interval_ranks(len(ordered)) or (0, len(ordered) - 1)
    return median(ordered), ordered[ranks[0]], ordered[ranks[1]]


def half_width(values: Sequence[float]) -> float:
    """Half the width of the median's interval, relative to the median."""
    middle, low, high = median_interval(values)
    return (high - low) / (2 * middle) if middle > 0 else math.inf
