"""A trial of two revisions in the terminal: what it is about to do, where it is, and what it found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from . import device_lock, fitness, judge, pairing
from .delta import GATES, Delta, Gate, Judgement, Ruling
from .engines import local
from .engines.local import Cancelled
from .errors import FusionbenchError, StoppedError, counted
from .pairing import Outcome, Request
from .progress import NARROW, brief, duration
from .spec import Job
from .stopping import Stop
from .terminal import note

EVERY_S = 10.0  # between two lines where there is no terminal


@dataclass
class Display:
    """A listener that draws a bar on a terminal and prints a line now and then anywhere else."""

    console: Console
    jobs: int
    rounds: int
    quiet: bool = False
    done: int = 0  # rounds of all jobs
    total: int = 0
    stage: str = "screen"
    begun: float = field(default_factory=monotonic)
    last_line: float = field(default_factory=monotonic)
    bar: Progress | None = None

    def __enter__(self) -> Self:
        self.total = self.jobs * self.rounds
        if self.console.is_terminal and not self.quiet:
            columns = TextColumn("{task.fields[stage]}"), BarColumn(bar_width=24), TextColumn("{task.percentage:.0f} %")
            more: tuple[ProgressColumn, ...] = (TextColumn("{task.fields[left]}"),)
            if self.console.width >= NARROW:
                more = (TimeElapsedColumn(), *more, TextColumn("{task.description}", markup=False))
            self.bar = Progress(*columns, *more, console=self.console, refresh_per_second=2, transient=True)
            self.bar.add_task("starting both revisions", total=self.total, stage=self.stage, left="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def measured(self, job: Job, stage: str, number: int, rounds: int) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.update(
                self.bar.task_ids[0], completed=self.done, total=self.total, left=self._left(),
                description=brief(job, self.console.width - 60),
            )  # fmt: skip
        elif not self.quiet and monotonic() - self.last_line >= EVERY_S:
            self.last_line = monotonic()
            note(self.console, f"{stage}: {self.done} of {self.total} rounds, {self._left()}")

    def suspected(self, jobs: int, rounds: int) -> None:
        """From here on it is the second look."""
        self.stage, self.done, self.total, self.begun = "confirm", 0, rounds, monotonic()
        if jobs and not self.quiet:
            several = counted(jobs, "job")
            note(self.console, f"{several} looked slower: measured again in fresh pairs, {rounds} rounds in all")
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=0, total=max(rounds, 1), stage=self.stage)

    def _left(self) -> str:
        """The time left by the pace so far."""
        return f"about {duration((monotonic() - self.begun) / self.done * (self.total - self.done))} left"


def execute(
    request: Request, gates: Sequence[Gate], out: Console, *, quiet: bool, strict: bool
) -> tuple[Judgement, int]:
    """The judgement on all jobs of the request and, where a signal ended it early, the number of that signal: then it
    is about the jobs that were done by then."""
    local.set_variables()
    jobs = pairing.jobs(request)
    with _prepared(request, jobs, out, quiet, strict) as (display, stop):
        found: Outcome = pairing.run(request, jobs, display, stop.asked)
    if found.interrupted:
        rulings = [Ruling(gate=gate, outcome="not judged", reason="interrupted") for gate in gates or GATES]
        return judge.concluded(found.comparison, rulings), stop.number
    return judge.judge(found.comparison, gates or GATES), 0


def confirmation(request: Callable[[], Request], out: Console, *, quiet: bool) -> judge.Confirm:
    """What suspects are measured again with: pairs of the two revisions that ``request`` names."""

    def confirm(keys: Sequence[str]) -> Mapping[str, Delta]:
        local.set_variables()
        asked = replace(request(), only_jobs=frozenset(keys))
        jobs = pairing.jobs(asked)
        with _prepared(asked, jobs, out, quiet, strict=False) as (display, stop):
            return pairing.confirm(asked, jobs, display, stop.asked)

    return confirm


@contextlib.contextmanager
def _prepared(
    request: Request, jobs: Sequence[Job], out: Console, quiet: bool, strict: bool
) -> Iterator[tuple[Display, Stop]]:
    """The devices are ours, their state is told, signals are heard, the bar is drawn."""
    devices = sorted({job.case.device for job in jobs})
    stop = Stop(lambda name: note(out, f"{name}: stopping; what was screened to its end is shown"))
    with device_lock.held(devices):
        for line in fitness.remarks(devices, strict=strict):
            note(out, line)
        try:
            with stop.listening(), Display(out, len(jobs), request.rounds, quiet) as display:
                yield display, stop
        except (Cancelled, FusionbenchError):
            if not stop.number:
                raise
            # Before the first round, or of a setup that had the same Ctrl-C.
            raise StoppedError("nothing was judged", stop.number) from None
