"""Slices of a plan: nothing is measured twice or by nobody, everybody cuts alike, and rivals stay together."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionbench import plan, slices, slicing, suite
from fusionbench.errors import FusionbenchError
from fusionbench.slices import Slices
from fusionbench.spec import Job, Skip
from tests import comparing
from tests.command import call

SUITES = ("smoke", "lengths", "systems", "backends")


def cut(chosen: suite.Suite, of: int) -> list[list[Job]]:
    plans = (plan.Plan(chosen, slices=Slices(of=of, numbers=(number,))) for number in range(1, of + 1))
    return [[item.job if isinstance(item, Skip) else item for item in each] for each in plans]


@pytest.mark.parametrize("of", [1, 3, 8])
@pytest.mark.parametrize("name", SUITES)
def test_every_job_is_in_one_slice_in_the_plans_order(name: str, of: int) -> None:
    chosen = suite.read(name)
    whole = [(item.job if isinstance(item, Skip) else item).key for item in plan.Plan(chosen)]
    found = [[job.key for job in each] for each in cut(chosen, of)]
    assert Counter(key for each in found for key in each) == Counter(whole)
    for each in found:
        assert each == [key for key in whole if key in set(each)]


@pytest.mark.parametrize("name", SUITES)
def test_the_cut_is_the_same_on_a_machine_that_has_a_gpu_and_more_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cut(suite.read(name), 4)
    monkeypatch.setattr(plan, "missing_device", lambda device: None)
    monkeypatch.setattr("fusionbench.footprint.refusal", lambda job, memory: None)
    assert cut(suite.read(name), 4) == here


@pytest.mark.parametrize("name", SUITES)
def test_candidates_of_one_question_stay_together_unless_they_exceed_a_share(name: str) -> None:
    chosen = suite.read(name)
    found = cut(chosen, 4)
    cost: Counter[str] = Counter()
    places = defaultdict(set)
    for number, jobs in enumerate(found):
        for job in jobs:
            cost[job.case.question] += slicing.cost_s(job, chosen.budget)  # type: ignore[assignment]
            places[job.case.question].add(number)
    fair = sum(cost.values()) / 4
    assert {q for q, numbers in places.items() if len(numbers) > 1} <= {q for q in cost if cost[q] > fair}


def made(costs: list[float]) -> tuple[list[Job], dict[str, float]]:
    jobs = [comparing.record(number).job for number in range(1, len(costs) + 1)]
    return jobs, {job.key: cost for job, cost in zip(jobs, costs, strict=True)}


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=60), st.integers(1, 12))
def test_no_slice_is_longer_than_grahams_bound(costs: list[float], of: int) -> None:
    jobs, known = made(costs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "cost_s", lambda job, budget: known[job.key])
        place = slicing.cut(jobs, of, suite.read("smoke").budget)
    loads = [0.0] * of
    for job in jobs:
        loads[place(job) - 1] += known[job.key]
    # List scheduling: the last piece of the longest slice began when no other was shorter.
    assert max(loads) <= sum(costs) / of + max(costs) * (1 - 1 / of) + 1e-6


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1", "1/0", "-1/2", "1/2/3", "a/b", "1/99999", "", "1 / 2", "\x1b[31m1/2"]
)
def test_a_wrong_slice_is_one_line_with_the_form(text: str) -> None:
    with pytest.raises(FusionbenchError, match="is not of the form I/N") as told:
        slices.parse(text)
    assert "\x1b" not in str(told.value)


def test_plan_shows_and_counts_a_slice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [
        int(call("plan", "smoke", "--shard", f"{n}/3", "--count", capsys=capsys, monkeypatch=monkeypatch)[1])
        for n in (1, 2, 3)
    ]
    assert sum(counts) == sum(1 for _ in plan.Plan(suite.read("smoke")))
    code, out, _ = call("plan", "smoke", "--shard", "2/3", "--head", "0", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    jobs = [item for item in plan.Plan(suite.read("smoke"), slices=Slices(of=3, numbers=(2,))) if isinstance(item, Job)]
    assert [line for line in out.splitlines() if line.count("/") >= 5 and line[0] != " "] == [job.key for job in jobs]


def test_one_job_has_no_slices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ("run", "smoke", "--job", "x", "--shard", "1/2", "--results", str(tmp_path))
    code, _, err = call(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, err) == (2, "fusionbench: --job and --shard exclude each other: one job has no slices\n")
    assert not any(tmp_path.iterdir())
