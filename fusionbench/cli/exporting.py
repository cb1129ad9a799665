"""The verb that hands a run to other tools: `export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from ..collector import paused
from .options import DEFAULT_RESULTS, Results, RunArgument, leave_if_damaged

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
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file or folder to write; - for stdout.")
    ],
    run: RunArgument = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write a run as other tools read it: pytest-benchmark, asv, Bencher, github-action-benchmark, Perfetto, tables."""
    from ..export import formats
    from ..report.files import STDOUT

    chosen = formats.find(name)  # a wrong name is told before anything is read
    from .. import present

    with paused():
        found = present.read(run, results)
        _tell(found.problems)
        if not found.records:  # nor is there a file
            leave_if_damaged(found)
        written = formats.export(found, chosen, output)
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
