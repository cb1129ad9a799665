"""Rounds of one job become one timing, and only where they measured the same thing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fusionbench.record import Timing
from fusionbench.rounds import merge


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
