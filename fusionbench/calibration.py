"""What is not measured, predicted from what is: closed-form terms fitted to measurements, and how far that is off.

A time is a sum of terms that are known beforehand (a call's overhead, its products at the device's ceiling, its bytes
at memory's bandwidth), each by a factor of its own that is fitted: an efficiency. What the sum leaves over varies
smoothly with the sizes, so that neighbours tell it (kriging: Sacks et al. 1989, "Design and Analysis of Computer
Experiments"). The interval holds what leaving out each measurement in turn has missed (Vovk et al. 2005, conformal
prediction), and is never narrower than Student's t says of so few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Floats = npt.NDArray[np.float64]

LEVEL = 0.9  # of the intervals
LEAST = 4  # measurements of its own, below which a candidate is told from the others
MOST = 300  # measurements that are fitted: a fit is cubic in them (0.1 s at 300)
LEFT_OUT = 60  # of them, how many are left out in turn
NOISE = 0.02  # two measurements of one job differ by so much (METHODOLOGY.md), whatever the intervals say
_LENGTHS = (1.0, 2.0, 4.0, 8.0)  # over how many doublings of a size neighbours resemble each other
_NOISES = (0.003, 0.03, 0.3)  # share of what the terms leave over that no neighbour tells


class Estimate(Struct, frozen=True, kw_only=True):
    """A predicted value with its interval at LEVEL, from so many measurements of the same candidate."""

    value: float
    low: float
    high: float
    own: int


@dataclass(frozen=True)
class Point:
    """Where a measurement lies: the logarithms (base 2) of its sizes, and its terms, 0 or more each."""

    sizes: tuple[float, ...]
    terms: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """A candidate's own measurements, fitted."""

    factors: Floats
    points: Sequence[Point]
    kernel: _Kernel
    left_over: Floats  # logarithms
    width: float  # standard deviations that an interval reaches on each side

    def __call__(self, at: Point) -> Estimate:
        """The prediction at a point, which need not lie among the measured ones: then its interval widens."""
        trend = math.log(_trend(self.factors, at))
        mean, deviation = self.kernel.told(self.points, self.left_over, at)
        reach = self.width * math.hypot(deviation, NOISE)
        middle = trend + mean
        return Estimate(
            value=math.exp(middle), low=math.exp(middle - reach), high=math.exp(middle + reach), own=len(self.points)
        )

    def parts(self, at: Point) -> tuple[float, ...]:
        """What each term adds to the trend at a point, in the unit of the values."""
        return tuple(float(f * t) for f, t in zip(self.factors, at.terms, strict=True))


def fit(points: Sequence[Point], values: Sequence[float]) -> Fit:
    """Fit measurements of one candidate: LEAST of them or more, all above 0."""
    points, known = _thinned(points), np.array(_thinned(values))
    factors = _factors(points, known)
    left_over = np.log(known / _trends(factors, points))
    kernel = _likeliest(points, left_over)
    return Fit(factors, points, kernel, left_over, _width(points, known, kernel))


def _thinned(items: Sequence[Any]) -> Sequence[Any]:
    """At most MOST of them, evenly."""
    return items if len(items) <= MOST else [items[round(i)] for i in np.linspace(0, len(items) - 1, MOST)]


# --- the terms -----------------------------------------------------------------------------------------------------


def _factors(points: Sequence[Point], values: Floats) -> Floats:
    """Factors of 0 or more by which the terms add up to the values, errors counted in shares of them."""
    from scipy.optimize import nnls

    terms = np.array([point.terms for point in points])
    scale = np.maximum(terms.max(axis=0), 1e-300)
    factors, _ = nnls(terms / scale / values[:, None], np.ones(len(points)))
    found: Floats = factors / scale
    return found if found.any() else np.array([float(np.median(values)), *([0.0] * (len(scale) - 1))])


def _trend(factors: Floats, at: Point) -> float:
    return max(float(factors @ np.array(at.terms)), 1e-300)


def _trends(factors: Floats, points: Sequence[Point]) -> Floats:
    return np.array([_trend(factors, point) for point in points])


# --- what the terms leave over -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kernel:
    """Covariance of what two points leave over: ``variance`` times exp(-distance² / 2 length²), and noise."""

    variance: float
    length: float
    noise: float

    def of(self, one: Sequence[Point], other: Sequence[Point]) -> Floats:
        a, b = (np.array([point.sizes for point in points], dtype=np.float64) for points in (one, other))
        squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
        found: Floats = self.variance * np.exp(-squares / (2 * self.length**2))
        return found

    def solved(self, points: Sequence[Point], left_over: Floats) -> tuple[Floats, Floats]:
        """The Cholesky factor of the covariance, and the covariance's inverse times what is left over."""
        from scipy.linalg import cho_solve, cholesky

        lower = cholesky(self.of(points, points) + self.variance * self.noise * np.eye(len(points)), lower=True)
        return lower, cho_solve((lower, True), left_over)

    def told(self, points: Sequence[Point], left_over: Floats, at: Point) -> tuple[float, float]:
        """What is left over at a point, and its standard deviation."""
        from scipy.linalg import solve_triangular

        lower, weights = self.solved(points, left_over)
        near = self.of(points, [at])[:, 0]
        known = solve_triangular(lower, near, lower=True)
        variance = self.variance * (1 + self.noise) - float(known @ known)
        return float(near @ weights), math.sqrt(max(variance, 0.0))


def _likeliest(points: Sequence[Point], left_over: Floats) -> _Kernel:
    """The kernel under which what is left over is likeliest."""
    best, found = -math.inf, _Kernel(1e-6, _LENGTHS[0], _NOISES[-1])
    for length in _LENGTHS:
        for noise in _NOISES:
            lower, weights = _Kernel(1.0, length, noise).solved(points, left_over)
            variance = max(float(left_over @ weights) / len(points), 1e-8)
            likelihood = -len(points) / 2 * math.log(variance) - float(np.log(np.diag(lower)).sum())
            if likelihood > best:
                best, found = likelihood, _Kernel(variance, length, noise)
    return found


def _width(points: Sequence[Point], values: Floats, kernel: _Kernel) -> float:
    """How many standard deviations hold LEVEL of what was missed by leaving out one measurement at a time."""
    from scipy.stats import t

    missed = []
    for place in {round(i) for i in np.linspace(0, len(points) - 1, min(len(points), LEFT_OUT))}:
        rest = [point for number, point in enumerate(points) if number != place]
        others = np.delete(values, place)
        factors = _factors(rest, others)
        mean, deviation = kernel.told(rest, np.log(others / _trends(factors, rest)), points[place])
        error = math.log(values[place] / _trend(factors, points[place])) - mean
        missed.append(abs(error) / math.hypot(deviation, NOISE))
    rank = min(math.ceil((len(missed) + 1) * LEVEL), len(missed))
    few = float(t.ppf((1 + LEVEL) / 2, max(len(points) - 2, 1)))
    return max(sorted(missed)[rank - 1], few)


# --- candidates with hardly any measurements of their own ----------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Measurements of several candidates together, for one of which there are too few to fit."""

    factors: Floats
    between: float  # variance of candidates' means, logarithmic
    within: float  # variance around a candidate's mean
    count: int  # candidates

    def __call__(self, points: Sequence[Point], values: Sequence[float], at: Point) -> Estimate:
        """The prediction for a candidate of which ``points`` are measured, none perhaps."""
        from scipy.stats import t

        middle, variance = math.log(_trend(self.factors, at)), self.between
        if values:
            off = float(np.mean(np.log(np.array(values) / _trends(self.factors, points))))
            shared = self.within / len(values)
            middle += off * self.between / (self.between + shared)
            variance = self.between * shared / (self.between + shared)
        few = float(t.ppf((1 + LEVEL) / 2, max(self.count - 1, 1)))
        reach = few * math.sqrt(variance + self.within + NOISE**2)
        return Estimate(
            value=math.exp(middle), low=math.exp(middle - reach), high=math.exp(middle + reach), own=len(values)
        )


def pool(groups: Sequence[tuple[Sequence[Point], Sequence[float]]]) -> Pool:
    """Fit the measurements of all candidates by the same factors."""
    points = [point for each, _ in groups for point in each]
    values = np.array([value for _, each in groups for value in each])
    factors = _factors(points, values)
    left_over = [np.log(np.array(known) / _trends(factors, each)) for each, known in groups]
    means = np.array([each.mean() for each in left_over])
    spare = len(values) - len(groups)
    within = sum(float(((each - each.mean()) ** 2).sum()) for each in left_over) / max(spare, 1)
    within = within if spare > 0 else float(means.var()) + NOISE**2
    between = max(float(means.var(ddof=1)) if len(means) > 1 else 1.0, 1e-6)
    return Pool(factors, between, max(within, 1e-6), len(groups))
