"""Bencher Metric Format: by its JSON schema, with our interval as its bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fusionbench.export import bencher
from fusionbench.record import Record
from tests.exporting import failed, run_of, timing, untimed
from tests.hostile import hostile_records
from tests.synthetic import smoke


def metrics(path: Path, records: list[Record]) -> dict[str, Any]:
    bencher.write(run_of(records), path)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def check(found: Any) -> int:
    """Bencher's schema (draft 07): names of measures of numbers, of which one is required. Returns how many it has."""
    count = 0
    for name, measures in found.items():
        assert 0 < len(name) <= 1024
        assert measures
        for measure, metric in measures.items():
            assert 0 < len(measure) <= 64
            assert "value" in metric
            assert set(metric) <= {"value", "lower_value", "upper_value"}
            assert all(isinstance(value, int | float) and not isinstance(value, bool) for value in metric.values())
            count += 1
    return count


def test_metrics_follow_the_schema(tmp_path: Path) -> None:
    assert check(metrics(tmp_path / "b.json", [*smoke(), *failed(), *hostile_records()])) > 50


def test_latency_is_in_ns_between_our_bounds_and_memory_in_bytes(tmp_path: Path) -> None:
    record = replace(smoke()[3], time=timing(range(1_000, 9_000, 1_000), rounds=(1,) * 8, loops=2))
    assert metrics(tmp_path / "b.json", [record]) == {
        record.job.key: {
            "latency": {"value": 2250.0, "lower_value": 500.0, "upper_value": 4000.0},
            "peak-memory": {"value": record.memory.peak_bytes},  # type: ignore[union-attr]
        }
    }


def test_a_job_has_the_measures_that_were_taken_of_it(tmp_path: Path) -> None:
    weighed, timed = untimed()[0], replace(untimed()[1], time=timing([5] * 6), memory=None)
    nothing = replace(untimed()[2], memory=None)
    found = metrics(tmp_path / "b.json", [weighed, timed, nothing])
    assert [list(found[record.job.key]) for record in (weighed, timed)] == [["peak-memory"], ["latency"]]
    assert nothing.job.key not in found
