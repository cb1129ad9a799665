"""Many slots at once: each takes a block of jobs, measures it to its end, and takes the next.

A block holds all candidates of its questions, so that one slot measures whatever is compared. Rounds of a job are made
in one environment. What a slot leaves undone because its place went away goes to another.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from datetime import UTC, datetime

from .errors import FusionbenchError
from .record import Record, Status
from .rounds import done
from .runner import Listener, Outcome, Sweep, measure
from .schedule import BLOCK, blocks
from .site import Slot
from .spec import Budget, Job, Visit

PER_SLOT = 4  # blocks that a slot should have: more of them end closer together, fewer see more moods of the machine
ATTEMPTS = 2  # after a job was lost with its slot so many times, it is a crash
# How late a slot may notice Ctrl-C, or that there is nothing left; an answer wakes it at once. Each look costs the
# driver 0.26 ms: with a thousand slots four a second are all of it, one is a quarter.
LOOK_S = 1.0


class SlotLostError(FusionbenchError):
    """The place of a slot went away while it measured ``job`` (None: between two)."""

    def __init__(self, reason: str, job: Job | None = None) -> None:
        super().__init__(reason)
        self.job = job


Known = dict[tuple[str, str], Record]  # by job and environment
Judge = Callable[[Record], Record]


@dataclass
class Deck:
    """The blocks that nobody has taken, made while they are asked for."""

    jobs: Callable[[str], Iterable[Job]]  # of "cpu" or "cuda"
    seed: int
    size: int
    working: int = 0
    _blocks: dict[str, Iterator[list[Job]]] = field(default_factory=dict)
    _returned: list[list[Job]] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, slot: Slot, stopping: Callable[[], bool]) -> list[Job] | None:
        """A block for this slot; None where there will be no other. Waits while others may still give some back."""
        with self._changed:
            while not stopping():
                block = self._next(slot)
                if block is not None:
                    self.working += 1
                    return block
                if not self.working:
                    self._changed.notify_all()
                    return None
                self._changed.wait(LOOK_S)
        return None

    def over(self, left: Sequence[Job] = ()) -> None:
        """A block that was taken is done, but for the jobs ``left``."""
        with self._changed:
            self.working -= 1
            if left:
                self._returned.append(list(left))
            self._changed.notify_all()

    def rest(self) -> int:
        """How many jobs nobody took."""
        waiting = sum(map(len, self._returned))
        return waiting + sum(len(block) for each in ("cpu", "cuda") for block in self._of(each))

    def _next(self, slot: Slot) -> list[Job] | None:
        for index, block in enumerate(self._returned):
            if slot.takes(block[0]):
                return self._returned.pop(index)
        return next(self._of(slot.device), None)

    def _of(self, device: str) -> Iterator[list[Job]]:
        if device not in self._blocks:
            self._blocks[device] = blocks(self.jobs(device), self.seed, self.size)
        return self._blocks[device]


def size_of(jobs: int, slots: int) -> int:
    """How many jobs a block should have."""
    return max(1, min(BLOCK, math.ceil(jobs / max(1, PER_SLOT * slots))))


@dataclass
class Pool:
    """The slots of a run at work. ``judges`` has the last word on the records of each."""

    sweep: Sweep
    slots: Sequence[Slot]
    deck: Deck
    known: Known
    judges: Mapping[str, Judge]
    note: Callable[[str], object]
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _lost: Counter[str] = field(default_factory=Counter)  # by job: how often its slot went away
    _failures: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        """Measure until the deck is empty, all slots are gone, or the sweep stops. Raises what a slot's thread raised
        that is no SlotLostError, such as the store's StoreError."""
        threads = [
            threading.Thread(target=self._guarded, args=(slot,), name=slot.name, daemon=True) for slot in self.slots
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(LOOK_S)  # in pieces: a signal is heard between them
        except BaseException as error:  # the second Ctrl-C: no thread begins anything else
            self._failures.append(error)
            raise
        if self._failures:
            raise self._failures[0]
        if not self.sweep.stopping():
            self.sweep.outcome.undone += self.deck.rest()

    def _stopping(self) -> bool:
        return self.sweep.stopping() or bool(self._failures)

    def _guarded(self, slot: Slot) -> None:
        try:
            self._work(slot)
        except BaseException as error:
            with self._lock:
                self._failures.append(error)

    def _work(self, slot: Slot) -> None:
        while (block := self.deck.take(slot, self._stopping)) is not None:
            left: list[Job] = []
            try:
                self._measure(slot, block)
            except SlotLostError as lost:
                left = self._left(slot, block, lost)
                self.note(f"{slot.name}: {lost}; {len(left)} jobs go to others")
                if not slot.reopen():
                    self.sweep.outcome.lost.setdefault(slot.name, str(lost))
                    return
            finally:
                self.deck.over(left)

    def _measure(self, slot: Slot, block: Sequence[Job]) -> None:
        listener, outcome, where = _Shared(self.sweep.listener, self._lock), Outcome(), slot.environment.id
        sweep = changed(self.sweep, store=self._store, listener=listener, stopping=self._stopping, outcome=outcome)
        begun = {job.key: record for job in block if (record := self.known.get((job.key, where))) is not None}
        try:
            measure(sweep, block, slot.engine, slot.environment, begun, self.judges[slot.name])
        finally:
            with self._lock:
                self.sweep.outcome.statuses.update(outcome.statuses)
        for reason in outcome.lost.values():  # its GPU is gone: others may have one
            raise SlotLostError(reason)

    def _store(self, record: Record) -> None:
        with self._lock:
            self.sweep.store(record)
            self.known[record.job.key, record.environment] = record

    def _left(self, slot: Slot, block: Sequence[Job], lost: SlotLostError) -> list[Job]:
        """What of the block is not done; the job that was lost with its slot too often becomes a crash."""
        with self._lock:
            if lost.job is not None:
                self._lost[lost.job.key] += 1
                if self._lost[lost.job.key] >= ATTEMPTS:
                    self._crashed(slot, lost.job, str(lost))
            return [job for job in block if not self._is_done(job, slot.environment.id)]

    def _is_done(self, job: Job, where: str) -> bool:
        record = self.known.get((job.key, where))
        return record is not None and done(record, self.sweep.budget)

    def _crashed(self, slot: Slot, job: Job, reason: str) -> None:
        status: Status = "crash"
        record = Record(
            job=job,
            status=status,
            reason=f"its place went away {ATTEMPTS} times while it was measured: {reason}",
            phase="run",
            source=self.sweep.source(job),
            environment=slot.environment.id,
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        self._store(record)
        self.sweep.outcome.statuses[status] += 1
        self.sweep.listener.visited(Visit(job=job), record, True)


@dataclass(frozen=True)
class _Shared:
    """A listener that several threads tell."""

    listener: Listener
    lock: threading.RLock

    def started(self, job: Job) -> None:
        with self.lock:
            self.listener.started(job)

    def visited(self, visit: Visit, record: Record, last: bool) -> None:
        with self.lock:
            self.listener.visited(visit, record, last)

    def interrupted(self, signal_name: str) -> None:
        with self.lock:
            self.listener.interrupted(signal_name)


def known_of(records: Iterable[Record], budget: Budget) -> Known:
    """The records of jobs that lack rounds."""
    return {(record.job.key, record.environment): record for record in records if not done(record, budget)}
