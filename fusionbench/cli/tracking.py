"""The verb that follows jobs from run to run: `history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from ..collector import paused
from ..errors import printable
from .options import DEFAULT_RESULTS, AsJson, builtins, print_json


def history(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="A folder of run folders and sealed runs (.parquet).")
    ] = DEFAULT_RESULTS,
    job: Annotated[str, typer.Option(metavar="TEXT", help="Only jobs with this text in their key.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many jobs to print, those that changed most first.")] = 20,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Machines of the same environment are one: containers change names.")
    ] = False,
    json: AsJson = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one offline HTML page.")] = None,
) -> None:
    """The trend of each job over a folder of runs, and where it changed: a report, which fails nothing."""
    from .. import archive, timeline

    problems: list[str] = []
    damaged = False

    def left_out(text: str, is_damaged: bool) -> None:
        nonlocal damaged
        damaged |= is_damaged
        problems.append(text)
        typer.echo(f"fusionbench: {printable(text, 1000)}", err=True)

    with paused():
        runs = archive.runs(folder, timeline.FIELDS, left_out=left_out)
        found = timeline.build(runs, job=job, any_machine=any_machine, problems=problems)
        if not found.series:
            _explain(folder, job, runs=len(found.runs), left_out=len(problems))
            raise typer.Exit(exits.DAMAGED if damaged else exits.NOTHING)
        if report:
            from ..report import history as page

            typer.echo(str(page.write(report, found, title=folder.resolve().name)), err=json)
        if json:
            print_json(builtins(found))
        elif not report:
            from ..terminal import console
            from ..trend import show

            out = console()
            out.print(show(found, width=out.width, limit=limit))
    if damaged:
        raise typer.Exit(exits.DAMAGED)


def _explain(folder: Path, job: str, *, runs: int, left_out: int) -> None:
    shown = printable(str(folder))
    if runs and job:
        text = f"no job in '{shown}' has '{printable(job)}' in its key; see all without --job"
    elif runs:
        text = f"nothing was measured in the {runs} runs in '{shown}'"
    elif left_out:
        text = f"no run in '{shown}' could be read"
    else:
        text = f"no run in '{shown}'; name a folder of runs, or measure one with: fusionbench run smoke"
    typer.echo(f"fusionbench: {text}", err=True)
