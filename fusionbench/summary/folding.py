"""Texts from outside on terminal lines: folded where they are long, and no command to whoever reads the log."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.cells import cell_len, chop_cells
from rich.text import Text

MARK = 11  # columns of a verdict with its symbol and the two before it


def folded(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` columns, broken after a space or a slash where that is possible."""
    lines, width = [""], max(width, 8)
    for token in re.findall(r"[^ /]*[ /]|[^ /]+", text):
        if lines[-1] and cell_len(lines[-1]) + cell_len(token.rstrip(" ")) > width:
            lines.append("")
        pieces = chop_cells(token, width) if cell_len(token) > width else [token]
        lines[-1] += pieces[0]
        lines += pieces[1:]
    return [inert(line.rstrip(" ")) for line in lines]


def inert(line: str) -> str:
    """A line that a CI's log takes for no command: GitHub obeys ``::`` where a line begins and ``##[`` anywhere."""
    if line.lstrip().startswith("::"):
        line = line.replace("::", "∷", 1)
    return line.replace("##[", "##(")


def paragraph(text: str, width: int, style: str = "dim", indent: int = 0, hang: int = 0) -> Iterator[Text]:
    """A text on as many lines as it needs, all but the first further in by ``hang``."""
    first, rest = text[:hang], folded(text[hang:], width - indent - hang)
    for number, line in enumerate(rest):
        lead = inert(first) if number == 0 else " " * hang
        yield Text(" " * indent + lead + line, style=style, no_wrap=True)


def hanging(lead: str, text: str, width: int, style: str, indent: int) -> Iterator[Text]:
    """``lead``, its mark in ``style``, and from column ``indent`` on a text on as many lines as it needs."""
    for number, line in enumerate(folded(text, width - indent)):
        padding = " " * (indent - (cell_len(lead) if number == 0 else 0))
        first = lead if number == 0 else ""
        yield Text.assemble((first[:MARK], style), first[MARK:], padding, line, no_wrap=True)
