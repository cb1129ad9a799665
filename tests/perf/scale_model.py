"""A sweep on many slots as a discrete-event simulation: what is measured, what is lost, and to what.

A slot is a device that measures one job at a time. Three ways to share a sweep out are simulated: ``by_driver`` (one process
with a thread for each slot hands out blocks of jobs, and stores each record before its slot goes on: Ray), ``by_slices``
(every machine cuts the plan itself and takes its part: ``--shard``) and ``alone`` (one machine). All times are seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heapreplace

import numpy as np

from fusionbench.pool import LOOK_S, size_of

# What slots lose time to, by the names that figures and pages have.
PLANNING, STARTING = "planning", "start of workers"
PYTHON, RAY, LOOKS, STORE = "driver: Python", "driver: Ray's calls", "driver: looks for answers", "driver: store"
DISPATCH, TAIL = "dispatch", "tail of blocks"
KEEPING, IMBALANCE = "keeping its own run", "imbalance of slices"


@dataclass(frozen=True)
class Job:
    """What a plan expects of a job, and how long each of its visits took."""

    estimate_s: float
    visits_s: tuple[float, ...]


Question = Sequence[Job]  # jobs that one slot must measure, since they are compared


@dataclass(frozen=True)
class Costs:
    """Service times, measured; of several values each use draws one.

    ``python_s`` and ``ray_s`` are what a visit computes in the process that keeps the run, and in Ray's calls there: one
    thread of it computes at a time. ``store_s`` is how long a record keeps the others from being stored, until it is on
    disk. ``look_s`` is what it computes each time that it looks for an answer in vain. ``trip_s`` is the rest of a round trip to an actor. ``create_s`` is the driver's time for each actor, ``start_s``
    how long a worker takes to be there. ``plan_s`` is planning for each job before the first one is measured, ``make_s``
    making it when it is its turn, ``cut_s`` cutting the plan into slices, for each job of the sweep.
    """

    python_s: Sequence[float] = (0.0,)
    ray_s: Sequence[float] = (0.0,)
    store_s: Sequence[float] = (0.0,)
    look_s: float = 0.0
    trip_s: Sequence[float] = (0.0,)
    create_s: float = 0.0
    start_s: Sequence[float] = (0.0,)
    plan_s: float = 0.0
    make_s: float = 0.0
    cut_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a sweep went: ``work_s`` and the values of ``lost_s`` add up to all the time of all slots.

    ``busy`` is by station of the driver the share of the time in which it worked, from the first visit on.
    """

    slots: int
    makespan_s: float
    work_s: float
    lost_s: Mapping[str, float]
    busy: Mapping[str, float] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        return self.work_s / (self.slots * self.makespan_s)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the slots' time that went to each cause."""
        return {cause: lost / (self.slots * self.makespan_s) for cause, lost in self.lost_s.items()}


# --- sweeps ----------------------------------------------------------------------------------------------------------


def draw(questions: Sequence[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """A sweep of about ``count`` jobs: whole questions drawn with replacement, so that like jobs stay alike."""
    found: list[Question] = []
    left = count
    while left > 0:
        question = questions[rng.integers(len(questions))]
        found.append(question[:left])
        left -= len(question)
    return found


def blocks(questions: Sequence[Question], size: int) -> Iterator[list[float]]:
    """The visits of each block in their order, as schedule.py has it: each job once per round, round by round."""
    block: list[Job] = []
    for question in questions:
        block += question
        if len(block) >= size:
            yield _visits(block)
            block = []
    if block:
        yield _visits(block)


def _visits(block: Sequence[Job]) -> list[float]:
    rounds = itertools.zip_longest(*(job.visits_s for job in block))
    return [visit for each in rounds for visit in each if visit is not None]


# --- three ways ------------------------------------------------------------------------------------------------------


def by_driver(
    questions: Sequence[Question], slots: int, costs: Costs, rng: np.random.Generator, *, size: int | None = None
) -> Outcome:
    """One driver hands blocks of ``size`` jobs to ``slots``; without it they are as large as ``pool.size_of`` says.

    A slot has one visit at a time: its record travels to the driver, waits there for its turn to be computed and then for
    its turn to be stored, first come, first served, and the next visit travels back. All of that is lost to the slot, with
    a queue or without.
    """
    jobs = sum(map(len, questions))
    shared = blocks(questions, size or size_of(jobs, slots))
    turns = slots + sum(
        len(job.visits_s) for question in questions for job in question
    )  # first each slot asks for work
    python, ray = rng.choice(costs.python_s, turns), rng.choice(costs.ray_s, turns)
    python = python + costs.make_s * jobs / turns  # jobs are made when their block is taken
    computing, storing = (python + ray).tolist(), rng.choice(costs.store_s, turns).tolist()
    trip = rng.choice(costs.trip_s, turns).tolist()

    opened = float((costs.create_s * np.arange(1, slots + 1) + rng.choice(costs.start_s, slots)).max())
    begun = opened + jobs * costs.plan_s  # planning asks the slots what devices there are
    events = [(begun, slot) for slot in range(slots)]
    work, new, ended = [_from(shared) for _ in range(slots)], [True] * slots, [begun] * slots
    computed = synced = begun
    vain = [0] * slots
    looked = held = queued = travelled = worked = stored = 0.0
    for turn in range(turns):
        arrived, slot = events[0]
        looks = vain[slot] * costs.look_s  # made while the slot was measuring, and here as one piece
        looked += looks
        computed = (arrived if arrived > computed else computed) + computing[turn] + looks
        held += computed - arrived
        ended[slot] = computed
        if new[slot]:
            new[slot] = False
        else:
            synced = ended[slot] = (computed if computed > synced else synced) + storing[turn]
            queued += synced - computed
            stored += storing[turn]
        length = next(work[slot], None)
        if length is None:
            heappop(events)
            continue
        travelled += trip[turn]
        worked += length
        vain[slot] = int(length / LOOK_S)
        heapreplace(events, (ended[slot] + trip[turn] + length, slot))
    makespan = max(ended)
    own = {PYTHON: float(python.sum()), RAY: float(ray.sum()), LOOKS: looked}
    whole = sum(own.values()) or 1.0
    lost = {
        STARTING: opened * slots,
        PLANNING: (begun - opened) * slots,
        **{cause: held * part / whole for cause, part in own.items()},
        STORE: queued,
        DISPATCH: travelled,
        TAIL: makespan * slots - sum(ended),
    }
    busy = {station: part / (makespan - begun) for station, part in {**own, STORE: stored}.items()}
    return Outcome(slots, makespan, worked, lost, busy)


def _from(shared: Iterator[list[float]]) -> Iterator[float]:
    """What one slot gets: a block whenever the last one is done."""
    for block in shared:
        yield from block


def by_slices(questions: Sequence[Question], slots: int, costs: Costs, rng: np.random.Generator) -> Outcome:
    """Every machine plans the whole sweep, takes its slice and stores its own records; none waits for another."""
    return _apart(cut(questions, slots), sum(map(len, questions)) * costs.cut_s, costs, rng)


def alone(questions: Sequence[Question], costs: Costs, rng: np.random.Generator) -> Outcome:
    """One machine with one slot, as `fusionbench run` without more."""
    jobs = [job for question in questions for job in question]
    return _apart([jobs], 0.0, costs, rng)


def _apart(slices: Sequence[Sequence[Job]], cutting: float, costs: Costs, rng: np.random.Generator) -> Outcome:
    slots = len(slices)
    work = np.array([math.fsum(visit for job in each for visit in job.visits_s) for each in slices])
    visits = np.array([sum(len(job.visits_s) for job in each) for each in slices])
    jobs = np.array([len(each) for each in slices])
    planned = cutting + jobs * costs.plan_s
    kept = visits * (np.mean(costs.python_s) + np.mean(costs.store_s)) + jobs * costs.make_s
    start = rng.choice(costs.start_s, slots)
    ended = start + planned + work + kept
    makespan = float(ended.max())
    lost = {
        STARTING: float(start.sum()),
        PLANNING: float(planned.sum()),
        KEEPING: float(kept.sum()),
        IMBALANCE: float((makespan - ended).sum()),
    }
    return Outcome(slots, makespan, float(work.sum()), lost)


def cut(questions: Sequence[Question], of: int) -> list[list[Job]]:
    """The slices of a sweep by what is expected of its jobs, as slicing.py cuts a plan (tests hold them together)."""
    fair = math.fsum(job.estimate_s for question in questions for job in question) / of
    pieces: list[tuple[float, int, Question]] = []
    for question in questions:
        whole = math.fsum(job.estimate_s for job in question)
        for piece in ([job] for job in question) if whole > fair else (question,):
            pieces.append((-math.fsum(job.estimate_s for job in piece), len(pieces), piece))
    loads = [(0.0, number) for number in range(of)]
    slices: list[list[Job]] = [[] for _ in range(of)]
    for cost, _, piece in sorted(pieces, key=lambda each: each[:2]):
        load, number = loads[0]
        slices[number] += piece
        heapreplace(loads, (load - cost, number))
    return slices


# --- what a curve says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knee:
    """Where a curve falls below a share of the ideal: how many slots that takes (None: more than were simulated), and
    what the slots lose most to at the first number of slots below it."""

    slots: float | None
    bottleneck: str
    share: float  # of the slots' time, that the bottleneck takes there


def knee(curve: Mapping[int, Outcome], share: float = 0.5) -> Knee:
    """Raises ValueError for a curve that begins below ``share``."""
    points = sorted(curve.items())
    if points[0][1].efficiency < share:
        raise ValueError(f"the curve begins with {points[0][1].efficiency:.0%}, below {share:.0%}")
    for (slots, before), (more, after) in itertools.pairwise(points):
        if after.efficiency < share:
            part = (before.efficiency - share) / (before.efficiency - after.efficiency)
            crossed = math.exp(math.log(slots) + part * math.log(more / slots))
            return Knee(crossed, *_worst(after))
    return Knee(None, *_worst(points[-1][1]))


def _worst(outcome: Outcome) -> tuple[str, float]:
    return max(outcome.shares.items(), key=lambda each: each[1])


@dataclass(frozen=True)
class Band:
    """One figure over seeds."""

    low: float
    middle: float
    high: float


def band(values: Sequence[float]) -> Band:
    return Band(min(values), float(np.median(values)), max(values))


@dataclass(frozen=True)
class Curve:
    """Outcomes of one way and one sweep, by number of slots and seed."""

    outcomes: Mapping[int, Sequence[Outcome]] = field(default_factory=dict)

    def efficiency(self) -> dict[int, Band]:
        return {slots: band([each.efficiency for each in found]) for slots, found in self.outcomes.items()}

    def knees(self, share: float = 0.5) -> list[Knee]:
        """One for each seed."""
        seeds = range(min(map(len, self.outcomes.values())))
        return [knee({slots: found[seed] for slots, found in self.outcomes.items()}, share) for seed in seeds]
