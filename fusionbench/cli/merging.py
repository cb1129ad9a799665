"""The verb that puts the runs of several machines together: `merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import exits
from ..remote import place, told
from . import completing
from .options import Place


def merge(
    runs: Annotated[
        list[Place],
        typer.Argument(
            metavar="RUN...",
            parser=place,
            help="Run folders of one suite, here or behind URLs.",
            autocompletion=completing.runs,
        ),
    ],
    output: Annotated[
        Place,
        typer.Option(
            "--output", "-o", metavar="RUN", parser=place, help="The folder of the merged run, here or behind a URL."
        ),
    ],
) -> None:
    """Put runs of one suite together: its slices (--shard), or the same from several machines."""
    from .. import merging, mirror, present, staging, store
    from ..errors import FusionbenchError
    from ..terminal import console, note

    out = console(stderr=True)
    target = staging.target_of(output)
    merged = merging.merge([mirror.here(run) for run in runs], target)
    for problem in merged.problems:
        note(out, problem)
    try:
        present.seal(store.read(merged.path))
    except (ImportError, OSError, ValueError, FusionbenchError) as error:  # Arrow's errors are ValueErrors
        note(out, f"the merged run is there, but was not sealed: {error}")
    staging.send(target)
    if merged.missing:
        numbers = ", ".join(map(str, merged.missing))
        note(out, f"slices that nobody has measured yet: {numbers}")
    typer.echo(told(str(merged.path)))
    if merged.damaged:
        raise typer.Exit(exits.DAMAGED)
