"""Two runs against each other as the page's data: what ``comparison`` found, job by job, and nothing judged anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .. import facts
from ..compare import TOLERANCE
from ..delta import Change, Comparison, Delta
from ..errors import printable
from .packing import LONGEST

_NUMBERS = ("base_ns", "head_ns", "ratio", "low", "high", "detectable")


def payload(found: Comparison, rows: Mapping[str, int]) -> dict[str, Any]:
    """Columns over the jobs of both sides; ``rows`` says which row of the page's table a key has.

    Nothing where no job is on both sides: then they are two runs of different things.
    """
    if all(delta.verdict in ("new", "missing") for delta in found.deltas):
        return {}
    at = [rows.get(delta.key, -1) for delta in found.deltas]
    return {
        "base": _side(found.base),
        "head": _side(found.head),
        "tolerance": TOLERANCE,
        "differences": [printable(text, LONGEST) for text in found.differences],
        "notes": [printable(text, LONGEST) for text in found.notes],
        "row": at,
        "key": ["" if row >= 0 else printable(d.key, LONGEST) for d, row in zip(found.deltas, at, strict=True)],
        "verdict": [delta.verdict for delta in found.deltas],
        "reason": [printable(delta.reason, LONGEST) for delta in found.deltas],
        "changes": [[_change(change) for change in delta.changes] for delta in found.deltas],
        **{name: _numbers(found.deltas, name) for name in _NUMBERS},
    }


def _side(side: Any) -> dict[str, Any]:
    return {k: printable(v, LONGEST) if isinstance(v, str) else v for k, v in msgspec.to_builtins(side).items()}


def _change(change: Change) -> list[Any]:
    return [printable(facts.told(change), LONGEST), change.worse]


def _numbers(deltas: tuple[Delta, ...], name: str) -> list[float | None]:
    """Six significant digits, which is more than is known of them."""
    known = (getattr(delta, name) for delta in deltas)
    return [None if value is None else float(f"{value:.6g}") for value in known]
