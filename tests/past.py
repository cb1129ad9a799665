"""Runs of several days without measuring anything, to make a history of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from fusionbench import archive, timeline
from fusionbench.history import History
from fusionbench.record import Costs, Environment, Memory, Record, Timing
from fusionbench.sealed import seal
from fusionbench.store import Run
from tests.storing import ENVIRONMENT, record

BEGIN = datetime(2026, 3, 2, 2, 0, 0, 17, tzinfo=UTC)
CONTROL_NS = 250_000
ROUNDS = 6


def commit(day: int) -> str:
    return f"{day:04d}" + "c" * 36


def environment(day: int, **changes: Any) -> Environment:
    return replace(ENVIRONMENT, **({"commit": commit(day)} | changes))


def timing(ns: float, *, pace: float = 1.0, control: bool = True) -> Timing:
    """Six rounds of five samples around ``ns``, on a machine that takes ``pace`` times as long as usual."""
    around = (0.99, 1.0, 1.0, 1.0, 1.01)
    return Timing(
        timer="wall",
        cache="hot",
        loops=1,
        samples_ns=tuple(round(ns * pace * each) for _ in range(ROUNDS) for each in around),
        stop="precise",
        first_call_ns=1,
        warmup_calls=1,
        threads=1,
        rounds=(5,) * ROUNDS,
        control_ns=(round(CONTROL_NS * pace),) * ROUNDS if control else (),
    )


def measured(day: int, ns: float, *, job: int = 1, pace: float = 1.0, peak: int = 1 << 20, **changes: Any) -> Record:
    """Job number ``job`` as it was measured on a day."""
    facts: dict[str, Any] = {
        "time": timing(ns, pace=pace),
        "memory": Memory(peak_bytes=peak, resting_bytes=1, meter="cpu_profiler"),
        "costs": Costs(flops=1000, params=10, min_bytes=1, activation_bytes=1),
        "kernels": ("flash",),
        "started_at": (BEGIN + timedelta(days=day, seconds=job)).isoformat(),
    }
    return record(job, **(facts | changes))


def failed(day: int, status: str = "oom") -> Record:
    return measured(day, 1, status=status, time=None, memory=None, kernels=())


def run(day: int, *records: Record, name: str = "", **facts: Any) -> Run:
    known = environment(day, **facts)
    items = [replace(each, environment=known.id) for each in records]
    return Run(Path(name or f"day-{day}.parquet"), None, items, {known.id: known}, [], [], 0)


def store_run(folder: Path, day: int, *records: Record, name: str = "", **facts: Any) -> Path:
    """The run of a day, sealed."""
    folder.mkdir(parents=True, exist_ok=True)
    found = run(day, *records, **facts)
    return seal(found.records, found.environments, folder / (name or f"day-{day}.parquet"))


def noisy(values: Sequence[float], deviation: float = 0.01, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [value * math.exp(each) for value, each in zip(values, rng.normal(0, deviation, len(values)), strict=True)]


def history(values: Sequence[float], **facts: Any) -> History:
    """The history of one job that took these times, in ns, a day apart."""
    return timeline.build([run(day, measured(day, ns), **facts) for day, ns in enumerate(values)])


def sealed_history(folder: Path, *, runs: int, jobs: int) -> Path:
    """A folder of sealed runs with noise; every tenth job takes 20 % longer from the middle on."""
    rng = np.random.default_rng(0)
    for day in range(runs):
        store_run(folder, day, *_jobs(day, jobs, runs // 2, rng))
    return folder


def _jobs(day: int, jobs: int, since: int, rng: np.random.Generator) -> Iterator[Record]:
    for job in range(1, jobs + 1):
        step = 1.2 if job % 10 == 0 and day >= since else 1.0
        yield measured(day, 1e6 * (1 + job / 10) * step * rng.lognormal(0, 0.02), job=job, pace=rng.lognormal(0, 0.1))


def read(folder: Path) -> tuple[History, list[tuple[str, bool]]]:
    """The history of a folder, and what was left out."""
    told: list[tuple[str, bool]] = []
    runs = archive.runs(folder, timeline.FIELDS, left_out=lambda text, damaged: told.append((text, damaged)))
    return timeline.build(runs), told
