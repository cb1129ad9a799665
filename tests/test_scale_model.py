"""The simulation of many slots agrees with closed forms, and cuts a sweep as the plan is cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fusionbench import slicing
from fusionbench.spec import Budget
from tests import comparing
from tests.perf import scale_model as model
from tests.perf.scale_model import Costs, Job, Outcome

KEPT = Path(__file__).parents[1] / "results" / "scale"


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def equal(jobs: int, visits: int = 1, length: float = 1.0) -> list[list[Job]]:
    """So many questions of one job each."""
    return [[Job(length * visits, (length,) * visits)] for _ in range(jobs)]


@pytest.mark.parametrize(("jobs", "slots"), [(12, 4), (13, 4), (7, 1), (100, 30), (5, 8)])
def test_without_overhead_and_with_equal_jobs_both_ways_are_list_scheduling(jobs: int, slots: int) -> None:
    ideal = math.ceil(jobs / slots)
    for outcome in (
        model.by_driver(equal(jobs), slots, Costs(), rng(), size=1),
        model.by_slices(equal(jobs), slots, Costs(), rng()),
    ):
        assert outcome.makespan_s == pytest.approx(ideal)
        assert outcome.efficiency == pytest.approx(jobs / slots / ideal)


def test_blocks_end_later_than_single_jobs_by_as_much_as_list_scheduling_says() -> None:
    outcome = model.by_driver(equal(100), 8, Costs(), rng(), size=10)
    assert outcome.makespan_s == pytest.approx(20)  # 10 blocks of 10 on 8 slots
    assert outcome.shares[model.TAIL] == pytest.approx(1 - 100 / 160)


@pytest.mark.parametrize(
    ("python", "ray", "store"), [(0.004, 0.001, 0.0), (0.001, 0.001, 0.005), (0.0, 0.0, 0.003), (0.004, 0.0, 0.004)]
)
def test_throughput_saturates_at_the_slower_station_of_the_driver(python: float, ray: float, store: float) -> None:
    """The utilisation law: a server that is always busy serves one visit per service time."""
    costs = Costs(python_s=(python,), ray_s=(ray,), store_s=(store,))
    visits = 20_000
    outcome = model.by_driver(equal(visits // 4, 4, 0.05), 200, costs, rng(), size=1)
    assert visits / outcome.makespan_s == pytest.approx(1 / max(python + ray, store), rel=0.01)
    station = max(outcome.busy[model.PYTHON] + outcome.busy[model.RAY], outcome.busy[model.STORE])
    assert station == pytest.approx(1, abs=0.01)


def test_looking_for_answers_in_vain_leaves_less_of_the_driver_for_the_rest() -> None:
    costs = Costs(python_s=(0.002,), look_s=0.001)
    outcome = model.by_driver(equal(40_000, 4, 3.2 * model.LOOK_S), 3_000, costs, rng(), size=1)  # three looks a visit
    assert 160_000 / outcome.makespan_s == pytest.approx(1 / (0.002 + 3 * 0.001), rel=0.03)
    assert outcome.lost_s[model.LOOKS] == pytest.approx(1.5 * outcome.lost_s[model.PYTHON], rel=0.03)


def test_below_saturation_utilisation_is_throughput_times_service_time() -> None:
    costs = Costs(python_s=(0.002,), ray_s=(0.001,), store_s=(0.002,), trip_s=(0.01,))
    outcome = model.by_driver(equal(3_000, 3, 1.0), 30, costs, rng(), size=1)
    rate = 9_000 / outcome.makespan_s
    assert outcome.busy[model.PYTHON] == pytest.approx(rate * 0.002, rel=0.01)
    assert outcome.busy[model.RAY] == pytest.approx(rate * 0.001, rel=0.02)
    assert outcome.busy[model.STORE] == pytest.approx(rate * 0.002, rel=0.01)


def test_a_lone_slot_loses_what_each_visit_costs_and_waits_for_nobody() -> None:
    costs = Costs(
        python_s=(0.1,), ray_s=(0.2,), store_s=(0.3,), trip_s=(0.4,), start_s=(5.0,), create_s=1.0, plan_s=0.5
    )
    outcome = model.by_driver(equal(10, 2), 1, costs, rng())
    asked_first = 0.3
    assert outcome.makespan_s == pytest.approx(5 + 1 + 10 * 0.5 + asked_first + 20 * (1 + 0.1 + 0.2 + 0.3 + 0.4))
    assert model.alone(equal(10, 2), costs, rng()).makespan_s == pytest.approx(5 + 10 * 0.5 + 20 * (1 + 0.1 + 0.3))


seconds = st.floats(0, 2)
costs = st.builds(
    Costs,
    python_s=st.tuples(seconds, seconds),
    ray_s=st.tuples(seconds),
    store_s=st.tuples(seconds, seconds),
    look_s=seconds,
    trip_s=st.tuples(seconds, seconds),
    create_s=seconds,
    start_s=st.tuples(seconds, seconds),
    plan_s=seconds,
    make_s=seconds,
    cut_s=seconds,
)
jobs = st.builds(Job, st.floats(0.01, 100), st.lists(st.floats(0.01, 100), min_size=1, max_size=4).map(tuple))
sweeps = st.lists(st.lists(jobs, min_size=1, max_size=6), min_size=1, max_size=20)


@given(sweeps, costs, st.integers(1, 40), st.sampled_from([None, 1, 64]))
@settings(max_examples=100, deadline=None)
def test_every_second_of_every_slot_is_work_or_lost_to_one_cause(
    sweep: list[list[Job]], costs: Costs, slots: int, size: int | None
) -> None:
    whole = math.fsum(visit for question in sweep for job in question for visit in job.visits_s)
    outcomes = [
        model.by_driver(sweep, slots, costs, rng(), size=size),
        model.by_slices(sweep, slots, costs, rng()),
        model.alone(sweep, costs, rng()),
    ]
    for each in outcomes:
        assert each.work_s == pytest.approx(whole)
        assert each.work_s + math.fsum(each.lost_s.values()) == pytest.approx(each.slots * each.makespan_s)
        assert min(each.lost_s.values()) > -1e-6 * each.makespan_s * each.slots
        assert 0 < each.efficiency <= 1 + 1e-9


def test_visits_of_a_block_are_in_the_order_of_the_schedule() -> None:
    block = [[Job(1, (1.0, 2.0, 3.0)), Job(1, (10.0,))], [Job(1, (100.0, 200.0))]]
    assert list(model.blocks(block, 2)) == [[1.0, 10.0, 2.0, 3.0], [100.0, 200.0]]
    assert list(model.blocks(block, 3)) == [[1.0, 10.0, 100.0, 2.0, 200.0, 3.0]]


@given(st.lists(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=5), min_size=1, max_size=20), st.integers(1, 12))
@settings(deadline=None)
def test_a_sweep_is_cut_as_a_plan_is(costs: list[list[float]], of: int) -> None:
    """Slices of the same lengths as those of slicing.cut, for the same costs and questions."""
    planned, known = [], {}
    template = comparing.record(1).job
    for number, question in enumerate(costs, 1):
        case = replace(template.case, shape=replace(template.case.shape, batch=number))
        for strategy, cost in enumerate(question):
            planned.append(replace(template, strategy=f"s{strategy}", case=case))
            known[planned[-1].key] = cost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "cost_s", lambda job, budget: known[job.key])
        place = slicing.cut(planned, of, Budget())
    loads = [0.0] * of
    for job in planned:
        loads[place(job) - 1] += known[job.key]
    ours = model.cut([[Job(cost, (cost,)) for cost in question] for question in costs], of)
    assert sorted(sum(job.estimate_s for job in each) for each in ours) == pytest.approx(sorted(loads))


def test_draws_keep_questions_whole_and_end_at_the_count() -> None:
    questions = [[Job(1, (1.0,))] * 3, [Job(2, (2.0,))] * 5]
    drawn = model.draw(questions, 100, rng())
    assert sum(map(len, drawn)) == 100
    assert all(len(set(each)) == 1 for each in drawn)
    assert {len(each) for each in drawn[:-1]} == {3, 5}


def outcome(slots: int, efficiency: float, worst: str = "b") -> Outcome:
    lost = {"a": 0.1 * slots * (1 - efficiency), "b": 0.1 * slots * (1 - efficiency)}
    lost[worst] *= 9
    return Outcome(slots, 1.0, slots * efficiency, lost)


def test_a_knee_is_where_the_curve_crosses_and_is_named_by_the_largest_loss_below() -> None:
    curve = {1: outcome(1, 1.0), 10: outcome(10, 0.75, "a"), 1_000: outcome(1_000, 0.25)}
    found = model.knee(curve)
    assert found.slots == pytest.approx(100)  # half way, in powers
    assert found.bottleneck == "b"
    assert model.knee(curve, 0.2).slots is None
    with pytest.raises(ValueError, match="begins with 25%, below 50%"):
        model.knee({1: outcome(1, 0.25)})


def test_the_kept_figures_are_those_of_the_kept_jobs_and_say_what_the_page_says() -> None:
    jobs, found = (json.loads((KEPT / name).read_text()) for name in ("jobs.json", "epyc-2core.json"))
    assert jobs.keys() == found["sweeps"].keys() == found["curves"].keys()
    for name, each in jobs.items():
        assert sum(map(len, each["questions"])) == found["sweeps"][name]["jobs"]
    driver, slices = (found["curves"]["advice"][way] for way in ("one driver", "slices"))
    assert [driver[count]["knee"]["bottleneck"] for count in ("1000", "100000")] == [model.TAIL, model.STORE]
    for count, curve in driver.items():
        for slots, (_, middle, _) in curve["efficiency"].items():
            assert slices[count]["efficiency"][slots][1] >= middle


def test_the_figures_of_the_methodology_are_the_kept_ones() -> None:
    text = (KEPT.parents[1] / "METHODOLOGY.md").read_text()
    found = json.loads((KEPT / "epyc-2core.json").read_text())
    assert f"commit {found['commit'][:7]}" in text
    assert found["command"] in text
    for count in ("1000", "10000", "100000"):
        cells = [f"{int(count):,} jobs"]
        for way in ("one driver", "slices"):
            curve = found["curves"]["advice"][way][count]
            cells.append(", ".join(f"{100 * curve['efficiency'][slots][1]:.0f} %" for slots in ("100", "1000")))
            middle = curve["knee"]["slots"][1]
            knee = "more than 3,000" if middle is None else f"{float(format(middle, '.2g')):,.0f}"
            cells.append(f"{knee}, {curve['knee']['bottleneck']}")
        assert f"| {' | '.join(cells)} |" in text
