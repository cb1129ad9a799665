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
LEFT_OUT = 40  # of them, how many are left out in turn
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
    field: _Field
    width: float  # standard deviations that an interval reaches on each side

    def __call__(self, at: Point) -> Estimate:
        """The prediction at a point, which need not lie among the measured ones: then its interval widens."""
        left_over, deviation = self.field(at)
        middle = math.log(_trend(self.factors, at)) + left_over
        reach = self.width * math.hypot(deviation, NOISE)
        return Estimate(
            value=math.exp(middle), low=math.exp(middle - reach), high=math.exp(middle + reach), own=self.count
        )

    @property
    def count(self) -> int:
        """How many measurements were fitted."""
        return len(self.field.points)

    def parts(self, at: Point) -> tuple[float, ...]:
        """What each term adds to the trend at a point, in the unit of the values."""
        return tuple(float(f * t) for f, t in zip(self.factors, at.terms, strict=True))


def fit(points: Sequence[Point], values: Sequence[float]) -> Fit:
    """Fit measurements of one candidate: LEAST of them or more, all above 0."""
    points, known = _thinned(points), np.array(_thinned(values))
    factors, left_over = _terms(points, known)
    kernel = _likeliest(points, left_over)
    field = _field(kernel, points, left_over)
    return Fit(factors, field, _width(field, known))


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


def _terms(points: Sequence[Point], values: Floats) -> tuple[Floats, Floats]:
    """The factors, and the logarithms of what they leave over."""
    factors = _factors(points, values)
    return factors, _left_over(factors, points, values)


def _left_over(factors: Floats, points: Sequence[Point], values: Floats) -> Floats:
    found: Floats = np.log(values / np.array([_trend(factors, point) for point in points]))
    return found


def _trend(factors: Floats, at: Point) -> float:
    return max(float(factors @ np.array(at.terms)), 1e-300)


# --- what the terms leave over -------------------------------------------------------------------------------------


class _Kernel(Struct, frozen=True):
    """Covariance of what two points leave over: ``variance`` times exp(-distance² / 2 length²), and noise."""

    variance: float
    length: float
    noise: float

    def __call__(self, one: Sequence[Point], other: Sequence[Point]) -> Floats:
        a, b = (np.array([point.sizes for point in points], dtype=np.float64) for points in (one, other))
        squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
        found: Floats = self.variance * np.exp(-squares / (2 * self.length**2))
        return found


@dataclass(frozen=True)
class _Field:
    """What is left over at the measured points, and so between them."""

    kernel: _Kernel
    points: Sequence[Point]
    lower: Floats  # Cholesky factor of the covariance of the points
    weights: Floats  # its inverse times what is left over

    def __call__(self, at: Point) -> tuple[float, float]:
        """What is left over at a point, and its standard deviation."""
        from scipy.linalg import solve_triangular

        near = self.kernel(self.points, [at])[:, 0]
        known = solve_triangular(self.lower, near, lower=True)
        variance = self.kernel.variance * (1 + self.kernel.noise) - float(known @ known)
        return float(near @ self.weights), math.sqrt(max(variance, 0.0))


def _field(kernel: _Kernel, points: Sequence[Point], left_over: Floats) -> _Field:
    from scipy.linalg import cho_solve, cholesky

    covariance = kernel(points, points) + kernel.variance * kernel.noise * np.eye(len(points))
    lower = cholesky(covariance, lower=True)
    return _Field(kernel, points, lower, cho_solve((lower, True), left_over))


def _likeliest(points: Sequence[Point], left_over: Floats) -> _Kernel:
    """The kernel under which what is left over is likeliest."""
    best, found = -math.inf, _Kernel(1e-6, _LENGTHS[0], _NOISES[-1])
    for length in _LENGTHS:
        for noise in _NOISES:
            field = _field(_Kernel(1.0, length, noise), points, left_over)
            variance = max(float(left_over @ field.weights) / len(points), 1e-8)
            likelihood = -len(points) / 2 * math.log(variance) - float(np.log(np.diag(field.lower)).sum())
            if likelihood > best:
                best, found = likelihood, _Kernel(variance, length, noise)
    return found


def _width(field: _Field, values: Floats) -> float:
    """How many standard deviations hold LEVEL of what was missed by leaving out one measurement at a time.

    What the others tell of one follows from the inverse of the whole covariance (Rasmussen and Williams 2006, 5.4.2).
    """
    from scipy.linalg import cho_solve
    from scipy.stats import t

    points, missed = field.points, []
    inverse = cho_solve((field.lower, True), np.eye(len(points)))
    for place in sorted({round(i) for i in np.linspace(0, len(points) - 1, min(len(points), LEFT_OUT))}):
        rest = [point for number, point in enumerate(points) if number != place]
        factors, left_over = _terms(rest, np.delete(values, place))
        told = -float(np.delete(inverse[place], place) @ left_over) / inverse[place, place]
        error = math.log(values[place] / _trend(factors, points[place])) - told
        missed.append(abs(error) / math.hypot(inverse[place, place] ** -0.5, NOISE))
    rank = min(math.ceil((len(missed) + 1) * LEVEL), len(missed))
    few = float(t.ppf((1 + LEVEL) / 2, max(len(points) - 2, 1)))
    return float(max(sorted(missed)[rank - 1], few))


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
            off = float(_left_over(self.factors, points, np.array(values)).mean())
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
    left_over = [_left_over(factors, each, np.array(known)) for each, known in groups]
    means = np.array([each.mean() for each in left_over])
    spare = len(values) - len(groups)
    within = sum(float(((each - each.mean()) ** 2).sum()) for each in left_over) / max(spare, 1)
    within = within if spare > 0 else float(means.var()) + NOISE**2
    between = max(float(means.var(ddof=1)) if len(means) > 1 else 1.0, 1e-6)
    return Pool(factors, between, max(within, 1e-6), len(groups))
