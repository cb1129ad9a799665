"""Runs that were never measured, for the tests of exports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from fusionbench.record import Environment, Record, Timing
from fusionbench.store import Run, new_manifest
from tests.synthetic import ENVIRONMENTS, smoke

COMMIT = "9964717d2c0d4d3ea6bb9e2a1bf3e0a1c9f7e5d1"


def run_of(
    records: Iterable[Record], environments: dict[str, Environment] | None = None, command: tuple[str, ...] = ()
) -> Run:
    """A run of the suite ``smoke`` that found ``records``."""
    return Run(
        path=Path("results/runs/r"),
        manifest=new_manifest(suite_name="smoke", suite_hash="h", command=command),
        records=list(records),
        environments=ENVIRONMENTS if environments is None else environments,
        torn=[],
        damage=[],
        duplicates=0,
    )


def failed(count: int = 3) -> list[Record]:
    """As many jobs that went wrong, each in its own way."""
    ways = ("oom", "skipped", "timeout", "wrong", "crash", "error")
    jobs = [record.job for record in smoke() if record.status == "ok"][:count]
    return [
        Record(job=job, status=way, reason="no", phase="time", environment="h100-a", started_at="2026-03-02T10:00:00Z")  # type: ignore[arg-type]
        for job, way in zip(jobs, ways, strict=False)
    ]


def untimed() -> list[Record]:
    """Jobs that went well and were not timed."""
    return [replace(record, time=None) for record in smoke() if record.status == "ok"]


def timing(samples_ns: Iterable[int], rounds: tuple[int, ...] = (), loops: int = 1) -> Timing:
    return Timing(
        timer="wall",
        cache="hot",
        loops=loops,
        samples_ns=tuple(samples_ns),
        stop="precise",
        first_call_ns=1,
        warmup_calls=1,
        threads=1,
        rounds=rounds,
    )
