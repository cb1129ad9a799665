"""A run in the terminal: the plan, the measuring, the tables, and the exit code that says how it went."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from rich.console import Console
from rich.text import Text

from . import device_lock, exits, fitness, launch, present, remote, staging, store
from .collector import paused
from .engines import local
from .errors import FusionbenchError, printable
from .meters import energy
from .progress import Display, Outline, outline_box
from .record import FAILED, Environment, Record, latest
from .remarks import disturbed
from .runner import Outcome
from .site import SiteLostError
from .spec import TIMERS, Budget
from .terminal import console, note


def execute(prepared: launch.Launch, out: Console, *, report: bool, quiet: bool, strict: bool = False) -> int:
    """Run what was prepared, show and seal it; returns the exit code. Under ``strict`` nothing is measured where
    something speaks against it beforehand. Raises UnfitError where another run measures one of its GPUs."""
    with staging.uploading(prepared.folder, lambda line: note(out, line)):
        return _execute(prepared, out, report=report, quiet=quiet, strict=strict)


def _execute(prepared: launch.Launch, out: Console, *, report: bool, quiet: bool, strict: bool) -> int:
    resume = f"everything finished is saved. Go on with: {_resume(prepared)}"
    try:
        outcome = _measure(prepared, out, quiet=quiet, strict=strict)
    except SiteLostError as error:
        note(out, f"{error}; {resume}")
        return exits.FAILED
    except KeyboardInterrupt:  # before the first job, or between two steps
        note(out, f"interrupted; {resume}")
        return 128 + signal.SIGINT
    with paused():
        finished = store.read(prepared.folder)
        _show(finished, out, sealed=not (outcome.signal or outcome.lost), report=report)
    for device, words in outcome.lost.items():
        note(out, f"device '{device}' was lost ({words}); {outcome.undone} jobs are left undone; {resume}")
    if outcome.signal:
        note(out, f"interrupted; {resume}")
        return 128 + outcome.signal
    return _verdict(finished.records, outcome, out, strict)


def measure(prepared: launch.Launch, out: Console, *, quiet: bool, strict: bool = False) -> Outcome:
    """Measure what was prepared, with its plan and its progress on ``out``; raises UnfitError as ``execute`` does."""
    with staging.uploading(prepared.folder, lambda line: note(out, line)):
        return _measure(prepared, out, quiet=quiet, strict=strict)


def _measure(prepared: launch.Launch, out: Console, *, quiet: bool, strict: bool) -> Outcome:
    outline = _outline(prepared)
    if not quiet:
        out.print(outline_box(outline))
    ours = () if prepared.site.slots else outline.devices  # slots have locked and looked at their own
    with device_lock.held(ours):
        told = fitness.remarks(ours, strict=strict)
        for line in [*told, _no_timers(prepared.budget, outline), *_no_energy(prepared, outline)]:
            if line:
                note(out, line)
        with Display(out, outline, quiet, _earlier(prepared, outline)) as display:
            return launch.execute(prepared, local.run, display, local.probe, lambda line: note(out, line))


def _earlier(prepared: launch.Launch, outline: Outline) -> Iterator[Record]:
    """What an earlier attempt has measured of this run's jobs; read when it is asked for."""
    if outline.done or outline.begun:
        with paused():
            records = store.read(prepared.folder).records
        valid = prepared.finished | prepared.begun.keys()
        yield from (record for record in latest(records).values() if record.identity in valid)


def _no_timers(budget: Budget, outline: Outline) -> str | None:
    """That the timers asked for are not those of these devices."""
    if budget.timers == TIMERS or set(outline.devices) != {"cpu"}:
        return None
    return f"timers ({', '.join(budget.timers)}) are for CUDA: on the CPU calls are timed by the wall clock"


def _no_energy(prepared: launch.Launch, outline: Outline) -> list[str | None]:
    """Why there will be no energy, where it was asked for."""
    wanted = outline.devices if prepared.budget.energy_s else ()
    return [energy.unavailable(torch.device(device)) for device in wanted if not prepared.site.slots]


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
    console().print(Text(f"report: {remote.told(str(page))}"), soft_wrap=True)


def _outline(prepared: launch.Launch) -> Outline:
    counts, suite = launch.tally(prepared), prepared.plan.suite
    return Outline(
        title=suite.title,
        question=suite.question,
        todo=counts.todo,
        done=counts.done,
        begun=counts.begun,
        skips=counts.skips,
        devices=counts.devices,
        machine=_machine(prepared),
        folder=remote.told(str(prepared.folder)),
        budget=prepared.budget,
    )


def _machine(prepared: launch.Launch) -> str:
    def told(environment: Environment) -> str:
        parts = [environment.gpu, environment.cpu, f"{environment.cores} cores", f"torch {environment.torch}"]
        return ", ".join(part for part in parts if part)

    counts = Counter(told(slot.environment) for slot in prepared.site.slots)
    slots = (f"{count} {'slot' if count == 1 else 'slots'} of {machine}" for machine, count in counts.items())
    return printable("; ".join(slots) or told(prepared.environment))


def _resume(prepared: launch.Launch) -> str:
    folder = remote.told(str(prepared.folder))
    return shlex.join(["fusionbench", "resume", folder, *present.plugin_options(prepared.plugins)])


def _verdict(records: Sequence[Record], outcome: Outcome, out: Console, strict: bool) -> int:
    """The exit code of a run that was not interrupted, with a line about it where the tables say nothing."""
    doubtful = disturbed(records) if strict else None
    if doubtful:
        note(out, f"--strict: {doubtful}; measure them again when it is quiet")
        return exits.UNFIT
    statuses = {record.status for record in records}
    if statuses & set(FAILED) or outcome.lost:
        return exits.FAILED
    if "ok" not in statuses:
        note(out, "nothing was measured: every job was skipped")
        return exits.NOTHING
    return 0
