"""What a history says of a job in words, for the terminal and for the page."""

from __future__ import annotations

from .errors import printable
from .history import Point, Series, Shift, Step

_NAMES = {
    "flops": "FLOPs",
    "params": "parameters",
    "peak_bytes": "peak memory",
    "kernels": "kernels",
    "status": "status",
}
_SHORT = 7  # digits of a commit
_NEVER_ENDING = 100  # characters of a list of kernels


def shift(series: Series, found: Shift) -> str:
    """``+12 % [9, 15] at a1b2c3d..e4f5a6b, 2026-11-03``."""
    return f"{percent(found.ratio)} {interval(found)} {place(series, found.since, found.at)}"


def interval(found: Shift) -> str:
    if _many_times(found.ratio):
        return f"[{found.low:.2g}, {found.high:.2g}]"
    digits = 0 if abs(found.ratio - 1) >= 0.0995 else 1
    return f"[{100 * (found.low - 1):.{digits}f}, {100 * (found.high - 1):.{digits}f}]"


def percent(ratio: float) -> str:
    """``+12 %``, ``-3.1 %``, and ``4.2 ×`` for what is several times as much."""
    if _many_times(ratio):
        return f"{ratio:.2g} ×"
    change = 100 * (ratio - 1)
    text = f"{change:+.0f} %" if abs(change) >= 9.95 else f"{change:+.1f} %"
    return text.replace("-0.0", "+0.0")


def _many_times(ratio: float) -> bool:
    return ratio >= 3


def step(series: Series, found: Step) -> str:
    """``peak memory 1.0 MiB → 2.0 MiB at a1b2c3d..e4f5a6b, 2026-11-03``."""
    base, head = (_amount(found.fact, value) for value in (found.base, found.head))
    moved = "; another environment" if _moved(series, found) else ""
    return f"{_NAMES[found.fact]} {base} → {head} {place(series, found.since, found.at)}{moved}"


def _moved(series: Series, found: Step) -> bool:
    return series.points[found.since].environment != series.points[found.at].environment


def _amount(fact: str, value: int | str) -> str:
    if isinstance(value, str):
        return printable(value, _NEVER_ENDING)
    return f"{memory(value)} ({value:,} bytes)" if fact == "peak_bytes" else f"{value:,}"


def place(series: Series, since: int, at: int) -> str:
    """Between which two commits, and the date of the later one."""
    before, after = series.points[since], series.points[at]
    day = date(after)
    if not before.commit or not after.commit:
        return f"between the runs of {date(before)} and {day}"
    if commit(before) == commit(after):
        return f"at {commit(after)}, no commit between, {day}"
    return f"at {commit(before)}..{commit(after)}, {day}"


def commit(point: Point) -> str:
    """Seven digits, and a + where the checkout had changes of its own."""
    return printable(point.commit[:_SHORT]) + ("+" if point.dirty else "")


def date(point: Point) -> str:
    return point.at[:10]


def time(ns: float) -> str:
    """Three digits: ``12.3 µs``, ``1.23 ms``, ``1.23 s``."""
    unit, size = next(((u, s) for u, s in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)) if ns >= s), ("ns", 1.0))
    return f"{digits(ns / size)} {unit}"


def memory(count: int) -> str:
    unit, size = next(((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if count >= s), ("B", 1))
    return f"{digits(count / size)} {unit}" if size > 1 else f"{count} B"


def digits(value: float) -> str:
    """Three significant ones, no exponent."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
