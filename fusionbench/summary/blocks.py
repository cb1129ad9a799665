"""Markdown of limited size: rows are kept whole, and what has no room is counted."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Block(Struct, frozen=True, kw_only=True):
    """Lines that are always there around rows that may be cut; ``noun`` is what a cut one is one of."""

    before: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    noun: str = ""
    rank: int = 0  # the lowest one chooses first where room is short

    def text(self, kept: int) -> str:
        left = len(self.rows) - kept
        more = ["", f"… and {left:,} more {self.noun} in the report"] if left else []
        return "\n".join([*self.before, *self.rows[:kept], *more, *self.after, "", ""])


def fitted(blocks: Sequence[Block], limit: int | None) -> str:
    """The blocks in their order, in at most ``limit`` bytes of UTF-8; each row and each block's frame is whole."""
    kept = [len(block.rows) for block in blocks]
    if limit is not None:
        room = limit - sum(_size(block.text(0)) for block in blocks)
        for place in sorted(range(len(blocks)), key=lambda place: blocks[place].rank):
            kept[place], room = _fit(blocks[place].rows, room)
    return "".join(block.text(rows) for block, rows in zip(blocks, kept, strict=True)).rstrip("\n") + "\n"


def _fit(rows: Sequence[str], room: int) -> tuple[int, int]:
    """(how many of the rows fit, the room that they leave)."""
    for number, row in enumerate(rows):
        if _size(row) + 1 > room:
            return number, room
        room -= _size(row) + 1
    return len(rows), room


def _size(text: str) -> int:
    return len(text.encode())
