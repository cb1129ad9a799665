"""Two stored measurements of the same jobs against each other: what differs in their facts and in their times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from msgspec.structs import replace

from . import environment, facts, store
from .baseline import Baseline
from .compare import FLOOR_GPU_NS, FLOOR_NS, MIN_ROUNDS, TOLERANCE, compare
from .delta import Comparison, Delta, Side
from .errors import counted, printable
from .facts import Facts
from .record import Environment, Status, Timing, latest
from .stats import median

Source = store.Run | Baseline

NOT_COMPARED = "times of two machines or environments are not compared"
UNKNOWN = "where one side was measured is not known"
MAX_PROBLEMS = 5  # of a run, told one by one
# How far head must lie above base for their intervals to be apart 80 times in 100, as a share of both intervals' widths
# on a log scale: 0.62 to 0.67 for 5 to 20 rounds of normal noise (simulated, 4,000 pairs each).
APART = 0.65


@dataclass(frozen=True)
class _Entry:
    """What one side knows of one job."""

    status: Status
    reason: str
    facts: Facts
    timing: Timing | None
    environment: Environment | None


def of(base: Source, head: Source, names: tuple[str, str] = ("", "")) -> Comparison:
    """Job by job, joined on their keys; of several records of a key the latest counts. ``names`` are those that the
    user gave the two sides.

    Times are compared only where machine and environment are the same, facts as ``facts.changes`` says; what is not
    compared is told in ``differences`` and ``notes``.
    """
    before, after = _entries(base), _entries(head)
    differences = _differences(before, after)
    notes: Counter[str] = Counter()
    excused = _narrowed(base, head)
    deltas, left_out = [], 0
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key), after.get(key)
        if excused and other is None and one is not None and one.status != "skipped":
            left_out += 1
        elif (delta := _delta(key, one, other, bool(differences), notes)) is not None:
            deltas.append(delta)
    return Comparison(
        method="stored",
        base=_side(base, before, names[0]),
        head=_side(head, after, names[1]),
        differences=differences,
        notes=(*_about(base, head, left_out), *(f"{what} ({counted(count, 'job')})" for what, count in notes.items())),
        deltas=tuple(deltas),
    )


def device(key: str) -> str:
    """The device in a job's key."""
    return key.split("/")[-2] if key.count("/") > 1 else ""


# --- what a side knows ---------------------------------------------------------------------------------------------


def _entries(source: Source) -> dict[str, _Entry]:
    if isinstance(source, Baseline):
        return {
            job.key: _Entry(job.status, "", job.facts, job.time.timing if job.time else None, source.environment)
            for job in source.jobs
        }
    return {
        key: _Entry(
            record.status, record.reason, facts.of(record), record.time, source.environments.get(record.environment)
        )
        for key, record in latest(source.records).items()
    }


def _side(source: Source, entries: Mapping[str, _Entry], name: str) -> Side:
    where = next((entry.environment for entry in entries.values() if entry.environment), None)
    paper = source if isinstance(source, Baseline) else source.manifest
    path = "" if isinstance(source, Baseline) else str(source.path)
    code = paper if paper and (paper.commit or paper.plugins) else where  # a plugin's commit is not fusionbench's
    return Side(
        name=printable(name or path or "baseline"),
        machine=printable(where.machine) if where else "",
        environment=printable(where.id) if where else "",
        commit=printable(code.commit) if code else "",
        dirty=code.dirty if code else False,
        suite=paper.suite_name if paper else "",
        suite_hash=printable(paper.suite_hash) if paper else "",
        measured_at=printable(_measured_at(source)),
        jobs=len(entries),
    )


def _measured_at(source: Source) -> str:
    if isinstance(source, Baseline):
        return source.measured_at
    if source.manifest is not None:
        return source.manifest.created_at
    return min((record.started_at for record in source.records if record.started_at), default="")


def _narrowing(source: Source) -> tuple[dict[str, set[str]], int | None] | None:
    """How a side's suite was narrowed; None where nobody says."""
    paper = source if isinstance(source, Baseline) else source.manifest
    return ({axis: set(values) for axis, values in paper.only.items()}, paper.limit) if paper else None


def _narrowed(base: Source, head: Source) -> bool:
    """Whether jobs are not in ``head`` because nobody asked for them: it was narrowed, otherwise than ``base``, and has
    all that was asked for."""
    narrowing = _narrowing(head)
    return (
        isinstance(head, store.Run) and narrowing not in (None, ({}, None), _narrowing(base)) and store.complete(head)
    )


# --- what may be compared ------------------------------------------------------------------------------------------


def _differences(before: Mapping[str, _Entry], after: Mapping[str, _Entry]) -> tuple[str, ...]:
    """What forbids comparing times, over all jobs that both sides have."""
    pairs = {}
    for key in before.keys() & after.keys():
        one, other = before[key].environment, after[key].environment
        pairs[one and (one.id, one.machine), other and (other.id, other.machine)] = one, other
    return tuple(dict.fromkeys(text for one, other in pairs.values() for text in _unlike(one, other)))


def _unlike(base: Environment | None, head: Environment | None) -> list[str]:
    if base is None or head is None:
        return [UNKNOWN]
    machine = [] if base.machine == head.machine else [f"machine {base.machine} → {head.machine}"]
    return [printable(text) for text in machine + environment.differences(base, head)]


def _about(base: Source, head: Source, left_out: int) -> Iterator[str]:
    """What a reader should know of the two sides beside their jobs."""
    one, other = _paper(base), _paper(head)
    if one and other and one != other:
        yield f"the suite is not the same: '{one[0]}' ({one[1]}) → '{other[0]}' ({other[1]})"
    if left_out:
        yield f"{counted(left_out, 'job')} of the base not asked for in the head, whose suite was narrowed"
    for name, source in (("base", base), ("head", head)):
        problems = [] if isinstance(source, Baseline) else source.problems
        yield from (f"{name}: {printable(problem)}" for problem in problems[:MAX_PROBLEMS])
        if len(problems) > MAX_PROBLEMS:
            yield f"{name}: {len(problems) - MAX_PROBLEMS} more problems of this kind"


def _paper(source: Source) -> tuple[str, str] | None:
    paper = source if isinstance(source, Baseline) else source.manifest
    return (paper.suite_name, printable(paper.suite_hash)) if paper else None


# --- one job -------------------------------------------------------------------------------------------------------


def _delta(key: str, base: _Entry | None, head: _Entry | None, apart: bool, notes: Counter[str]) -> Delta | None:
    """The delta of a job; None for one that was skipped on the only side that has it."""
    if base is None or head is None:
        return _one_sided(key, base, head)
    if base.status == head.status == "ok":
        return _both(key, base, head, apart, notes)
    words = f"{base.status} → {_told(head)}" if base.status != head.status else _told(head)
    if head.status == "ok":
        return Delta(key=key, verdict="fixed", reason=f"was {_told(base)}")
    worse = base.status == "ok" or (base.status == "skipped" and head.status != "skipped")
    return Delta(key=key, verdict="broken" if worse else "same", reason=words)


def _one_sided(key: str, base: _Entry | None, head: _Entry | None) -> Delta | None:
    only = cast(_Entry, base or head)
    if only.status == "skipped":
        return None
    told = "" if only.status == "ok" else _told(only)
    if base is None:
        return Delta(key=key, verdict="new", reason=told)
    return Delta(key=key, verdict="missing", reason=f"was {told or 'ok'}, and is not in the head")


def _told(entry: _Entry) -> str:
    return printable(f"{entry.status}: {entry.reason}" if entry.reason else entry.status, 500)


def _both(key: str, base: _Entry, head: _Entry, apart: bool, notes: Counter[str]) -> Delta:
    alike = _alike(key, base, head, notes)
    if missing := facts.lacking(base.facts, head.facts, alike=alike):
        notes[f"{', '.join(missing)} not compared: not recorded on both sides"] += 1
    return replace(
        Delta(key=key, verdict="unclear", reason=NOT_COMPARED) if apart else _timed(key, base.timing, head.timing),
        facts=len(facts.compared(base.facts, head.facts, alike=alike)),
        changes=facts.changes(base.facts, head.facts, alike=alike),
    )


def _alike(key: str, base: _Entry, head: _Entry, notes: Counter[str]) -> bool:
    """Whether facts of the toolchain may be compared; if not, why goes to ``notes``."""
    if base.environment is None or head.environment is None:
        why: tuple[str, ...] = (UNKNOWN,)
    else:
        why = facts.unlike(base.environment, head.environment, device(key))
    if why:
        notes[f"{', '.join(facts.OF_TOOLCHAIN)} not compared: {printable('; '.join(why), 500)}"] += 1
    return not why


def _timed(key: str, base: Timing | None, head: Timing | None) -> Delta:
    if base is None or head is None:
        return Delta(key=key, verdict="unclear", reason=f"the {'head' if base else 'base'} has no time of it")
    try:
        times = compare(base, head)
    except ValueError as error:
        return Delta(key=key, verdict="unclear", reason=printable(str(error)))
    base_ns, rounds = median(sorted(base.calls_ns)), min(len(base.round_sizes), len(head.round_sizes))
    few = f"measured in fewer rounds than {MIN_ROUNDS}; times need so many" if rounds < MIN_ROUNDS else ""
    return Delta(
        key=key,
        verdict=times.verdict,
        base_ns=base_ns,
        head_ns=base_ns * times.ratio,
        ratio=times.ratio,
        low=times.low,
        high=times.high,
        detectable=None if few else _detectable(base, base_ns, times.low, times.high),
        rounds=rounds,
        reason=few,
    )


def _detectable(base: Timing, base_ns: float, low: float, high: float) -> float | None:
    """The slow-down that ``compare`` would find 80 times in 100, with intervals as wide as these."""
    if not base_ns or low <= 0:
        return None
    tolerated = max(TOLERANCE, FLOOR_NS.get(base.timer, FLOOR_GPU_NS) / base_ns)
    return max(tolerated, math.expm1(APART * math.log(high / low)))
