"""The sweep as a Chrome trace, for Perfetto: a process for each environment, a track for each device, an event for each
job with its steps inside, counters for what NVML said, a mark for each failure and each skip.

A record knows when its job was begun, how long each step of the first round took and the seconds of all rounds, so the
event is the first round; later ones lie between those of other jobs, and ``args`` say how long they were together.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..record import FAILED, DeviceState, Record
from ..rounds import rounds_of
from ..store import Run
from . import streaming
from .measured import Exported, text, timed
from .names import plain

Event = dict[str, Any]

LONGEST_S = 1e7  # four months; what claims to be longer is no measurement
CUT_US = 1000  # started_at has milliseconds: an event may begin so much before the one before it has ended


class Span(Struct, frozen=True, kw_only=True, gc=False):
    """A record's first round on the clock, in whole µs since the epoch, so that sums are exact and steps lie inside."""

    record: Record
    begin: int
    length: int


class Track(Struct, frozen=True, kw_only=True, gc=False):
    """Where the events of one device are drawn, and its spans in order."""

    pid: int
    tid: int
    spans: tuple[Span, ...]


def write(run: Run, path: Path) -> Exported:
    """Write every record that says when it was begun."""
    spans = [span for record in run.records if (span := spanned(record))]
    head = {"displayTimeUnit": "ms", "otherData": {"run": text(run.path.name), "began": _day(spans)}}
    streaming.write(path, streaming.document(head, "traceEvents", events(run, spans)))
    lost = len(run.records) - len(spans)
    return Exported(jobs=len(spans), notes=(f"{lost} jobs do not say when they were begun",) if lost else ())


def spanned(record: Record) -> Span | None:
    """When and how long a record's job was visited first; None where it does not say."""
    try:
        moment = datetime.fromisoformat(record.started_at)
        begin = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    steps = sum(bounded(seconds) for seconds in record.phases_s.values())
    several = rounds_of(record) > 1 and steps > 0
    length = steps if several else max(bounded(record.wall_s), steps)
    return Span(record=record, begin=round(begin * 1e6), length=round(length * 1e6))


def events(run: Run, spans: Sequence[Span]) -> Iterator[Event]:
    """All events, with the names of their tracks before them; time 0 is when the first job was begun."""
    zero = min((span.begin for span in spans), default=0)
    named: dict[str, int] = {}
    groups: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.begin):
        groups[span.record.environment, span.record.job.case.device].append(span)
    for number, ((environment, device), found) in enumerate(groups.items(), 1):
        if environment not in named:
            named[environment] = len(named) + 1
            yield _named("process_name", named[environment], 0, _machine(run, environment))
        for lane, track in enumerate(lanes(found)):
            place = Track(pid=named[environment], tid=1000 * number + lane, spans=tuple(track))
            yield _named("thread_name", place.pid, place.tid, plain(device) + (f" ({lane + 1})" if lane else ""))
            yield from _drawn(place, zero)


def lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans, which are in order, on as few tracks as keep each from beginning before the last one has ended."""
    found: list[list[Span]] = []
    free: list[tuple[int, int]] = []  # (end, lane)
    for span in spans:
        if free and free[0][0] <= span.begin + CUT_US:
            end, lane = heapq.heappop(free)
            begin = max(span.begin, end)
        else:
            begin, lane = span.begin, len(found)
            found.append([])
        found[lane].append(Span(record=span.record, begin=begin, length=span.length))
        heapq.heappush(free, (begin + span.length, lane))
    return found


def _drawn(track: Track, zero: int) -> Iterator[Event]:
    for span in track.spans:
        record, at = span.record, {"pid": track.pid, "tid": track.tid}
        begin, end = span.begin - zero, span.begin - zero + span.length
        if record.status in (*FAILED, "skipped"):
            told = {"key": plain(record.job.key), "reason": text(record.reason), "phase": text(record.phase)}
            mark = {"name": record.status, "cat": "failure" if record.status in FAILED else "skip"}
            yield mark | {"ph": "i", "s": "t", "ts": end} | at | {"args": told}
        if end > begin:
            job = {"name": f"{plain(record.job.strategy)}/{plain(record.job.backend)}", "cat": "job", "ph": "X"}
            yield job | {"ts": begin, "dur": end - begin} | at | {"args": arguments(record)}
            yield from _steps(record, begin, end, at)
        if record.device:
            yield from _counters(record.device, plain(record.job.case.device), begin, track.pid)


def arguments(record: Record) -> dict[str, Any]:
    """What the event of a job says when it is clicked."""
    said: dict[str, Any] = {"key": plain(record.job.key), "status": record.status}
    if record.time:
        found = timed(record.time)
        said |= {"median_ns": found.median_ns, "ci95_ns": [found.low_ns, found.high_ns], "timer": found.timing.timer}
        said |= {"rounds": rounds_of(record), "samples": len(found.calls_ns)}
    return said | {"wall_s": bounded(record.wall_s), "environment": text(record.environment)}


def _steps(record: Record, begin: int, end: int, at: dict[str, int]) -> Iterator[Event]:
    """The steps one after another; what passed between them, less than a millisecond, is not recorded."""
    for name, seconds in record.phases_s.items():
        until = min(end, begin + round(1e6 * bounded(seconds)))
        step = {"name": text(name), "cat": "step", "ph": "X", "ts": begin, "dur": until - begin}
        yield step | at | {"args": {}}
        begin = until


def _counters(state: DeviceState, device: str, ts: int, pid: int) -> Iterator[Event]:
    values = {
        "power (W)": state.power_watts,
        "temperature (°C)": state.temperature_c,
        "SM clock (MHz)": state.sm_mhz[1] if state.sm_mhz else None,
        "memory clock (MHz)": state.memory_mhz[1] if state.memory_mhz else None,
    }
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            counter = {"name": f"{device} {name}", "cat": "device", "ph": "C", "ts": ts, "pid": pid, "tid": 0}
            yield counter | {"args": {"value": value}}


def _named(what: str, pid: int, tid: int, name: str) -> Event:
    return {"name": what, "cat": "__metadata", "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _machine(run: Run, environment: str) -> str:
    known = run.environments.get(environment)
    return text(f"{known.machine} ({known.id})") if known else text(environment) or "unknown"


def _day(spans: Sequence[Span]) -> str:
    begin = min((span.begin for span in spans), default=None)
    return "" if begin is None else datetime.fromtimestamp(begin / 1e6, UTC).isoformat()


def bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S) if math.isfinite(seconds) else 0.0
