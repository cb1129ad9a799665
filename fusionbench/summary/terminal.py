"""A comparison in a terminal of any width: the verdict first, then what got worse; what stayed as it was is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from ..delta import Comparison, Delta, Judgement
from .folding import inert, paragraph
from .headline import FAILED, PASSED, gates, headline, sides
from .keys import NAME, grouped
from .reproduce import commands
from .rows import Layout, layout, row, stray_row, title_row
from .sections import COUNTED, Title, regressed, rowed, sections, strays
from .words import DETECTS, clean

REASONS = 8  # of what is counted


def show(comparison: Comparison, judgement: Judgement | None, width: int, everything: bool = False) -> Group:
    """The whole comparison, at most ``width`` columns wide but for the commands: print with ``crop=False``."""
    found = sections(comparison)
    stray = strays(judgement, found)
    titles = rowed(found, everything)
    shown = [delta for title in titles for delta in found[title]]
    columns = layout([found[title] for title in titles], width)
    parts = [*_top(comparison, judgement, headline(judgement, found, stray), width)]
    parts += [Text(), *title_row(columns)] if shown and columns.widths else []
    if stray or found["regressions"]:
        parts += [*_title("regressions", regressed(found["regressions"], stray)), *_rows(found["regressions"], columns)]
        parts += [line for each in stray for line in stray_row(each, columns)]
    for title in titles[1:] if found["regressions"] else titles:
        parts += [*_title(title, len(found[title])), *_rows(found[title], columns)]
    for title in [] if everything else COUNTED:
        parts += _counted(title, found[title], width) if found[title] else []
    if any(delta.detectable for delta in shown):
        parts += [Text(), *paragraph(DETECTS, width)]
    worst = next(iter(found["regressions"] + found["broken"]), None)
    return Group(*parts, *(_again(comparison, judgement, worst) if worst else []))


def _top(comparison: Comparison, judgement: Judgement | None, line: str, width: int) -> Iterator[Text]:
    style = "bold green" if line.startswith(PASSED) else "bold red" if line.startswith(FAILED) else "bold"
    yield from paragraph(line, width, style)
    for told, reason in gates(judgement):
        yield from paragraph(f"{told}: {reason}" if reason else told, width, "", indent=2)
    for name, side in sides(comparison):
        yield from paragraph(f"{name}  {side}", width, indent=2, hang=6)
    for difference in comparison.differences:
        yield from paragraph(f"differs  {clean(difference)}", width, "yellow", indent=2, hang=9)
    if comparison.differences:
        yield from paragraph("where environments differ, timings are not compared", width, "yellow", indent=2)
    for text in comparison.notes:
        yield from paragraph(f"note  {clean(text, 1000)}", width, indent=2, hang=6)


def _title(title: Title, size: int) -> Iterator[Text]:
    yield Text()
    yield Text(f"{title}, {size:,}", style="bold")


def _rows(deltas: Sequence[Delta], columns: Layout) -> Iterator[Text]:
    for heading, rows in grouped(deltas):
        if heading:
            yield from paragraph(clean(heading, NAME), columns.width, indent=2)
        for name, delta in rows:
            yield from row(delta, clean(name, NAME), columns)


def _counted(title: Title, deltas: Sequence[Delta], width: int) -> Iterator[Text]:
    """How many, how small a change would have been seen, and for what reasons."""
    seen = sorted(f"{100 * delta.detectable:6.1f} %" for delta in deltas if delta.detectable)
    yield Text()
    yield from paragraph(f"{title}, {len(deltas):,}", width, "bold")
    if seen:
        least, most = seen[0].strip(), seen[-1].strip()
        span = least if least == most else f"{least} to {most}"
        yield from paragraph(f"each would have shown a change of {span}", width, indent=2)
    reasons = Counter(clean(delta.reason, 300) for delta in deltas if delta.reason)
    for reason, number in reasons.most_common(REASONS):
        yield from paragraph(f"{number:,}  {reason}", width, indent=2, hang=len(f"{number:,}") + 2)
    if len(reasons) > REASONS:
        yield from paragraph(f"… and {len(reasons) - REASONS:,} more reasons", width, indent=2)


def _again(comparison: Comparison, judgement: Judgement | None, worst: Delta) -> Iterator[Text]:
    """The commands, whole: half a command is no command."""
    yield Text()
    yield Text("repeat", style="bold")
    for command in commands(comparison, judgement, worst):
        yield Text(f"  {inert(command)}", style="cyan", no_wrap=True, overflow="ignore")
