"""The verbs that show what was measured: `show` in the terminal or as files, `report` and `serve` as pages."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from ..collector import paused
from ..errors import printable
from .options import DEFAULT_RESULTS, Results, RunArgument, leave_if_damaged


def show(
    run: RunArgument = None,
    results: Results = DEFAULT_RESULTS,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as CSV.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the records as JSON.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Parquet.")] = None,
    groups: Annotated[int, typer.Option(min=1, help="How many shapes and conditions to print.")] = 12,
    rows: Annotated[int, typer.Option(min=1, help="How many candidates to print for each of them.")] = 12,
) -> None:
    """Print a run as tables, or export it as CSV, JSON or Parquet."""
    from .. import present

    with paused():
        found = present.read(run, results)
        if csv or json or parquet:
            for path in present.write_tables(found, csv, json, parquet):
                typer.echo(str(path))
        else:
            present.print_tables(found, groups=groups, rows=rows)
    leave_if_damaged(found)


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders; without any, the newest.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = None,
    claims: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Findings of `claims --output`; without it those in a run's claims.json."),
    ] = None,
    static: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write its charts as SVG and PNG (extra 'static', and a Chromium)."),
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write one offline HTML page with everything a run found."""
    from .. import present

    if static:
        from ..report import static as pictures

        pictures.refuse_missing()
    with paused():
        found = [present.read(path, results) for path in runs] if runs else [present.read(None, results)]
        path = output or (found[0].path / "report.html" if found[0].path.is_dir() else Path("report.html"))
        checked, problems = present.ledgers(found, claims)
        typer.echo(str(present.write_page(found, path, checked, problems)))
        for picture in pictures.write(path, static) if static else ():
            typer.echo(str(picture))
    if problems:
        raise typer.Exit(exits.DAMAGED)
    for each in found:
        leave_if_damaged(each)


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="A folder of reports, or of run folders with reports in them.")
    ] = DEFAULT_RESULTS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any port that is free.")] = 8765,
) -> None:
    """Open a folder of reports in the browser, on 127.0.0.1 only, until Ctrl-C."""
    from .. import serving

    with serving.Server(folder, port) as server:
        typer.echo(f"reports in {printable(str(folder))}: {server.url} (Ctrl-C ends this)")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):  # how this ends, and no failure
            server.serve_forever()
