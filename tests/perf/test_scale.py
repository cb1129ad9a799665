"""How far one sweep scales: costs measured here, sweeps of measured jobs, and what the pages claim of the result.

    python -m pytest tests/perf/test_scale.py --benchmark-only -s

Costs are those of CPU jobs: nothing here was measured on a GPU. Closed forms of the model are in tests/test_scale_model.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fusionbench import present
from tests.perf import scale_costs, scale_model, scale_study
from tests.perf.scale_model import Costs, Job
from tests.perf.scale_study import DRIVER, RECORDS, SLICES

SHORT = "advice"  # of the measured sweeps: jobs of a second, in three visits each
QUICK = (1, 10, 100, 1_000)

needs_ray = pytest.mark.skipif(scale_costs.ray_missing() is not None, reason=str(scale_costs.ray_missing()))


@pytest.fixture(scope="module")
def measured() -> tuple[Costs, Mapping[str, Any]]:
    return scale_study.measure()


@pytest.mark.parametrize(("slots", "length_s"), [(10, 0.05), (50, 0.02), (300, 0.1)])
def test_a_driver_with_many_threads_is_as_fast_as_the_model_says(
    benchmark: BenchmarkFixture, tmp_path: Path, slots: int, length_s: float
) -> None:
    """The same visits by real threads, without Ray: what each record took of one thread and of the store foretells what all
    of them take. ``--basetemp`` puts the folder on another disk."""
    records, visits = present.read(RECORDS, RECORDS.parent).records, 3_000 // slots
    python_s = scale_costs.python_s(records, tmp_path / "alone")
    real = benchmark.pedantic(
        scale_costs.together, (records, tmp_path / "together", slots, visits, length_s), rounds=1, iterations=1
    )
    sweep = [[Job(1.0, (length_s,)) for _ in range(visits)] for _ in range(slots)]
    costs = Costs(python_s=python_s, store_s=real.stores_s)  # of this very run: the disk has other users, and moods
    simulated = scale_model.by_driver(sweep, slots, costs, np.random.default_rng(0), size=visits).makespan_s
    benchmark.extra_info.update(took_s=real.elapsed_s, simulated_s=simulated, ideal_s=visits * length_s)
    sys.stdout.write(
        f"{slots} threads: {real.elapsed_s:.2f} s, {simulated:.2f} s simulated, {visits * length_s:.2f} s ideal\n"
    )
    assert 0.6 < simulated / real.elapsed_s < 1.1  # threads that hand a lock over take longer than a queue does


@needs_ray
def test_how_far_a_sweep_scales(benchmark: BenchmarkFixture, measured: tuple[Costs, Mapping[str, Any]]) -> None:
    costs, told = measured
    questions = scale_study.isolated(scale_study.load()[SHORT], told["a process for a visit"]["median_s"])
    curves = benchmark.pedantic(
        scale_study.simulate, (questions, costs), {"slots": QUICK, "seeds": 3}, rounds=1, iterations=1
    )
    for way, by_count in curves.items():
        for count, curve in by_count.items():
            shown = " ".join(f"{slots}: {band.middle:.0%}" for slots, band in curve.efficiency().items())
            knee = curve.knees()[0]
            half = f"half is lost at {knee.slots:.0f} slots" if knee.slots else f"half is not lost by {QUICK[-1]:,}"
            sys.stdout.write(f"{way}, {count:,} jobs: {shown}; {half}, mostly to: {knee.bottleneck}\n")
    # What docs/how-to/machines.md and METHODOLOGY.md say, as far as it does not depend on this machine's mood.
    few, many = (curves[DRIVER][count] for count in (1_000, 100_000))
    assert {knee.bottleneck for knee in few.knees()} == {scale_model.TAIL}
    assert {knee.bottleneck for knee in many.knees()} <= {scale_model.STORE, scale_model.TAIL}
    assert all(20 < (knee.slots or 0) < 100 for knee in few.knees())
    assert all(400 < (knee.slots or 0) < 3_000 for knee in many.knees())
    assert many.efficiency()[100].low > 0.7
    for count in scale_study.COUNTS:
        driver, slices = (curves[way][count].efficiency() for way in (DRIVER, SLICES))
        assert all(slices[slots].middle >= driver[slots].middle - 0.01 for slots in QUICK)
