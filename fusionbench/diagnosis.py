"""What ``doctor`` found, in a terminal: a line per check, its remedy below it, commands whole."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from .doctor import Check
from .errors import printable

STYLES = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}
STATUS, NAME = 6, 13  # columns
NARROWEST = 30  # for the text of a check, however narrow the terminal
BELOW = 60  # columns of a terminal under which the text stands below the name


def tell(checks: Iterable[Check], out: Console) -> list[Check]:
    """Print every check as it comes, below the name of its group, then the sum; returns them."""
    told: list[Check] = []
    for check in checks:
        if not told or told[-1].group != check.group:
            out.print(Text(check.group, style="bold"))
        out.print(block(check, out.width), crop=False, soft_wrap=True)
        told.append(check)
    out.print(summary(told, out.width), crop=False, soft_wrap=True)
    return told


def block(check: Check, width: int) -> Text:
    """One check, at most ``width`` columns wide but for its command, which can be copied whole."""
    indent = 4 if width < BELOW else 2 + STATUS + NAME
    text = Text("  ").append(check.status.ljust(STATUS), STYLES[check.status]).append(check.name.ljust(NAME))
    lines = _lines(check.found, width - indent)
    if width < BELOW:
        text.rstrip()
    else:
        text.append(lines.pop(0))
    for line in lines:
        text.append(f"\n{' ' * indent}{line}")
    for line in _lines(check.remedy, width - indent) if check.remedy else []:
        text.append(f"\n{' ' * indent}{line}", style="dim" if check.status == "ok" else "yellow")
    if check.command:
        text.append(f"\n{' ' * indent}{printable(check.command, 500)}", style="cyan")
    return text


def _lines(text: str, width: int) -> list[str]:
    clean = printable(" ".join(text.split()), 1000)
    return textwrap.wrap(clean, max(width, NARROWEST), break_long_words=False, break_on_hyphens=False) or [""]


def summary(checks: Sequence[Check], width: int) -> Text:
    """How many of each status, and what that means."""
    counts = Counter(check.status for check in checks)
    told = f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed: "
    if counts["fail"]:
        told += "timings taken here now are doubtful"
    elif counts["warn"]:
        told += "fit to measure, with the warnings above"
    else:
        told += "fit to measure"
    return Text("\n".join(["", *_lines(told, width)]), style="bold")
