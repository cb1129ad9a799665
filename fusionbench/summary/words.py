"""Numbers, verdicts and texts from outside in words, the same wherever they are shown."""

from __future__ import annotations

import math

from ..delta import Change, Delta
from ..errors import printable

SYMBOLS = {
    "slower": "▲",
    "worse": "▲",
    "faster": "▼",
    "better": "▼",
    "changed": "~",
    "same": "=",
    "unclear": "?",
    "broken": "✗",
    "fixed": "✓",
    "new": "+",
    "missing": "−",
}
DETECTS = "detects: the smallest change that so many rounds of such noise show 80 times in 100"
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


def mark(word: str) -> str:
    """``▲ slower``: never told by colour, nor by the symbol, alone."""
    return f"{SYMBOLS[word]} {word}"


def clean(text: str, limit: int = 200) -> str:
    """Text from outside on one line, without control characters."""
    return printable(" ".join(text[: 4 * limit].split()), limit)


def time(ns: float | None) -> str:
    """Four digits and a unit; empty for what was not measured."""
    if ns is None or not math.isfinite(ns):
        return ""
    size, unit = next((each for each in _UNITS if abs(ns) >= each[0]), _UNITS[-1])
    return f"{_digits(ns / size)} {unit}"


def span(base_ns: float | None, head_ns: float | None) -> str:
    """``1.234 → 1.378 ms``; of one side alone with its name."""
    base, head = time(base_ns), time(head_ns)
    if not base or not head:
        return f"base {base}" if base else f"head {head}" if head else ""
    number, _, unit = base.partition(" ")
    return f"{number if head.endswith(f' {unit}') else base} → {head}"


def _digits(value: float) -> str:
    """Four digits, the zeros among them too, so that two times show in what they differ."""
    before = len(str(int(abs(value))))
    return f"{value:,.{max(0, 4 - before)}f}"


def ratio(delta: Delta) -> str:
    """``1.117 (1.101–1.134)``: head over base, with its 95 % interval."""
    if delta.ratio is None:
        return ""
    bounds = "" if delta.low is None or delta.high is None else f" ({_times(delta.low)}–{_times(delta.high)})"
    return _times(delta.ratio) + bounds


def _times(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def detects(delta: Delta) -> str:
    return "" if delta.detectable is None else share(delta.detectable)


def share(part: float) -> str:
    return f"{100 * part:.1f} %" if part < 100 else "∞"


def relative(change: Change) -> float | None:
    """By which share a number grew; None for texts, and where it was 0."""
    if isinstance(change.base, str) or isinstance(change.head, str) or not change.base:
        return None
    return (change.head - change.base) / abs(change.base)


def growth(change: Change) -> str:
    """``+5.3 %``; of less than a tenth of a per cent, the first digit that is not 0."""
    grown = relative(change)
    if grown is None:
        return ""
    return f"{100 * grown:+,.1f} %" if abs(grown) >= 1e-3 else f"{100 * grown:+.1g} %"


def outcome(change: Change) -> str:
    """``worse``, ``better`` (a number that fell) or ``changed``: every fact is a cost."""
    if change.worse:
        return "worse"
    grown = relative(change)
    return "better" if grown is not None and grown < 0 else "changed"


def amount(value: int | str) -> str:
    """A fact's value: numbers whole, for no noise moves them."""
    return clean(value) if isinstance(value, str) else f"{value:,}"


def fact(change: Change) -> str:
    """``flops 1,234 → 1,300, +5.3 %``"""
    grown = growth(change)
    told = f"{clean(change.fact)} {amount(change.base)} → {amount(change.head)}"
    return f"{told}, {grown}" if grown else told
