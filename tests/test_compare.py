"""The rule by which two timings are called different: sure, large enough, and not the machine's doing."""

from __future__ import annotations

import random

import pytest

from fusionbench.compare import MIN_ROUNDS, TOLERANCE, compare
from fusionbench.record import Timing


def timing(*rounds: float, control: float = 1e6, spread: float = 0.002, seed: int = 0, **other: object) -> Timing:
    """Ten samples of about each given number of milliseconds, a round each."""
    draw = random.Random(seed)
    samples = [round(ms * 1e6 * (1 + draw.uniform(-spread, spread))) for ms in rounds for _ in range(10)]
    facts = {
        "timer": "wall", "cache": "hot", "loops": 1, "samples_ns": tuple(samples), "stop": "budget", "first_call_ns": 1,
        "warmup_calls": 2, "threads": 1, "rounds": (10,) * len(rounds), "control_ns": (round(control),) * len(rounds),
    }  # fmt: skip
    return Timing(**(facts | other))  # type: ignore[arg-type]


STEADY = timing(1.00, 1.01, 0.99, 1.00, 1.01, 1.00)


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, "slower"), (0.9, "faster"), (1.0, "same")])
def test_a_clear_difference_is_told_and_equality_too(factor: float, verdict: str) -> None:
    head = timing(*(factor * ms for ms in (1.00, 1.01, 0.99, 1.00, 1.01, 1.00)), seed=1)
    found = compare(STEADY, head)
    assert found.verdict == verdict
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(factor, rel=0.01)


def test_swapping_the_sides_mirrors_the_verdict() -> None:
    head = timing(1.2, 1.21, 1.19, 1.2, 1.2, 1.2)
    there, back = compare(STEADY, head), compare(head, STEADY)
    assert (there.verdict, back.verdict) == ("slower", "faster")
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_intervals_that_meet_are_unclear_however_far_the_medians_are_apart() -> None:
    assert compare(STEADY, timing(1.5, 1.5, 1.5, 1.5, 1.5, 1.0)).verdict == "unclear"


def test_less_than_the_tolerance_is_no_finding_however_sure() -> None:
    small = 1 + TOLERANCE / 2
    assert compare(timing(*[1.0] * 6, spread=0), timing(*[small] * 6, spread=0)).verdict == "same"


def test_microseconds_on_a_short_call_are_no_finding() -> None:
    assert compare(timing(*[0.010] * 6, spread=0), timing(*[0.012] * 6, spread=0)).verdict == "same"


def test_processes_are_needed_and_samples_do_not_replace_them() -> None:
    few = [1.0] * (MIN_ROUNDS - 1)
    assert compare(timing(*few), timing(*(2 * ms for ms in few))).verdict == "unclear"
    assert compare(timing(*few), timing(*few)).verdict == "unclear"
    one = timing(*[1.0] * 6, rounds=(), control_ns=())
    assert compare(one, timing(*[2.0] * 6, rounds=(), control_ns=())).verdict == "unclear"


def test_a_machine_that_was_slow_is_not_taken_for_slow_code() -> None:
    assert compare(STEADY, timing(*[1.3] * 6, control=1.3e6)).verdict == "unclear"
    assert compare(STEADY, timing(*[1.3] * 6, control=1.0e6)).verdict == "slower"


def test_what_a_thread_waited_for_its_core_is_not_its_time() -> None:
    waited = timing(*[2.0] * 6, run_delay_ns=(1_000_000,) * 60)
    assert compare(STEADY, waited).verdict == "same"
    assert compare(STEADY, timing(*[2.0] * 6, run_delay_ns=(1_000_000,) * 60, threads=2)).verdict == "slower"


def test_a_time_of_nothing_is_no_ratio() -> None:
    assert compare(timing(*[0.0] * 6), STEADY).verdict == "unclear"


@pytest.mark.parametrize("other", [{"timer": "host"}, {"cache": "cold"}], ids=str)
def test_times_that_were_taken_differently_are_not_compared(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"times of unlike {next(iter(other))}"):
        compare(STEADY, timing(1.0, **other))
