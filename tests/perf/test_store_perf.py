"""What the store costs: durable appends, reading 100,000 records, and a million of them sealed and loaded."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from msgspec.structs import replace

from fusionbench import store
from fusionbench.environment import capture
from fusionbench.record import Accuracy, Costs, Deviation, Energy, Memory, Record, Timing
from fusionbench.shard import _line
from fusionbench.spec import Case, Job, Shape
from tests.perf.scale import SAMPLES, write_run

RECORDS = 100_000
READ_S = 3.0
APPENDS, APPENDS_PER_S = 10_000, 2_000
MILLION = 1_000_000
SEAL_S, SEAL_BYTES = 60, 10**9
PARQUET_BYTES = 15_000_000  # of everything that is not a measured figure
SAMPLE_BYTES = 3.0  # 1 % of noise on 0.05 to 5 ms is 12 to 18 bits
LOAD_S = 1.0

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


def file_system(path: Path) -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(mount[1]), mount[2]) for mount in mounts if path.is_relative_to(mount[1])]
    return max(inside)[1]


@pytest.mark.parametrize("together", [False, True], ids=["append", "append_all"])
def test_10_000_durable_appends(benchmark: Any, run: Path, together: bool) -> None:
    """``--basetemp`` puts the folder on another disk."""
    benchmark.extra_info["file system"] = kind = file_system(run)
    if kind == "tmpfs":
        pytest.skip("a tmpfs syncs nothing; give --basetemp on a disk")
    environment = capture()
    items = [record(batch, environment.id) for batch in range(1, APPENDS + 1)]

    def append() -> None:
        with store.Writer(run, environment) as writer:
            if together:
                assert writer.append_all(items) == APPENDS
            else:
                for item in items:
                    writer.append(item)

    benchmark.pedantic(append, rounds=3)
    assert len(store.read(run).records) == APPENDS
    assert benchmark.stats.stats.min < APPENDS / APPENDS_PER_S  # the best of three: the disk has other users


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A million records in 8 shards, 2.4 GB, and the sealed file beside them once it is made."""
    folder = tmp_path_factory.mktemp("million")
    yield write_run(folder, MILLION)
    shutil.rmtree(folder)


SEALING = """
import resource, sys, time
from pathlib import Path
from fusionbench.sealed import seal_run
start = time.perf_counter()
seal_run(Path(sys.argv[1]), Path(sys.argv[1], "records.parquet"))
print(time.perf_counter() - start, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
# What differs from record to record at random, and cannot be packed: samples, error figures, seconds, watts, moments.
MEASURED = ("_ns", "accuracy.", "phases_s", "wall_s", "started_at", "power_watts")


def test_sealing_a_million_records(benchmark: Any, million: Path) -> None:
    def sealing() -> list[float]:
        done = subprocess.run([sys.executable, "-c", SEALING, million], check=True, capture_output=True, text=True)
        return [float(figure) for figure in done.stdout.split()]

    seconds, cpu_s, peak_kib = benchmark.pedantic(sealing, rounds=1)
    metadata = pyarrow.parquet.ParquetFile(million / "records.parquet").metadata
    sizes = Counter[str]()
    for group, column in itertools.product(range(metadata.num_row_groups), range(metadata.num_columns)):
        chunk = metadata.row_group(group).column(column)
        sizes[chunk.path_in_schema] += chunk.total_compressed_size
    measured = sum(size for path, size in sizes.items() if any(part in path for part in MEASURED))
    benchmark.extra_info |= {
        "seconds": round(seconds, 1),
        "cpu seconds": round(cpu_s, 1),
        "peak MB": round(peak_kib / 1e3 * 1.024),
        "MB": round((million / "records.parquet").stat().st_size / 1e6, 1),
        "MB without what was measured": round((sum(sizes.values()) - measured) / 1e6, 1),
        "bytes per sample": round(sizes["time.samples_ns.list.element"] / MILLION / SAMPLES, 2),
        "largest columns": {path: round(size / 1e6, 1) for path, size in sizes.most_common(12)},
    }
    assert metadata.num_rows == MILLION
    assert seconds < SEAL_S
    assert peak_kib * 1024 < SEAL_BYTES
    assert sum(sizes.values()) - measured < PARQUET_BYTES
    assert sizes["time.samples_ns.list.element"] / MILLION / SAMPLES < SAMPLE_BYTES


WHO = ("job.strategy", "job.backend", "job.case.shape", "job.case.dtype", "job.case.device", "job.case.mode")
WHAT = ("status", "time.timer", "time.cache", "time.loops", "memory.peak_bytes", "costs.flops")
LOADED = {"who and what": [*WHO, *WHAT], "and the samples": [*WHO, *WHAT, "time.samples_ns"]}


@pytest.mark.parametrize("columns", LOADED.values(), ids=LOADED)
def test_loading_a_million_records(benchmark: Any, million: Path, columns: list[str]) -> None:
    path = million / "records.parquet"
    if not path.exists():
        pytest.skip("the file is written by test_sealing_a_million_records")
    table = benchmark.pedantic(pyarrow.parquet.read_table, args=(path,), kwargs={"columns": columns}, rounds=5)
    benchmark.extra_info["MB in memory"] = round(table.nbytes / 1e6)
    assert table.num_rows == MILLION
    assert benchmark.stats.stats.min < LOAD_S
