"""The flat frame against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from msgspec.structs import replace

from fusionbench.record import Accuracy, Costs, Deviation, Environment, Memory, Record, Timing
from fusionbench.report.frame import frame
from fusionbench.report.rank import latest, ranked
from fusionbench.spec import Case, Job, Shape
from fusionbench.stats import median_interval
from tests.synthetic import ENVIRONMENTS, records

CASE = Case(shape=Shape(batch=2, image=7, text=5, image_width=24, text_width=16, width=16, heads=2))


def job(strategy: str = "gated", backend: str = "eager", case: Case = CASE) -> Job:
    return Job(strategy=strategy, backend=backend, case=case)


def timing(*samples: int, loops: int = 1, delay: tuple[int, ...] = (), **other: Any) -> Timing:
    facts = {"timer": "wall", "cache": "hot", "stop": "precise", "first_call_ns": 5_000_000, "warmup_calls": 1}
    return Timing(samples_ns=samples, loops=loops, run_delay_ns=delay, threads=1, **(facts | other))


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
        environment="h100-a",
    )
    row = frame([record], ENVIRONMENTS).iloc[0]
    assert row["key"] == record.job.key
    assert (row["image"], row["image_width"], row["type_embedding"]) == (7, 24, False)
    assert (row["median_ms"], row["min_ms"], row["low_ms"], row["high_ms"]) == (2.0, 1.0, 1.0, 3.0)
    assert row["contention"] == pytest.approx(0.25)
    assert (row["samples"], row["loops"], row["first_call_ms"]) == (3, 2, 5.0)
    assert (row["peak_mib"], row["peak_bytes"], row["flops"]) == (3.0, 3 * 2**20, 2_000_000_000)
    assert row["tflops"] == pytest.approx(1.0)
    assert (row["rel_l2"], row["yardstick_rel_l2"]) == (1e-3, 1e-3)
    assert row["kernels"] == "aten::a; aten::b"
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


def test_the_interval_is_that_of_stats_for_every_sample_count() -> None:
    timed = [r for r in records(300) if r.time]
    table = frame(timed, ENVIRONMENTS)
    for record, (_, row) in zip(timed, table.iterrows(), strict=True):
        assert record.time is not None
        expected = [v / 1e6 for v in median_interval(record.time.samples_ns)]
        assert [row["median_ms"], row["low_ms"], row["high_ms"]] == pytest.approx(expected, rel=1e-12)


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
