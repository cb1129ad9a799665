"""How often change points are found where there are none, and where there is one: `python -m tests.perf.change_point_study`.

Series are logarithms of run medians: normal noise of 5 to 15 %, each value 0.6 like the one before (what neighbouring
processes of one machine show; shared research, harness 5.1), with a step in the middle or without.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import numpy.typing as npt
import ruptures

from fusionbench import change_points

Floats = npt.NDArray[np.float64]
Rule = Callable[[Floats], list[int]]

COUNT = 1_000
LENGTHS = (20, 40, 100)
NOISE = (0.05, 0.15)  # standard deviation of a series, drawn evenly between these
CORRELATION = 0.6
STEPS = (1.05, 1.1, 1.2)
QUIET, BUSY = 0.01, 0.05  # noise under which steps are looked for


def ours(logs: Floats) -> list[int]:
    return [each.at for each in change_points.find(np.exp(logs).tolist())]


def penalised(penalty: float) -> Rule:
    """Our rule under another penalty."""

    def rule(logs: Floats) -> list[int]:
        with mock.patch.object(change_points, "PENALTY", penalty):
            return ours(logs)

    return rule


def uncorrelated(logs: Floats) -> list[int]:
    """PELT as it is mostly used: quadratic cost, penalty 2 ln n variances, each value taken for independent."""
    deviation = float(np.median(np.abs(np.diff(logs)))) / 0.6745 / math.sqrt(2)
    return _search("linear", logs / deviation, 2 * math.log(len(logs)))


def radial(logs: Floats) -> list[int]:
    """The kernel `rbf`, penalty ln n."""
    return _search("rbf", logs, math.log(len(logs)))


def _search(kernel: str, values: Floats, penalty: float) -> list[int]:
    search = ruptures.KernelCPD(kernel=kernel, min_size=change_points.MIN_SIDE).fit(values.reshape(-1, 1))
    return [int(end) for end in search.predict(pen=penalty)[:-1]]


RULES: dict[str, Rule] = {
    "quadratic cost, 2 ln n, noise taken for independent": uncorrelated,
    "rbf kernel, ln n": radial,
    **{f"ours, penalty {p:g} ln n": penalised(p) for p in (2.0, 3.0, 4.0)},
}


def noise(length: int, deviation: float, correlation: float, rng: np.random.Generator) -> Floats:
    fresh = rng.normal(0, deviation, length)
    fresh[1:] *= math.sqrt(1 - correlation**2)
    return np.array(list(itertools.accumulate(fresh, lambda last, new: correlation * last + new)))


def disturbed(logs: Floats, rng: np.random.Generator) -> Floats:
    """One run of twenty takes 1.3 to 2 times as long."""
    hit = rng.random(len(logs)) < 0.05
    return logs + np.where(hit, np.log(rng.uniform(1.3, 2, len(logs))), 0)


def false_alarms(rule: Rule, length: int, correlation: float, *, outliers: bool = False, count: int = COUNT) -> int:
    """Series of 1,000 without any step in which the rule finds one."""
    rng = np.random.default_rng(length)
    series = (noise(length, rng.uniform(*NOISE), correlation, rng) for _ in range(count))
    return round(1000 * sum(bool(rule(disturbed(s, rng) if outliers else s)) for s in series) / count)


def found(step: float, side: int, deviation: float, correlation: float, *, count: int = COUNT) -> tuple[float, float]:
    """Of ``count`` steps the share that is found, and of these the share found within two runs of its place."""
    rng = np.random.default_rng(side)
    rise = np.repeat([0.0, math.log(step)], side)
    places = [ours(noise(2 * side, deviation, correlation, rng) + rise) for _ in range(count)]
    hits = [min(abs(at - side) for at in each) for each in places if each]
    return len(hits) / count, (sum(off <= 2 for off in hits) / len(hits) if hits else 0.0)


def tables(count: int = COUNT) -> Iterator[str]:
    yield "| of 1,000 series of noise, with a change point | " + " | ".join(f"{n} runs" for n in LENGTHS) + " |"
    yield "|---" * (len(LENGTHS) + 1) + "|"
    for name, rule in RULES.items():
        for correlation in (0.0, CORRELATION):
            alarms = (f"{false_alarms(rule, n, correlation, count=count)}" for n in LENGTHS)
            yield f"| {name}; correlation {correlation:g} | " + " | ".join(alarms) + " |"
    alarms = (f"{false_alarms(ours, n, CORRELATION, outliers=True, count=count)}" for n in LENGTHS)
    yield (
        f"| ours, penalty {change_points.PENALTY:g} ln n; correlation {CORRELATION:g}, one run of 20 disturbed | "
        + " | ".join(alarms)
        + " |"
    )
    alarms = (f"{false_alarms(ours, n, 0.8, count=count)}" for n in LENGTHS)
    yield f"| ours, penalty {change_points.PENALTY:g} ln n; correlation 0.8 | " + " | ".join(alarms) + " |"
    yield ""
    sides = (10, 20, 50)
    yield "| steps found (within two runs of their place) | " + " | ".join(f"{n} runs a side" for n in sides) + " |"
    yield "|---" * (len(sides) + 1) + "|"
    for deviation, correlation, step in itertools.product((QUIET, BUSY), (0.0, CORRELATION), STEPS):
        shares = (found(step, side, deviation, correlation, count=count) for side in sides)
        cells = (f"{share:.0%} ({near:.0%})" for share, near in shares)
        yield f"| +{step - 1:.0%}, noise {deviation:.0%}, correlation {correlation:g} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    for line in tables():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
