"""What comparing costs: 1,000 jobs, 7 rounds of 15 samples on both sides, read and compared in less than 2 seconds."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from pytest_benchmark.fixture import BenchmarkFixture

from fusionbench import baseline, checking, comparison
from fusionbench.judge import judge
from fusionbench.record import Accuracy, Deviation
from tests.comparing import record, run, timing

JOBS, ROUNDS, SAMPLES = 1000, 7, 15
LIMIT_S = 2.0
FIGURE = Deviation(max_abs=0.01234567, mean_abs=0.001234567, rel_l2=0.00234567, cosine=0.9999912)
ACCURACY = Accuracy(reference="fp64", samples=2, output=FIGURE, yardstick=FIGURE)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run, one of the same jobs of which some are slower, and the baseline of the first."""
    folder, draw = tmp_path_factory.mktemp("compare"), random.Random(0)
    paths = []
    for side in range(2):
        records = []
        for number in range(1, JOBS + 1):
            count = ROUNDS * SAMPLES
            ms = 1.0 if side == 0 or number % 10 else 1.2
            rounds = [ms * draw.uniform(0.98, 1.02) for _ in range(ROUNDS)]
            samples = tuple(round(1e6 * mean * draw.uniform(0.99, 1.01)) for mean in rounds for _ in range(SAMPLES))
            delays = tuple(draw.randrange(1000) for _ in range(count))
            time = timing(rounds=ROUNDS, samples=SAMPLES, samples_ns=samples, run_delay_ns=delays)
            records.append(replace(record(number), time=time, accuracy=ACCURACY))
        paths.append(run(folder / str(side), *records))
    kept = folder / "baseline.json"
    kept.write_bytes(baseline.encode(baseline.of(paths[0], "speed")))
    return paths[0].path, paths[1].path, kept


@pytest.mark.parametrize("base", [0, 2], ids=["run", "baseline"])
def test_a_thousand_jobs_are_read_compared_and_judged_at_once(
    benchmark: BenchmarkFixture, sides: tuple[Path, Path, Path], base: int
) -> None:
    def whole() -> int:
        found = comparison.of(checking.side(sides[base]), checking.side(sides[1]))
        assert {delta.verdict for delta in found.deltas} >= {"same", "slower"}
        return len(judge(found).comparison.deltas)

    start = time.perf_counter()
    assert benchmark.pedantic(whole, rounds=3, warmup_rounds=1) == JOBS
    assert (time.perf_counter() - start) / 4 < LIMIT_S
