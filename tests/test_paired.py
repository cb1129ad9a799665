"""The statistics of rounds against scipy, and against what they promise on noise of a known kind."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fusionbench.paired import effect, estimate, rejected, rounds_for, signed_rank_p, standard_error

EFFECTS = st.lists(st.floats(-0.5, 0.5).filter(lambda x: abs(x) > 1e-6), min_size=1, max_size=14, unique_by=abs)


def noise(n: int, deviation: float, shift: float = 0.0, seed: object = 0) -> list[float]:
    draw = random.Random(f"{seed}")
    return [draw.gauss(shift, deviation) for _ in range(n)]


@given(EFFECTS)
def test_p_is_that_of_the_exact_signed_rank_test(effects: list[float]) -> None:
    expected = stats.wilcoxon(effects, alternative="greater", method="exact").pvalue
    assert signed_rank_p(effects) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=40))
def test_what_is_rejected_is_what_the_false_discovery_rate_allows(p_values: list[float]) -> None:
    named = {str(number): p for number, p in enumerate(p_values)}
    adjusted = stats.false_discovery_control(p_values)
    certain = {str(number) for number, p in enumerate(adjusted) if p < 0.05 - 1e-9}
    possible = {str(number) for number, p in enumerate(adjusted) if p < 0.05 + 1e-9}
    assert certain <= rejected(named) <= possible


@given(EFFECTS)
def test_the_interval_holds_the_estimate_and_turns_with_the_sides(effects: list[float]) -> None:
    one, other = estimate(effects), estimate([-x for x in effects])
    assert one.low <= one.ratio <= one.high
    assert (other.low, other.ratio, other.high) == pytest.approx((1 / one.high, 1 / one.ratio, 1 / one.low))


@pytest.mark.parametrize("n", [6, 7, 11, 15])
def test_the_interval_holds_the_truth_95_times_in_100(n: int) -> None:
    held = sum(
        found.low <= 1.1 <= found.high
        for found in (estimate(noise(n, 0.04, math.log(1.1), seed)) for seed in range(1000))
    )
    assert held / 1000 > 0.93  # 0.95 less three standard deviations of 1,000 trials


def test_one_wild_round_of_seven_does_not_move_the_estimate_far() -> None:
    steady = [0.05, 0.048, 0.052, 0.049, 0.051, 0.05]
    assert estimate([*steady, 2.0]).ratio == pytest.approx(math.exp(0.05), rel=0.005)


@pytest.mark.parametrize("n", [7, 15])
def test_what_is_detectable_is_found_80_times_in_100(n: int) -> None:
    deviation = 0.03
    detectable = [estimate(noise(n, deviation, 0.0, f"null {seed}")).detectable for seed in range(300)]
    shift = math.log1p(sorted(detectable)[150])
    found = sum(estimate(noise(n, deviation, shift, seed)).low > 1 for seed in range(500)) / 500
    assert 0.70 < found < 0.90


def test_rounds_for_says_how_many_rounds_make_a_change_detectable() -> None:
    effects = noise(7, 0.04)
    needed = rounds_for(0.03, effects)
    assert needed > 7
    wider = [x * 2 for x in effects]
    assert rounds_for(0.03, wider) == pytest.approx(4 * needed, rel=0.15)
    assert rounds_for(0.5, noise(7, 0.01)) <= 3


@pytest.mark.parametrize(
    ("turns", "expected"),
    [([(100.0, 110.0)], 1.1), ([(100, 110), (200, 220), (100, 500)], 1.1), ([(100, 90), (50, 45)], 0.9)],
)
def test_the_effect_of_a_round_is_that_of_neighbouring_turns(
    turns: Sequence[tuple[float, float]], expected: float
) -> None:
    assert math.exp(effect(turns)) == pytest.approx(expected)


def test_a_machine_that_slows_down_during_a_round_has_no_effect() -> None:
    assert effect([(100 * drift, 100 * drift) for drift in (1, 1.5, 2, 3)]) == 0


@pytest.mark.parametrize("n", [8, 40])
def test_the_standard_error_of_a_round_is_how_far_rounds_lie_apart(n: int) -> None:
    draw = random.Random(0)
    rounds = [[(1.0, math.exp(draw.gauss(0, 0.1))) for _ in range(n)] for _ in range(400)]
    effects = [effect(turns) for turns in rounds]
    apart = math.sqrt(sum(x * x for x in effects) / len(effects))
    errors = sorted(standard_error(turns) for turns in rounds)
    assert errors[200] == pytest.approx(apart, rel=0.2)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="no round to judge; measure at least one"):
        estimate([])


def test_one_round_says_nothing_of_what_it_could_detect() -> None:
    assert estimate([0.1]).detectable == math.inf
