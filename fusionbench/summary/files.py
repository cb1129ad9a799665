"""A judgement written to whatever a CI reads: files, annotations, the summary of a step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..delta import Judgement
from ..disk import explained
from ..errors import printable
from ..report.files import put
from . import as_json, github, markdown
from .junit import junit as as_junit

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def write(
    judgement: Judgement,
    *,
    json: Path | None = None,
    markdown: Path | None = None,
    junit: Path | None = None,
    comment: Path | None = None,
    github: bool = False,
    link: str = "",
) -> list[Path]:
    """Write what is asked for (``-`` is the standard output); returns the paths written.

    ``link`` leads from the markdown to the whole report. ``github`` prints annotations and appends to the step's
    summary, where there is one. Raises StoreError.
    """
    wanted = _wanted(judgement, json, markdown, junit, comment, link)
    for path, data in wanted:
        put(path, data)
    if github:
        _tell_github(judgement, link)
    return [path for path, _ in wanted]


def _wanted(
    judgement: Judgement, json: Path | None, md: Path | None, junit: Path | None, comment: Path | None, link: str
) -> list[tuple[Path, bytes]]:
    wanted: list[tuple[Path | None, Callable[[], bytes]]] = [
        (json, lambda: as_json.encode(judgement)),
        (md, lambda: markdown.full(judgement.comparison, judgement, link).encode()),
        (junit, lambda: as_junit(judgement.comparison, judgement)),
        (comment, lambda: markdown.comment(judgement, link).encode()),
    ]
    return [(path, made()) for path, made in wanted if path is not None]


def _tell_github(judgement: Judgement, link: str) -> None:
    for line in github.annotations(judgement):
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    path = os.environ.get(STEP_SUMMARY)
    if not path:
        return
    with explained(f"cannot write '{printable(path)}'"), Path(path).open("ab") as summary:
        left = markdown.STEP_BYTES - summary.tell()  # others may have written to it in the same step
        text = markdown.step_summary(judgement, link, left).encode()
        if len(text) <= left:
            summary.write(text)
