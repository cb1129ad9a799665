"""github-action-benchmark: each entry as its documentation has it, one direction a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fusionbench.export import github_benchmark
from fusionbench.record import Record
from tests.exporting import failed, run_of, timing
from tests.hostile import hostile_environments, hostile_records
from tests.synthetic import smoke

SCHEMA = {"name": str, "unit": str, "value": (int, float), "range": str, "extra": str}
WRITERS = {"smaller": github_benchmark.write_smaller, "bigger": github_benchmark.write_bigger}


def entries(path: Path, way: str, records: list[Record]) -> list[dict[str, Any]]:
    WRITERS[way](run_of(records, hostile_environments()), path)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", WRITERS)
def test_entries_follow_the_documented_schema(way: str, tmp_path: Path) -> None:
    found = entries(tmp_path / "g.json", way, [*smoke(), *failed(), *hostile_records()])
    assert len(found) > 20
    for entry in found:
        assert {"name", "unit", "value"} <= set(entry) <= set(SCHEMA)
        assert all(isinstance(entry[name], SCHEMA[name]) and entry[name] != "" for name in entry)  # type: ignore[arg-type]
        assert not isinstance(entry["value"], bool)
        assert entry["value"] >= 0


def test_no_two_entries_have_one_name(tmp_path: Path) -> None:
    names = [entry["name"] for way in WRITERS for entry in entries(tmp_path / way, way, smoke())]
    assert len(set(names)) == len(names)


def test_smaller_has_the_median_with_its_interval_and_the_peak(tmp_path: Path) -> None:
    record = replace(smoke()[3], time=timing(range(1_000, 9_000, 1_000), rounds=(1,) * 8))
    one, two = entries(tmp_path / "g.json", "smaller", [record])
    assert (one["name"], one["unit"], one["value"]) == (f"{record.job.key} [time]", "us", 4.5)
    assert one["range"] == "± 3.5"
    assert "rounds: 8" in one["extra"].splitlines()
    assert (two["name"], two["unit"]) == (f"{record.job.key} [peak memory]", "bytes")
    assert two["value"] == record.memory.peak_bytes  # type: ignore[union-attr]


def test_bigger_has_the_rate_of_the_closed_form(tmp_path: Path) -> None:
    record = replace(smoke()[3], time=timing([2_000_000] * 6))
    record = replace(record, costs=replace(record.costs, flops=8 * 10**9))
    without = replace(smoke()[4], costs=replace(record.costs, flops=0))
    assert [(e["name"], e["value"]) for e in entries(tmp_path / "g.json", "bigger", [record, without])] == [
        (f"{record.job.key} [rate]", 4.0)
    ]
