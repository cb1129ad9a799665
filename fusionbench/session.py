"""A run in the terminal: the plan, the measuring, the tables, and the exit code that says how it went."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from . import launch, present, store
from .collector import paused
from .engines import local
from .errors import FusionbenchError, printable
from .progress import Display, Outline, outline_box
from .record import FAILED, Environment, Record
from .runner import Outcome
from .terminal import console, note

EXIT_FAILED, EXIT_NOTHING = 3, 5


def execute(prepared: launch.Launch, out: Console, *, report: bool, quiet: bool) -> int:
    """Run what was prepared, show and seal it; returns the exit code."""
    resume = f"everything finished is saved. Go on with: {_resume(prepared)}"
    try:
        outcome = _measure(prepared, out, quiet)
    except KeyboardInterrupt:  # before the first job, or between two steps
        note(out, f"interrupted; {resume}")
        return 128 + signal.SIGINT
    with paused():
        finished = store.read(prepared.folder)
        _show(finished, out, sealed=outcome.signal == 0, report=report)
    if outcome.signal:
        note(out, f"interrupted; {resume}")
        return 128 + outcome.signal
    return _verdict(finished.records, out)


def _measure(prepared: launch.Launch, out: Console, quiet: bool) -> Outcome:
    outline = _outline(prepared)
    if not quiet:
        out.print(outline_box(outline))
    with Display(out, outline, quiet) as display:
        return launch.execute(prepared, local.run, display)


def _show(finished: store.Run, out: Console, *, sealed: bool, report: bool) -> None:
    """Tables, sealed file and page; on a bare GPU image what needs a missing package is left out and said."""
    steps: list[Callable[[], object]] = [lambda: present.print_tables(finished)]
    if sealed:
        steps.append(lambda: present.seal(finished))
    if report:
        steps.append(lambda: _report(finished))
    for step in steps:
        try:
            step()
        except (ImportError, OSError, ValueError, FusionbenchError) as error:  # Arrow's errors are ValueErrors
            note(out, f"the results are saved in {finished.path}, but could not all be shown: {error}")


def _report(finished: store.Run) -> None:
    page = present.write_page([finished], finished.path / "report.html")
    console().print(Text(f"report: {page}"), soft_wrap=True)


def _outline(prepared: launch.Launch) -> Outline:
    counts, suite = launch.tally(prepared), prepared.plan.suite
    return Outline(
        title=suite.title,
        question=suite.question,
        todo=counts.todo,
        done=counts.done,
        skips=counts.skips,
        devices=counts.devices,
        machine=_machine(prepared.environment),
        folder=str(prepared.folder),
        budget=prepared.budget,
    )


def _machine(environment: Environment) -> str:
    parts = [environment.gpu, environment.cpu, f"{environment.cores} cores", f"torch {environment.torch}"]
    return printable(", ".join(part for part in parts if part))


def _resume(prepared: launch.Launch) -> str:
    return shlex.join(["fusionbench", "resume", str(prepared.folder), *present.plugin_options(prepared.plugins)])


def _verdict(records: Sequence[Record], out: Console) -> int:
    """The exit code of a run that was not interrupted, with a line about it where the tables say nothing."""
    statuses = {record.status for record in records}
    if statuses & set(FAILED):
        return EXIT_FAILED
    if "ok" not in statuses:
        note(out, "nothing was measured: every job was skipped")
        return EXIT_NOTHING
    return 0
