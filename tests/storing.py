"""Small records and runs for the tests of the store; needs nothing but the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fusionbench import store
from fusionbench.record import Environment, Record, Roofline
from fusionbench.shard import Item
from fusionbench.spec import Case, Job, Shape

ENVIRONMENT = Environment(
    id="e1", machine="m", system="s", python="3", torch="2", triton="3", cpu="c", cores=2, memory_bytes=1
)
CASE = Case(shape=Shape(batch=1, image=8, text=4, image_width=16, text_width=16, width=16, heads=2))
ROOFLINE = Roofline(
    device="cpu",
    dtype="fp32",
    threads=1,
    environment="e1",
    flops_per_s=1e11,
    bytes_per_s=((1 << 15, 9e10), (1 << 28, 1e10)),
    measured_at="2026-11-21T00:00:00+00:00",
)


def record(batch: int = 1, **changes: Any) -> Record:
    case = replace(CASE, shape=replace(CASE.shape, batch=batch))
    plain = Record(job=Job(strategy="concat", backend="eager", case=case), status="ok", source="s1", environment="e1")
    return replace(plain, **changes)


RECORDS = [record(batch) for batch in (1, 2, 3)]


def create(results: Path) -> Path:
    return store.create(results, store.new_manifest(suite_name="quick", suite_hash="h"), "text")


def write(run: Path, *items: Item) -> Path:
    with store.Writer(run, ENVIRONMENT) as writer:
        for item in items:
            writer.append(item)
    return writer.path
