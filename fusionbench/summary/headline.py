"""The first lines of a summary: passed or not, what each gate says, and who was compared."""

from __future__ import annotations

import re

from .. import exits
from ..delta import Comparison, Delta, Judgement, Ruling, Side
from ..errors import counted
from .sections import TITLES, Stray, Title, regressed
from .words import clean

PASSED, FAILED, UNJUDGED = "✓ passed", "✗ failed", "? not judged"
MEANING = {
    0: PASSED,
    exits.REGRESSION: FAILED,
    exits.USAGE: f"{UNJUDGED}: usage or suite error",
    exits.FAILED: f"{FAILED}: some jobs failed or were wrong",
    exits.UNFIT: f"{UNJUDGED}: the machine is unfit to measure",
    exits.NOTHING: f"{UNJUDGED}: nothing could be compared",
    exits.DAMAGED: f"{UNJUDGED}: results are damaged",
    exits.INTERRUPTED: f"{UNJUDGED}: interrupted",
}
_NAMES: dict[Title, tuple[str, str]] = {
    "regressions": ("regression", "regressions"),
    "improvements": ("improvement", "improvements"),
}


def headline(judgement: Judgement | None, found: dict[Title, list[Delta]], stray: list[Stray]) -> str:
    """``✗ failed: 2 regressions, 1 improvement, 50 unchanged``, in words of our own alone."""
    told = _counts(found, stray, judgement)
    if judgement is None:
        return f"{counted(sum(map(len, found.values())), 'job')} compared: {told or 'nothing in common'}"
    meaning = _meaning(judgement)
    return f"{meaning}{'; ' if ': ' in meaning else ': '}{told}" if told else meaning


def _meaning(judgement: Judgement) -> str:
    silent = dict.fromkeys(ruling.gate for ruling in judgement.rulings if ruling.outcome == "not judged")
    if judgement.exit_code == exits.NOTHING and any(ruling.outcome == "passed" for ruling in judgement.rulings):
        return f"{UNJUDGED}: no verdict of the {' or '.join(silent)} gate"
    return MEANING.get(judgement.exit_code, f"{FAILED}: exit code {judgement.exit_code}")


def _counts(found: dict[Title, list[Delta]], stray: list[Stray], judgement: Judgement | None) -> str:
    sizes = {title: len(found[title]) for title in TITLES}
    sizes["regressions"] = regressed(found["regressions"], stray)
    names = dict(_NAMES)
    if judgement and judgement.exit_code == 0:  # a gate that nobody asked for has not looked at them
        names["regressions"] = ("slower or worse but not judged",) * 2
    if judgement and all(ruling.gate != "timing" for ruling in judgement.rulings):
        names["unclear"] = ("not judged by time",) * 2
    return ", ".join(counted(size, *names.get(title, (title, title))) for title, size in sizes.items() if size)


def gates(judgement: Judgement | None) -> list[tuple[str, str]]:
    """For every gate what it found, in words of our own, and its reason, which is from outside."""
    return [(_gate(ruling), clean(ruling.reason, 300)) for ruling in judgement.rulings] if judgement else []


def _gate(ruling: Ruling) -> str:
    if ruling.outcome == "not judged":
        return f"{ruling.gate} gate not judged"
    judged = f"{ruling.judged:,} judged"
    failed = f"{counted(len(ruling.failures), 'failure')}, " if ruling.failures else ""
    return f"{ruling.gate} gate {ruling.outcome}: {failed}{judged}"


def sides(comparison: Comparison) -> list[tuple[str, str]]:
    """("base", who was measured, where and when) and the same of head."""
    return [("base", _side(comparison.base)), ("head", _side(comparison.head))]


def _side(side: Side) -> str:
    commit = clean(side.commit, 40)[:12] + (" with uncommitted changes" if side.dirty else "")
    jobs = counted(side.jobs, "job") if side.jobs else ""
    when = re.sub(r"T(\d\d:\d\d)[\d:.]*\+00:00$", r" \1 UTC", side.measured_at)
    facts = (side.name, commit, side.machine, side.suite, when, jobs)
    return " · ".join(dict.fromkeys(clean(fact, 120) for fact in facts if fact))
