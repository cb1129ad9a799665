"""Systems side by side: which rows of the page are presets, what they are called, and what departs from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import printable
from ..presets import departures, own, presets
from ..record import Record
from ..spec import Case
from .packing import LONGEST


def payload(records: Sequence[Record]) -> dict[str, Any]:
    """Of each row that measured a preset, its label and its departures; nothing where no row did.

    ``lengths`` are departures too, but of the question and not of the system: told apart, so that a page can leave out
    a sweep over lengths.
    """
    rows = [row for row, record in enumerate(records) if record.job.case.preset]
    if not rows:
        return {}
    cases = [records[row].job.case for row in rows]
    labels = list(dict.fromkeys(case.preset for case in cases))
    return {
        "row": rows,
        "label": [labels.index(case.preset) for case in cases],
        "labels": [printable(label, LONGEST) for label in labels],
        "titles": [_title(label) for label in labels],
        "strategy": [printable(records[row].job.strategy, LONGEST) for row in rows],
        "departs": [printable(", ".join(departures(case)), LONGEST) for case in cases],
        "lengths": [", ".join(_lengths(case)) for case in cases],
        "sizes": [_sizes(case) for case in cases],
    }


def _sizes(case: Case) -> dict[str, Any]:
    """What the page's own columns leave out, for there it would keep systems from being compared."""
    shape = case.shape
    return {
        "preset": printable(case.preset, LONGEST),
        **{name: getattr(shape, name) for name in ("width", "heads", "image_width", "text_width", "depth")},
        "projector": case.projector,
        "type_embedding": case.type_embedding,
        "design": case.design.key,
    }


def _title(label: str) -> str:
    """The system's name for people; its label where this version does not know it."""
    name, _, part = label.partition(":")
    known = presets().get(name)
    return f"{known.title}, {printable(part, LONGEST)}" if known and part else known.title if known else ""


def _lengths(case: Case) -> tuple[str, ...]:
    asked = own(case.preset, case.shrink)
    if asked is None:
        return ()
    names = ("batch", "image", "text")
    return tuple(
        f"{name}={getattr(case.shape, name)}"
        for name in names
        if getattr(case.shape, name) != getattr(asked.shape, name)
    )
