"""The gates: what fails, what is not judged and why, and that neither ever passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from fusionbench import comparison, exits
from fusionbench.delta import Comparison, Delta, Gate, Judgement, Ruling, Side
from fusionbench.errors import FusionbenchError
from fusionbench.judge import concluded, judge, kernels_alone, of_kernels
from fusionbench.record import Record
from tests.comparing import COSTS, failed, here, record, run, timing

DETERMINISTIC: tuple[Gate, ...] = ("deterministic",)
TIMING: tuple[Gate, ...] = ("timing",)


def both(folder: Path, base: list[Record], head: list[Record], **where: object) -> Comparison:
    return comparison.of(run(folder / "base", *base), run(folder / "head", *head, where=here(**where)))


def ruling(judgement: Judgement) -> Ruling:
    (only,) = judgement.rulings
    return only


def outcome(judgement: Judgement) -> tuple[str, int]:
    return ruling(judgement).outcome, judgement.exit_code


# --- deterministic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (record(costs=replace(COSTS, flops=1001)), "flops 1,000 → 1,001 (+0.10%)"),
        (record(launches=43), "launches 42 → 43 (+2.38%)"),
        (record(kernels=("math",)), "kernels flash → math"),
        (failed(), "broken: ok → crash: worker died of SIGSEGV"),
    ],
)
def test_a_worse_fact_or_a_broken_job_fails(tmp_path: Path, head: Record, what: str) -> None:
    found = judge(both(tmp_path, [record(), record(2)], [head, record(2)]), DETERMINISTIC)
    assert outcome(found) == ("failed", exits.REGRESSION)
    assert ruling(found).failures == ((record().job.key, what),)
    assert ruling(found).judged == 2


def test_a_lost_job_fails_as_it_would_hide_what_became_of_it(tmp_path: Path) -> None:
    found = judge(both(tmp_path, [record(), record(2)], [record()]), DETERMINISTIC)
    assert outcome(found) == ("failed", exits.REGRESSION)
    assert ruling(found).failures[0][1].startswith("missing: ")


def test_a_cheaper_a_new_and_a_fixed_job_pass_and_are_told(tmp_path: Path) -> None:
    base = [record(1), failed(2)]
    found = judge(both(tmp_path, base, [record(1, launches=41), record(2), record(3)]), DETERMINISTIC)
    assert outcome(found) == ("passed", 0)
    (note,) = found.comparison.notes
    assert note.startswith("of the jobs, 1 new, 1 fixed, 1 cheaper in some fact: renew the baseline with")


def test_equal_facts_pass_whatever_the_times_say(tmp_path: Path) -> None:
    assert outcome(judge(both(tmp_path, [record()], [record(ms=9)], machine="other"), DETERMINISTIC)) == ("passed", 0)


@pytest.mark.parametrize("head", [[record(2)], [record(1), failed(2)]])
def test_nothing_in_common_is_no_pass(tmp_path: Path, head: list[Record]) -> None:
    base = [failed(1), failed(2)]
    found = judge(both(tmp_path, base[1:], head[-1:]), DETERMINISTIC)
    if head[-1].status == "ok":
        assert found.comparison.deltas[0].verdict == "fixed"
    assert outcome(found) == ("not judged", exits.NOTHING)
    assert ruling(found).reason == "no job is ok on both sides"


def test_no_job_at_all_is_no_pass() -> None:
    empty = Comparison(method="stored", base=Side(name="a"), head=Side(name="b"))
    assert [each.outcome for each in judge(empty).rulings] == ["not judged", "not judged"]
    assert judge(empty).exit_code == exits.NOTHING


# --- timing --------------------------------------------------------------------------------------------------------


def test_equal_times_pass(tmp_path: Path) -> None:
    found = judge(both(tmp_path, [record()], [record(seed=1)]), TIMING)
    assert outcome(found) == ("passed", 0)
    assert ruling(found).judged == 1


@pytest.mark.parametrize(
    ("head", "where", "reason"),
    [
        (record(), {"machine": "x"}, "times are not compared: machine m → x"),
        (record(), {"torch": "9"}, "times are not compared: torch 2.13.0 → 9"),
        (record(time=None), {}, "no job has times on both sides"),
        (record(time=timing(timer="host")), {}, "no job has times on both sides"),
        (record(time=timing(9, rounds=4)), {}, "no job has 5 rounds on both sides; measure with more rounds"),
    ],
)
def test_what_cannot_be_timed_is_not_judged_and_never_passes(
    tmp_path: Path, head: Record, where: dict[str, str], reason: str
) -> None:
    found = judge(both(tmp_path, [record()], [head], **where), TIMING)
    assert outcome(found) == ("not judged", exits.NOTHING)
    assert ruling(found).reason == reason


def confirming(**verdicts: str) -> object:
    """A paired engine that finds these verdicts by the batch in the key, and remembers what it was asked."""

    def confirm(keys: Sequence[str]) -> Mapping[str, Delta]:
        asked.extend(keys)
        told = {key: verdicts.get(key.split("/")[2].split("-")[0], "unclear") for key in keys}
        return {
            key: Delta(key=key, verdict=verdict, ratio=1.3, low=1.2, high=1.4, rounds=11, stage="confirm", p=0.001)
            for key, verdict in told.items()
        }

    asked: list[str] = []
    confirm.asked = asked  # type: ignore[attr-defined]
    return confirm


@pytest.fixture
def slow(tmp_path: Path) -> Comparison:
    """Two jobs that look slower, one of which costs more, and one that does not."""
    worse = record(1, ms=1.3, seed=1, launches=43)
    return both(tmp_path, [record(1), record(2), record(3)], [worse, record(2, ms=1.3, seed=1), record(3, seed=1)])


def test_what_looks_slower_fails_only_when_fresh_pairs_say_so(slow: Comparison) -> None:
    confirm = confirming(b1="slower", b2="unclear")
    found = judge(slow, TIMING, confirm)  # type: ignore[arg-type]
    assert len(confirm.asked) == 2  # type: ignore[attr-defined]
    assert outcome(found) == ("failed", exits.REGRESSION)
    ((key, what),) = ruling(found).failures
    assert (key, what) == (record(1).job.key, "+30.0% (95 %: +20.0% to +40.0%)")
    assert [delta.verdict for delta in found.comparison.deltas] == ["slower", "unclear", "same"]
    assert found.comparison.deltas[0].stage == "confirm"
    assert found.comparison.deltas[0].changes == slow.deltas[0].changes


def test_what_fresh_pairs_do_not_confirm_was_noise_and_passes(slow: Comparison) -> None:
    found = judge(slow, TIMING, confirming())  # type: ignore[arg-type]
    assert outcome(found) == ("passed", 0)
    assert {delta.verdict for delta in found.comparison.deltas} == {"unclear", "same"}


def test_a_job_that_may_be_slower_gets_a_second_look_and_no_verdict_without_one(slow: Comparison) -> None:
    doubtful = replace(slow.deltas[2], verdict="unclear", ratio=1.06, low=0.9, high=1.3)
    comparison = replace(slow, deltas=(doubtful,))
    confirm = confirming()
    assert outcome(judge(comparison, TIMING, confirm))[0] == "passed"  # type: ignore[arg-type]
    assert confirm.asked == [doubtful.key]  # type: ignore[attr-defined]
    assert judge(comparison, TIMING, refusing).comparison.deltas == (doubtful,)


def test_where_nothing_looks_slower_nothing_is_measured_again(tmp_path: Path) -> None:
    confirm = confirming(b1="slower")
    assert outcome(judge(both(tmp_path, [record()], [record(seed=1)]), TIMING, confirm)) == ("passed", 0)  # type: ignore[arg-type]
    assert confirm.asked == []  # type: ignore[attr-defined]


def refusing(keys: Sequence[str]) -> Mapping[str, Delta]:
    raise FusionbenchError("commit c0ffee is not in this clone; fetch it with: git fetch origin c0ffee")


def interrupted(keys: Sequence[str]) -> Mapping[str, Delta]:
    return {keys[0]: Delta(key=keys[0], verdict="unclear", stage="screen")}


@pytest.mark.parametrize(
    ("base", "confirm", "reason"),
    [
        ({}, None, "measure both in pairs with: fusionbench check --paired c0ffeec0ffee"),
        ({}, refusing, "could not be measured again: commit c0ffee is not in this clone; fetch it with: git fetch"),
        ({}, interrupted, "the second measurement did not come to its end"),
        ({"commit": ""}, confirming(b1="slower"), "does not say its commit: renew it from a clean checkout"),
        ({"dirty": True}, confirming(b1="slower"), "is of uncommitted changes: renew it from a clean checkout"),
    ],
)
def test_what_cannot_be_confirmed_neither_passes_nor_fails(
    slow: Comparison, base: dict[str, object], confirm: object, reason: str
) -> None:
    found = judge(replace(slow, base=replace(slow.base, **base)), TIMING, confirm)  # type: ignore[arg-type]
    assert outcome(found) == ("not judged", exits.NOTHING)
    assert ruling(found).reason.startswith("2 jobs may be slower, unconfirmed: ")
    assert reason in ruling(found).reason
    suspects = found.comparison.deltas[:2]
    assert all(delta.verdict == "unclear" and reason in delta.reason for delta in suspects)


def test_one_confirmed_job_fails_even_where_another_could_not_be_confirmed(slow: Comparison) -> None:
    def half(keys: Sequence[str]) -> Mapping[str, Delta]:
        return {keys[0]: Delta(key=keys[0], verdict="slower", ratio=1.3, low=1.2, high=1.4, stage="confirm")}

    assert outcome(judge(slow, TIMING, half)) == ("failed", exits.REGRESSION)


def paired(*deltas: Delta) -> Comparison:
    return Comparison(method="paired", base=Side(name="main"), head=Side(name="."), deltas=deltas)


def test_a_paired_measurement_has_confirmed_already() -> None:
    slower = Delta(key="k", verdict="slower", ratio=1.3, low=1.2, high=1.4, rounds=11, stage="confirm")
    same = Delta(key="l", verdict="same", ratio=1.0, low=0.99, high=1.01, rounds=3, stage="screen", facts=4)
    assert outcome(judge(paired(slower, same), TIMING)) == ("failed", exits.REGRESSION)
    assert outcome(judge(paired(same), TIMING)) == ("passed", 0)
    assert outcome(judge(paired(same), DETERMINISTIC)) == ("passed", 0)


def test_jobs_that_fail_on_both_sides_of_a_pair_pass_no_gate() -> None:
    both = Delta(key="l", verdict="same", reason="base: error, x; head: error, x")
    for gates in (TIMING, DETERMINISTIC):
        assert outcome(judge(paired(both), gates)) == ("not judged", exits.NOTHING)


# --- together ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["passed"], 0),
        (["passed", "passed"], 0),
        (["passed", "failed"], 1),
        (["not judged", "failed"], 1),
        (["passed", "not judged"], 5),
        (["not judged"], 5),
        ([], 5),
    ],
)
def test_one_failure_fails_and_what_was_not_judged_is_no_pass(outcomes: list[str], code: int) -> None:
    rulings = [Ruling(gate="timing", outcome=each) for each in outcomes]  # type: ignore[arg-type]
    assert concluded(paired(), rulings).exit_code == code


def test_both_gates_judge_unless_one_is_chosen(tmp_path: Path) -> None:
    found = judge(both(tmp_path, [record()], [record()], machine="other"))
    assert [(each.gate, each.outcome) for each in found.rulings] == [
        ("deterministic", "passed"),
        ("timing", "not judged"),
    ]
    assert found.exit_code == exits.NOTHING


def test_kernels_are_judged_beside_jobs() -> None:
    alone = kernels_alone("kernels.json", 2)
    good, bad = of_kernels("k.json", ["a", "b"], []), of_kernels("k.json", ["a", "b"], [("a", "registers 1 -> 2")])
    assert (good.outcome, good.judged, concluded(alone, [good]).exit_code) == ("passed", 2, 0)
    assert (bad.failures, concluded(alone, [good, bad]).exit_code) == ((("a", "registers 1 -> 2"),), 1)
    other = of_kernels("k.json", [], [], "of triton 3.7.1, this is 3.9; they are not compared")
    assert (other.outcome, concluded(alone, [other]).exit_code) == ("not judged", 5)
    assert other.reason == "kernels of k.json: of triton 3.7.1, this is 3.9; they are not compared"
    assert of_kernels("k.json", [], []).outcome == "not judged"
