"""Take jobs to an engine and their records to the store, one by one, so that nothing finished is lost."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from msgspec.structs import replace

from .environment import native
from .record import Environment, Record
from .spec import Budget, Job


class Engine(Protocol):
    """Where jobs run; engines/local.py is one."""

    def __call__(
        self,
        jobs: Iterable[Job],
        budget: Budget,
        plugins: Sequence[str],
        started: Callable[[Job], None],
        stopping: Callable[[], bool],
    ) -> Iterator[Record]: ...


class Listener(Protocol):
    """Who is told what happens, while it happens."""

    def started(self, job: Job) -> None: ...

    def finished(self, record: Record) -> None: ...

    def interrupted(self, signal_name: str) -> None: ...


@dataclass
class Stop:
    """Whether the user asked to stop, and by which signal. The second time, the run is cut short."""

    listener: Listener
    number: int = 0

    def asked(self) -> bool:
        return self.number != 0

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        self.listener.interrupted(signal.Signals(number).name)


@dataclass
class Outcome:
    """How many records of each status were written, and the signal that ended the run early (0: none)."""

    statuses: Counter[str] = field(default_factory=Counter)
    signal: int = 0


def run(
    jobs: Iterable[Job],
    engine: Engine,
    environment: Environment,
    store: Callable[[Record], None],
    listener: Listener,
    *,
    budget: Budget,
    plugins: Sequence[str] = (),
) -> Outcome:
    """Measure every job and store each record the moment it is there.

    The first SIGINT or SIGTERM lets the running job finish its sample and begins no other; the second ends
    the run at once. Either way everything finished has been stored.
    """
    outcome, stop = Outcome(), Stop(listener)
    try:
        with _listening(stop):
            for measured in engine(jobs, budget, plugins, listener.started, stop.asked):
                record = complete(measured, environment)
                if too_few_samples(record, budget):
                    continue
                store(record)
                outcome.statuses[record.status] += 1
                listener.finished(record)
    except KeyboardInterrupt:
        outcome.signal = stop.number or signal.SIGINT
    outcome.signal = outcome.signal or stop.number
    return outcome


def complete(record: Record, environment: Environment) -> Record:
    """The record with what only this side knows: the environment, and whether it merely emulates the dtype."""
    case = record.job.case
    note = native(case.dtype, case.device, environment)
    notes = record.notes + ((note,) if note and record.time else ())
    return replace(record, environment=environment.id, notes=notes)


def too_few_samples(record: Record, budget: Budget) -> bool:
    """Whether an interruption left less than the suite calls a measurement: the job is not done then."""
    time = record.time
    return time is not None and time.stop == "interrupted" and len(time.samples_ns) < budget.min_samples


@contextmanager
def _listening(stop: Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
