"""Records as asv's benchmarks: a number for each combination of a benchmark's parameters.

The benchmarks are ``time`` and ``peakmem`` of each strategy (late:vote has ``time.late~3avote``), their parameters the
backend, with what was done to the weights, and the case. A combination that failed is null; one that was skipped, or
that no job asked for, is NaN. The statistics are those of medians of blocks of samples, six or more, since the samples
of one process are not independent. asv's own samples are left out: with them it tests by rank alone, which of six and
six finds nothing, and without them by whether the intervals overlap.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import product
from statistics import quantiles
from typing import Any

from msgspec import Struct

from ..record import FAILED, Record
from ..stats import BLOCKS, block_medians, interval_ranks
from .measured import timed
from .names import encoded, plain

STATS = ("ci_99_a", "ci_99_b", "q_25", "q_75", "number", "repeat")
COLUMNS = (
    *("result", "params", "version", "started_at", "duration"),
    *(f"stats_{name}" for name in STATS),
    *("samples", "profile"),
)
VERSION = "1"  # of every benchmark: asv drops results of another one
PARAM_NAMES = ["backend", "case"]
_DIGITS = re.compile(r"([0-9]+)")

Cell = dict[str, Any]


class Measure(Struct, frozen=True):
    """What is told of a strategy: what its benchmark's name begins with, asv's kind and unit, and a record's number."""

    prefix: str
    kind: str
    unit: str
    cell: Callable[[Record], Cell | None]


class Benchmark(Struct, frozen=True, kw_only=True):
    """A measure of a strategy, with the records of its jobs by their parameters."""

    name: str
    measure: Measure
    params: tuple[list[str], list[str]]  # as Python would write them: asv's way
    records: dict[tuple[str, str], Record]


def time_cell(record: Record) -> Cell | None:
    """The seconds of a call, with their statistics; None where they were not measured."""
    if record.time is None:
        return None
    found = timed(record.time)
    medians = [ns / 1e9 for ns in block_medians(found.calls_ns, record.time.rounds)]
    ordered = sorted(medians)
    q25, _, q75 = quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    stats = (*interval(ordered), q25, q75, record.time.loops, len(medians))
    return {"result": found.median_ns / 1e9} | dict(zip(STATS, stats, strict=True))


def interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The values that bound the median at 99 %; below 8 the extremes, which do so at 97 %; below 6 no bounds."""
    if len(ordered) < BLOCKS:
        return -math.inf, math.inf
    low, high = interval_ranks(len(ordered), 0.99) or (0, -1)
    return ordered[low], ordered[high]


def memory_cell(record: Record) -> Cell | None:
    """The bytes of the peak; None where they were not measured."""
    return {"result": record.memory.peak_bytes} if record.memory else None


MEASURES = (
    Measure("time", "time", "seconds", time_cell),
    Measure("peakmem", "peakmemory", "bytes", memory_cell),
)


def benchmarks(records: Iterable[Record]) -> list[Benchmark]:
    """All measures of all strategies, in the order of their names."""
    strategies: dict[str, dict[tuple[str, str], Record]] = defaultdict(dict)
    for record in records:
        strategies[record.job.strategy][parameters(record)] = record
    return [
        Benchmark(
            name=f"{measure.prefix}.{encoded(plain(strategy, 64))}",
            measure=measure,
            params=(_ordered(backend for backend, _ in found), _ordered(case for _, case in found)),
            records=found,
        )
        for measure in MEASURES
        for strategy, found in sorted(strategies.items())
    ]


def _ordered(values: Iterable[str]) -> list[str]:
    """Each value once, numbers in them by their size: ``t16`` before ``t128``."""
    parts = {
        value: [(part.zfill(20) if part.isdecimal() else part) for part in _DIGITS.split(value)] for value in values
    }
    return sorted(parts, key=parts.__getitem__)


def parameters(record: Record) -> tuple[str, str]:
    """What tells a record from others of its strategy; together they hold the job's key."""
    job = record.job
    backend = f"{job.backend}/{job.case.treatment}" if job.case.treatment else job.backend
    return _written(backend), _written(job.case.key)


def _written(value: str) -> str:
    """As Python writes it, without what asv's pages would take for HTML."""
    return repr(encoded(plain(value), keep="/:@,=+-"))


def described(benchmark: Benchmark) -> dict[str, Any]:
    """The benchmark without its numbers."""
    return {
        "name": benchmark.name,
        "code": f"fusionbench: {benchmark.name}",
        "param_names": PARAM_NAMES,
        "params": list(benchmark.params),
        "type": benchmark.measure.kind,
        "unit": benchmark.measure.unit,
        "version": VERSION,
    }


def row(benchmark: Benchmark) -> list[Any]:
    """The benchmark's numbers in the order of COLUMNS, in lists over the product of its parameters, last fastest."""
    cells = [_cell(benchmark, at) for at in product(*benchmark.params)]
    columns: dict[str, Any] = {
        "result": _list(cells, "result"),
        "params": list(benchmark.params),
        "version": VERSION,
        "started_at": max(milliseconds(record.started_at) for record in benchmark.records.values()),
        "duration": shortened(math.fsum(_seconds(record) for record in benchmark.records.values())),
        **{f"stats_{name}": shortened(_list(cells, name)) for name in STATS},
    }
    found = [columns.get(name) for name in COLUMNS]
    while found[-1] is None:
        found.pop()
    return found


def _cell(benchmark: Benchmark, at: tuple[str, ...]) -> Cell:
    record = benchmark.records.get((at[0], at[1]))
    if record is not None and record.status in FAILED:
        return {"result": None}
    measured = benchmark.measure.cell(record) if record is not None and record.status == "ok" else None
    return measured or {"result": math.nan}


def _list(cells: list[Cell], name: str) -> list[Any] | None:
    """One column; None where it is None throughout, which is how asv writes it."""
    values = [cell.get(name) for cell in cells]
    return values if any(value is not None for value in values) else None


def shortened(value: Any) -> Any:
    """Floats cut to five digits, as asv does."""
    if isinstance(value, list):
        return [shortened(each) for each in value]
    return float(f"{value:.4e}") if isinstance(value, float) else value


def milliseconds(moment: str) -> int:
    """A time in ISO 8601 as JavaScript counts; 0 where it is none."""
    try:
        return int(datetime.fromisoformat(moment).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return 0


def _seconds(record: Record) -> float:
    return record.wall_s if math.isfinite(record.wall_s) else 0.0
