"""In which order jobs are visited: in blocks, each job of a block once per round, in a new random order every round."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
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
class Agenda:
    """The visits of a run, each made when it is asked for, from what the ones before have brought.

    ``begun`` are the records of earlier attempts that lack rounds. On CUDA the jobs of one strategy and backend follow
    each other, because they share a process: a context costs about a second.
    """

    jobs: Iterable[Job]
    budget: Budget
    seed: int
    begun: Mapping[str, Record] = field(default_factory=dict)
    _known: dict[str, Record] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Visit]:
        for block in blocks(self.jobs, self.seed):
            self._known = {key: self.begun[key] for key in (job.key for job in block) if key in self.begun}
            for number in range(self.budget.rounds):
                for job in sorted(block, key=lambda job: self._place(job, number)):
                    known = self._known.get(job.key)
                    if known is None or (rounds_of(known) <= number and not done(known, self.budget)):
                        yield self._visit(job, known)

    def join(self, visit: Visit, record: Record) -> Record:
        """The record of the job so far, with the samples of the rounds before this visit."""
        found = joined(self._known.get(visit.job.key), record, visit.round)
        self._known[visit.job.key] = found
        return found

    def _visit(self, job: Job, known: Record | None) -> Visit:
        if known is None or known.time is None:
            return Visit(job=job)
        return Visit(job=job, round=rounds_of(known), loops=known.time.loops)

    def _place(self, job: Job, number: int) -> tuple[bytes, bytes]:
        alone = b"" if job.case.device == "cpu" else _lot(self.seed, number, job.strategy, job.backend, job.case.device)
        return alone, _lot(self.seed, number, job.key)


def blocks(jobs: Iterable[Job], seed: int) -> Iterator[list[Job]]:
    """The jobs in blocks of about BLOCK, in random order, candidates of one question side by side."""
    remaining = iter(jobs)
    while window := list(itertools.islice(remaining, WINDOW)):
        questions: dict[str, list[Job]] = {}
        for job in window:
            questions.setdefault(job.case.question if job.case.preset else job.case.key, []).append(job)
        block: list[Job] = []
        for question in sorted(questions, key=lambda question: _lot(seed, question)):
            block += questions[question]
            if len(block) >= BLOCK:
                yield block
                block = []
        if block:
            yield block


def _lot(*what: object) -> bytes:
    """A random number that only ``what`` decides: the same order on any machine, and after an interruption."""
    return hashlib.blake2b("\0".join(map(str, what)).encode(), digest_size=8).digest()
