"""How often identical code is called slower, and an injected slow-down found: our rule beside others, on the same data.

    python -m tests.perf.false_alarms collect DATA.jsonl --sets 16      # 5 min a set on two busy cores
    python -m tests.perf.false_alarms table DATA.jsonl

A set holds each of the jobs against itself, in rounds of two fresh processes by turns as `check --paired` measures
them: 7 to screen and 11 fresh ones to confirm. A slow-down is injected by stretching the head's times. The other
rules see what their tools would: the samples of one process of each side, not of the same round; the times are those on
the core, which is kinder to them than the wall clock that they read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from scipy import stats

from fusionbench import paired, trial
from fusionbench.compare import TOLERANCE
from fusionbench.engines.twins import Code, Twins
from fusionbench.spec import Budget, Case, Job, Mode, Shape

SCREEN, CONFIRM = 7, 11
BUDGET = Budget(measure_s=0.4, rounds=6, warmup_s=0.02)
RAW = (0, 1)  # the rounds whose samples are kept for the other rules


def job(strategy: str, backend: str = "sdpa", mode: Mode = "fwd", **sizes: int) -> Job:
    usual = {"batch": 2, "image": 64, "text": 32, "image_width": 128, "text_width": 128, "width": 128, "heads": 4}
    shape = Shape(**(usual | sizes))
    return Job(
        strategy=strategy,
        backend=backend,
        case=Case(shape=shape, projector="linear", dtype="fp32", device="cpu", mode=mode),
    )


# 0.4 to 5 ms a call here: attention of several lengths, poolings, products, a training step.
JOBS = (
    job("cross_attention"),
    job("cross_attention", "eager", image=256),
    job("cross_attention", image=16, text=8),
    job("concat_attention", image=128),
    job("co_attention"),
    job("film", "eager", batch=8),
    job("gated_cross_attention", mode="fwd_bwd"),
    job("late", "eager"),
    job("perceiver_resampler"),
    job("mmdit", image=32),
    job("gmu", "eager"),
    job("concat_features", "eager", batch=32),
    job("low_rank", "eager"),
    job("bilinear", "eager", image=16),
    job("q_former"),
    job("bottleneck"),
    job("token_merge"),
    job("linear_cross_attention", "eager", image=512),
    job("attention_pooling"),
)


@dataclass(frozen=True)
class Comparison:
    """One job against itself: the effect of every round, and the samples of a process of each side."""

    key: str
    effects: tuple[float, ...]
    base_ns: tuple[float, ...]
    head_ns: tuple[float, ...]


def collect(sets: int) -> Iterator[list[Comparison]]:
    """Measure every job against itself, set after set; yields a set as soon as it is whole."""
    side = {"argv": (sys.executable,), "env": dict(os.environ)}
    with Twins(Code(name="base", **side), Code(name="head", **side), BUDGET) as twins:  # type: ignore[arg-type]
        for _ in range(sets):
            effects: dict[str, list[float]] = {each.key: [] for each in JOBS}
            raw: dict[str, dict[int, tuple[list[float], list[float]]]] = {each.key: {} for each in JOBS}
            loops: dict[str, int] = {}
            for number in range(SCREEN + CONFIRM):
                for each in random.sample(JOBS, len(JOBS)):
                    pair = twins.round(each, number, loops.get(each.key, 0))
                    if pair.base.time is None or pair.head.time is None:
                        raise RuntimeError(f"{each.key}: {pair.base.reason or pair.head.reason}")
                    loops[each.key] = pair.loops
                    effects[each.key].append(paired.effect(pair.turns))
                    if number in RAW:
                        raw[each.key][number] = pair.base.time.calls_ns, pair.head.time.calls_ns
            yield [
                Comparison(key, tuple(effects[key]), tuple(raw[key][RAW[0]][0]), tuple(raw[key][RAW[1]][1]))
                for key in effects
            ]


# --- the rules: whether a set of comparisons says slower, when the head is so many times slower than it was measured ---

Rule = Callable[[Sequence[Comparison], float], list[bool]]


def ours(found: Sequence[Comparison], factor: float) -> list[bool]:
    """The trial's: a screen, fresh rounds for suspects, Benjamini-Hochberg over these."""
    again = {}
    for each in found:
        effects = [effect + math.log(factor) for effect in each.effects]
        if trial.suspect(trial.Found(JOBS[0], effects=effects[:SCREEN])):
            again[each.key] = paired.estimate(effects[SCREEN:])
    sure = paired.rejected({key: each.p for key, each in again.items()}, trial.FALSE_RATE)
    verdicts = {
        each.key: trial.judged(again[each.key], median(each.base_ns), JOBS[0], confirmed=True, sure=each.key in sure)
        for each in found
        if each.key in again
    }
    return [verdicts.get(each.key) == "slower" for each in found]


def screen_alone(found: Sequence[Comparison], factor: float) -> list[bool]:
    """What the first seven rounds say by themselves: an interval above 1 and an effect above the tolerance."""
    screened = [paired.estimate([effect + math.log(factor) for effect in each.effects[:SCREEN]]) for each in found]
    return [each.low > 1 and each.ratio > 1 + TOLERANCE for each in screened]


def _pooled(judge: Callable[[Sequence[float], Sequence[float]], bool]) -> Rule:
    return lambda found, factor: [judge(each.base_ns, [ns * factor for ns in each.head_ns]) for each in found]


def _mann_whitney(base: Sequence[float], head: Sequence[float]) -> float:
    return float(stats.mannwhitneyu(head, base, alternative="greater").pvalue)


RULES: dict[str, Rule] = {
    "fusionbench check --paired": ours,
    "its screen alone": screen_alone,
    "asv: Mann-Whitney p < 0.002 and > 10 %": _pooled(
        lambda base, head: _mann_whitney(base, head) < 0.002 and median(head) > 1.1 * median(base)
    ),
    "pytest-benchmark: mean > 10 %": _pooled(lambda base, head: fmean(head) > 1.1 * fmean(base)),
    "Mann-Whitney p < 0.05": _pooled(lambda base, head: _mann_whitney(base, head) < 0.05),
    "median > 5 %": _pooled(lambda base, head: median(head) > 1.05 * median(base)),
}
FACTORS = (1.0, 1.05, 1.10)


@dataclass(frozen=True)
class Row:
    """A rule with the share of comparisons that it calls slower, for each of FACTORS."""

    rule: str
    shares: tuple[float, ...]


def table(sets: Iterable[Sequence[Comparison]]) -> tuple[int, list[Row]]:
    """How many comparisons there are, and what each rule says of them."""
    known = list(sets)
    count = sum(map(len, known))
    return count, [
        Row(name, tuple(sum(sum(rule(found, factor)) for found in known) / count for factor in FACTORS))
        for name, rule in RULES.items()
    ]


def markdown(count: int, rows: Sequence[Row]) -> str:
    lines = [f"| rule ({count} comparisons) | identical code called slower | +5 % found | +10 % found |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {row.rule} | " + " | ".join(f"{share:.1%}" for share in row.shares) + " |" for row in rows]
    return "\n".join(lines)


def save(found: Sequence[Comparison], path: Path) -> None:
    with path.open("a") as file:
        file.write(json.dumps([vars(each) for each in found]) + "\n")


def load(path: Path) -> list[list[Comparison]]:
    def comparison(each: dict[str, Any]) -> Comparison:
        return Comparison(each["key"], *(tuple(each[name]) for name in ("effects", "base_ns", "head_ns")))

    return [[comparison(each) for each in json.loads(line)] for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "table"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", type=int, default=16)
    asked = parser.parse_args()
    if asked.what == "collect":
        for found in collect(asked.sets):
            save(found, asked.data)
            print(f"{len(found)} comparisons more", flush=True)  # noqa: T201
    print(markdown(*table(load(asked.data))))  # noqa: T201


if __name__ == "__main__":
    main()
