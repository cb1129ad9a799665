"""The same code measured twice on a busy machine: how often the tool's own rule calls it different, and what it can tell."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fusionbench import launch, store, suite
from fusionbench.compare import compare
from fusionbench.engines import local
from fusionbench.record import Timing
from fusionbench.runner import Silent

BURNERS = 2  # as many as this machine has cores: every job shares its own


@contextlib.contextmanager
def busy() -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BURNERS)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def measured(results: Path) -> dict[str, Timing]:
    chosen = suite.read("smoke")
    prepared = launch.new(chosen, results, budget=chosen.budget, only={"devices": ["cpu"]}, fresh=True, warn=print)
    launch.execute(prepared, local.run, Silent())
    return {record.job.key: record.time for record in store.read(prepared.folder).records if record.time}


def slowed(timing: Timing, factor: float) -> Timing:
    return msgspec.structs.replace(timing, samples_ns=tuple(round(ns * factor) for ns in timing.samples_ns))


@pytest.mark.slow
def test_identical_code_is_called_different_in_at_most_1_job_of_100(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    local.start_server()
    with busy():
        base = measured(tmp_path)
        head = benchmark.pedantic(measured, (tmp_path,), rounds=1)
    assert set(base) == set(head)
    verdicts = Counter(compare(base[key], head[key]).verdict for key in base)
    ratios = [math.log(compare(base[key], head[key]).ratio) for key in base]
    benchmark.extra_info["verdicts"] = dict(verdicts)
    benchmark.extra_info["median_log_ratio"] = median(ratios)
    for factor in (1.1, 1.2, 1.5, 2.0):
        told = sum(compare(base[key], slowed(head[key], factor)).verdict == "slower" for key in base)
        benchmark.extra_info[f"told_of_{factor}"] = told / len(base)
    assert verdicts["faster"] + verdicts["slower"] <= 0.01 * len(base), benchmark.extra_info
