"""Two stored measurements against each other: every verdict, and what is not compared and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fusionbench import baseline, comparison
from fusionbench.compare import MIN_ROUNDS
from fusionbench.comparison import NOT_COMPARED, UNKNOWN, device
from fusionbench.delta import Comparison, Delta
from fusionbench.record import Costs, Record
from fusionbench.sealed import seal_run, unseal
from fusionbench.store import Run, read
from tests.comparing import COSTS, HASH, failed, here, record, run, timing
from tests.synthetic import ENVIRONMENTS, records


def both(folder: Path, base: list[Record], head: list[Record], **where: object) -> Comparison:
    other = here(**where) if where else None
    return comparison.of(run(folder / "base", *base), run(folder / "head", *head, where=other))


def only(found: Comparison) -> Delta:
    (delta,) = found.deltas
    return delta


@pytest.mark.parametrize(("ms", "verdict"), [(1.0, "same"), (1.2, "slower"), (0.8, "faster")])
def test_a_time_is_told_with_its_ratio_its_interval_and_what_would_have_been_seen(
    tmp_path: Path, ms: float, verdict: str
) -> None:
    delta = only(both(tmp_path, [record()], [record(ms=ms, seed=1)]))
    assert (delta.verdict, delta.rounds, delta.reason) == (verdict, 7, "")
    assert delta.ratio == pytest.approx(ms, rel=0.01)
    assert (delta.low or 0) <= delta.ratio <= (delta.high or 0)
    assert (delta.base_ns, delta.head_ns) == pytest.approx((1e6, ms * 1e6), rel=0.01)
    assert 0.03 <= (delta.detectable or 0) < 0.05
    assert delta.changes == ()
    assert delta.facts == 7


def test_what_can_be_detected_grows_with_the_noise_and_is_never_below_the_floor(tmp_path: Path) -> None:
    wide = timing(
        rounds=6, samples_ns=tuple(ns for base in (1, 1.1, 1.2, 1, 1.15, 1.05) for ns in [int(base * 1e6)] * 15)
    )
    noisy = only(both(tmp_path / "noisy", [record(time=wide)], [record(time=wide)]))
    assert 0.1 < (noisy.detectable or 0) < 0.3
    short = only(both(tmp_path / "short", [record(ms=0.02)], [record(ms=0.02, seed=1)]))
    assert short.detectable == pytest.approx(0.25, rel=0.02)  # 5 of 20 µs


def test_few_rounds_are_unclear_and_say_so(tmp_path: Path) -> None:
    few = record(time=timing(rounds=MIN_ROUNDS - 1))
    delta = only(both(tmp_path, [few], [replace(few, time=timing(2.0, rounds=7))]))
    assert (delta.verdict, delta.rounds) == ("unclear", MIN_ROUNDS - 1)
    assert delta.reason == f"measured in fewer rounds than {MIN_ROUNDS}; times need so many"
    assert delta.detectable is None
    assert delta.ratio == pytest.approx(2, rel=0.01)


def test_unlike_timers_are_unclear_with_the_reason(tmp_path: Path) -> None:
    delta = only(both(tmp_path, [record()], [record(time=timing(timer="host"))]))
    assert (delta.verdict, delta.ratio) == ("unclear", None)
    assert "times of unlike timer ('wall' and 'host') are not compared" in delta.reason


def test_changes_of_facts_stand_beside_the_time(tmp_path: Path) -> None:
    delta = only(both(tmp_path, [record()], [record(costs=replace(COSTS, flops=1001), launches=41)]))
    assert delta.verdict == "same"
    assert [(change.fact, change.worse) for change in delta.changes] == [("flops", True), ("launches", False)]


# --- status --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "head", "verdict", "reason"),
    [
        (record(), failed(), "broken", "ok → crash: worker died of SIGSEGV"),
        (record(), record(status="skipped", reason="no kernel"), "broken", "ok → skipped: no kernel"),
        (record(status="skipped"), failed(), "broken", "skipped → crash: worker died of SIGSEGV"),
        (failed(), record(), "fixed", "was crash: worker died of SIGSEGV"),
        (record(status="skipped", reason="no GPU"), record(), "fixed", "was skipped: no GPU"),
        (failed(), failed(), "same", "crash: worker died of SIGSEGV"),
        (failed(), failed(status="oom", reason="none left"), "same", "crash → oom: none left"),
        (failed(), record(status="skipped", reason="x"), "same", "crash → skipped: x"),
    ],
)
def test_an_outcome_is_compared_where_times_cannot_be(
    tmp_path: Path, base: Record, head: Record, verdict: str, reason: str
) -> None:
    delta = only(both(tmp_path, [base], [head]))
    assert (delta.verdict, delta.reason, delta.ratio, delta.facts) == (verdict, reason, None, 0)


def test_a_job_of_one_side_is_new_or_missing(tmp_path: Path) -> None:
    found = both(tmp_path, [record(1), record(2)], [record(2), record(3), failed(4)])
    verdicts = {delta.key.split("-")[0][-2:]: (delta.verdict, delta.reason) for delta in found.deltas}
    assert verdicts["b1"] == ("missing", "was ok, and is not in the head")
    assert verdicts["b3"] == ("new", "")
    assert verdicts["b4"] == ("new", "crash: worker died of SIGSEGV")


def test_a_skip_that_only_one_side_has_is_nothing_lost(tmp_path: Path) -> None:
    skip = record(2, status="skipped", time=None)
    assert [delta.verdict for delta in both(tmp_path / "a", [record(1), skip], [record(1)]).deltas] == ["same"]
    assert [delta.verdict for delta in both(tmp_path / "b", [record(1)], [record(1), skip]).deltas] == ["same"]


def test_of_several_records_of_a_job_the_latest_counts(tmp_path: Path) -> None:
    old = record(ms=2.0, source="old")
    new = record(ms=1.0, source="new", started_at="2026-11-22T00:00:00.000+00:00", seed=1)
    assert only(both(tmp_path, [record()], [new, old])).verdict == "same"


# --- narrowing -----------------------------------------------------------------------------------------------------


def narrowed(folder: Path, *items: Record, **paper: object) -> Comparison:
    base = run(folder / "base", *(record(number) for number in (1, 2, 3)))
    return comparison.of(base, run(folder / "head", *items, **paper))


def test_jobs_that_a_narrowed_head_was_not_asked_for_are_not_missing(tmp_path: Path) -> None:
    for paper in ({"only": {"batch": ["1"]}}, {"limit": 1}):
        found = narrowed(tmp_path / str(paper), record(1), **paper)
        assert [delta.verdict for delta in found.deltas] == ["same"]
        assert "2 jobs of the base not asked for in the head, whose suite was narrowed" in found.notes


def test_a_narrowed_head_that_is_not_complete_may_have_lost_them(tmp_path: Path) -> None:
    found = narrowed(tmp_path, record(1), only={"batch": ["1", "2"]}, planned=2)
    assert [delta.verdict for delta in found.deltas] == ["same", "missing", "missing"]


def test_a_base_that_was_narrowed_alike_has_only_jobs_that_the_head_was_asked_for(tmp_path: Path) -> None:
    base = run(tmp_path / "base", record(1), record(2), only={"batch": ["1", "2"]})
    head = run(tmp_path / "head", record(1), only={"batch": ["2", "1"]})
    assert [delta.verdict for delta in comparison.of(base, head).deltas] == ["same", "missing"]


# --- machines and environments -------------------------------------------------------------------------------------


def test_another_machine_is_named_and_its_times_are_not_compared(tmp_path: Path) -> None:
    found = both(tmp_path, [record()], [record(ms=3)], machine="elsewhere")
    assert found.differences == ("machine m → elsewhere",)
    delta = only(found)
    assert (delta.verdict, delta.ratio, delta.reason) == ("unclear", None, NOT_COMPARED)
    assert delta.facts == 7  # the toolchain is the same


def test_another_toolchain_is_named_and_leaves_the_closed_forms(tmp_path: Path) -> None:
    worse = record(costs=replace(COSTS, flops=1001), launches=99)
    found = both(tmp_path, [record()], [worse], torch="2.14.0")
    assert found.differences == ("torch 2.13.0 → 2.14.0",)
    assert [change.fact for change in only(found).changes] == ["flops"]
    assert only(found).facts == 4
    assert found.notes == ("counted_flops, peak_bytes, launches, kernels not compared: torch 2.13.0 → 2.14.0 (1 job)",)


def test_another_environment_that_decides_no_fact_leaves_all_of_them(tmp_path: Path) -> None:
    found = both(tmp_path, [record()], [record(launches=99)], cores=64)
    assert found.differences == ("cores 2 → 64",)
    assert [change.fact for change in only(found).changes] == ["launches"]
    assert found.notes == ()


def test_where_nobody_knows_where_it_was_measured_little_is_compared(tmp_path: Path) -> None:
    base = run(tmp_path, record(), record(2))
    lost = dataclasses.replace(base, environments={})
    found = comparison.of(base, lost)
    assert found.differences == (UNKNOWN,)
    assert {delta.facts for delta in found.deltas} == {4}


def test_facts_that_one_side_does_not_know_are_said_not_to_be_compared(tmp_path: Path) -> None:
    found = both(tmp_path, [record(1, launches=None), record(2)], [record(1), record(2)])
    assert found.notes == ("launches not compared: not recorded on both sides (1 job)",)
    assert [delta.facts for delta in found.deltas] == [6, 7]


def test_another_suite_and_damage_are_noted(tmp_path: Path) -> None:
    base = run(tmp_path / "base", record())
    head = run(tmp_path / "head", record(), suite_hash="fedcba")
    damaged = dataclasses.replace(head, damage=[f"shard:{number}: \x1b[31mdamaged" for number in range(9)])
    notes = comparison.of(base, damaged).notes
    assert notes[0] == f"the suite is not the same: 'smoke' ({HASH}) → 'smoke' (fedcba)"
    assert notes[1] == "head: shard:0: �[31mdamaged"
    assert notes[6] == "head: 4 more problems of this kind"
    assert len(notes) == 7


# --- sides of every kind -------------------------------------------------------------------------------------------


def test_a_baseline_compares_as_the_run_that_it_was_made_of(tmp_path: Path) -> None:
    base = run(tmp_path / "base", record(1), record(2), record(3, status="skipped", time=None))
    kept = baseline.of(base, "why")
    head = run(tmp_path / "head", record(1, ms=1.3), failed(2), record(3, status="skipped", time=None))
    plain, brief = comparison.of(base, head), comparison.of(kept, head)
    for one, other in zip(plain.deltas, brief.deltas, strict=True):
        assert (one.verdict, one.changes, one.facts) == (other.verdict, other.changes, other.facts)
    assert plain.deltas[0].ratio == pytest.approx(brief.deltas[0].ratio, rel=0.001)
    assert {delta.verdict for delta in comparison.of(kept, kept).deltas} == {"same"}
    assert brief.base == replace(plain.base, name="baseline")


def test_a_side_says_who_was_measured(tmp_path: Path) -> None:
    found = comparison.of(run(tmp_path, record(), where=here(dirty=True)), run(tmp_path, record()), ("a", "b"))
    assert (found.base.name, found.head.name, found.method) == ("a", "b", "stored")
    side = found.base
    assert (side.machine, side.environment, side.commit, side.dirty) == ("m", here().id, "c0ffee" * 6, True)
    assert (side.suite, side.suite_hash, side.jobs) == ("smoke", HASH, 1)
    assert side.measured_at.startswith("20")


def test_shards_and_sealed_files_are_compared_like_their_run(tmp_path: Path) -> None:
    base = run(tmp_path / "base", record(1), record(2))
    head = run(tmp_path / "head", record(1, ms=1.2), record(2))
    whole = comparison.of(base, head)
    shard = read(next((head.path / "shards").iterdir()))
    sealed = unseal(seal_run(head.path, tmp_path / "head.parquet"))
    for other in (shard, sealed):
        assert comparison.of(base, other).deltas == whole.deltas
        assert comparison.of(base, other).head.suite == ""


@pytest.mark.parametrize("key", ["concat/eager/b1-i8/linear/fp32/cuda:1/fwd", "nonsense", "a/b", ""])
def test_the_device_is_read_from_any_key(key: str) -> None:
    assert device(key) in ("cuda:1", "")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60))
def test_a_run_compared_with_itself_shows_no_difference(seed: int, count: int) -> None:
    same = Run(Path("r"), None, records(count, seed), dict(ENVIRONMENTS), torn=[], damage=[], duplicates=0)
    for found in (
        comparison.of(same, same),
        comparison.of(same, dataclasses.replace(same, records=same.records[::-1])),
    ):
        assert {delta.verdict for delta in found.deltas} <= {"same", "unclear"}
        assert not any(delta.changes for delta in found.deltas)
        assert found.differences == ()


@settings(max_examples=25, deadline=None)
@given(
    costs=st.builds(Costs, **{name: st.integers(0, 2**63 - 1) for name in COSTS.__struct_fields__[:4]}),
    swapped=st.booleans(),
)
def test_swapping_the_sides_turns_worse_into_better(costs: Costs, swapped: bool) -> None:
    sides = [record(), record(costs=costs)][:: -1 if swapped else 1]
    runs = [Run(Path("r"), None, [side], {here().id: here()}, [], [], 0) for side in sides]
    there, back = (comparison.of(*pair).deltas[0].changes for pair in (runs, runs[::-1]))
    assert [(c.fact, c.base, c.head, c.worse) for c in there] == [(c.fact, c.head, c.base, not c.worse) for c in back]
