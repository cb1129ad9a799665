"""The promise of `check --paired`: it does not cry wolf, and it finds what is there (table in METHODOLOGY.md)."""

from __future__ import annotations

import os

from pytest_benchmark.fixture import BenchmarkFixture

from tests.perf import false_alarms
from tests.perf.test_aa_perf import busy

SETS = int(os.environ.get("FUSIONBENCH_STUDY_SETS", "1"))  # 16 are 304 comparisons and take an hour and a half


def test_identical_code_is_not_called_slower_and_slower_code_is(benchmark: BenchmarkFixture) -> None:
    with busy():
        sets = benchmark.pedantic(lambda: list(false_alarms.collect(SETS)), rounds=1)
    count, rows = false_alarms.table(sets)
    benchmark.extra_info["table"] = false_alarms.markdown(count, rows)
    same, five, ten = rows[0].shares
    slack = 2 / count  # one comparison of a single set weighs 5 %
    assert same <= 0.01 + slack, benchmark.extra_info["table"]
    assert ten >= 0.90 - slack, benchmark.extra_info["table"]
    assert five >= 0.70 - slack, benchmark.extra_info["table"]
