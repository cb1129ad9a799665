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
from ..remote import Url, place, told, url_of
from . import completing
from .options import DEFAULT_RESULTS, Place, Results, RunArgument, leave_if_damaged


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
        list[Place] | None,
        typer.Argument(
            metavar="[RUN]...",
            parser=place,
            help="Run folders, here or behind URLs; without any, the newest.",
            autocompletion=completing.runs,
        ),
    ] = None,
    output: Annotated[
        Place | None,
        typer.Option("--output", "-o", metavar="FILE", parser=place, help="The page to write, here or to a URL."),
    ] = None,
    claims: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Findings of `claims --output`; without it those in a run's claims.json."),
    ] = None,
    static: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write its charts as SVG and PNG (extra 'static', and a Chromium)."),
    ] = None,
    kernels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What `inspect --json` wrote: the kernels' registers, spills, shared memory."
        ),
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write one offline HTML page with everything a run found; of two runs also what changed, of more the history."""
    from .. import inspection, mirror, present

    if static:
        from ..report import static as pictures

        pictures.refuse_missing()
    with paused():
        found = [present.read(path, results) for path in runs] if runs else [present.read(None, results)]
        checked, problems = present.ledgers(found, claims)
        profiles = inspection.load(kernels) if kernels else None
        with mirror.landing(output or _beside(found[0].path)) as path:
            page = present.write_page(found, path, checked, problems, profiles)
        typer.echo(told(str(page)))
        for picture in pictures.write(path, static) if static else ():
            typer.echo(str(picture))
    if problems:
        raise typer.Exit(exits.DAMAGED)
    for each in found:
        leave_if_damaged(each)


def _beside(run: Path) -> Place:
    """The page of a run goes into its folder, be that here or behind a URL."""
    if not run.is_dir():
        return Path("report.html")
    folder: Path | Url = url_of(run) or run
    return folder / "report.html"


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
