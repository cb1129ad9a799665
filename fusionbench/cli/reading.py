"""The verbs that show what was measured: `show` in the terminal or as files, `report` as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from ..collector import paused
from . import completing
from .options import DEFAULT_RESULTS, Results, RunArgument, leave_if_damaged


def show(
    run: RunArgument = None,
    results: Results = DEFAULT_RESULTS,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as CSV.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the records as JSON.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Parquet.")] = None,
    groups: Annotated[int, typer.Option(min=1, help="How many shapes and conditions to print.")] = 12,
    rows: Annotated[int, typer.Option(min=1, help="How many candidates to print for each of them.")] = 12,
    reference: Annotated[
        str,
        typer.Option(
            metavar="STRATEGY[/BACKEND]",
            help="Hold all others against this one; a strategy by its fastest backend.",
            autocompletion=completing.candidates,
        ),
    ] = "",
) -> None:
    """Print a run as tables, or export it as CSV, JSON or Parquet."""
    from .. import present

    with paused():
        found = present.read(run, results)
        if csv or json or parquet:
            for path in present.write_tables(found, csv, json, parquet):
                typer.echo(str(path))
        else:
            present.print_tables(found, groups=groups, rows=rows, reference=reference)
    leave_if_damaged(found)


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="Run folders; without any, the newest.", autocompletion=completing.runs
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = None,
    claims: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Findings of `claims --output`; without it those in a run's claims.json."),
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write one offline HTML page with everything a run found."""
    from .. import present

    with paused():
        found = [present.read(path, results) for path in runs] if runs else [present.read(None, results)]
        path = output or (found[0].path / "report.html" if found[0].path.is_dir() else Path("report.html"))
        checked, problems = present.ledgers(found, claims)
        typer.echo(str(present.write_page(found, path, checked, problems)))
    if problems:
        raise typer.Exit(exits.DAMAGED)
    for each in found:
        leave_if_damaged(each)
