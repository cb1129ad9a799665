"""How far predictions for shapes that were left out of a sweep are off, and how often the true winner is advised.

    python -m pytest tests/perf/test_advice_perf.py --benchmark-only -s

Measures 512 jobs (10 minutes on two quiet cores); FUSIONBENCH_ADVICE_RUN names a run of an earlier time to use instead.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fusionbench import launch, store, suite
from fusionbench.advice import Advice, advise
from fusionbench.engines import local
from fusionbench.record import Record
from fusionbench.runner import Silent
from fusionbench.spec import Case, Shape
from fusionbench.stats import median_interval

SUITE = """
title = "What advice is tried on"
[budget]
measure_s = 0.12
rounds = 3
[[sweep]]
strategies = [
    "concat_attention", "cross_attention", "co_attention", "late", "bottleneck", "perceiver_resampler",
    "gated_cross_attention", "mmdit",
]
backends = ["sdpa", "eager"]
image = [16, 48, 144, 432]
text = [16, 48, 144, 432]
image_width = [256]
text_width = [256]
width = [128, 256]
heads = [4]
"""
LEFT_OUT = 1 / 3  # of the shapes
DRAWS = 6  # of which shapes those are


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    if earlier := os.environ.get("FUSIONBENCH_ADVICE_RUN"):
        return store.read(Path(earlier))
    chosen = suite.parse(SUITE, "advice", "advice")
    prepared = launch.new(
        chosen, tmp_path_factory.mktemp("runs"), budget=chosen.budget, only={}, fresh=True, warn=print
    )
    launch.execute(prepared, local.run, Silent(), local.probe)
    return store.read(prepared.folder)


def held_out(run: store.Run, seed: int) -> tuple[list[Record], dict[Shape, list[Record]]]:
    """The records of the shapes that stay, and by shape those of the ones left out."""
    measured = [record for record in run.records if record.status == "ok" and record.time]
    shapes = sorted({record.job.case.shape for record in measured}, key=lambda shape: shape.key)
    left_out = set(random.Random(seed).sample(shapes, round(len(shapes) * LEFT_OUT)))
    kept = [record for record in measured if record.job.case.shape not in left_out]
    hidden = {shape: [r for r in measured if r.job.case.shape == shape] for shape in shapes if shape in left_out}
    return kept, hidden


def truth_ms(record: Record) -> tuple[float, float, float]:
    assert record.time is not None
    middle, low, high = (ns / 1e6 for ns in median_interval(record.time.calls_ns, record.time.rounds))
    return middle, low, high


def judged(found: Advice, hidden: Sequence[Record]) -> tuple[list[float], list[bool], bool, int]:
    """Relative errors, whether each interval holds the truth, whether the winner is advised, and how many are."""
    told = {each.name: each for each in found.candidates}
    errors, held = [], []
    for record in hidden:
        each, (truth, _, _) = told[f"{record.job.strategy}/{record.job.backend}"], truth_ms(record)
        errors.append(abs(each.latency.value / truth - 1))
        held.append(each.latency.low <= truth <= each.latency.high)
    best = min(hidden, key=truth_ms)
    # Another whose interval overlaps the winner's is as fast for all that was measured.
    winners = {f"{r.job.strategy}/{r.job.backend}" for r in hidden if truth_ms(r)[1] <= truth_ms(best)[2]}
    advised = {each.name for each in found.advised}
    return errors, held, f"{best.job.strategy}/{best.job.backend}" in advised or bool(winners & advised), len(advised)


@pytest.mark.slow
def test_advice_on_shapes_left_out(benchmark: BenchmarkFixture, sweep: store.Run) -> None:
    errors, held, won, sizes, exact = [], [], [], [], []
    for seed in range(DRAWS):
        kept, hidden = held_out(sweep, seed)
        for shape, records in hidden.items():
            found = advise(Case(shape=shape), kept, sweep.environments, sweep.rooflines)
            more_errors, more_held, winner, size = judged(found, records)
            best = min(records, key=truth_ms)
            exact.append(f"{best.job.strategy}/{best.job.backend}" in {each.name for each in found.advised})
            errors += more_errors
            held += more_held
            won.append(winner)
            sizes.append(size)
    kept, hidden = held_out(sweep, 0)
    benchmark.pedantic(
        advise, (Case(shape=next(iter(hidden))), kept, sweep.environments, sweep.rooflines), rounds=3, iterations=1
    )
    found = {
        "predictions": len(errors),
        "median relative error": median(errors),
        "p90 relative error": sorted(errors)[int(0.9 * len(errors))],
        "interval holds the truth": sum(held) / len(held),
        "winner advised": sum(exact) / len(exact),
        "winner or one as fast advised": sum(won) / len(won),
        "candidates advised": median(sizes),
        "of candidates": len({(r.job.strategy, r.job.backend) for r in kept}),
    }
    benchmark.extra_info.update(found)
    for name, value in found.items():
        sys.stdout.write(f"{name}: {value:.3g}\n")
    assert found["median relative error"] <= 0.15
    assert found["winner advised"] >= 0.9
