"""Rounds of one job become one record: how many there are, what they share, and that they measured the same thing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fusionbench.record import DeviceState, Record, Timing
from fusionbench.rounds import done, joined, merge, share
from fusionbench.spec import Budget, Case, Job, Shape

SHAPE = Shape(batch=1, image=3, text=2, image_width=8, text_width=8, width=8, heads=1)
JOB = Job(strategy="concat", backend="eager", case=Case(shape=SHAPE))


def timing(*samples: int, **other: Any) -> Timing:
    facts: dict[str, Any] = {"timer": "wall", "cache": "hot", "stop": "precise", "first_call_ns": 7, "warmup_calls": 3}
    return Timing(samples_ns=samples, **({"loops": 2, "threads": 1, "rounds": (len(samples),)} | facts | other))


def test_the_samples_of_all_rounds_are_kept_in_order_with_their_counts() -> None:
    first = timing(1, 2, 3, seeds=(10,), control_ns=(5,), run_delay_ns=(0, 0, 1), discarded=2)
    second = timing(4, 5, seeds=(11,), control_ns=(6,), run_delay_ns=(2, 0), discarded=1, first_call_ns=9)
    joined = merge([first, second])
    assert (joined.samples_ns, joined.rounds) == ((1, 2, 3, 4, 5), (3, 2))
    assert (joined.seeds, joined.control_ns, joined.run_delay_ns) == ((10, 11), (5, 6), (0, 0, 1, 2, 0))
    assert (joined.discarded, joined.first_call_ns, joined.warmup_calls) == (3, 7, 3)


def test_joining_one_after_another_is_joining_at_once() -> None:
    rounds = [timing(*range(n, 2 * n), seeds=(n,)) for n in (3, 1, 4)]
    assert merge([merge(rounds[:2]), rounds[2]]) == merge(rounds)
    assert merge(rounds[:1]) == rounds[0]


def test_a_timing_that_names_no_rounds_is_one_round() -> None:
    assert merge([timing(1, 2, rounds=()), timing(3)]).rounds == (2, 1)


def test_run_delays_are_kept_only_where_every_sample_has_one() -> None:
    assert merge([timing(1, run_delay_ns=(0,)), timing(2)]).run_delay_ns == ()


def test_the_job_stopped_for_the_worst_reason_of_its_rounds() -> None:
    order = ("interrupted", "budget", "samples", "precise")
    for worse, better in itertools.combinations(order, 2):
        assert merge([timing(1, stop=better), timing(2, stop=worse)]).stop == worse
        assert merge([timing(1, stop=worse), timing(2, stop=better)]).stop == worse


@pytest.mark.parametrize("other", [{"loops": 3}, {"timer": "host"}, {"cache": "cold"}, {"threads": 2}], ids=str)
def test_rounds_that_measured_different_things_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"rounds of one job differ in {next(iter(other))}"):
        merge([timing(1), timing(2, **other)])


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="no round to join"):
        merge([])


def record(*samples: int, **other: Any) -> Record:
    return Record(**{"job": JOB, "status": "ok", "time": timing(*samples), "wall_s": 1.0} | other)


def test_a_job_is_done_with_its_rounds_with_a_failure_or_where_it_takes_long_to_begin() -> None:
    budget = Budget(rounds=2)
    assert not done(record(1), budget)
    assert done(joined(record(1), record(2), 1), budget)
    assert done(record(time=None, status="oom"), budget)
    assert done(record(1, phases_s={"build": 1.5, "first call": 1.0}), budget)
    assert done(record(1), Budget(rounds=1))


def test_joining_records_keeps_the_first_rounds_facts_and_every_note() -> None:
    first = record(1, 2, notes=("a",), kernels=("k",), device=DeviceState(sm_mhz=(900, 1000, 1100), temperature_c=50))
    second = record(3, notes=("a", "b"), device=DeviceState(sm_mhz=(800, 1200, 1300), temperature_c=40, foreign=1))
    both = joined(first, second, 1)
    assert both.time is not None
    assert (both.time.samples_ns, both.notes, both.kernels, both.wall_s) == ((1, 2, 3), ("a", "b"), ("k",), 2.0)
    assert both.device == DeviceState(sm_mhz=(800, 1100, 1300), temperature_c=50, foreign=1)


def test_a_round_that_fails_fails_the_job_and_says_which_it_was() -> None:
    failed = joined(record(1), record(time=None, status="crash", reason="killed"), 1)
    assert (failed.status, failed.reason, failed.time) == ("crash", "in round 2, after 1 good ones: killed", None)


def test_the_rounds_share_the_budget_and_its_precision() -> None:
    budget = Budget(measure_s=0.6, min_samples=10, max_samples=400, ci=0.01, rounds=4)
    part = share(budget, {"build": 0.1})
    assert (part.measure_s, part.min_samples, part.max_samples, part.ci) == (0.15, 3, 100, 0.02)
    assert share(budget, {"first call": 9.0}).measure_s == 0.6


def test_every_round_weighs_alike_in_what_the_device_was_seen_to_do() -> None:
    def seen(mhz: int, watts: float | None) -> Record:
        return record(1, device=DeviceState(sm_mhz=(mhz, mhz, mhz), power_watts=watts))

    found = seen(1000, 100.0)
    for number, (mhz, watts) in enumerate([(1000, 100.0), (1000, 100.0), (1400, 300.0)], 1):
        found = joined(found, seen(mhz, watts), number)
    assert found.device
    assert (found.device.sm_mhz, found.device.power_watts) == ((1000, 1100, 1400), 150.0)


def test_a_later_round_that_was_slow_to_begin_takes_its_share_and_no_more() -> None:
    budget = Budget(measure_s=0.6, rounds=6)
    assert share(budget, {"first call": 9.0}, 1).measure_s == pytest.approx(0.1)
    assert share(budget, {"first call": 9.0}, 0).measure_s == 0.6


def test_samples_of_two_versions_of_the_code_are_not_joined() -> None:
    found = joined(record(1, source="old"), record(2, source="new"), 3)
    assert (found.status, found.source, found.time) == ("error", "old", None)
    assert found.reason.startswith("in round 4: its code changed between two rounds")
