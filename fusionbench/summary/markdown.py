"""A comparison as GitHub's markdown: a whole report, a step summary or a comment on a pull request.

Every text from outside is in a code span or a fence, where GitHub reads no markup, mention, reference or link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..delta import Change, Comparison, Delta, Judgement
from ..errors import FusionbenchError, counted, printable
from .blocks import Block, fitted
from .headline import gates, headline, sides
from .keys import NAME, split
from .reproduce import commands
from .sections import TITLES, Stray, Title, regressed, rowed, sections, strays
from .words import DETECTS, amount, clean, detects, growth, mark, outcome, ratio, time

MARKER = "<!-- fusionbench:summary -->"  # by which a workflow finds the comment that it updates
STEP_BYTES = 900_000  # GitHub drops a step's whole summary above 1 MiB
COMMENT_BYTES = 60_000  # and refuses a comment above 65,536 characters
LISTED = 20  # differences and notes that are told where room is limited
COLUMNS = ("verdict", "job", "base", "head", "ratio (95 % CI)", "detects", "rounds")
KEY_LINE = 42  # characters of a key on one line, so that the other columns have room beside it
Line = tuple[str, str, str, str, str, str, str]  # a cell for each of the columns

_LINK = re.compile(r"https://[A-Za-z0-9._~:/?#@!$&*+,;=%-]{1,500}\Z")


def full(comparison: Comparison, judgement: Judgement | None = None, link: str = "") -> str:
    """Everything, however long."""
    return fitted(_blocks(comparison, judgement, link, None), None)


def step_summary(judgement: Judgement, link: str = "", limit: int = STEP_BYTES) -> str:
    """What fits into a step's summary; ``limit`` is what the summary of the job has left."""
    return fitted(_blocks(judgement.comparison, judgement, link, LISTED), limit)


def comment(judgement: Judgement, link: str = "") -> str:
    """What fits into a comment on a pull request."""
    return fitted(_blocks(judgement.comparison, judgement, link, LISTED), COMMENT_BYTES)


def checked(link: str) -> str:
    """An address that may stand in markdown as it is; raises FusionbenchError for any other."""
    if link and not _LINK.match(link):
        raise FusionbenchError(f"link '{printable(link)}' is no plain https address; escape what is not in one")
    return link


def _blocks(comparison: Comparison, judgement: Judgement | None, link: str, listed: int | None) -> list[Block]:
    found = sections(comparison)
    stray = strays(judgement, found)
    line = headline(judgement, found, stray)
    told = [f"- {said}: {code(reason, 300)}" if reason else f"- {said}" for said, reason in gates(judgement)]
    blocks = [Block(before=(MARKER, f"### {line}", "", *told))]
    blocks += [_section("regressions", found["regressions"], stray)] if found["regressions"] or stray else []
    blocks += [_section(title, found[title]) for title in rowed(found, False) if title != "regressions"]
    blocks += [Block(before=(_counts(found),))]
    blocks += [_all(found)] if comparison.deltas else []
    blocks += _environments(comparison, listed)
    worst = next(iter(found["regressions"] + found["broken"]), None)
    blocks += _reproduce(commands(comparison, judgement, worst))
    return blocks + ([Block(before=(f"[The whole report]({checked(link)})",))] if link else [])


def _section(title: Title, deltas: Sequence[Delta], stray: Sequence[Stray] = ()) -> Block:
    """One table, never folded. A job's row and its facts are one piece where room is short."""
    table, rows = _table([*map(_lines, deltas), *([_stray(each)] for each in stray)])
    size = regressed(deltas, stray)
    heading = (f"#### {title.capitalize()} ({size:,})", "", *table)
    return Block(before=heading, rows=rows, noun=title, rank=1 + TITLES.index(title))


def _table(pieces: Sequence[Sequence[Line]]) -> tuple[tuple[str, str], tuple[str, ...]]:
    """(the two lines above the rows, the rows), without columns that say nothing."""
    used = [place for place in range(len(COLUMNS)) if any(line[place] for piece in pieces for line in piece)]
    rule = "|".join("---" if place < 2 else "--:" for place in used)
    rows = ("\n".join(_row([line[place] for place in used]) for line in piece) for piece in pieces)
    return (_row([_whole(COLUMNS[place]) for place in used]), f"|{rule}|"), tuple(rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(delta: Delta) -> list[Line]:
    who, where = split(delta.key)
    parts = [who, *_broken(clean(where, NAME)), clean(delta.reason, 300)]
    job = "<br>".join(code(part, NAME) for part in parts if part)
    numbers = (time(delta.base_ns), time(delta.head_ns), ratio(delta), detects(delta))
    base, head, times, sure = map(_whole, numbers)
    rounds = f"{delta.rounds:,}" if delta.rounds else ""
    return [(_whole(mark(delta.verdict)), job, base, head, times, sure, rounds), *map(_fact, delta.changes)]


def _broken(key: str) -> list[str]:
    """A key in lines that leave room for the columns beside it: no browser breaks it well."""
    lines = [""]
    for token in re.findall("[^/,]*[/,]|[^/,]+", key):
        if lines[-1] and len(lines[-1]) + len(token) > KEY_LINE:
            lines.append("")
        lines[-1] += token
    return lines


def _fact(change: Change) -> Line:
    base, head = (f"{side:,}" if isinstance(side, int) else code(amount(side)) for side in (change.base, change.head))
    return (_whole(mark(outcome(change))), f"↳ {code(change.fact)}", base, head, _whole(growth(change)), "", "")


def _stray(stray: Stray) -> Line:
    return (_whole(mark("worse")), f"{code(stray.key, NAME)}<br>{code(stray.what, 300)}", "", "", "", "", "")


def _whole(text: str) -> str:
    """Text of our own that no browser breaks into two lines."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("–", "\N{WORD JOINER}–\N{WORD JOINER}")


def _counts(found: dict[Title, list[Delta]]) -> str:
    told = [f"{len(found[title]):,} {title}" for title in ("unchanged", "unclear") if found[title]]
    return f"{' and '.join(told)}." if told else "No job is unchanged or unclear."


def _all(found: dict[Title, list[Delta]]) -> Block:
    """Every job by its key."""
    deltas = sorted((delta for title in TITLES for delta in found[title]), key=lambda delta: delta.key)
    told = f"All of {counted(len(deltas), 'job')}"
    table, rows = _table([_lines(delta) for delta in deltas])
    before = (f"<details><summary>{told}</summary>", "", *table)
    after = ("", DETECTS.capitalize() + ".", "", "</details>")
    return Block(before=before, rows=rows, after=after, noun="jobs", rank=99)


def _environments(comparison: Comparison, listed: int | None) -> Iterator[Block]:
    known = (f"- {name}: {code(side, 600)}" for name, side in sides(comparison))
    yield Block(before=("#### Environments", "", *known))
    for title, texts in (
        ("Where they differ, timings are not compared:", comparison.differences),
        ("Notes:", comparison.notes),
    ):
        left = len(texts) - listed if listed else 0
        more = [f"- and {left:,} more"] if left > 0 else []
        rows = (*(f"- {code(text, 300)}" for text in texts[:listed]), *more)
        if rows:
            yield Block(before=(title, ""), rows=rows, noun="lines")


def _reproduce(lines: Sequence[str]) -> Iterator[Block]:
    if lines:
        fence = "`" * (3 + max(len(run) for line in lines for run in re.findall("`*", line)))
        yield Block(before=("#### Reproduce", "", f"{fence}sh", *lines, fence))


def code(text: str, limit: int = 200) -> str:
    """A text from outside as a code span that ends where it should, in a table, too.

    A pipe would end the cell even here, and a backtick the span: both are shown as what looks like them.
    """
    plain = clean(text, limit).replace("`", "ˋ").replace("|", "¦").strip()
    return f"`{plain}`" if plain else "–"
