"""The verb that shows what another job has judged: `summarize` reads its JSON and runs none of its code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def summarize(
    judgement: Annotated[Path, typer.Argument(metavar="JUDGEMENT.json", help="What `check --json` wrote.")],
    comment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write markdown of at most 60 kB, for a pull request.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole report as markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print annotations and append to $GITHUB_STEP_SUMMARY.")
    ] = False,
    link: Annotated[
        str, typer.Option(metavar="URL", help="Where the whole report is; the markdown then leads there.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="In the terminal: unchanged and unclear jobs, too.")
    ] = False,
) -> None:
    """Turn the JSON of `check --json` into a comment, a report, JUnit XML or annotations; without any, print it."""
    from ..report.files import STDOUT, refuse_unwritable
    from ..summary import as_json, files

    found = as_json.load(judgement)
    refuse_unwritable(comment, markdown, junit)
    for path in files.write(found, comment=comment, markdown=markdown, junit=junit, github=github, link=link):
        if path != STDOUT:
            typer.echo(str(path))
    if not (comment or markdown or junit or github):
        from ..summary.terminal import show
        from ..terminal import console

        out = console()
        out.print(show(found.comparison, found, out.width, everything), crop=False)
