"""One job in a terminal: its time in columns where they fit and in words where not, then its facts and its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from rich.cells import cell_len
from rich.text import Text

from ..delta import Delta
from ..errors import counted
from .folding import hanging, inert, paragraph
from .keys import NAME, grouped
from .sections import Stray
from .words import clean, detects, fact, mark, outcome, ratio, span, time

STYLES = {
    "slower": "bold red",
    "worse": "bold red",
    "broken": "bold red",
    "faster": "green",
    "better": "green",
    "fixed": "green",
    "unclear": "yellow",
    "missing": "yellow",
}
HEADINGS = ("verdict", "job", "base", "head", "ratio (95 % CI)", "detects", "rounds")
VERDICT = 9  # columns of the widest verdict
_GAP = 2
_NAMED = 2  # columns that stand at the left, before the numbers
_INDENT = _GAP + VERDICT + _GAP


class Layout(Struct, frozen=True):
    """How wide the columns are; without any, what is known of a job stands below its name."""

    width: int
    widths: tuple[int, ...] = ()

    @property
    def numbers(self) -> int:
        """Where the third column begins."""
        return _GAP * (_NAMED + 1) + sum(self.widths[:_NAMED]) if self.widths else _INDENT


def layout(sections: Iterable[Sequence[Delta]], width: int) -> Layout:
    """Columns, the same for all sections, where every row has room for all of them."""
    groups = [group for deltas in sections for group in grouped(deltas)]
    cells = [_cells(delta, clean(name, NAME)) for _, rows in groups for name, delta in rows]
    widths = tuple(max(map(cell_len, column)) for column in zip(HEADINGS, *cells, strict=True))
    widths = (VERDICT, *widths[1:])
    return Layout(width, widths if sum(widths) + _GAP * len(widths) <= width else ())


def title_row(columns: Layout) -> Iterator[Text]:
    yield Text(_across(HEADINGS, columns), style="dim", no_wrap=True)


def row(delta: Delta, name: str, columns: Layout) -> Iterator[Text]:
    """The time first, unless a fact is what got worse."""
    lines = [(outcome(change), fact(change)) for change in delta.changes]
    if timed := _timed(delta):
        lines.insert(len(lines) if lines and delta.verdict in ("same", "unclear") else 0, (delta.verdict, ""))
    if not columns.widths:
        yield from hanging(f"  {mark(lines[0][0])}", name, columns.width, STYLES.get(lines[0][0], ""), _INDENT)
    for number, (word, text) in enumerate(lines):
        yield from _line(delta, word, text, name if number == 0 else "", columns, first=number == 0)
    reason = clean(delta.reason, 1000)
    if reason and not (timed and columns.widths and not _told(delta)):
        yield from paragraph(reason, columns.width, indent=columns.numbers)


def _line(delta: Delta, word: str, text: str, name: str, columns: Layout, first: bool) -> Iterator[Text]:
    """A time (no text) or a fact; where there is no number, the reason stands in the numbers' place."""
    style = STYLES.get(word, "")
    if columns.widths and (text or not _told(delta)):
        lead = _across((mark(word), name, *[""] * (len(HEADINGS) - _NAMED)), columns)
        yield from hanging(lead, text or clean(delta.reason, 1000), columns.width, style, columns.numbers)
    elif columns.widths:
        line = Text(_across((mark(word), *_cells(delta, name)[1:]), columns), no_wrap=True)
        line.stylize(style, 0, _GAP + VERDICT)
        yield line
    elif text := text or _told(delta):
        yield from hanging("" if first else f"  {mark(word)}", text, columns.width, style, _INDENT)


def _timed(delta: Delta) -> bool:
    """Whether the verdict on status and time is worth a line: always, but where facts alone were compared."""
    return not delta.changes or delta.verdict != "unclear" or delta.ratio is not None


def _cells(delta: Delta, name: str) -> tuple[str, ...]:
    rounds = f"{delta.rounds:,}" if delta.rounds else ""
    return (mark(delta.verdict), name, time(delta.base_ns), time(delta.head_ns), ratio(delta), detects(delta), rounds)


def _across(cells: Sequence[str], columns: Layout) -> str:
    padded = [
        cell + " " * (room - cell_len(cell)) if place < _NAMED else " " * (room - cell_len(cell)) + cell
        for place, (cell, room) in enumerate(zip(cells, columns.widths, strict=True))
    ]
    return " " * _GAP + inert((" " * _GAP).join(padded).rstrip())


def _told(delta: Delta) -> str:
    """The numbers of a job in words, no number apart from its unit; empty where there are none."""
    sure = detects(delta)
    parts = [
        span(delta.base_ns, delta.head_ns),
        ratio(delta),
        f"detects {sure}" if sure else "",
        counted(delta.rounds, "round") if delta.rounds else "",
    ]
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts if part)


def stray_row(stray: Stray, columns: Layout) -> Iterator[Text]:
    told = f"{clean(stray.key, NAME)}: {clean(stray.what, 1000)}"
    yield from hanging(f"  {mark('worse')}", told, columns.width, STYLES["worse"], _INDENT)
