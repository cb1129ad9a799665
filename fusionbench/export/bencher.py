"""Bencher Metric Format, for ``bencher run --adapter json``: latency in ns with our interval, peak memory in bytes."""

from __future__ import annotations

from pathlib import Path

from ..store import Run
from . import streaming
from .measured import Exported, Measured, exported, measured

Metrics = dict[str, dict[str, float]]


def write(run: Run, path: Path) -> Exported:
    """Write the jobs that were timed or whose memory was measured, each under its key."""
    found = [job for job in measured(run) if job.timed or job.record.memory]
    streaming.write(path, streaming.members((job.name, metrics(job)) for job in found))
    return exported(run, found, untimed=True)


def metrics(job: Measured) -> Metrics:
    """Bencher's measures of one job; ``latency`` is built in there, ``peak-memory`` is made on first use."""
    found: Metrics = {}
    if timed := job.timed:
        found["latency"] = {"value": timed.median_ns, "lower_value": timed.low_ns, "upper_value": timed.high_ns}
    if job.record.memory:
        found["peak-memory"] = {"value": job.record.memory.peak_bytes}
    return found
