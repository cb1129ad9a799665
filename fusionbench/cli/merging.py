"""The verb that puts the runs of several machines together: `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from . import completing


def merge(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of one suite.", autocompletion=completing.runs)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="The folder of the merged run.")],
) -> None:
    """Put runs of one suite together: its slices (--shard), or the same from several machines."""
    from .. import merging, present, store
    from ..errors import FusionbenchError
    from ..terminal import console, note

    out = console(stderr=True)
    merged = merging.merge(runs, output)
    for problem in merged.problems:
        note(out, problem)
    try:
        present.seal(store.read(merged.path))
    except (ImportError, OSError, ValueError, FusionbenchError) as error:  # Arrow's errors are ValueErrors
        note(out, f"the merged run is there, but was not sealed: {error}")
    if merged.missing:
        numbers = ", ".join(map(str, merged.missing))
        note(out, f"slices that nobody has measured yet: {numbers}")
    typer.echo(merged.path)
    if merged.damaged:
        raise typer.Exit(exits.DAMAGED)
