"""Many slots at once, without any cluster: nothing is measured twice or by nobody, whatever slots go away."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from fusionbench import pool
from fusionbench.errors import StoreError
from fusionbench.pool import Deck, Pool, SlotLostError, size_of
from fusionbench.record import Environment, Record
from fusionbench.runner import Silent, Sweep
from fusionbench.site import Slot
from fusionbench.spec import Budget, Job, Visit
from tests import comparing

ROUNDS = 3
BUDGET = Budget(measure_s=0.01, rounds=ROUNDS, max_samples=60)
JOBS = [comparing.record(n).job for n in range(1, 25)]


@dataclass
class Place:
    """A made-up slot: it takes ``pause_s`` for a visit, and goes away at its ``dies_at``-th."""

    name: str
    environment: Environment = field(default_factory=comparing.here)
    pause_s: float = 0.001
    dies_at: int = 0
    returns: bool = False
    visits: list[Visit] = field(default_factory=list)

    def slot(self) -> Slot:
        return Slot(self.name, "cpu", self.environment, self.run, lambda probes: iter(()), lambda: self.returns)

    def run(
        self,
        visits: Iterable[Visit],
        budget: Budget,
        plugins: Sequence[str],
        started: Callable[[Job], None],
        stopping: Callable[[], bool],
    ) -> Generator[tuple[Visit, Record], None, None]:
        for visit in visits:
            if stopping():
                return
            started(visit.job)
            time.sleep(self.pause_s)
            self.visits.append(visit)
            if len(self.visits) == self.dies_at:
                raise SlotLostError("it was pulled out", visit.job)
            time_of = comparing.timing(rounds=1, samples=20)
            yield visit, Record(job=visit.job, status="ok", time=time_of, source="s1")


@dataclass
class Told:
    """What a run has come to."""

    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def last(self) -> dict[tuple[str, str], Record]:
        return {(r.job.key, r.environment): r for r in self.records}


def pooled(
    places: Sequence[Place],
    *,
    jobs: Sequence[Job] = JOBS,
    size: int = 4,
    stopping: Callable[[], bool] = lambda: False,
    known: pool.Known | None = None,
    store: Callable[[Record], None] | None = None,
) -> tuple[Told, Sweep]:
    told = Told()
    sweep = Sweep(store or told.records.append, Silent(), stopping, BUDGET, seed=1)
    slots = [place.slot() for place in places]
    deck = Deck(lambda device: jobs if device == "cpu" else (), 1, size)
    Pool(sweep, slots, deck, known or {}, {slot.name: lambda record: record for slot in slots}, told.notes.append).run()
    return told, sweep


def finished(told: Told) -> Counter[str]:
    return Counter(r.job.key for r in told.last().values() if r.time and len(r.time.round_sizes) == ROUNDS)


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_every_job_is_measured_once_in_all_its_rounds(count: int) -> None:
    places = [Place(f"p{n}") for n in range(count)]
    told, sweep = pooled(places)
    assert finished(told) == Counter(job.key for job in JOBS)
    assert sum(len(place.visits) for place in places) == ROUNDS * len(JOBS)
    assert sweep.outcome.statuses == Counter(ok=len(JOBS))
    assert (sweep.outcome.undone, sweep.outcome.lost) == (0, {})


def test_all_rounds_of_a_job_are_made_in_one_place_and_so_are_its_rivals() -> None:
    rivals = [replace(job, strategy=name) for job in JOBS for name in ("concat", "film", "gmu")]
    places = [Place(f"p{n}") for n in range(4)]
    pooled(places, jobs=rivals)
    where: dict[str, set[str]] = {}
    for place in places:
        for visit in place.visits:
            where.setdefault(visit.job.case.question, set()).add(place.name)
    assert all(len(names) == 1 for names in where.values())
    assert all(place.visits for place in places)


def test_what_a_lost_slot_leaves_goes_to_another() -> None:
    dying, living = Place("dying", dies_at=5), Place("living")
    told, sweep = pooled([dying, living])
    assert finished(told) == Counter(job.key for job in JOBS)
    assert sweep.outcome.lost == {"dying": "it was pulled out"}
    assert len(dying.visits) == 5
    assert told.notes == ["dying: it was pulled out; 4 jobs go to others"]


def test_rounds_made_in_another_environment_do_not_count() -> None:
    dying = Place("dying", comparing.here(cpu="other"), dies_at=7)
    told, _ = pooled([dying, Place("living", pause_s=0.003)], size=24)
    whole = [r for r in told.last().values() if r.time and len(r.time.round_sizes) == ROUNDS]
    assert Counter(r.job.key for r in whole) == Counter(job.key for job in JOBS)
    assert {r.environment for r in whole} == {comparing.here().id}


def test_a_slot_that_comes_back_goes_on() -> None:
    told, sweep = pooled([Place("alone", dies_at=5, returns=True)])
    assert finished(told) == Counter(job.key for job in JOBS)
    assert sweep.outcome.lost == {}


def test_a_job_that_takes_its_slot_along_twice_is_a_crash() -> None:
    class Deadly(Place):
        def run(self, visits: Iterable[Visit], *rest: object) -> Generator[tuple[Visit, Record], None, None]:
            for visit in visits:
                self.visits.append(visit)
                if visit.job == JOBS[3]:
                    raise SlotLostError("the node was killed", visit.job)
                yield (
                    visit,
                    Record(job=visit.job, status="ok", time=comparing.timing(rounds=1, samples=20), source="s1"),
                )

    told, sweep = pooled([Deadly("p", returns=True)])
    crashed = [r for r in told.records if r.status == "crash"]
    assert [r.job for r in crashed] == [JOBS[3]]
    assert crashed[0].reason == "its place went away 2 times while it was measured: the node was killed"
    assert crashed[0].environment == comparing.here().id
    assert sweep.outcome.statuses == Counter(ok=len(JOBS) - 1, crash=1)


def test_when_all_slots_are_gone_what_is_left_is_counted() -> None:
    told, sweep = pooled([Place("a", dies_at=3), Place("b", dies_at=4)])
    assert set(sweep.outcome.lost) == {"a", "b"}
    assert sweep.outcome.undone == len(JOBS) - sum(finished(told).values())


def test_a_stop_ends_all_slots_after_their_visits() -> None:
    begun = time.monotonic()
    told, sweep = pooled([Place(f"p{n}") for n in range(3)], stopping=lambda: time.monotonic() > begun + 0.02)
    assert 0 < len(told.records) < ROUNDS * len(JOBS)
    assert sweep.outcome.undone == 0  # nobody lost them: the user stopped


def test_a_store_that_fails_ends_the_run_with_its_error() -> None:
    def full(record: Record) -> None:
        raise StoreError("no space left on device")

    places = [Place(f"p{n}") for n in range(3)]
    with pytest.raises(StoreError, match="no space left"):
        pooled(places, store=full)
    time.sleep(0.05)
    assert sum(len(place.visits) for place in places) <= 6


def test_the_second_signal_reaches_the_main_thread_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        timer = threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGUSR1))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pooled([Place("slow", pause_s=0.05)])
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_rounds_of_an_earlier_attempt_are_not_made_again() -> None:
    where = comparing.here().id
    half = comparing.record(1, environment=where, time=comparing.timing(rounds=2, samples=20))
    place = Place("p")
    pooled([place], known={(half.job.key, where): half})
    assert sum(visit.job == half.job for visit in place.visits) == 1


@pytest.mark.parametrize(("jobs", "slots", "size"), [(0, 3, 1), (10, 4, 1), (1000, 4, 63), (10**6, 10, 64)])
def test_blocks_are_small_enough_for_all_slots_to_end_together(jobs: int, slots: int, size: int) -> None:
    assert size_of(jobs, slots) == size
