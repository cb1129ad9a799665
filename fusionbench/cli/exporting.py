"""The verb that hands a run to other tools: `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from ..collector import paused
from .options import DEFAULT_RESULTS, Results, RunArgument, leave_if_damaged

SHOWN = 10  # problems of a damaged run


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

    chosen = formats.find(name)  # a wrong name is told before anything is read
    from .. import present
    from ..terminal import console, note

    with paused():
        found = present.read(run, results)
        written = formats.export(found, chosen, output)
    more = [f"{len(found.problems) - SHOWN} more problems; see: fusionbench show"] * (len(found.problems) > SHOWN)
    for text in (*found.problems[:SHOWN], *more, *written.notes):
        note(console(stderr=True), text)
    if output != formats.STDOUT:
        typer.echo(str(output))
    leave_if_damaged(found)
    if not written.jobs:
        raise typer.Exit(exits.NOTHING)
