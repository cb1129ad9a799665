"""In which order jobs are visited: in blocks, each job of a block once per round, in a new random order every round."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .record import Record
from .rounds import done, joined, rounds_of
from .spec import Budget, Job, Visit

# A block is measured to its end before the next one begins: few enough jobs that an interruption costs little, enough
# that its rounds lie a minute or more apart and see the machine in more than one mood.
BLOCK = 64
# Jobs are shuffled within this many of the plan, so that a plan of any length is made while it is run.
WINDOW = 2048


@dataclass
class Limits:
    """Which jobs need not be tried, as a smaller one of their kind has run out of memory.

    ``size`` estimates how many bytes a job needs (footprint.py).
    """

    size: Callable[[Job], float]
    _smallest: dict[tuple[str, ...], tuple[float, str]] = field(default_factory=dict)  # by kind: size and key

    def learn(self, job: Job) -> None:
        """Note a job that ran out of memory."""
        kind, size = self._kind(job), self.size(job)
        if kind not in self._smallest or size < self._smallest[kind][0]:
            self._smallest[kind] = size, job.key

    def refusal(self, job: Job) -> str | None:
        """Why the job would not fit either; None if it may."""
        smallest = self._smallest.get(self._kind(job))
        if smallest is None or self.size(job) < smallest[0]:
            return None
        return f"not run: {smallest[1]} ran out of memory"

    @staticmethod
    def _kind(job: Job) -> tuple[str, ...]:
        return job.strategy, job.backend, job.case.dtype, job.case.device, job.case.mode


@dataclass
class Agenda:
    """The visits of a run, each made when it is asked for, from what the ones before have brought.

    ``begun`` are the records of earlier attempts that lack rounds. On CUDA the jobs of one strategy and backend follow
    each other, because they share a process: a context costs about a second. Jobs that ``limits`` refuses go to
    ``settled`` with their record and are not visited; those of a lost device are counted in ``undone``.
    """

    jobs: Iterable[Job]
    budget: Budget
    seed: int
    begun: Mapping[str, Record] = field(default_factory=dict)
    limits: Limits | None = None
    settled: Callable[[Visit, Record], None] = lambda visit, record: None
    undone: int = 0
    _known: dict[str, Record] = field(default_factory=dict)
    _lost: set[str] = field(default_factory=set)  # devices

    def __iter__(self) -> Iterator[Visit]:
        for block in blocks(self.jobs, self.seed):
            self._known = {key: self.begun[key] for key in (job.key for job in block) if key in self.begun}
            for number in range(self.budget.rounds):
                for job in sorted(block, key=lambda job: self._place(job, number)):
                    if self._is_due(job, number):
                        yield self._visit(job, self._known.get(job.key))
            self.undone += sum(_device(job) in self._lost and not self._is_done(job) for job in block)

    def lose(self, device: str) -> None:
        """The device of this name is gone: its jobs are visited no more."""
        self._lost.add("cuda:0" if device == "cuda" else device)

    def _is_due(self, job: Job, number: int) -> bool:
        known = self._known.get(job.key)
        if _device(job) in self._lost or self._is_done(job) or (known is not None and rounds_of(known) > number):
            return False
        reason = self.limits.refusal(job) if self.limits and known is None else None
        if reason:
            self.settled(Visit(job=job), Record(job=job, status="oom", reason=reason))
        return reason is None

    def _is_done(self, job: Job) -> bool:
        known = self._known.get(job.key)
        return known is not None and done(known, self.budget)

    def join(self, visit: Visit, record: Record) -> Record:
        """The record of the job so far, with the samples of the rounds before this visit."""
        known = self._known.get(visit.job.key)
        if self.limits and known is None and record.status == "oom":
            self.limits.learn(visit.job)
        found = self._known[visit.job.key] = joined(known, record, visit.round)
        return found

    def _visit(self, job: Job, known: Record | None) -> Visit:
        if known is None or known.time is None:
            return Visit(job=job)
        return Visit(job=job, round=rounds_of(known), loops=known.time.loops)

    def _place(self, job: Job, number: int) -> tuple[bytes, bytes]:
        alone = b"" if job.case.device == "cpu" else _lot(self.seed, number, job.strategy, job.backend, job.case.device)
        return alone, _lot(self.seed, number, job.key)


def _device(job: Job) -> str:
    return "cuda:0" if job.case.device == "cuda" else job.case.device


def blocks(jobs: Iterable[Job], seed: int, size: int = BLOCK) -> Iterator[list[Job]]:
    """The jobs in blocks of about ``size``, in random order, candidates of one question side by side."""
    remaining = iter(jobs)
    while window := list(itertools.islice(remaining, WINDOW)):
        questions: dict[str, list[Job]] = {}
        for job in window:
            questions.setdefault(job.case.question if job.case.preset else job.case.key, []).append(job)
        block: list[Job] = []
        for question in sorted(questions, key=lambda question: _lot(seed, question)):
            block += questions[question]
            if len(block) >= size:
                yield block
                block = []
        if block:
            yield block


def _lot(*what: object) -> bytes:
    """A random number that only ``what`` decides: the same order on any machine, and after an interruption."""
    return hashlib.blake2b("\0".join(map(str, what)).encode(), digest_size=8).digest()
