"""Two revisions on trial: all jobs are screened, and those that look slower are measured again before that is said."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from msgspec.structs import replace

from .compare import FLOOR_GPU_NS, FLOOR_NS, TOLERANCE
from .delta import Change, Delta, Verdict
from .engines.local import Cancelled
from .engines.twins import Pair
from .errors import printable
from .fitness import crowded
from .paired import MOST_ROUNDS, Estimate, effect, estimate, rejected, rounds_for
from .record import Record
from .schedule import blocks
from .spec import Job

SCREEN_ROUNDS = 7
LEAST_ROUNDS = 6  # fewer have no interval of 95 %: neither faster nor same is said of them
# In the screen a job is suspect from half the tolerance on and where chance would do it once in five: it costs a second
# look, no verdict.
SUSPECT = math.sqrt(1 + TOLERANCE)
SUSPECT_P = 0.2
# Fresh rounds for suspects: from 11 on one slow job among a hundred suspects can be told at all (the smallest p is
# 1 / 2^rounds), and as many as their own noise asks for.
CONFIRM_ROUNDS, MOST_CONFIRM_ROUNDS = 11, 31
EDITED = "its code changed between two rounds; leave the working tree alone, or name a commit with --head"
FALSE_RATE = 0.05  # of those called slower, how many may be chance (Benjamini-Hochberg), given the screen


class Measure(Protocol):
    """One round of a job on both sides (engines.twins.Twins.round)."""

    def __call__(self, job: Job, number: int, loops: int = 0) -> Pair: ...


class Listener(Protocol):
    """Who is told what happens."""

    def measured(self, job: Job, stage: str, number: int, rounds: int) -> None: ...

    def suspected(self, jobs: int, rounds: int) -> None:
        """The screen is over: so many jobs are looked at again, in so many rounds in all."""


@dataclass
class Found:
    """What is known of one job so far."""

    job: Job
    effects: list[float] = field(default_factory=list)
    base_ns: list[float] = field(default_factory=list)
    head_ns: list[float] = field(default_factory=list)
    loops: int = 0
    base: Record | None = None  # of the first round
    head: Record | None = None
    settled: Delta | None = None  # a side failed: there is nothing to time
    throttled: list[set[str]] = field(default_factory=list)  # reasons, of each round in which the GPU was held down
    foreign: int = 0  # processes of others on the GPU, at most at once

    def add(self, pair: Pair) -> None:
        self.base, self.head, self.loops = self.base or pair.base, self.head or pair.head, pair.loops
        if pair.base.status != "ok" or pair.head.status != "ok" or not pair.turns:
            self.settled = _settled(self.job, pair, after=len(self.effects))
            return
        if (self.base.source, self.head.source) != (pair.base.source, pair.head.source):
            self.settled = Delta(key=self.job.key, verdict="unclear", reason=EDITED)
            return
        self.effects.append(effect(pair.turns))
        seen = [record.device for record in (pair.base, pair.head) if record.device]
        self.foreign = max(self.foreign, *(state.foreign for state in seen), 0)
        if pair.throttled:
            self.throttled.append({reason for state in seen for reason in state.throttle})
        for times, turns in zip((self.base_ns, self.head_ns), zip(*pair.turns, strict=True), strict=True):
            times.append(median(turns))

    def fresh(self) -> Found:
        """The same job with no rounds yet."""
        return Found(self.job, loops=self.loops, base=self.base, head=self.head)


@dataclass
class Trial:
    """The jobs measured so far. ``compared`` tells how many facts two records have in common, and which differ."""

    measure: Measure
    listener: Listener
    compared: Callable[[Record, Record], tuple[int, tuple[Change, ...]]] = lambda base, head: (0, ())
    rounds: int = SCREEN_ROUNDS
    screened: dict[str, Found] = field(default_factory=dict)
    confirmed: dict[str, Found] = field(default_factory=dict)
    interrupted: bool = False

    def run(self, jobs: Iterable[Job], seed: int) -> tuple[Delta, ...]:
        """The deltas of all jobs, or where the user stopped the trial of those that were screened to their end."""
        try:
            for block in blocks(jobs, seed):
                wanted = dict.fromkeys((job.key for job in block), self.rounds)
                self._rounds({job.key: Found(job) for job in block}, self.screened, wanted, seed)
            self.confirm([found.job for found in self.screened.values() if suspect(found)], seed)
        except Cancelled:
            self.interrupted = True
        return self.deltas()

    def confirm(self, jobs: Sequence[Job], seed: int) -> None:
        """Measure these jobs in fresh rounds, as many as their noise in the screen asks for."""
        wanted = {job.key: confirm_rounds(self.screened.get(job.key), len(jobs)) for job in jobs}
        self.listener.suspected(len(jobs), sum(wanted.values()))
        for block in blocks(jobs, seed):
            again = {job.key: _fresh(self.screened.get(job.key), job) for job in block}
            self._rounds(again, self.confirmed, wanted, seed, stage="confirm")

    def _rounds(
        self,
        found: Mapping[str, Found],
        into: dict[str, Found],
        wanted: Mapping[str, int],
        seed: int,
        stage: str = "screen",
    ) -> None:
        """All rounds of a block of jobs, in a new order every round; ``into`` takes each job that is done."""
        for number in range(max((wanted[key] for key in found), default=0)):
            due = [key for key in found if number < wanted[key] and found[key].settled is None]
            for key in random.Random(f"{seed} {stage} {number}").sample(due, len(due)):  # noqa: S311 - no secret
                # Round 0 also finds out whether results are right, and what they cost.
                earlier = self.rounds if key in self.screened else 0
                found[key].add(self.measure(found[key].job, earlier + number, found[key].loops))
                self.listener.measured(found[key].job, stage, number + 1, wanted[key])
        into.update(found)

    def deltas(self) -> tuple[Delta, ...]:
        """What can be said by now. Slower is only what fresh rounds have confirmed."""
        again = {key: estimate(found.effects) for key, found in self.confirmed.items() if found.effects}
        sure = rejected({key: each.p for key, each in again.items()}, FALSE_RATE)
        keys = dict.fromkeys([*self.screened, *self.confirmed])
        return tuple(self._delta(key, again.get(key), key in sure) for key in keys)

    def _delta(self, key: str, again: Estimate | None, sure: bool) -> Delta:
        found = self.confirmed.get(key) or self.screened[key]
        first = self.screened.get(key, found)
        facts, changes = self._facts(first)
        settled = found.settled or first.settled
        if settled is not None:
            return replace(settled, facts=facts, changes=changes)
        each = again or estimate(found.effects)
        base_ns, head_ns = median(found.base_ns), median(found.head_ns)
        verdict = judged(each, base_ns, found.job, confirmed=again is not None, sure=sure)
        reason = ""
        if again is None and suspect(found):
            verdict, reason = "unclear", "looked slower in the screen; the trial ended before it was measured again"
        elif verdict == "unclear":
            reason = _why_unclear(found.effects)
        reason = "; ".join(filter(None, (reason, *_disturbed(found))))
        return Delta(
            key=key, verdict=verdict, base_ns=base_ns, head_ns=head_ns, ratio=each.ratio, low=each.low, high=each.high,
            detectable=each.detectable if math.isfinite(each.detectable) else None, rounds=each.rounds,
            stage="confirm" if again else "screen", p=each.p if again else None, reason=reason, facts=facts,
            changes=changes,
        )  # fmt: skip

    def _facts(self, found: Found) -> tuple[int, tuple[Change, ...]]:
        base, head = found.base, found.head
        if base is None or head is None or not base.status == head.status == "ok":
            return 0, ()
        return self.compared(base, head)


def suspect(found: Found) -> bool:
    """Whether the screen says that a job might be slower."""
    if found.settled is not None or not found.effects:
        return False
    each = estimate(found.effects)
    return each.ratio >= SUSPECT and each.p <= SUSPECT_P


def confirm_rounds(screened: Found | None, suspects: int) -> int:
    """How many fresh rounds a suspect gets: enough for its p to survive among so many, and for its own noise to show
    half of what the screen saw, as the largest of many effects is in part luck."""
    least = max(CONFIRM_ROUNDS, math.ceil(math.log2(max(suspects, 1) / FALSE_RATE)))
    if screened is None or len(screened.effects) < 2:
        return max(least, 15)
    seen = max(estimate(screened.effects).ratio, 1 + TOLERANCE) - 1
    return min(max(least, rounds_for(seen / 2, screened.effects)), max(least, MOST_CONFIRM_ROUNDS))


def judged(each: Estimate, base_ns: float, job: Job, *, confirmed: bool, sure: bool) -> Verdict:
    """The verdict on a job that was timed on both sides.

    Slower: confirmed, by more than the tolerance, and more than chance. Faster: the whole interval lies beyond the
    tolerance. Same: the whole interval lies within it. All else is unclear.
    """
    floor_ns = FLOOR_NS["wall"] if job.case.device == "cpu" else FLOOR_GPU_NS
    tolerated = 1 + max(TOLERANCE, floor_ns / base_ns)
    if confirmed and sure and each.ratio > tolerated:
        return "slower"
    if each.rounds < LEAST_ROUNDS:
        return "unclear"
    if each.high < 1 / tolerated:
        return "faster"
    within = 1 / tolerated <= each.low and each.high <= tolerated
    return "same" if within else "unclear"


def _fresh(screened: Found | None, job: Job) -> Found:
    return Found(job) if screened is None else screened.fresh()


_SETTLED: Mapping[tuple[str, str], Verdict] = {
    ("ok", "skipped"): "missing",
    ("skipped", "ok"): "new",
    ("ok", "failed"): "broken",
    ("skipped", "failed"): "new",
    ("failed", "ok"): "fixed",
    ("failed", "skipped"): "missing",
}


def _settled(job: Job, pair: Pair, *, after: int) -> Delta:
    """The verdict where a side brought no time, ``after`` so many rounds in which both did."""
    base, head = (
        status if status in ("ok", "skipped") else "failed" for status in (pair.base.status, pair.head.status)
    )
    if base == head == "ok":
        return Delta(key=job.key, verdict="unclear", reason=printable(pair.reason, 500))
    told = [
        f"{name}: {each.status}, {each.reason}"
        for name, each in (("base", pair.base), ("head", pair.head))
        if each.status != "ok"
    ]
    verdict = "unclear" if after and head == "ok" else _SETTLED.get((base, head), "same")
    return Delta(key=job.key, verdict=verdict, reason=printable("; ".join(told), 500))


def _disturbed(found: Found) -> Iterable[str]:
    """What the reader of these times must know of the GPU's state."""
    if found.throttled:
        reasons, often = ", ".join(sorted(set().union(*found.throttled))), len(found.throttled)
        yield f"'{found.job.case.device}' throttled ({reasons}) in {often} of {len(found.effects)} rounds"
    if found.foreign:
        yield crowded(found.foreign, f"'{found.job.case.device}'")


def _why_unclear(effects: Collection[float]) -> str:
    """How much could hide in the noise, and how many rounds would tell."""
    needed = rounds_for(TOLERANCE, list(effects))
    more = f"about {needed} would tell {TOLERANCE:.0%}" if needed < MOST_ROUNDS else "this job is too noisy here"
    return f"unclear after {len(effects)} rounds; {more}"
