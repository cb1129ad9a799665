"""The interval of the median: distribution-free, and covering as often as it says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import pytest
from scipy import stats as reference

from fusionbench.stats import (
    block_medians,
    block_sizes,
    half_width,
    interval_ranks,
    least_samples,
    median_interval,
    percentile,
)  # fmt: skip


def test_fewer_than_six_values_have_no_interval() -> None:
    assert [interval_ranks(n) for n in range(1, 6)] == [None] * 5
    assert interval_ranks(6) == (0, 5)


@pytest.mark.parametrize("n", [6, 10, 37, 100, 999, 1000, 5000])
def test_the_ranks_are_those_of_the_binomial_distribution(n: int) -> None:
    low, high = interval_ranks(n) or (0, 0)
    assert high == n - 1 - low
    assert 2 * reference.binom.cdf(low, n, 0.5) <= 0.05
    assert 2 * reference.binom.cdf(low + 1, n, 0.5) > 0.05


def test_the_middle_of_an_even_number_is_the_mean_of_two() -> None:
    assert median_interval([4, 1, 3, 2])[0] == 2.5
    assert half_width([10.0] * 10) == 0.0
    assert half_width([0.0] * 10) == math.inf


@pytest.mark.parametrize(
    ("samples", "rounds", "sizes"),
    [
        (60, (10,) * 6, (10,) * 6),
        (9, (1,) * 9, (1,) * 9),
        (41, (), (7, 7, 7, 7, 7, 6)),
        (41, (41,), (7, 7, 7, 7, 7, 6)),
        (7, (), (2, 1, 1, 1, 1, 1)),
        (4, (), (1, 1, 1, 1)),
        (21, (10, 11), (4, 3, 3, 4, 4, 3)),
        (12, (1, 11), (1, 4, 4, 3)),
        (50, (10,) * 5, (5,) * 10),
    ],
)
def test_a_round_is_a_block_and_few_rounds_are_cut_into_six_or_more(
    samples: int, rounds: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    assert block_sizes(samples, rounds) == sizes


def test_rounds_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds of 5 samples in all do not fit 6 samples"):
        median_interval([1.0] * 6, (2, 3))


def test_the_interval_is_that_of_the_medians_of_the_rounds() -> None:
    rounds = [[10.0, 10.2, 90.0], [11.0, 11.0, 11.0], [12.0] * 3, [13.0] * 3, [14.0] * 3, [9.0, 15.0, 15.0]]
    samples = [value for each in rounds for value in each]
    assert block_medians(samples, (3,) * 6) == [10.2, 11.0, 12.0, 13.0, 14.0, 15.0]
    assert median_interval(samples, (3,) * 6) == (12.5, 10.2, 15.0)


def test_the_interval_holds_the_median_of_all_samples_where_that_of_the_blocks_does_not() -> None:
    samples = [1.0] * 6 + [5.0] * 100  # six rounds of one sample, and one of a hundred
    assert median_interval(samples, (1,) * 6 + (100,)) == (5.0, 1.0, 5.0)
    assert median_interval(samples, (1,) * 12 + (94,)) == (5.0, 1.0, 5.0)


Noise = Callable[[random.Random, int], Iterator[float]]


def correlated(rho: float) -> Noise:
    """Neighbours that correlate by ``rho``, around a median of 0."""

    def noise(rng: random.Random, n: int) -> Iterator[float]:
        value = rng.gauss(0, 1)
        for _ in range(n):
            yield value
            value = rho * value + math.sqrt(1 - rho * rho) * rng.gauss(0, 1)

    return noise


def bursts(rng: random.Random, n: int) -> Iterator[float]:
    """Stretches that are slower by 4, symmetric about a median of 0: half of the time, in runs of 10."""
    slow = rng.random() < 0.5
    for _ in range(n):
        yield (2 if slow else -2) + rng.gauss(0, 1)
        slow ^= rng.random() < 0.1


def drifting(rng: random.Random, n: int) -> Iterator[float]:
    """Neighbours that correlate by a half, around a level of this process alone that varies as much as they do."""
    level = rng.gauss(0, 1)
    return (level + value for value in correlated(0.5)(rng, n))


def raw_interval(samples: list[float]) -> tuple[float, float, float]:
    """The rule for independent samples: the order statistics of all of them."""
    return median_interval(samples, (1,) * len(samples))


@pytest.mark.parametrize(
    ("noise", "rounds"),
    [
        pytest.param(correlated(0.9), (200,), id="correlated, one process"),
        pytest.param(bursts, (200,), id="bursts, one process"),
        pytest.param(correlated(0.97), (33,) * 6, id="correlated, six rounds"),
        pytest.param(drifting, (33,) * 6, id="levels of processes, six rounds"),
        pytest.param(bursts, (33,) * 6, id="bursts, six rounds"),
    ],
)
def test_blocks_cover_the_median_of_samples_that_resemble_their_neighbours(
    noise: Noise, rounds: tuple[int, ...]
) -> None:
    rng, trials, old, new = random.Random(5), 300, 0, 0
    for _ in range(trials):
        samples = [value for n in rounds for value in noise(rng, n)]
        _, low, high = raw_interval(samples)
        old += low <= 0 <= high
        _, low, high = median_interval(samples, rounds)
        new += low <= 0 <= high
    assert old / trials < 0.8
    assert new / trials >= 0.90


def test_of_independent_samples_the_interval_covers_at_least_95_times_in_100() -> None:
    rng = random.Random(1)
    hits = {"samples": 0, "blocks": 0}
    for _ in range(1000):
        values = [rng.lognormvariate(0, 1) for _ in range(31)]
        for name, rounds in (("samples", (1,) * 31), ("blocks", (31,))):
            _, low, high = median_interval(values, rounds)
            hits[name] += low <= 1.0 <= high
    assert min(hits.values()) / 1000 > 0.93  # 95 % less three standard errors


@pytest.mark.parametrize(("q", "least"), [(0.9, 64), (0.95, 130), (0.99, 662)])
def test_a_percentile_needs_as_many_samples_as_early_stopping_does(q: float, least: int) -> None:
    assert least_samples(q) == least
    # The second largest of so many lies above the quantile with 99 %, that of one fewer does not.
    assert reference.binom.cdf(1, least, 1 - q) <= 0.01 < reference.binom.cdf(1, least - 1, 1 - q)
    assert percentile(range(least - 1), q) is None
    found = percentile([float(value) for value in reversed(range(1, least + 1))], q)
    assert found == math.ceil(q * least)


def test_a_percentile_is_a_sample_that_the_share_does_not_exceed() -> None:
    rng = random.Random(2)
    values = [rng.random() for _ in range(1000)]
    assert percentile(values, 0.9) == sorted(values)[899]
    assert percentile(values, 0.5) == sorted(values)[499]
