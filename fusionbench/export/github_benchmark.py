"""The custom JSON of github-action-benchmark, which takes one direction a file: what should be small, what large.

Its entries are matched by name with the run before, so that a measure is part of the name and its unit never changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..record import Environment
from ..store import Run
from . import streaming
from .measured import Exported, Measured, about, exported, measured

# Of what `extra` tells, in its chart's tooltip: what a number cannot be read without.
_TOLD = ("timer", "cache", "rounds", "samples", "device", "machine", "environment", "kernels")


def write_smaller(run: Run, path: Path) -> Exported:
    """For the tool ``customSmallerIsBetter``: the median in µs, and the peak memory in bytes."""
    found = measured(run)
    streaming.write(path, streaming.elements(entry for job in found for entry in smaller(job, run.environments)))
    return exported(run, [job for job in found if job.timed or job.record.memory], untimed=True)


def write_bigger(run: Run, path: Path) -> Exported:
    """For the tool ``customBiggerIsBetter``: TFLOP/s by the closed form."""
    found = [job for job in measured(run) if job.tflops is not None]
    streaming.write(path, streaming.elements(bigger(job, run.environments) for job in found))
    return exported(run, found)


def smaller(job: Measured, environments: Mapping[str, Environment]) -> Iterator[dict[str, Any]]:
    extra = _extra(job, environments)
    if timed := job.timed:
        around = {"range": f"± {(timed.high_ns - timed.low_ns) / 2e3:.4g}", "extra": extra}
        yield {"name": f"{job.name} [time]", "unit": "us", "value": timed.median_ns / 1e3} | around
    if job.record.memory:
        peak = job.record.memory.peak_bytes
        yield {"name": f"{job.name} [peak memory]", "unit": "bytes", "value": peak, "extra": extra}


def bigger(job: Measured, environments: Mapping[str, Environment]) -> dict[str, Any]:
    rate = {"name": f"{job.name} [rate]", "unit": "TFLOP/s", "value": job.tflops}
    return rate | {"extra": _extra(job, environments)}


def _extra(job: Measured, environments: Mapping[str, Environment]) -> str:
    known = about(job, environments)
    texts = {name: known[name] for name in _TOLD if name in known}
    return "\n".join(f"{name}: {', '.join(v) if isinstance(v, list) else v}" for name, v in texts.items())
