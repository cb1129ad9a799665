"""A history in the terminal: a block for each job with its sparkline, its last time and where it changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.text import Text

from . import wording
from .errors import counted, printable
from .history import History, Interval, Measurement, Series
from .record import FAILED
from .stats import median
from .summary.folding import paragraph

BLOCKS = "▁▂▃▄▅▆▇█"
CELLS = 32  # of a sparkline at most; with more points each cell is the median of several
NARROW = 92  # columns below which the figures stand below the sparkline
LEAST_SPAN = 1.2  # highest over lowest of the whole height: noise of 2 % should look flat
STEPS = 4  # facts that are told of one job
_INDENT = "  "


def show(history: History, *, width: int, limit: int) -> Group:
    """The runs, the ``limit`` jobs that changed most, and what keeps others from being judged."""
    shown = history.series[:limit]
    parts: list[RenderableType] = [_overview(history), *map(_unfinished, filter(_is_unfinished, history.runs))]
    for series in shown:
        parts += [Text(), *_block(series, width, several=_machines(history) > 1)]
    left = len(history.series) - len(shown)
    if left:
        more = f"… {left:,} more jobs that changed less (see them with --limit N, or name some with --job TEXT)"
        parts += [Text(), _folded(more, "dim")]
    remarks = _remarks(history)
    return Group(*parts, *([Text()] if remarks else []), *remarks)


def _overview(history: History) -> Text:
    changed = sum(bool(series.shifts or series.steps) for series in history.series)
    dates = [run.measured_at[:10] for run in history.runs if run.measured_at]
    when = "" if not dates else f", {dates[0]}" if dates[0] == dates[-1] else f", {dates[0]} to {dates[-1]}"
    jobs, runs = (counted(len(each), word) for each, word in ((history.series, "job"), (history.runs, "run")))
    return _folded(f"{runs}{when}: {changed:,} of {jobs} changed", "bold")


def _is_unfinished(run: Measurement) -> bool:
    return run.unfinished


def _unfinished(run: Measurement) -> Text:
    begun = f"{run.jobs:,} of {run.planned:,} jobs begun"
    return _folded(f"{run.name} is unfinished: jobs or rounds are missing ({begun})", "yellow")


def _block(series: Series, width: int, *, several: bool) -> list[Text]:
    name = series.key + (f"  on {series.machine}" if several and series.machine else "")
    lines = [_folded(name, "bold"), *_figures(series, width)]
    for shift in series.shifts:
        slower = shift.ratio > 1
        lines += _found("▲" if slower else "▼", wording.shift(series, shift), "red" if slower else "green", width)
    for step in series.steps[-STEPS:]:
        lines += _found("●", wording.step(series, step), "yellow", width)
    if len(series.steps) > STEPS:
        lines.append(_folded(f"{_INDENT}and {len(series.steps) - STEPS} earlier changes of facts", "dim"))
    return lines


def _figures(series: Series, width: int) -> list[Text]:
    """The sparkline, and beside or below it how many runs there are, the last time, and what it was at first."""
    line = Text(_INDENT + sparkline(series, min(CELLS, width - 2)), style="cyan")
    if width < NARROW:
        return [line, Text(_INDENT).append_text(_last(series))]
    line.append(" " * (CELLS + 4 - len(line)))
    return [line.append_text(_last(series))]


def _last(series: Series) -> Text:
    text = Text(counted(len(series.points), "run").rjust(9) + "  ", style="dim")
    last = series.points[-1]
    if last.status in FAILED:
        return text.append(f"{last.status} in the last run", style="not dim bold red")
    if last.ns is None:
        return text.append(last.status)
    text.append(wording.time(last.ns[0]).rjust(8), style="not dim").append(f" {_half(last.ns):9}")
    if series.since_first:
        since = "since first" if len(series.segments) == 1 else "in this environment"
        text.append(f"{wording.percent(series.since_first):>8}", style="not dim").append(f" {since}")
    return text


def _half(interval: Interval) -> str:
    middle, low, high = interval
    return f"± {(high - low) / 2 / middle * 100:.1f} %" if middle else ""


def sparkline(series: Series, cells: int = CELLS) -> str:
    """The judged times of each segment, a │ between two of them."""
    levels = [[each[0] for each in series.judged(segment)] for segment in series.segments][-cells // 2 :]
    if not levels:
        return "no times"
    room = cells - len(levels) + 1
    total = sum(map(len, levels))
    if total > room:
        levels = [_thinned(each, max(1, room * len(each) // total)) for each in levels]
    low = min(map(min, levels))
    span = max(max(map(max, levels)), low * LEAST_SPAN) - low
    return "│".join("".join(BLOCKS[min(7, int((v - low) / span * 8))] for v in each) for each in levels)


def _thinned(values: Sequence[float], cells: int) -> list[float]:
    """The medians of ``cells`` pieces of about the same length."""
    ends = [len(values) * cell // cells for cell in range(cells + 1)]
    return [median(sorted(values[a:b])) for a, b in pairwise(ends) if a < b]


def _found(mark: str, text: str, style: str, width: int) -> Iterator[Text]:
    return paragraph(f"{mark} {printable(text, 1000)}", width, style, indent=len(_INDENT), hang=2)


def _folded(text: str, style: str = "") -> Text:
    """One untrusted line, whole: on several where it must be."""
    return Text(printable(text, 1000), style=style, overflow="fold")


def _machines(history: History) -> int:
    return len({series.machine for series in history.series})


def _remarks(history: History) -> list[Text]:
    """What kept changes from being looked for, and what else changed between runs."""
    found = [history.note] if history.note else []
    short = Counter(segment.reason for series in history.series for segment in series.segments[-1:] if segment.reason)
    if not history.note and short:
        ((reason, _),) = short.most_common(1)
        found.append(f"{counted(sum(short.values()), 'job')} not judged: {reason}" + (" …" if len(short) > 1 else ""))
    moves = Counter(
        (series.points[segment.points[0]].at[:10], ", ".join(segment.differences))
        for series in history.series
        for segment in series.segments
        if segment.differences
    )
    found += [f"from {day} on another environment: {what} ({counted(n, 'job')})" for (day, what), n in moves.items()]
    if _machines(history) > 1 and any(len(series.points) == 1 for series in history.series):
        found.append("machines met only once have no trend; where containers change their names, try --any-machine")
    return [_folded(text, "dim") for text in found[:12]]
