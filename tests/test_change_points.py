"""Change points: found where a level begins, not found in noise, outliers, drifts of a machine or too few values."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ruptures", reason="ruptures is not installed (pip install fusionbench[history])")

from fusionbench import change_points
from fusionbench.change_points import MIN_SIDE, find, long_run_deviation, tame


def noise(n: int, deviation: float, correlation: float, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    values = [rng.normal(0, deviation)]
    for _ in range(n - 1):
        values.append(correlation * values[-1] + rng.normal(0, deviation * math.sqrt(1 - correlation**2)))
    return np.array(values)


def step(before: int, after: int, ratio: float, deviation: float = 0.01, seed: int = 0) -> list[float]:
    rise = np.log(np.repeat([1.0, ratio], [before, after]))
    return list(np.exp(rise + noise(before + after, deviation, 0.0, seed)))


@pytest.mark.parametrize("ratio", [1.1, 0.9, 1.5, 10.0])
@pytest.mark.parametrize("before", [10, 17, 30])
def test_a_step_is_found_at_its_first_value_with_its_size(ratio: float, before: int) -> None:
    (found,) = find(step(before, 20, ratio))
    assert found.at == before
    assert found.low < ratio < found.high
    assert found.ratio == pytest.approx(ratio, rel=0.02)


def test_several_steps_are_each_measured_against_the_level_before_them() -> None:
    values = step(20, 20, 1.3) + [1.3 * 1.3 * v for v in step(20, 0, 1.0, seed=1)]
    assert [each.at for each in find(values)] == [20, 40]
    assert [each.ratio for each in find(values)] == pytest.approx([1.3, 1.3], rel=0.03)


def test_a_step_back_is_two_changes() -> None:
    values = step(15, 15, 1.25) + step(15, 0, 1.0, seed=2)
    assert [each.at for each in find(values)] == [15, 30]


@pytest.mark.parametrize("values", [[1.0] * 40, [1.0, 1.001] * 20, list(np.linspace(1, 1.02, 40))])
def test_what_is_constant_or_moves_within_the_tolerance_has_none(values: list[float]) -> None:
    assert find(values) == []


def test_a_step_within_the_tolerance_is_none_however_sure() -> None:
    assert find([1.0] * 20 + [1.029] * 20) == []
    (found,) = find([1.0] * 20 + [1.031] * 20)
    assert found.at == 20


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_noise_alone_has_a_change_in_few_series(correlation: float) -> None:
    found = sum(bool(find(np.exp(noise(40, 0.1, correlation, seed)).tolist())) for seed in range(200))
    assert found <= (0 if correlation == 0 else 6)


def test_one_disturbed_run_is_no_level() -> None:
    values = list(np.exp(noise(40, 0.01, 0.0, 3)))
    values[20] *= 5
    assert find(values) == []
    assert max(np.exp(tame(np.log(values)))) < 1.1


@pytest.mark.parametrize("n", [0, 1, 2, 2 * MIN_SIDE - 1])
def test_too_few_values_have_none(n: int) -> None:
    assert find([1.0] * (n // 2) + [2.0] * (n - n // 2)) == []


@pytest.mark.parametrize("after", [1, 3, 5, 9])
def test_a_step_is_told_once_ten_values_follow_and_never_of_an_earlier_one(after: int) -> None:
    for seed in range(20):
        assert find(step(35, after, 1.5, seed=seed)) == []
        assert find(step(35, after, 1.5, seed=seed)[::-1]) == []
    assert [each.at for each in find(step(35, 10, 1.5))] == [35]


def test_the_deviation_counts_correlation_and_not_the_step() -> None:
    plain = [long_run_deviation(noise(100, 0.1, 0.0, seed)) for seed in range(20)]
    tied = [long_run_deviation(noise(100, 0.1, 0.6, seed)) for seed in range(20)]
    risen = [long_run_deviation(noise(100, 0.1, 0.0, s) + np.repeat([0, 1.0], 50)) for s in range(20)]
    assert 0.1 < np.median(plain) < 0.17  # 0.1 if nobody had to allow for a correlation
    assert 0.15 < np.median(tied) < 0.25  # 0.2
    assert np.median(risen) == pytest.approx(np.median(plain), rel=0.2)


def test_two_values_have_a_deviation_too() -> None:
    assert long_run_deviation(np.array([0.0, 1.0])) > 0
    assert long_run_deviation(np.array([1.0, 1.0])) == 0


def test_ruptures_is_imported_only_when_a_series_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "ruptures":
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert change_points.find([1.0] * 5) == []
    with pytest.raises(ModuleNotFoundError):
        change_points.find([1.0] * 40)
