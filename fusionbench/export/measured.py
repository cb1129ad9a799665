"""What a run says of each job, once: where every format for trackers of performance begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from ..errors import printable
from ..record import Environment, Record, Timing, latest
from ..stats import median_interval
from ..store import Run
from .names import plain

TEXT = 500  # characters of a text from outside that a file for others takes


class Exported(Struct, frozen=True, kw_only=True):
    """How many jobs a file holds, and what its reader would not see there."""

    jobs: int
    notes: tuple[str, ...] = ()


class Timed(Struct, frozen=True, kw_only=True, gc=False):
    """The times of a call on the core, in ns; ``low_ns`` and ``high_ns`` bound the median at 95 %."""

    timing: Timing
    calls_ns: list[float]
    median_ns: float
    low_ns: float
    high_ns: float


class Measured(Struct, frozen=True, kw_only=True, gc=False):
    """A job that went well."""

    name: str  # its key (see names.plain)
    record: Record
    timed: Timed | None

    @property
    def tflops(self) -> float | None:
        """TFLOP/s by the closed form."""
        costs, timed = self.record.costs, self.timed
        return costs.flops / timed.median_ns / 1e3 if costs and costs.flops and timed and timed.median_ns else None


def measured(run: Run) -> list[Measured]:
    """The jobs that went well, each by its newest record."""
    return [of(record) for record in newest(run.records) if record.status == "ok"]


def newest(records: Iterable[Record]) -> list[Record]:
    """The record of each job that was begun last."""
    return list(latest(records).values())


def exported(run: Run, found: Iterable[Measured], *, untimed: bool = False) -> Exported:
    """What went into a file that holds ``found``: those that have a timing, or all of them."""
    records = newest(run.records)
    kept = {m.record.job.key for m in found if m.timed or untimed}
    reasons = Counter(
        "not timed" if record.status == "ok" else record.status for record in records if record.job.key not in kept
    )
    notes = []
    if reasons:
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        notes.append(f"{reasons.total()} jobs are not in the file, which holds numbers alone: {told}")
    return Exported(jobs=len(kept), notes=(*notes, *doubts(run)))


def doubts(run: Run) -> list[str]:
    """What would mislead a tool that takes all numbers of a run for one measurement."""
    notes = []
    if older := len(run.records) - len({record.job.key for record in run.records}):
        notes.append(f"{older} older results of the same jobs, by other code or elsewhere, are left out")
    if (count := len({record.environment for record in newest(run.records)})) > 1:
        notes.append(f"the jobs were measured in {count} environments; their times are not to be compared")
    return notes


def of(record: Record) -> Measured:
    return Measured(name=plain(record.job.key), record=record, timed=timed(record.time) if record.time else None)


def timed(timing: Timing) -> Timed:
    calls = timing.calls_ns
    middle, low, high = median_interval(calls, timing.rounds)
    return Timed(timing=timing, calls_ns=calls, median_ns=middle, low_ns=low, high_ns=high)


def main_environment(run: Run) -> Environment | None:
    """The environment of most jobs; None where no shard describes it."""
    counted = Counter(record.environment for record in newest(run.records))
    return run.environments.get(counted.most_common(1)[0][0]) if counted else None


def when(run: Run) -> str:
    """The day and time of a run: when its last job began."""
    begun = max((record.started_at for record in run.records), default="")
    return text(begun or (run.manifest.created_at if run.manifest else ""))


def text(raw: str) -> str:
    """A text from outside, as others may show it."""
    return printable(raw, TEXT)


def about(job: Measured, environments: Mapping[str, Environment]) -> dict[str, Any]:
    """What a reader needs to know of a number, in the order of interest; what is not known is left out."""
    record, environment = job.record, environments.get(job.record.environment)
    costs, energy = record.costs, record.energy
    found: dict[str, Any] = {
        **(_timing(record.time) if record.time else {}),
        "device": record.job.case.device,
        "machine": text(environment.machine) if environment else None,
        "environment": text(record.environment),
        "commit": text(environment.commit) if environment else None,
        "source": text(record.source),
        "kernels": [text(kernel) for kernel in record.kernels],
        "tflops": job.tflops,
        "peak_bytes": record.memory.peak_bytes if record.memory else None,
        "flops": costs.flops if costs else None,
        "params": costs.params if costs else None,
        "min_bytes": costs.min_bytes if costs else None,
        "activation_bytes": costs.activation_bytes if costs else None,
        "joules_per_call": energy.joules / energy.calls if energy and energy.calls else None,
        "rel_l2": record.accuracy.output.rel_l2 if record.accuracy else None,
        "notes": [text(note) for note in record.notes],
    }
    return {name: value for name, value in found.items() if value not in (None, "", [])}


def _timing(time: Timing) -> dict[str, Any]:
    return {
        "timer": time.timer,
        "cache": time.cache,
        "threads": time.threads,
        "rounds": len(time.round_sizes),
        "loops": time.loops,
        "samples": len(time.samples_ns),
        "stop": time.stop,
    }
