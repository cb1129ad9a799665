"""Take jobs to an engine and their records to the store, one by one, so that nothing finished is lost."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from msgspec.structs import replace

from .environment import native
from .record import Environment, Record
from .rounds import done
from .schedule import Agenda
from .spec import Budget, Job, Visit


class Engine(Protocol):
    """Where jobs run; engines/local.py is one."""

    def __call__(
        self,
        visits: Iterable[Visit],
        budget: Budget,
        plugins: Sequence[str],
        started: Callable[[Job], None],
        stopping: Callable[[], bool],
    ) -> Iterator[tuple[Visit, Record]]: ...


class Listener(Protocol):
    """Who is told what happens, while it happens."""

    def started(self, job: Job) -> None: ...

    def visited(self, visit: Visit, record: Record, last: bool) -> None:
        """A round is over and its record stored; ``last`` says that the job needs no other."""

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
    """How many jobs were finished, by status, and the signal that ended the run early (0: none)."""

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
    seed: int = 0,
    begun: Mapping[str, Record] | None = None,
) -> Outcome:
    """Visit every job in rounds and store each record the moment it is there; the last one of a job counts.

    ``seed`` decides the order, ``begun`` are the records by key of jobs that an earlier attempt has left unfinished.
    The first SIGINT or SIGTERM lets the running job finish its sample and begins no other; the second ends
    the run at once. Either way everything finished has been stored.
    """
    outcome, stop, agenda = Outcome(), Stop(listener), Agenda(jobs, budget, seed, begun or {})
    try:
        with _listening(stop):
            for visit, measured in engine(agenda, budget, plugins, listener.started, stop.asked):
                if cut_off(measured, visit, budget):
                    continue
                record = agenda.join(visit, complete(measured, environment))
                store(record)
                finished = done(record, budget)
                outcome.statuses[record.status] += finished
                listener.visited(visit, record, finished)
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


def cut_off(record: Record, visit: Visit, budget: Budget) -> bool:
    """Whether an interruption left less than the suite calls a measurement: the round is not done then."""
    time = record.time
    if time is None or time.stop != "interrupted":
        return False
    return visit.round > 0 or len(time.samples_ns) < budget.min_samples


@contextmanager
def _listening(stop: Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
