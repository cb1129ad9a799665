"""Tables that fit: as many of the first columns as a terminal is wide, and never a row on two lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from .errors import printable

Column = tuple[str, bool, list[Text]]  # heading, right-aligned, cells; the first columns are the last to go

NOTHING = "–"  # a cell without a value; a column of nothing else is left out
GAP = 2
_NAME_WIDTH = 40
_LEAST_NAME = 14  # columns to which the first column may shrink before another one goes


def name(value: object) -> Text:
    """A name from outside in one cell."""
    text = Text(printable(str(value), 200), no_wrap=True)
    text.truncate(_NAME_WIDTH, overflow="ellipsis")
    return text


def fitted(columns: Sequence[Column], width: int, keep: int = 5) -> list[Text]:
    """A line of headings and one for each row, with as many of the first columns as fit.

    The first column gives way only for the first ``keep`` of them, and for the first two both are cut.
    """
    columns = [c for c in columns if any(cell.plain != NOTHING for cell in c[2])]
    widths = [max(cell_len(heading), *(cell.cell_len for cell in cells)) for heading, _, cells in columns]
    while len(widths) > keep and _sum(widths) > width:
        widths.pop()
    while len(widths) > 2 and _sum(widths) - (widths[0] - _LEAST_NAME) > width:
        widths.pop()
    for each in range(min(2, len(widths))):
        widths[each] = max(2, min(widths[each], width - _sum(widths) + widths[each]))
    kept = columns[: len(widths)]
    lines = [[Text(heading, style="dim") for heading, _, _ in kept]]
    lines += [list(cells) for cells in zip(*(cells for _, _, cells in kept), strict=True)]
    right = [column[1] for column in kept]
    return [_line(cells, widths, right) for cells in lines]


def _sum(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _line(cells: Sequence[Text], widths: Sequence[int], right: Sequence[bool]) -> Text:
    """Cells side by side. A rich Table of 16 rows takes 6 ms to draw, these lines 1, and a run draws twice a second."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for place, (cell, width, at_right) in enumerate(zip(cells, widths, right, strict=True)):
        cell = cell.copy()
        cell.truncate(width, overflow="ellipsis")
        padding = " " * (width - cell.cell_len)
        line.append(" " * GAP if place else "").append(padding if at_right else "").append_text(cell)
        line.append("" if at_right else padding)
    line.rstrip()
    return line
