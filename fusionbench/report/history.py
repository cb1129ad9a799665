"""One HTML file with the history of every job: how its time went from run to run, and where it changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .. import wording
from ..change_points import MIN_SIDE
from ..compare import TOLERANCE
from ..errors import printable
from ..history import History, Interval, Point, Segment, Series, Shift
from ..record import Environment
from . import document
from .packing import LONGEST

_SCRIPTS = ("data.js", "charts.js", "history_chart.js", "history.js")
_DIGITS = 5  # of a time on the page: an interval of 0.1 % is still seen


def write(path: Path, history: History, *, title: str = "history") -> Path:
    """Write the page for ``history`` to ``path``."""
    payload = {
        "columns": {},  # what data.js unpacks of other pages
        "runs": [_clean(msgspec.to_builtins(run)) for run in history.runs],
        "environments": [_facts(each) for each in history.environments.values()],
        "series": [_series(each) for each in history.series],
        "problems": [printable(each, LONGEST) for each in history.problems],
        "note": history.note,
        "side": MIN_SIDE,
        "tolerance": f"{TOLERANCE:.0%}".replace("%", " %"),
    }
    return document.write(path, "history.html", ("page.css", "history.css"), _SCRIPTS, payload, title=title)


def _facts(found: Environment) -> dict[str, Any]:
    """What all runs of an environment have in common, which commit and version are not."""
    return {k: v for k, v in document.environment(found).items() if k not in ("commit", "dirty", "fusionbench")}


def _clean(facts: dict[str, Any]) -> dict[str, Any]:
    shown = {name: ", ".join(value) if isinstance(value, list | tuple) else value for name, value in facts.items()}
    return {name: printable(v, LONGEST) if isinstance(v, str) else v for name, v in shown.items()}


def _series(series: Series) -> dict[str, Any]:
    points = series.points
    even = _even(series)
    since = series.since_first
    return {
        "key": printable(series.key, LONGEST),
        "machine": printable(series.machine),
        "run": [point.run for point in points],
        "at": [_seconds(point) for point in points],
        "status": [point.status for point in points],
        "commit": [wording.commit(point) for point in points],
        "ns": _columns(point.ns for point in points),
        "even": _columns(even),
        "segments": [_segment(segment) for segment in series.segments],
        "changes": [_shift(series, each) for each in series.shifts],
        "steps": [{"at": each.at, "fact": each.fact, "text": wording.step(series, each)} for each in series.steps],
        "since": None if since is None else {"ratio": since, "text": wording.percent(since)},
        "last": wording.time(points[-1].ns[0]) if points[-1].ns else "",
    }


def _shift(series: Series, shift: Shift) -> dict[str, Any]:
    return {
        "at": shift.at,
        "ratio": shift.ratio,
        "size": wording.percent(shift.ratio),
        "text": wording.shift(series, shift),
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "points": segment.points,
        "even": segment.even_ns is not None,
        "differences": [printable(each) for each in segment.differences],
        "conditions": ", ".join(segment.conditions),
        "reason": segment.reason,
    }


def _even(series: Series) -> list[Interval | None]:
    """The judged times of the points whose segment has an even pace; None for the others."""
    found: list[Interval | None] = [None] * len(series.points)
    for segment in series.segments:
        if segment.even_ns is not None:
            for at, interval in zip(segment.points, series.judged(segment), strict=True):
                found[at] = interval
    return found


def _columns(intervals: Iterable[Interval | None]) -> list[Sequence[float | None]]:
    """Medians, lows and highs in ms; nothing where there are none at all."""
    rows = [interval or (None, None, None) for interval in intervals]
    values = np.array(rows, dtype=np.float64).T / 1e6
    if np.isnan(values).all():
        return []
    return [[None if v != v else float(f"{v:.{_DIGITS}g}") for v in column] for column in values.tolist()]


def _seconds(point: Point) -> int:
    return round(datetime.fromisoformat(point.at).timestamp())
