"""What pytest-benchmark's files say of a job beside its samples."""

from __future__ import annotations

from typing import Any

from ..record import Environment, Record
from ..spec import Job
from ..stats import median_interval


def parameters(job: Job) -> dict[str, Any]:
    """What ``--benchmark-group-by param:NAME`` can group by."""
    case = job.case
    named = {"strategy": job.strategy, "backend": job.backend, "treatment": case.treatment}
    sizes = {name: getattr(case.shape, name) for name in ("batch", "image", "text", "width", "heads", "depth")}
    return named | sizes | {name: getattr(case, name) for name in ("dtype", "device", "mode", "preset")}


def facts(record: Record, environment: Environment) -> dict[str, Any]:
    """What a reader needs to know of the samples, in the order of interest; what is not known is left out."""
    costs, energy = record.costs, record.energy
    found = {
        **_timing(record),
        "device": record.job.case.device,
        "machine": environment.machine,
        "environment": environment.id,
        "commit": environment.commit,
        "source": record.source,
        "kernels": list(record.kernels),
        "peak_bytes": record.memory.peak_bytes if record.memory else None,
        "flops": costs.flops if costs else None,
        "params": costs.params if costs else None,
        "min_bytes": costs.min_bytes if costs else None,
        "activation_bytes": costs.activation_bytes if costs else None,
        "joules_per_call": energy.joules / energy.calls if energy and energy.calls else None,
        "rel_l2": record.accuracy.output.rel_l2 if record.accuracy else None,
        "notes": list(record.notes),
    }
    return {name: value for name, value in found.items() if value not in (None, "", [])}


def _timing(record: Record) -> dict[str, Any]:
    time = record.time
    if time is None:
        return {}
    _, low, high = median_interval(time.calls_ns, time.rounds)
    return {
        "ci95_s": [low / 1e9, high / 1e9],
        "timer": time.timer,
        "cache": time.cache,
        "threads": time.threads,
        "rounds": len(time.round_sizes),
        "loops": time.loops,
        "stop": time.stop,
    }
