"""From runs to a history: a point for each record, a series for each job and machine, and where it changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from . import change_points
from .environment import differences
from .history import History, Interval, Measurement, Point, Segment, Series, Shift, Step
from .record import FAILED, Environment, Record, Timing
from .stats import median, median_interval
from .store import Run, complete

# All that a point is made of: the columns to read of a sealed run.
FIELDS = ("job", "status", "time", "memory", "costs", "kernels", "environment", "started_at")
_FACTS = ("status", "flops", "params", "peak_bytes", "kernels")
NO_RUPTURES = "change points need the package 'ruptures'; pip install 'fusionbench[history]'"


def build(runs: Iterable[Run], *, job: str = "", any_machine: bool = False, problems: Sequence[str] = ()) -> History:
    """The history of ``runs``, in whatever order they come, of the jobs with ``job`` in their key.

    A series is of one machine; with ``any_machine`` machines whose environments are the same count as one. ``runs`` are
    taken one by one, and ``problems`` is read when they have been.
    """
    found: list[Measurement] = []
    environments: dict[str, Environment] = {}
    points: dict[tuple[str, str], dict[tuple[str, ...], Point]] = {}
    lost: list[str] = []
    for run in runs:
        environments |= {key: each for key, each in run.environments.items() if key not in environments}
        seen = kept = 0
        for key, machine, point in _points(run, len(found), job, lost):
            known = points.setdefault((key, "" if any_machine else machine), {})
            seen, kept = seen + 1, kept + (known.setdefault(_identity(point), point) is point)
        if kept or not seen:  # else it is the copy of another
            found.append(_measurement(run))
    runs_in_order, places = _ordered(found)
    series = (
        _series(key, machine, [replace(p, run=places[p.run]) for p in each.values()], environments)
        for (key, machine), each in points.items()
    )
    return History(
        runs=runs_in_order,
        environments=environments,
        series=tuple(sorted(filter(_measured, series), key=_weight, reverse=True)),
        problems=(*problems, *lost),
        note="" if change_points.installed() else NO_RUPTURES,
    )


def _points(run: Run, number: int, job: str, lost: list[str]) -> Iterable[tuple[str, str, Point]]:
    """Key, machine and point of each record; ``lost`` is told of those that nobody knows when they were measured."""
    undated = 0
    for record in run.records:
        key = record.job.key
        if job and job not in key:
            continue
        at = _utc(record.started_at) or (_utc(run.manifest.created_at) if run.manifest else None)
        if at is None:
            undated += 1
            continue
        environment = run.environments.get(record.environment)
        yield key, environment.machine if environment else "", _point(record, at, number, environment)
    if undated:
        lost.append(f"{run.path.name}: {undated} records do not say when they were measured; left out")


def _point(record: Record, at: str, number: int, environment: Environment | None) -> Point:
    time = record.time if record.status == "ok" else None
    costs = record.costs
    return Point(
        at=at,
        run=number,
        commit=environment.commit if environment else "",
        dirty=bool(environment and environment.dirty),
        environment=record.environment,
        status=record.status,
        conditions=(time.timer, time.cache, str(time.threads)) if time else (),
        ns=median_interval(time.calls_ns, time.rounds) if time else None,
        even=_even(time) if time else None,
        control_ns=median(sorted(time.control_ns)) if time and time.control_ns else None,
        flops=costs.flops if costs else None,
        params=costs.params if costs else None,
        peak_bytes=record.memory.peak_bytes if record.memory else None,
        kernels=record.kernels,
    )


def _even(time: Timing) -> Interval | None:
    """As ``compare`` does it: the samples of each round by what the fixed piece of work took beside it."""
    rounds = time.round_sizes
    if len(time.control_ns) != len(rounds) or not all(time.control_ns):
        return None
    paces = itertools.chain.from_iterable(map(itertools.repeat, time.control_ns, rounds))
    return median_interval([ns / pace for ns, pace in zip(time.calls_ns, paces, strict=True)], rounds)


def _identity(point: Point) -> tuple[str, ...]:
    """The same for the same measurement in two files, which began in the same microsecond."""
    return (point.at, point.environment) if "." in point.at else (point.at, point.environment, str(point.run))


def _measurement(run: Run) -> Measurement:
    manifest = run.manifest
    dates = filter(None, (_utc(record.started_at) for record in run.records))
    known = list(run.environments.values())
    return Measurement(
        name=manifest.id if manifest else run.path.name,
        measured_at=min(dates, default=(_utc(manifest.created_at) if manifest else None) or ""),
        machines=tuple(dict.fromkeys(each.machine for each in known)),
        commit=known[-1].commit if known else "",
        dirty=any(each.dirty for each in known),
        jobs=len(run.records),
        planned=manifest.planned if manifest else None,
        unfinished=bool(manifest and manifest.planned is not None and not complete(run)),
    )


def _ordered(found: Sequence[Measurement]) -> tuple[tuple[Measurement, ...], dict[int, int]]:
    """The runs by when they were measured, and where each of them has gone."""
    order = sorted(range(len(found)), key=lambda number: (found[number].measured_at, found[number].name))
    return tuple(found[number] for number in order), {number: place for place, number in enumerate(order)}


def _series(key: str, machine: str, points: Sequence[Point], environments: dict[str, Environment]) -> Series:
    ordered = tuple(sorted(points, key=lambda point: (point.at, point.run)))
    return Series(
        key=key,
        machine=machine,
        points=ordered,
        segments=tuple(_segments(ordered, environments)),
        steps=tuple(_steps(ordered)),
    )


def _segments(points: Sequence[Point], environments: dict[str, Environment]) -> Iterable[Segment]:
    """One for each environment and way of timing, in the order in which they were first met."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for at, point in enumerate(points):
        if point.ns and point.ns[0] > 0:
            groups.setdefault((point.environment, point.conditions), []).append(at)
    before: tuple[str, tuple[str, ...]] | None = None
    for (environment, conditions), members in groups.items():
        yield _searched(
            Segment(
                environment=environment,
                conditions=conditions,
                points=tuple(members),
                differences=_differences(before, (environment, conditions), environments),
                even_ns=_even_ns([points[at] for at in members]),
            ),
            points,
        )
        before = environment, conditions


def _differences(
    before: tuple[str, tuple[str, ...]] | None, after: tuple[str, tuple[str, ...]], known: dict[str, Environment]
) -> tuple[str, ...]:
    if before is None:
        return ()
    old, new = known.get(before[0]), known.get(after[0])
    of_machine = differences(old, new) if old and new else ["environment unknown"]
    names = ("timer", "cache", "threads")
    of_timing = [f"{n} {a} → {b}" for n, a, b in zip(names, before[1], after[1], strict=True) if a != b]
    return (*of_machine, *of_timing)


def _even_ns(points: Sequence[Point]) -> float | None:
    """What the fixed piece of work takes in the middle of all points."""
    controls = [point.control_ns for point in points if point.even and point.control_ns]
    return median(sorted(controls)) if len(controls) == len(points) else None


def _searched(segment: Segment, points: Sequence[Point]) -> Segment:
    """The segment with its change points, or with why there are none to be had."""
    count, side = len(segment.points), change_points.MIN_SIDE
    if not change_points.enough(count):
        reason = f"change points need {side} runs before and {side} after in one environment; here are {count} in all"
        return replace(segment, reason=reason)
    if not change_points.installed():
        return replace(segment, reason=NO_RUPTURES)
    intervals = [points[at].even if segment.even_ns else points[at].ns for at in segment.points]
    found = change_points.find([interval[0] for interval in intervals if interval])
    shifts = [
        Shift(
            since=segment.points[each.at - 1],
            at=segment.points[each.at],
            ratio=each.ratio,
            low=each.low,
            high=each.high,
        )
        for each in found
    ]
    return replace(segment, shifts=tuple(shifts))


def _steps(points: Sequence[Point]) -> Iterable[Step]:
    """Where a fact is another than it was: in the same environment, or if this is the first of its own, in the last."""
    last: dict[tuple[str, str], int] = {}  # of each environment, and under "" of all
    for at, point in enumerate(points):
        for fact in _FACTS:
            if (head := _fact(point, fact)) is None:
                continue
            since = last.get((point.environment, fact), last.get(("", fact)))
            base = None if since is None else _fact(points[since], fact)
            if since is not None and base is not None and base != head:
                yield Step(fact=fact, since=since, at=at, base=base, head=head)
            last[point.environment, fact] = last["", fact] = at


def _fact(point: Point, name: str) -> int | str | None:
    """None where it is not known, which is no change: a job that failed has no memory and no kernels."""
    if name == "status":
        return point.status
    if name == "kernels":
        return (", ".join(point.kernels) or "none") if point.status == "ok" else None
    value: int | None = getattr(point, name)
    return value


def _measured(series: Series) -> bool:
    """Whether the job ever was more than a skip."""
    return any(point.status != "skipped" for point in series.points)


def _weight(series: Series) -> tuple[float, ...]:
    """What changed most is the heaviest: what fails now and did not, changes of the time, then facts, then the rest."""
    since_first = series.since_first
    return (
        series.points[-1].status in FAILED and any(point.status == "ok" for point in series.points),
        max((_size(each.ratio) for each in series.shifts), default=1.0),
        len(series.steps),
        _size(since_first) if since_first else 1.0,
    )


def _size(ratio: float) -> float:
    """How many times as much, or as little."""
    return max(ratio, 1 / ratio)


def _utc(text: str) -> str | None:
    """ISO 8601 in UTC, which sorts by time; None for what is no time."""
    try:
        found = datetime.fromisoformat(text)
        utc = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return utc.isoformat(timespec="microseconds" if utc.microsecond else "seconds")
