"""The verb that hands a run to other tools: `export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from .. import exits
from ..collector import paused
from ..errors import FusionbenchError
from ..remote import Url, place
from .options import DEFAULT_RESULTS, Place, Results, RunArgument, leave_if_damaged

SHOWN = 10  # problems of a damaged run, notes on an export


def export(
    name: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            help="csv, json, parquet, pytest-benchmark, github-smaller, github-bigger, bencher, asv (a folder), trace.",
        ),
    ],
    output: Annotated[
        Place,
        typer.Option(
            "--output", "-o", metavar="FILE", parser=place, help="The file or folder to write, or a URL; - for stdout."
        ),
    ],
    run: RunArgument = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write a run as other tools read it: pytest-benchmark, asv, Bencher, github-action-benchmark, Perfetto, tables."""
    from ..export import formats
    from ..report.files import STDOUT

    chosen = formats.find(name)  # a wrong name is told before anything is read
    if chosen.folder and isinstance(output, Url):
        raise FusionbenchError(f"'{chosen.name}' is a folder of many files; write it here, and copy it to '{output}'")
    from .. import mirror, present

    with paused():
        found = present.read(run, results)
        _tell(found.problems)
        if not found.records:  # nor is there a file
            leave_if_damaged(found)
        with mirror.landing(output) as path:
            written = formats.export(found, chosen, path)
    _tell(written.notes)
    if output != STDOUT:
        typer.echo(str(output))
    leave_if_damaged(found)
    if not written.jobs:
        raise typer.Exit(exits.NOTHING)


def _tell(texts: Sequence[str]) -> None:
    from ..terminal import console, note

    more = [f"{len(texts) - SHOWN} more of these; see: fusionbench show"] * (len(texts) > SHOWN)
    for text in (*texts[:SHOWN], *more):
        note(console(stderr=True), text)
