"""The verb that follows jobs from run to run: `history`."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import exits
from ..collector import paused
from ..errors import printable
from ..remote import Url, place, told
from .options import DEFAULT_RESULTS, AsJson, Place, builtins, print_json


def history(
    folder: Annotated[
        Place,
        typer.Argument(
            metavar="[FOLDER]", parser=place, help="A folder of run folders and sealed runs (.parquet), or its URL."
        ),
    ] = DEFAULT_RESULTS,
    job: Annotated[str, typer.Option(metavar="TEXT", help="Only jobs with this text in their key.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many jobs to print, those that changed most first.")] = 20,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Machines of the same environment are one: containers change names.")
    ] = False,
    json: AsJson = False,
    report: Annotated[
        Place | None, typer.Option(metavar="FILE", parser=place, help="Write one offline HTML page, here or to a URL.")
    ] = None,
) -> None:
    """The trend of each job over a folder of runs, and where it changed: a report, which fails nothing."""
    from .. import archive, mirror, timeline

    problems: list[str] = []
    damaged = False

    def left_out(text: str, is_damaged: bool) -> None:
        nonlocal damaged
        damaged |= is_damaged
        problems.append(text)
        typer.echo(f"fusionbench: {printable(told(text), 1000)}", err=True)

    with paused():
        # The key is made here of a job's fields: row groups of sealed runs without such a job are not read.
        wanted = (lambda each: job in each.key) if job else None
        runs = archive.runs(folder, timeline.FIELDS, wanted, left_out=left_out)
        found = timeline.build(runs, job=job, any_machine=any_machine, problems=problems)
        if not found.series:
            _explain(folder, job, runs=len(found.runs), left_out=len(problems))
            raise typer.Exit(exits.DAMAGED if damaged else exits.NOTHING)
        if report:
            from ..report import history as page

            title = folder.name if isinstance(folder, Url) else folder.resolve().name
            with mirror.landing(report) as path:
                page.write(path, found, title=title)
            typer.echo(str(report), err=json)
        if json:
            print_json(builtins(found))
        elif not report:
            from ..terminal import console
            from ..trend import show

            out = console()
            out.print(show(found, width=out.width, limit=limit))
    if damaged:
        raise typer.Exit(exits.DAMAGED)


def _explain(folder: Place, job: str, *, runs: int, left_out: int) -> None:
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
