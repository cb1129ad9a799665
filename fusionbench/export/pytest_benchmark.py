"""The file of ``pytest --benchmark-json``: what ``pytest-benchmark compare`` and ``--benchmark-compare`` read.

Seconds everywhere. A round of pytest-benchmark is a sample of ours, its iterations are our loops, and its statistics
are those that it would compute itself. Jobs are grouped by question, so that each table holds what may be compared.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..record import Environment
from ..spec import Job
from ..store import Run
from . import streaming
from .measured import Exported, Measured, Timed, about, exported, main_environment, measured, text, when
from .names import node_id, plain, suite_path

VERSION = "5.3.1"  # of pytest-benchmark, whose files these are like


def write(run: Run, path: Path) -> Exported:
    """Write the jobs that were timed."""
    found, suite = measured(run), suite_path(run)
    environment = main_environment(run)
    head = {
        "machine_info": machine_info(environment),
        "commit_info": commit_info(environment),
        "datetime": when(run),
        "version": VERSION,
    }
    timed = (benchmark(job, job.timed, suite, run.environments) for job in found if job.timed)
    streaming.write(path, streaming.document(head, "benchmarks", timed))
    return exported(run, found)


def benchmark(job: Measured, timed: Timed, suite: str, environments: Mapping[str, Environment]) -> dict[str, Any]:
    """One job as one of pytest-benchmark's benchmarks."""
    time, data = timed.timing, [ns / 1e9 for ns in timed.calls_ns]
    return {
        "group": plain(job.record.job.case.question),
        "name": job.name,
        "fullname": node_id(suite, job.name),
        "params": parameters(job.record.job),
        "param": None,
        "extra_info": extra_info(job, timed, environments),
        "options": {"disable_gc": True, "timer": time.timer, "warmup": time.warmup_calls > 0},
        "stats": stats(data) | {"data": data, "iterations": time.loops},
    }


def extra_info(job: Measured, timed: Timed, environments: Mapping[str, Environment]) -> dict[str, Any]:
    """Our interval of the median, and what else a reader needs to know."""
    return {"ci95_s": [timed.low_ns / 1e9, timed.high_ns / 1e9]} | about(job, environments)


def parameters(job: Job) -> dict[str, str | int]:
    """What ``--benchmark-group-by param:NAME`` can group by."""
    shape = job.case.shape
    named = {"strategy": plain(job.strategy), "backend": plain(job.backend), "treatment": job.case.treatment}
    sizes = {name: getattr(shape, name) for name in ("batch", "image", "text", "width", "heads", "depth")}
    return named | sizes | {name: getattr(job.case, name) for name in ("dtype", "device", "mode", "preset")}


def stats(data: Sequence[float]) -> dict[str, Any]:
    """What pytest-benchmark computes from ``data``, number by number."""
    ordered, n = sorted(data), len(data)
    mean, total = statistics.mean(data), sum(data)
    spread = statistics.stdev(data) if n > 1 else 0
    q1, q3 = quartiles(ordered)
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)  # Tukey's fences
    far, outside = _beyond(data, mean - spread, mean + spread), _beyond(data, low, high)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": spread,
        "rounds": n,
        "median": statistics.median(ordered),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": outside,
        "stddev_outliers": far,
        "outliers": f"{far};{outside}",
        "ld15iqr": ordered[bisect_left(ordered, low)],
        "hd15iqr": ordered[bisect_right(ordered, high) - 1],
        "ops": n / total if total else 0,
        "total": total,
    }


def quartiles(ordered: Sequence[float]) -> tuple[float, float]:
    """The medians of the halves; of an odd number of values, weighted by how much of each side a quarter takes."""
    n, quarter = len(ordered), len(ordered) // 4
    if n == 1:
        return ordered[0], ordered[0]
    if n % 2 == 0:
        return statistics.median(ordered[: n // 2]), statistics.median(ordered[n // 2 :])
    if n % 4 == 1:
        below, above = ordered[quarter - 1], ordered[3 * quarter + 1]
        return 0.25 * below + 0.75 * ordered[quarter], 0.75 * ordered[3 * quarter] + 0.25 * above
    below, above = ordered[quarter], ordered[3 * quarter + 2]
    return 0.75 * below + 0.25 * ordered[quarter + 1], 0.25 * ordered[3 * quarter + 1] + 0.75 * above


def _beyond(data: Sequence[float], low: float, high: float) -> int:
    return sum(value < low or value > high for value in data)


def machine_info(environment: Environment | None) -> dict[str, Any]:
    """What is known of the machine under the names that pytest-benchmark has for it."""
    if environment is None:
        return {}
    system, _, rest = text(environment.system).partition(" ")
    release, _, machine = rest.partition(" ")
    cpu = {"brand_raw": text(environment.cpu), "count": environment.cores, "arch": machine}
    return {
        "node": text(environment.machine),
        "processor": "",
        "machine": machine,
        "python_implementation": "CPython",
        "python_implementation_version": text(environment.python),
        "python_version": text(environment.python),
        "release": release,
        "system": system,
        "cpu": cpu | {"flags": [text(flag) for flag in environment.cpu_flags]},
        "gpu": text(environment.gpu),
        "torch": text(environment.torch),
        "triton": text(environment.triton),
        "environment": text(environment.id),
    }


def commit_info(environment: Environment | None) -> dict[str, Any]:
    """The commit of the code that measured, as far as it was known."""
    return {
        "id": (text(environment.commit) if environment else "") or "unversioned",
        "time": None,
        "author_time": None,
        "dirty": bool(environment and environment.dirty),
        "project": "fusionbench",
        "branch": "(unknown)",
    }
