"""The best so far of a run that is still going on, as a table below its bar: a row per case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress import Progress
from rich.text import Text

from .errors import printable
from .fitting import NOTHING, Column, fitted, name
from .spec import PLAIN, Case
from .standings import Leader, Standings

NARROWEST = 60  # columns below which there is only the bar
BESIDE = 6  # lines of a terminal for the bar, the title, the headings, what is left out, and what was printed before
MOST = 16  # rows, however high the terminal is: reading more takes longer than they stand
FEWEST = 2


class Bar(Progress):
    """A progress bar with something below it, which is asked for whenever the bar is drawn."""

    def __init__(self, *columns: Any, below: Callable[[], RenderableType | None], **options: Any) -> None:
        self._below = below
        super().__init__(*columns, **options)

    def get_renderable(self) -> RenderableType:
        bar, table = super().get_renderable(), self._below()
        return bar if table is None else Group(bar, table)


class Board:
    """The table of some standings in a terminal; made anew only where a record or the terminal's size has changed."""

    def __init__(self, standings: Standings) -> None:
        self.standings = standings
        self._made: tuple[tuple[int, int, int], RenderableType | None] = ((-1, 0, 0), None)

    def __call__(self, width: int, height: int) -> RenderableType | None:
        state = (self.standings.version, width, height)
        if self._made[0] != state:
            self._made = state, board(self.standings, width, height)
        return self._made[1]


def board(standings: Standings, width: int, height: int) -> RenderableType | None:
    """The cases that fit, with their leaders; None where there is no room or nothing to show."""
    room = min(height - BESIDE, MOST)
    if width < NARROWEST or room < FEWEST:
        return None
    leaders, left = standings.top(room)
    if not leaders:
        return None
    facts = [_facts(each.case) for each in leaders]
    same = [len(set(column)) == 1 for column in zip(*facts, strict=True)]
    title = Text("best so far", style="bold", no_wrap=True, overflow="ellipsis")
    title.append(printable("  " + _joined(facts[0], same)), style="not bold dim")
    parts = [title, *fitted(_columns(leaders, facts, same), width, keep=4)]
    return Group(*parts, *([Text(f"… and {left:,} more", style="dim")] if left else []))


def _columns(leaders: Sequence[Leader], facts: Sequence[tuple[str, ...]], same: Sequence[bool]) -> list[Column]:
    own = [_joined(each, [not shared for shared in same]) for each in facts]
    return [
        *([("case", False, [Text(printable(each)) for each in own])] if any(own) else []),
        ("winner", False, [name(each.who) for each in leaders]),
        ("ms", True, [Text(f"{each.ms:.4g}") for each in leaders]),
        ("next takes", True, [_lead(each) for each in leaders]),
        ("± 95 %", True, [Text(f"{each.half_width:.1%}") for each in leaders]),
        ("peak MiB", True, [_mib(each.peak_bytes) for each in leaders]),
    ]


def _facts(case: Case) -> tuple[str, ...]:
    """A case in words, one for each thing in which cases may differ, what is told apart by first in front."""
    s = case.shape
    padding = f"pad {case.padding:g}" if case.padding else ""
    front = (f"{s.image}x{s.text}", case.dtype, case.device, case.mode, f"b{s.batch}", padding, case.match)
    if case.preset:  # systems are held against each other, each at its own sizes
        return (*front, f"systems at 1/{case.shrink}" if case.shrink > 1 else "systems", *[""] * 7)
    ffn = f"ffn {s.hidden}" if s.hidden and not case.match else f"ffn {s.ffn}x" if s.ffn != 4 else ""
    depth, ends = f"depth {s.depth}" if s.depth != 1 else "", "type" if case.type_embedding else ""
    design = case.design.key if case.design != PLAIN else ""
    widths = f"w{s.width}", f"h{s.heads}", f"in {s.image_width}+{s.text_width}"
    return (*front, *widths, depth, ffn, case.projector, ends, design)


def _joined(facts: Sequence[str], chosen: Sequence[bool]) -> str:
    return " ".join(fact for fact, wanted in zip(facts, chosen, strict=True) if wanted and fact)


def _lead(each: Leader) -> Text:
    if each.lead is None:
        return Text(NOTHING, style="dim")
    return Text(f"{each.lead:.2f} ×" if each.clear else f"≈ {each.lead:.2f}")


def _mib(size: int | None) -> Text:
    return Text(NOTHING, style="dim") if size is None else Text(f"{size / 2**20:,.1f}")
