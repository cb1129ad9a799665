"""Predictions from measurements: right where the terms are, wider where nothing is near, honest about how little is known."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from fusionbench import calibration
from fusionbench.calibration import LEVEL, MOST, Point, fit, pool

LENGTHS = (16, 64, 256, 1024, 4096)


def point(image: float, text: float) -> Point:
    """Overhead, products and bytes of an attention between so many tokens."""
    return Point(
        (math.log2(image), math.log2(text)),
        (1.0, 0.0, 1e-3 * (image + text), 1e-6 * image * text, 1e-4 * (image + text), 0.0),
    )


def truth(image: float, text: float, noise: float = 0.0, seed: int = 0) -> float:
    """A time in ms whose efficiency changes smoothly with the sizes, which no factor tells."""
    base = 0.02 + 3 * 1e-3 * (image + text) + 2 * 1e-6 * image * text
    efficiency = 1 + 0.3 * math.sin(math.log2(image * text) / 5)
    return base * efficiency * math.exp(random.Random(f"{image} {text} {seed}").gauss(0, noise))


GRID = list(itertools.product(LENGTHS, LENGTHS))


def test_a_sum_of_terms_is_found_again_between_the_measured_sizes() -> None:
    found = fit([point(*at) for at in GRID], [0.05 + 2e-3 * sum(at) + 5e-6 * at[0] * at[1] for at in GRID])
    told = found(point(100, 700))
    assert told.value == pytest.approx(0.05 + 2e-3 * 800 + 5e-6 * 70_000, rel=0.01)
    assert told.low < told.value < told.high
    assert told.own == len(GRID)


def test_what_no_term_tells_is_told_by_the_neighbours() -> None:
    found = fit([point(*at) for at in GRID], [truth(*at) for at in GRID])
    for at in ((32, 128), (128, 32), (512, 512), (2048, 300)):
        assert found(point(*at)).value == pytest.approx(truth(*at), rel=0.08)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_the_interval_holds_the_truth_as_often_as_it_says(noise: float) -> None:
    held, draw = 0, random.Random(1)
    for seed in range(10):
        found = fit([point(*at) for at in GRID], [truth(*at, noise, seed) for at in GRID])
        for _ in range(20):
            at = tuple(2 ** draw.uniform(4, 12) for _ in range(2))
            told = found(point(*at))
            held += told.low <= truth(*at, noise, seed + 1000) <= told.high
    # 200 draws of which 90 % should be held: fewer than 80 % would be chance once in 300,000 (binomial).
    assert held / 200 > LEVEL - 0.1


def test_the_interval_widens_away_from_what_was_measured() -> None:
    small = [at for at in GRID if max(at) <= 256]
    found = fit([point(*at) for at in small], [truth(*at, 0.02) for at in small])
    near, far = found(point(100, 100)), found(point(50_000, 50_000))
    assert far.high / far.low > near.high / near.low


def test_few_measurements_make_wide_intervals() -> None:
    few, many = (
        fit([point(*at) for at in some], [truth(*at, 0.02) for at in some])(point(100, 100))
        for some in (GRID[3::6], GRID)
    )
    assert few.high / few.low > many.high / many.low


def test_parts_say_what_the_time_goes_into() -> None:
    found = fit([point(*at) for at in GRID], [0.5 + 1e-6 * at[0] * at[1] for at in GRID])
    launched, large = found.parts(point(16, 16)), found.parts(point(4096, 4096))
    assert launched[0] / sum(launched) > 0.95
    assert large[3] / sum(large) > 0.9


@pytest.mark.parametrize("values", [[1.0] * 4, [1e-6, 1e6, 1.0, 2.0], [5.0, 5.0, 5.0, 500.0]])
def test_odd_measurements_give_a_finite_prediction(values: list[float]) -> None:
    told = fit([point(*at) for at in GRID[:4]], values)(point(100, 100))
    assert 0 < told.low <= told.value <= told.high < math.inf


def test_the_same_job_measured_twice_is_no_problem() -> None:
    found = fit([point(16, 16)] * 4 + [point(64, 64)] * 4, [1.0, 1.01, 0.99, 1.0, 2.0, 2.02, 1.98, 2.0])
    assert found(point(16, 16)).value == pytest.approx(1.0, rel=0.03)


def test_no_more_measurements_are_fitted_than_a_fit_can_take() -> None:
    draw = random.Random(0)
    many = [tuple(2 ** draw.uniform(4, 12) for _ in range(2)) for _ in range(3 * MOST)]
    found = fit([point(*at) for at in many], [truth(*at) for at in many])
    assert found.count == MOST
    assert found(point(100, 100)).value == pytest.approx(truth(100, 100), rel=0.05)


def test_a_candidate_without_measurements_is_told_from_the_others_and_surer_with_some_of_its_own() -> None:
    speeds = (1.0, 1.3, 1.8, 0.7)
    groups = [([point(*at) for at in GRID[::3]], [each * truth(*at) for at in GRID[::3]]) for each in speeds]
    shared = pool(groups)
    at, slow = (100, 100), 2.5
    none = shared([], [], point(*at))
    own = [(64, 64), (256, 256)]
    some = shared([point(*each) for each in own], [slow * truth(*each) for each in own], point(*at))
    assert (none.own, some.own) == (0, 2)
    assert none.low < truth(*at) < none.high
    assert some.high / some.low < none.high / none.low
    assert some.value == pytest.approx(slow * truth(*at), rel=0.25)


def test_one_candidate_alone_is_pooled_with_nobody() -> None:
    told = pool([([point(64, 64)], [1.0])])([point(64, 64)], [1.0], point(64, 64))
    assert told.low < 1.0 < told.high
    assert calibration.LEAST > 1
