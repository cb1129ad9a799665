"""The statistics of one timing: its median, the interval that holds the true one 95 times in 100, its percentiles."""

from __future__ import annotations

import functools
import itertools
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


# Of so few values the extremes hold the median 97 times in 100; fewer give no 95 %.
BLOCKS = 6


def block_sizes(samples: int, rounds: Sequence[int] = ()) -> tuple[int, ...]:
    """How many samples each block holds, in order: a round is one block, or from 5 rounds down it is cut into several.

    Neighbouring samples resemble each other, so it is blocks of them that are taken for independent, and the longer the
    block the better: six cover 94 % of the time where twelve cover 90 % and single samples 46 % (METHODOLOGY.md).
    Raises ValueError where the rounds do not add up to the samples.
    """
    if rounds and sum(rounds) != samples:
        raise ValueError(f"rounds of {sum(rounds)} samples in all do not fit {samples} samples")
    rounds = tuple(rounds) or (samples,)
    cut = -(-BLOCKS // len(rounds))
    return tuple(size for n in rounds for size in _equal(n, min(n, cut)))


def _equal(total: int, parts: int) -> Sequence[int]:
    """``total`` as a sum of ``parts`` numbers that differ by 1 at most."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def median(ordered: Sequence[float]) -> float:
    """The median of values that are already sorted."""
    n = len(ordered)
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2


def block_medians(samples: Sequence[float], rounds: Sequence[int] = ()) -> list[float]:
    """The median of each block of consecutive samples, in order."""
    ends = itertools.accumulate(sizes := block_sizes(len(samples), rounds))
    return [median(sorted(samples[end - size : end])) for end, size in zip(ends, sizes, strict=True)]


def median_interval(samples: Sequence[float], rounds: Sequence[int] = ()) -> tuple[float, float, float]:
    """(median, low, high) of samples in the order they were taken; ``rounds`` says how many each round took.

    The interval is that of the block medians at 95 %, widened to hold the median of all samples; below 6 samples the
    extremes. Values that are independent of each other are rounds of one sample each.
    """
    middle, medians = median(sorted(samples)), sorted(block_medians(samples, rounds))
    low, high = interval_ranks(len(medians)) or (0, len(medians) - 1)
    return middle, min(middle, medians[low]), max(middle, medians[high])


def half_width(samples: Sequence[float], rounds: Sequence[int] = ()) -> float:
    """Half the width of the median's interval, relative to the median; infinite for a median of 0."""
    middle, low, high = median_interval(samples, rounds)
    return (high - low) / (2 * middle) if middle > 0 else math.inf


@functools.cache
def least_samples(q: float, confidence: float = 0.99) -> int:
    """From how many samples on the second largest lies above the true quantile ``q`` 99 times in 100.

    The rule of MLPerf's early stopping with one sample beyond: the smallest n with P(Bin(n, 1 - q) ≤ 1) ≤ 0.01, which
    is 64 for p90, 130 for p95 and 662 for p99.
    """
    n = 2
    while q**n + n * (1 - q) * q ** (n - 1) > 1 - confidence:
        n += 1
    return n


def quantile_rank(n: int, q: float) -> int | None:
    """The 0-based rank of the quantile among ``n`` sorted samples; None where there are too few for it."""
    return math.ceil(q * n) - 1 if n >= least_samples(q) else None


def percentile(samples: Sequence[float], q: float) -> float | None:
    """The smallest sample that is not below a share ``q`` of them all; None where there are too few (least_samples)."""
    rank = quantile_rank(len(samples), q)
    return None if rank is None else sorted(samples)[rank]
