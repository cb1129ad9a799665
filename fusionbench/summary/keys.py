"""Long job keys made readable: rows that share a part of theirs stand below it, and show the rest alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from ..delta import Delta

REST = "…"  # in a heading, where the rows' own parts belong
NAME = 500  # characters of a key that are shown; a real one has 60 to 250
_TOKEN = re.compile(r"[^/-]*[/-]|[^/-]+")

Group = tuple[str, list[tuple[str, Delta]]]


def grouped(deltas: Sequence[Delta]) -> list[Group]:
    """(heading, rows) for each group: a row's name in place of the heading's ``…`` is its job's whole key.

    Jobs stand below their conditions, or below their strategy and backend, whichever makes fewer groups; the order of
    the deltas is kept, a group being where its first one is.
    """
    parted = [(*split(delta.key), delta) for delta in deltas]
    if len({who for who, _, _ in parted}) < len({where for _, where, _ in parted}):
        return [_below_candidate(who, rows) for who, rows in _gathered(parted)]
    conditions = _gathered([(where, who, delta) for who, where, delta in parted])
    return [(f"{REST}/{where}" if where else "", rows) for where, rows in conditions]


def split(key: str) -> tuple[str, str]:
    """(strategy/backend, the conditions); a key of another shape is all name."""
    parts = key.split("/", 2)
    return (f"{parts[0]}/{parts[1]}", parts[2]) if len(parts) == 3 else (key, "")


def _gathered(items: Sequence[tuple[str, str, Delta]]) -> list[Group]:
    found: dict[str, list[tuple[str, Delta]]] = {}
    for common, own, delta in items:
        found.setdefault(common, []).append((own, delta))
    return list(found.items())


def _below_candidate(who: str, rows: list[tuple[str, Delta]]) -> Group:
    """The rows' conditions without what all of them begin and end with."""
    names = [where for where, _ in rows]
    if len(rows) == 1 and names[0]:
        return f"{REST}/{names[0]}", [(who, rows[0][1])]
    front, back = _shared(names)
    bare = [(name[len(front) : len(name) - len(back)], delta) for name, (_, delta) in zip(names, rows, strict=True)]
    return f"{who}/{front}{REST}{back}", bare


def _shared(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin with and end with, in whole parts, so that something is left of each."""
    parts = [_TOKEN.findall(name) for name in names]
    if not all(parts):
        return "", ""
    room = min(map(len, parts)) - 1
    front = _common([each[:room] for each in parts])
    back = _common([each[::-1][: room - len(front)] for each in parts])
    mark = {each[len(each) - len(back) - 1][-1] for each in parts}  # the "-" or "/" that ends what is left
    edge = mark.pop() if back and mark < {"-", "/"} and len(mark) == 1 else ""
    return "".join(front), edge + "".join(back[::-1])


def _common(parts: Sequence[Sequence[str]]) -> list[str]:
    return [row[0] for row in takewhile(lambda row: len(set(row)) == 1, zip(*parts, strict=False))]
