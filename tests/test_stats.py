"""The interval of the median: distribution-free, and covering as often as it says."""

from __future__ import annotations

import random

import pytest
from scipy import stats as reference

from fusionbench.stats import half_width, interval_ranks, median_interval


def test_fewer_than_six_values_have_no_interval() -> None:
    assert [interval_ranks(n) for n in range(1, 6)] == [None] * 5
    assert interval_ranks(6) == (0, 5)


@pytest.mark.parametrize("n", [6, 10, 37, 100, 999, 1000, 5000])
def test_the_ranks_are_those_of_the_binomial_distribution(n: int) -> None:
    low, high = interval_ranks(n) or (0, 0)
    assert high == n - 1 - low
    assert 2 * reference.binom.cdf(low, n, 0.5) <= 0.05
    assert 2 * reference.binom.cdf(low + 1, n, 0.5) > 0.05


def test_the_interval_covers_the_true_median_at_least_95_times_in_100() -> None:
    rng = random.Random(1)
    hits = 0
    for _ in range(2000):
        _, low, high = median_interval([rng.lognormvariate(0, 1) for _ in range(31)])
        hits += low <= 1.0 <= high
    assert hits / 2000 > 0.94  # 95 % less three standard errors would be 93.5 %


def test_the_middle_of_an_even_number_is_the_mean_of_two() -> None:
    assert median_interval([4, 1, 3, 2])[0] == 2.5
    assert half_width([10.0] * 10) == 0.0
