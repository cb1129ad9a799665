"""The command line: parse, call, print. Everything heavy is imported by the verb that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__, exits
from ..errors import FusionbenchError, printable
from ..outlet import open_streams
from ..remote import told
from . import (
    advising,
    comparing,
    completing,
    examining,
    exporting,
    listing,
    merging,
    reading,
    running,
    summarizing,
    tracking,
)

NAME = "fusionbench"  # also under `python -m`: the shell completes a command of this name
EPILOG = (
    "Exit codes: 0 fine, 1 regression (check), 2 usage or suite error, 3 some jobs failed or were wrong, 4 the machine "
    "is unfit (--strict), 5 nothing to measure, show or compare, 6 results damaged or not stored, 130 interrupted "
    "(partial results are saved), 143 terminated (the same)."
)

app = typer.Typer(
    help="Measure what it costs to fuse two modalities: strategies, attention backends, shapes and dtypes.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help needs no rich and comes 90 ms sooner
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fusionbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


VERBS: dict[str, Callable[..., None]] = {
    "list": listing.list_,
    "plan": listing.plan,
    "run": running.run,
    "resume": running.resume,
    "merge": merging.merge,
    "show": reading.show,
    "report": reading.report,
    "serve": reading.serve,
    "export": exporting.export,
    "compare": comparing.compare,
    "check": comparing.check,
    "summarize": summarizing.summarize,
    "history": tracking.history,
    "advise": advising.advise,
    "claims": examining.claims,
    "inspect": examining.inspect,
    "doctor": examining.doctor,
    "profile": examining.profile,
}
for name, verb in VERBS.items():
    app.command(name)(verb)
app.add_typer(comparing.baseline, name="baseline")


def main() -> None:
    """Entry point: errors that are meant for the user are one line and an exit code."""
    open_streams()
    if os.environ.get(completing.INSTRUCTION, "").startswith("complete_"):
        sys.exit(completing.answer(lambda: app(prog_name=NAME)))
    try:
        try:
            app(prog_name=NAME)
        finally:
            sys.stdout.flush()  # a full disk is told here, or by Python with a traceback
    except FusionbenchError as error:
        typer.echo(f"fusionbench: {printable(told(str(error)), 2000)}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as missing:
        typer.echo(f"fusionbench: this needs the package '{missing.name}', which is not installed here", err=True)
        sys.exit(exits.USAGE)
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)
    except OSError as error:
        typer.echo(f"fusionbench: {printable(told(str(error)))}", err=True)
        sys.exit(exits.USAGE)
