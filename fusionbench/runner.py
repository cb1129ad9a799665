"""Take jobs to an engine and their records to the store, one by one, so that nothing finished is lost."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from msgspec.structs import replace

from .device_loss import loss
from .environment import native
from .record import Environment, Record
from .remarks import remarked
from .rounds import done
from .schedule import Agenda, Limits
from .spec import Budget, Job, Visit
from .stopping import Stop


class Engine(Protocol):
    """Where jobs run; engines/local.py is one."""

    def __call__(
        self,
        visits: Iterable[Visit],
        budget: Budget,
        plugins: Sequence[str],
        started: Callable[[Job], None],
        stopping: Callable[[], bool],
    ) -> Generator[tuple[Visit, Record], None, None]: ...


class Listener(Protocol):
    """Who is told what happens, while it happens."""

    def started(self, job: Job) -> None: ...

    def visited(self, visit: Visit, record: Record, last: bool) -> None:
        """A round is over and its record stored; ``last`` says that the job needs no other."""

    def interrupted(self, signal_name: str) -> None: ...


class Silent:
    """A listener that keeps it to itself."""

    def started(self, job: Job) -> None:
        pass

    def visited(self, visit: Visit, record: Record, last: bool) -> None:
        pass

    def interrupted(self, signal_name: str) -> None:
        pass


@dataclass
class Outcome:
    """How a run went: finished jobs by status, the signal that ended it early (0: none), the devices that went away
    with what they said last, and how many of their jobs were left undone."""

    statuses: Counter[str] = field(default_factory=Counter)
    signal: int = 0
    lost: dict[str, str] = field(default_factory=dict)
    undone: int = 0


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
    size: Callable[[Job], float] | None = None,
    source: Callable[[Job], str] = lambda job: "",
    judged: Callable[[Record], Record] = lambda record: record,
) -> Outcome:
    """Visit every job in rounds and store each record the moment it is there; the last one of a job counts.

    ``seed`` decides the order, ``begun`` are the records by key of jobs that an earlier attempt has left unfinished.
    With ``size``, the bytes that a job needs, larger ones than one that ran out of memory are not tried; ``source``
    is the hash of a job's code, for records of workers that died before they could tell it; ``judged`` has the last
    word on a record that is ok.
    The first SIGINT or SIGTERM lets the running job finish its sample and begins no other; the second ends
    the run at once. Either way everything finished has been stored, and what ``store`` raises ends the run, too.
    """
    stop = Stop(listener.interrupted)
    sweep = Sweep(store, listener, stop.asked, budget, plugins, seed, Limits(size) if size else None, source)
    with interruptible(stop, sweep.outcome):
        measure(sweep, jobs, engine, environment, begun or {}, judged)
    return sweep.outcome


@dataclass(frozen=True)
class Sweep:
    """What all visits of a run have in common, wherever they are made; see ``run``."""

    store: Callable[[Record], None]
    listener: Listener
    stopping: Callable[[], bool]
    budget: Budget
    plugins: Sequence[str] = ()
    seed: int = 0
    limits: Limits | None = None
    source: Callable[[Job], str] = lambda job: ""
    outcome: Outcome = field(default_factory=Outcome)


def measure(
    sweep: Sweep,
    jobs: Iterable[Job],
    engine: Engine,
    environment: Environment,
    begun: Mapping[str, Record],
    judged: Callable[[Record], Record],
) -> None:
    """Visit these jobs in one environment until all are done or ``sweep.stopping`` says so."""
    outcome = sweep.outcome

    def keep(visit: Visit, measured: Record) -> None:
        measured = measured if measured.source else replace(measured, source=sweep.source(visit.job))
        record = remarked(agenda.join(visit, judged(complete(measured, environment))))
        sweep.store(record)
        finished = done(record, sweep.budget)
        outcome.statuses[record.status] += finished
        sweep.listener.visited(visit, record, finished)

    agenda = Agenda(jobs, sweep.budget, sweep.seed, begun, sweep.limits, keep)
    try:
        with closing(engine(agenda, sweep.budget, sweep.plugins, sweep.listener.started, sweep.stopping)) as visited:
            for visit, measured in visited:
                if lost(measured):
                    outcome.lost.setdefault(visit.job.case.device, measured.reason)
                    agenda.lose(visit.job.case.device)
                elif not cut_off(measured, visit, sweep.budget):
                    keep(visit, measured)
    finally:
        outcome.undone += agenda.undone


@contextmanager
def interruptible(stop: Stop, outcome: Outcome) -> Iterator[None]:
    """Hear signals, and note in ``outcome`` which one ended the block; a second one is not raised."""
    try:
        with stop.listening():
            yield
    except KeyboardInterrupt:
        outcome.signal = stop.number or signal.SIGINT
    outcome.signal = outcome.signal or stop.number


def lost(record: Record) -> bool:
    """Whether the job failed because its device has gone away, which says nothing about the job."""
    return record.status == "error" and record.job.case.device != "cpu" and loss(record.reason) == "gone"


def complete(record: Record, environment: Environment) -> Record:
    """The record with what only this side knows: the environment, and whether it merely emulates the dtype."""
    case = record.job.case
    note = native(case.dtype, case.device, environment)
    notes = record.notes + ((note,) if note and record.time else ())
    started_at = record.started_at or datetime.now(UTC).isoformat(timespec="milliseconds")
    return replace(record, environment=environment.id, notes=notes, started_at=started_at)


def cut_off(record: Record, visit: Visit, budget: Budget) -> bool:
    """Whether an interruption left less than the suite calls a measurement: the round is not done then."""
    time = record.time
    if any(other.stop == "interrupted" for other in record.timers):  # of which only the first round has any
        return True
    if time is None or time.stop != "interrupted":
        return False
    return visit.round > 0 or len(time.samples_ns) < budget.min_samples
