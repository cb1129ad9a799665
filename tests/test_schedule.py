"""The order of a run: every job in every round, shuffled, the same again under the same seed, and where to go on."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec

from fusionbench.record import Record, Timing
from fusionbench.schedule import BLOCK, Agenda, blocks
from fusionbench.spec import Budget, Case, Job, Shape, Visit

SHAPE = Shape(batch=1, image=3, text=2, image_width=8, text_width=8, width=8, heads=1)
TIMING = Timing(
    timer="wall", cache="hot", loops=7, samples_ns=(5, 6), stop="precise", first_call_ns=1, warmup_calls=2, threads=1,
    rounds=(2,),
)  # fmt: skip


def job(image: int = 3, strategy: str = "concat", device: str = "cpu") -> Job:
    return Job(
        strategy=strategy,
        backend="eager",
        case=Case(shape=msgspec.structs.replace(SHAPE, image=image), device=device),
    )


def ok(visit: Visit, **changes: object) -> Record:
    return msgspec.structs.replace(Record(job=visit.job, status="ok", time=TIMING), **changes)


def visited(agenda: Agenda, answer=ok) -> list[Visit]:  # type: ignore[no-untyped-def]
    seen = []
    for visit in agenda:
        agenda.join(visit, answer(visit))
        seen.append(visit)
    return seen


JOBS = [job(image, strategy) for strategy in "abcd" for image in range(1, 31)]  # 30 questions of 4 candidates


def test_every_job_has_every_round_and_no_round_begins_before_the_last_is_over() -> None:
    visits = visited(Agenda(JOBS[:40], Budget(rounds=3), seed=1))
    assert Counter(visit.job.key for visit in visits) == {each.key: 3 for each in JOBS[:40]}
    assert [visit.round for visit in visits] == sorted(visit.round for visit in visits)


def test_later_rounds_take_as_many_calls_per_sample_as_the_first_found_right() -> None:
    assert {(v.round, v.loops) for v in visited(Agenda(JOBS[:2], Budget(rounds=2), 1))} == {(0, 0), (1, 7)}


def test_the_order_is_new_in_every_round_and_under_every_seed_and_the_same_under_the_same() -> None:
    def order(seed: int) -> list[str]:
        return [visit.job.key for visit in visited(Agenda(JOBS[:40], Budget(rounds=2), seed))]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[:40] != order(1)[40:]
    assert order(1)[:40] != [each.key for each in JOBS[:40]]


def test_candidates_of_one_question_share_a_block() -> None:
    found = list(blocks(JOBS, seed=1))
    assert [len(block) for block in found] == [BLOCK, len(JOBS) - BLOCK]
    assert sorted(each.key for block in found for each in block) == sorted(each.key for each in JOBS)
    for block in found:
        assert set(Counter(each.case.key for each in block).values()) == {4}


def test_a_plan_is_made_while_it_is_run() -> None:
    def endless():  # type: ignore[no-untyped-def]
        n = 0
        while True:
            n += 1
            yield job(image=n)

    assert isinstance(next(iter(Agenda(endless(), Budget(), 1))), Visit)


def test_a_failure_is_not_visited_again_and_costs_the_rounds_before_it() -> None:
    def answer(visit: Visit) -> Record:
        failed = visit.job.strategy == "b" and visit.round == 1
        return Record(job=visit.job, status="crash", reason="gone") if failed else ok(visit)

    agenda = Agenda([job(strategy="a"), job(strategy="b")], Budget(rounds=4), 1)
    seen = visited(agenda, answer)
    assert Counter(visit.job.strategy for visit in seen) == {"a": 4, "b": 2}


def test_what_takes_long_to_begin_is_visited_once() -> None:
    visits = visited(Agenda(JOBS[:1], Budget(rounds=6), 1), lambda visit: ok(visit, phases_s={"first call": 9.0}))
    assert len(visits) == 1


def test_a_resumed_run_goes_on_with_the_rounds_that_are_missing() -> None:
    first = Agenda(JOBS[:3], Budget(rounds=2), 1)
    begun, stopped = {}, iter(first)
    for _ in range(4):  # a whole round of three jobs, and one of the second
        visit = next(stopped)
        begun[visit.job.key] = first.join(visit, ok(visit))
    left = {key: record for key, record in begun.items() if record.time and len(record.time.rounds) < 2}
    unfinished = [each for each in JOBS[:3] if each.key in left]
    visits = visited(Agenda(unfinished, Budget(rounds=2), 1, left))
    assert [(visit.round, visit.loops) for visit in visits] == [(1, 7), (1, 7)]
    assert {visit.job.key for visit in visits} == set(left)


def test_on_cuda_the_jobs_of_one_process_follow_each_other() -> None:
    jobs = [job(image, strategy, "cuda") for strategy in "abc" for image in range(1, 5)]
    strategies = [visit.job.strategy for visit in visited(Agenda(jobs, Budget(rounds=1), 1))]
    changes = sum(one != other for one, other in itertools.pairwise(strategies))
    assert changes == 2
