"""The flat frame against values worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import pandas as pd
import pytest
from msgspec.structs import replace

from fusionbench.record import (
    PARTS,
    Accuracy,
    Costs,
    Deviation,
    DeviceState,
    Environment,
    Memory,
    Parts,
    Record,
    Timing,
)
from fusionbench.remarks import contention
from fusionbench.report.frame import frame
from fusionbench.report.rank import latest, ranked
from fusionbench.rounds import merge
from fusionbench.spec import Case, Job, Shape
from fusionbench.stats import median_interval
from tests.synthetic import ENVIRONMENTS, records

CASE = Case(shape=Shape(batch=2, image=7, text=5, image_width=24, text_width=16, width=16, heads=2))


def job(strategy: str = "gated", backend: str = "eager", case: Case = CASE) -> Job:
    return Job(strategy=strategy, backend=backend, case=case)


def timing(*samples: int, loops: int = 1, delay: tuple[int, ...] = (), **other: Any) -> Timing:
    facts = {"timer": "wall", "cache": "hot", "stop": "precise", "first_call_ns": 5_000_000, "warmup_calls": 1}
    return Timing(samples_ns=samples, loops=loops, run_delay_ns=delay, **({"threads": 1} | facts | other))


def test_a_row_holds_medians_per_call_and_what_follows_from_them() -> None:
    error = Deviation(max_abs=0.5, mean_abs=None, rel_l2=1e-3, cosine=0.999)
    record = Record(
        job=job(),
        status="ok",
        time=timing(2_000_000, 4_000_000, 6_000_000, loops=2, delay=(0, 0, 3_000_000)),
        memory=Memory(peak_bytes=3 * 2**20, resting_bytes=7, meter="cpu_profiler"),
        accuracy=Accuracy(reference="fp64", samples=2, output=error, yardstick=error),
        costs=Costs(flops=2_000_000_000, params=1, min_bytes=2, activation_bytes=3),
        kernels=("aten::a", "aten::b"),
        launches=7,
        environment="h100-a",
    )
    row = frame([record], ENVIRONMENTS).iloc[0]
    assert row["key"] == record.job.key
    assert (row["image"], row["image_width"], row["type_embedding"]) == (7, 24, False)
    assert (row["median_ms"], row["min_ms"], row["low_ms"], row["high_ms"]) == (1.5, 1.0, 1.0, 2.0)  # on the core
    assert row["contention"] == pytest.approx(0.25)
    assert (row["samples"], row["loops"], row["first_call_ms"]) == (3, 2, 5.0)
    assert (row["peak_mib"], row["peak_bytes"], row["flops"]) == (3.0, 3 * 2**20, 2_000_000_000)
    assert row["tflops"] == pytest.approx(4 / 3)
    assert (row["rel_l2"], row["yardstick_rel_l2"]) == (1e-3, 1e-3)
    assert row["kernels"] == "aten::a; aten::b"
    assert row["launches"] == 7
    assert (row["machine"], row["hardware"]) == ("gpu-node-07", "Intel Xeon Platinum 8481C")
    assert row[["mean_abs", "grad_rel_l2", "counted_flops", "joules_per_call"]].isna().all()


def test_what_was_not_measured_is_missing_and_never_a_number() -> None:
    row = frame([Record(job=job(), status="oom", phase="time", reason="no memory", environment="?")], {}).iloc[0]
    measured = ["median_ms", "low_ms", "samples", "contention", "peak_mib", "flops", "tflops", "rel_l2", "timer"]
    assert row[[*measured, "machine", "hardware", "torch"]].isna().all()
    assert (row["status"], row["phase"], row["reason"]) == ("oom", "time", "no memory")


def test_no_run_delay_is_missing_and_a_run_delay_of_zero_is_zero() -> None:
    silent, quiet = timing(5, 6), timing(5, 6, delay=(0, 0))
    shares = frame([Record(job=job(), status="ok", time=t) for t in (silent, quiet)], {})["contention"]
    assert pd.isna(shares[0])
    assert shares[1] == 0.0


def test_contention_is_a_share_of_all_threads_time_as_in_the_notes() -> None:
    time = timing(8, 8, delay=(8, 8), threads=4)
    row = frame([Record(job=job(), status="ok", time=time)], {}).iloc[0]
    assert row["contention"] == contention(time) == 0.25


@pytest.mark.parametrize("several", [False, True], ids=["one round", "rounds"])
def test_the_interval_is_that_of_stats_for_every_sample_count(several: bool) -> None:
    rng = random.Random(3)
    timed = [timing(*(rng.randrange(1, 10**6) for _ in range(n)), loops=1 + n % 3) for n in range(1, 60)]
    if several:
        halves = [(t, replace(t, samples_ns=t.samples_ns[: 1 + rng.randrange(40)])) for t in timed]
        timed = [merge([*pair, *pair][: rng.randrange(1, 5)] * rng.randrange(1, 4)) for pair in halves]
        assert {len(t.rounds) for t in timed} >= {1, 2, 6, 9}
    table = frame([Record(job=job(), status="ok", time=t) for t in timed], {})
    for t, (_, row) in zip(timed, table.iterrows(), strict=True):
        expected = [v / t.loops / 1e6 for v in median_interval(t.samples_ns, t.rounds)]
        assert [row["median_ms"], row["low_ms"], row["high_ms"]] == pytest.approx(expected, rel=1e-12)


def test_a_percentile_is_missing_where_there_are_too_few_samples_for_it() -> None:
    many = [timing(*range(1_000_000, 1_000_000 * (n + 1), 1_000_000), loops=2) for n in (63, 64, 661, 662)]
    table = frame([Record(job=job(), status="ok", time=t) for t in many], {})
    assert table["p90_ms"].isna().tolist() == [True, False, False, False]
    assert table["p99_ms"].isna().tolist() == [True, True, True, False]
    assert (table["p90_ms"][1], table["p99_ms"][3]) == (58 / 2, 656 / 2)


def test_each_timer_has_its_median_and_launches_are_what_the_kernels_leave() -> None:
    hot = timing(4_000_000, loops=2, timer="cuda_event")
    kernel = timing(500_000, 700_000, timer="kernel")
    cold, graph = (
        timing(8_000_000, timer="cuda_event", cache="cold"),
        timing(2_000_000, timer="cuda_graph", cache="cold"),
    )
    host = timing(1_500_000, timer="host")
    first = Record(job=job(), status="ok", time=hot, timers=(cold, graph, kernel, host))
    table = frame([first, replace(first, time=cold, timers=(graph,)), replace(first, timers=()),
                   Record(job=job(), status="ok", time=timing(9))], {})  # fmt: skip
    row = table.iloc[0]
    medians = [row[f"{name}_ms"] for name in ("cold", "hot", "graph", "kernel", "host")]
    assert medians == pytest.approx([8.0, 2.0, 2.0, 0.6, 1.5])
    assert table["launch_share"][:2].tolist() == pytest.approx([0.7, 0.75])
    assert table["launch_share"][2:].isna().all()
    assert table.loc[3, ["cold_ms", "hot_ms", "graph_ms", "kernel_ms", "host_ms"]].isna().all()


def test_the_parts_of_a_call_and_its_gaps_are_the_whole_of_it() -> None:
    spent = Parts(attention_ns=300_000, projections_ns=100_000, other_ns=200_000)
    quick = Record(job=job(), status="ok", time=timing(1_000_000, 5_000_000), parts=spent)  # the least is undisturbed
    hot = timing(750_000, timer="cuda_event")
    on_cuda = replace(quick, time=timing(9_000_000, timer="cuda_event", cache="cold"), timers=(hot,))
    unknown = replace(on_cuda, timers=())
    longer = replace(quick, time=timing(500_000))  # than any sample: profiling lengthens ops
    table = frame([quick, on_cuda, unknown, longer, replace(quick, parts=None)], {})
    shares = table[[name for name in table.columns if name.startswith("share_")]]
    assert shares.shape[1] == len(PARTS) + 1
    assert table["share_attention"][:4].tolist() == pytest.approx([0.3, 0.4, 0.5, 0.5])
    assert table["share_gaps"][:2].tolist() == pytest.approx([0.4, 0.2])
    assert table["share_gaps"][2:].isna().tolist() == [True, False, True]
    assert shares.sum(axis=1)[:4].tolist() == pytest.approx([1.0] * 4)
    assert shares.loc[4].isna().all()


def test_rounds_what_was_discarded_and_the_control_are_shown() -> None:
    joined = merge([timing(5, 6, discarded=3, control_ns=(200_000,)), timing(7, control_ns=(300_000,))])
    table = frame([Record(job=job(), status="ok", time=t) for t in (joined, timing(5))], {})
    assert table["rounds"].tolist() == [2, 1]
    assert table["discarded"].tolist() == [3, 0]
    assert table["control_ms"][0] == pytest.approx(0.25)
    assert pd.isna(table["control_ms"][1])


def test_the_state_of_a_gpu_is_shown_and_missing_where_nobody_watched() -> None:
    state = DeviceState(sm_mhz=(900, 1700, 1980), power_watts=312.5, temperature_c=71, throttle=("power cap", "hot"),
                        foreign=1)  # fmt: skip
    watched = Record(job=job(), status="ok", time=timing(9), device=state)
    names = ["sm_mhz", "power_watts", "temperature_c", "throttle", "foreign"]
    table = frame([watched, replace(watched, device=None), replace(watched, device=DeviceState())], {})[names]
    assert table.iloc[0].tolist() == [1700, 312.5, 71, "power cap, hot", 1]
    assert table.iloc[1].isna().all()
    assert table.iloc[2].isna().tolist() == [True, True, True, False, False]


def test_a_timing_of_a_kind_that_nobody_takes_and_times_of_zero_are_no_reason_to_fail() -> None:
    odd = timing(5, timer="kernel", cache="cold")
    zero = [timing(0, timer="cuda_event"), timing(0, timer="kernel")]
    table = frame([Record(job=job(), status="ok", time=odd, timers=tuple(zero))], {})
    assert table["median_ms"][0] == 5e-6
    assert pd.isna(table["launch_share"][0])


def test_no_records_make_an_empty_frame_with_all_columns() -> None:
    assert list(frame([], {}).columns) == list(frame(records(1), ENVIRONMENTS).columns)


def test_flops_beyond_64_bits_stay_a_number() -> None:
    costs = Costs(flops=2**70, params=1, min_bytes=1, activation_bytes=1)
    assert frame([Record(job=job(), status="ok", costs=costs)], {})["flops"][0] == float(2**70)


def test_candidates_with_overlapping_intervals_tie_and_others_do_not() -> None:
    def measured(name: str, centre: int) -> Record:
        return Record(job=job(name), status="ok", time=timing(*range(centre - 5, centre + 6)), environment="e")

    order = ranked(frame([measured("slow", 200), measured("near", 104), measured("best", 100)], {}))
    assert order["strategy"].tolist() == ["best", "near", "slow"]
    assert order["tie"].tolist() == [False, True, False]
    assert order["ratio"].tolist() == pytest.approx([1.0, 1.04, 2.0])
    assert (order["ratio_low"] <= order["ratio"]).all()
    assert (order["ratio_high"] >= order["ratio"]).all()


def test_two_machines_or_timers_are_never_ranked_together() -> None:
    def measured(environment: str, timer: str) -> Record:
        return Record(job=job(), status="ok", time=timing(9, 9, timer=timer), environment=environment)

    found = ranked(frame([measured("a", "wall"), measured("b", "wall"), measured("b", "cuda_event")], {}))
    assert found["group"].tolist() == [0, 1, 2]


def test_of_two_records_of_one_job_the_newer_counts() -> None:
    old = Record(job=job(), status="oom", started_at="2026-01-01T00:00:00Z", environment="e")
    new = Record(job=job(), status="ok", time=timing(9), started_at="2026-01-02T00:00:00Z", environment="e")
    assert latest(frame([new, old], {}))["status"].tolist() == ["ok"]
    failed = Record(job=job(), status="oom", started_at="2026-01-03T00:00:00Z", environment="e")
    assert latest(frame([new, failed], {}))["status"].tolist() == ["oom"]


def test_one_job_under_different_threads_is_two_results() -> None:
    one = Record(job=job(), status="ok", time=timing(9), started_at="2026-01-01T00:00:00Z", environment="e")
    two = replace(one, time=replace(timing(8), threads=2), started_at="2026-01-02T00:00:00Z")
    assert latest(frame([one, two], {}))["threads"].tolist() == [1, 2]


def test_environment_of_a_gpu_job_names_the_gpu() -> None:
    environments: dict[str, Environment] = ENVIRONMENTS
    on_gpu = Case(shape=CASE.shape, device="cuda")
    row = frame([Record(job=job(case=on_gpu), status="ok", environment="h100-a")], environments).iloc[0]
    assert row["hardware"] == "NVIDIA H100 80GB HBM3"
