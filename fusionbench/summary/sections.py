"""Which part of a summary a job belongs to, and what comes first in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from msgspec import Struct

from ..delta import Comparison, Delta, Gate, Judgement
from .words import outcome, relative

Title = Literal["regressions", "broken", "improvements", "fixed", "changed", "new", "missing", "unclear", "unchanged"]
TITLES: tuple[Title, ...] = get_args(Title)  # in the order in which they are told
COUNTED: tuple[Title, ...] = ("unclear", "unchanged")  # no rows, unless everything is asked for


class Stray(Struct, frozen=True, gc=False):
    """A failure of a gate that no regressed or broken job shows: of a kernel's static profile, as a rule."""

    gate: Gate
    key: str
    what: str


def sections(comparison: Comparison) -> dict[Title, list[Delta]]:
    """Every job in one section, the worst first; sections without jobs are there, too."""
    found: dict[Title, list[Delta]] = {title: [] for title in TITLES}
    for delta in comparison.deltas:
        found[place(delta)].append(delta)
    for deltas in found.values():
        deltas.sort(key=lambda delta: (-severity(delta), delta.key))
    return found


def place(delta: Delta) -> Title:
    """A job that is slower or costs more in any fact is a regression, whatever else it is."""
    outcomes = {outcome(change) for change in delta.changes}
    if delta.verdict == "broken":
        return "broken"
    if delta.verdict == "slower" or "worse" in outcomes:
        return "regressions"
    if delta.verdict in ("fixed", "new", "missing"):
        return delta.verdict
    if delta.verdict == "faster" or "better" in outcomes:
        return "improvements"
    if outcomes:
        return "changed"
    return "unclear" if delta.verdict == "unclear" else "unchanged"


def severity(delta: Delta) -> float:
    """By how much the job changed, in time or in a fact."""
    changes = [abs(relative(change) or 0.0) for change in delta.changes]
    timed = [abs(delta.ratio - 1)] if delta.ratio is not None and delta.verdict in ("slower", "faster") else []
    return max([0.0, *changes, *timed])


def strays(judgement: Judgement | None, found: dict[Title, list[Delta]]) -> list[Stray]:
    """What failed and is no row of ``regressions`` or ``broken``."""
    told = {delta.key for delta in (*found["regressions"], *found["broken"])}
    rulings = judgement.rulings if judgement else ()
    return [Stray(ruling.gate, key, what) for ruling in rulings for key, what in ruling.failures if key not in told]


def regressed(deltas: Sequence[Delta], stray: Sequence[Stray]) -> int:
    """How many jobs, and kernels that are none, the rows are about."""
    return len(deltas) + len({each.key for each in stray})


def rowed(found: dict[Title, list[Delta]], everything: bool) -> list[Title]:
    """The sections that are shown row by row."""
    return [title for title in TITLES if found[title] and (everything or title not in COUNTED)]
