"""Runs and baselines to compare, without measuring: jobs whose times and facts are known."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fusionbench import baseline, environment, store
from fusionbench.baseline import Baseline
from fusionbench.record import Costs, Environment, Memory, Record, Timing
from fusionbench.spec import Budget, Case, Job, Shape

CASE = Case(shape=Shape(batch=1, image=8, text=4, image_width=16, text_width=16, width=16, heads=2))
COSTS = Costs(flops=1000, params=200, min_bytes=300, activation_bytes=400)
BUDGET = Budget(measure_s=0.01, max_samples=60)
HASH = "0123456789abcdef"


def here(**changes: Any) -> Environment:
    """An environment with the id that its facts give it."""
    plain = Environment(
        id="", machine="m", system="Linux 6.8.0-1 x86_64", python="3.12.1", torch="2.13.0", triton="3.7.1",
        cpu="EPYC", cores=2, memory_bytes=1 << 34, cpu_flags=("avx2",), commit="c0ffee" * 6, fusionbench="0.1.0",
    )  # fmt: skip
    known = replace(plain, **changes)
    return replace(known, id=environment.identify(known))


def timing(ms: float = 1.0, rounds: int = 7, samples: int = 15, seed: int = 0, **changes: Any) -> Timing:
    """Samples within 0.2 % of ``ms``."""
    draw = random.Random(seed)
    count = rounds * samples
    facts = {
        "timer": "wall", "cache": "hot", "loops": 1, "stop": "budget", "first_call_ns": 1, "warmup_calls": 2,
        "samples_ns": tuple(round(ms * 1e6 * (1 + draw.uniform(-0.002, 0.002))) for _ in range(count)),
        "threads": 1, "rounds": (samples,) * rounds, "control_ns": (10**6,) * rounds,
    }  # fmt: skip
    return Timing(**(facts | changes))


def record(number: int = 1, ms: float = 1.0, seed: int = 0, device: str = "cpu", **changes: Any) -> Record:
    """One ok job; jobs of different numbers have different keys."""
    case = replace(CASE, shape=replace(CASE.shape, batch=number), device=device)
    plain = Record(
        job=Job(strategy="concat", backend="eager", case=case),
        status="ok",
        time=timing(ms, seed=1000 * seed + number),
        memory=Memory(peak_bytes=5000, resting_bytes=100, meter="cpu_profiler"),
        costs=COSTS,
        kernels=("flash",),
        launches=42,
        source="s1",
        started_at="2026-11-21T00:00:00.000+00:00",
    )
    return replace(plain, **changes)


def failed(number: int = 1, status: str = "crash", reason: str = "worker died of SIGSEGV", **changes: Any) -> Record:
    return record(number, status=status, reason=reason, time=None, memory=None, costs=None, **changes)


def run(
    results: Path, *records: Record, where: Environment | None = None, name: str = "smoke", **paper: Any
) -> store.Run:
    """A stored run of these records, read again."""
    where = where or here()
    planned = paper.pop("planned", len({item.job.key for item in records}))
    manifest = store.new_manifest(
        suite_name=name, suite_hash=paper.pop("suite_hash", HASH), budget=BUDGET, planned=planned, **paper
    )
    # With one round records are complete whatever their own number of rounds.
    folder = store.create(results, replace(manifest, budget=replace(BUDGET, rounds=1)), "text")
    with store.Writer(folder, where) as writer:
        writer.append_all(replace(item, environment=item.environment or where.id) for item in records)
    return store.read(folder)


def kept(found: store.Run, path: Path, reason: str = "first") -> Baseline:
    """The baseline of a run, written to ``path`` and read again."""
    path.write_bytes(baseline.encode(baseline.of(found, reason)))
    return baseline.load(path)
