"""What the store costs: reading 100,000 records, and one durable append."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fusionbench import store
from fusionbench.environment import capture
from fusionbench.record import Accuracy, Costs, Deviation, Energy, Memory, Record, Timing
from fusionbench.shard import _line
from fusionbench.spec import Case, Job, Shape

RECORDS = 100_000
READ_S = 3.0
APPENDS_PER_S = 2_000

SHAPE = Shape(batch=1, image=577, text=77, image_width=1024, text_width=768, width=768, heads=12)
DEVIATION = Deviation(max_abs=0.01234567, mean_abs=0.001234567, rel_l2=0.00234567, cosine=0.9999912)


def record(batch: int, environment: str) -> Record:
    """As a GPU job leaves it: about 2 kB with 30 samples and their run delays."""
    chance = random.Random(batch)
    timing = Timing(
        timer="cuda_event",
        cache="cold",
        loops=4,
        samples_ns=tuple(chance.randrange(10**6, 10**7) for _ in range(30)),
        run_delay_ns=tuple(chance.randrange(10**3, 10**5) for _ in range(30)),
        stop="precise",
        first_call_ns=123_456_789,
        warmup_calls=9,
        threads=1,
    )
    return Record(
        job=Job(
            strategy="cross_attention",
            backend="sdpa",
            case=Case(shape=replace(SHAPE, batch=batch), dtype="bf16", device="cuda"),
        ),
        status="ok",
        time=timing,
        memory=Memory(peak_bytes=123_456_789, resting_bytes=12_345_678, meter="cuda_allocator"),
        energy=Energy(joules=1.234567, calls=1000, window_s=1.23456, meter="nvml"),
        accuracy=Accuracy(
            reference="fp64",
            samples=2,
            output=DEVIATION,
            yardstick=DEVIATION,
            gradient=DEVIATION,
            gradient_yardstick=DEVIATION,
        ),
        costs=Costs(flops=10**12, params=10**7, min_bytes=10**8, activation_bytes=10**8),
        kernels=("aten::_scaled_dot_product_flash_attention",),
        source="0123456789abcdef",
        environment=environment,
        started_at="2026-01-01T00:00:00.000000+00:00",
        wall_s=1.2345,
        phases_s={"build": 0.1234567, "accuracy": 0.3456789, "time": 0.5678901, "memory": 0.1234567},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return store.create(tmp_path, store.new_manifest(suite_name="perf", suite_hash="h"), "")


def test_reading_100_000_records(benchmark: Any, run: Path) -> None:
    environment = capture()
    with (run / "shards" / "perf-1-1.jsonl").open("wb") as file:
        file.write(_line(environment))
        file.writelines(_line(record(batch, environment.id)) for batch in range(1, RECORDS + 1))
    found = benchmark.pedantic(store.read, args=(run,), rounds=3)
    assert len(found.records) == RECORDS
    assert found.problems == []
    assert benchmark.stats.stats.min < READ_S


def test_a_durable_append(benchmark: Any, run: Path) -> None:
    environment = capture()
    batches = itertools.count(1)
    with store.Writer(run, environment) as writer:
        benchmark.pedantic(writer.append, setup=lambda: ((record(next(batches), environment.id),), {}), rounds=10_000)
    assert len(store.read(run).records) == 10_000
    assert benchmark.stats.stats.median < 1 / APPENDS_PER_S  # the mean is that of the disk's other users
