"""What the harness itself costs: start-up, planning, isolation, and how late a deadline is."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fusionbench.engines import local
from fusionbench.record import Record
from fusionbench.spec import Budget, Case, Job, Shape, Visit

SCRIPT = str(Path(sys.executable).with_name("fusionbench"))


def cpu_seconds(*command: str) -> float:
    """User and system time of a command, children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_takes_less_than_150_ms_of_cpu(benchmark: BenchmarkFixture) -> None:
    spent: list[float] = []
    benchmark.pedantic(lambda: spent.append(cpu_seconds(SCRIPT, "--help")), rounds=10, warmup_rounds=1)
    benchmark.extra_info["cpu_s"] = spent
    assert min(spent) < 0.150


@pytest.mark.parametrize("words", ["fusionbench ru", "fusionbench run smoke --only dtypes=b"], ids=["verb", "value"])
def test_a_tab_takes_less_than_250_ms_of_cpu(
    benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("_FUSIONBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    spent: list[float] = []
    benchmark.pedantic(lambda: spent.append(cpu_seconds(SCRIPT)), rounds=10, warmup_rounds=1)
    benchmark.extra_info["cpu_s"] = spent
    assert min(spent) < 0.250


@pytest.mark.parametrize("arguments", [("list", "strategies"), ("plan", "smoke")], ids=" ".join)
def test_list_and_plan_take_less_than_3_s(benchmark: BenchmarkFixture, arguments: tuple[str, ...]) -> None:
    benchmark.pedantic(lambda: cpu_seconds(SCRIPT, *arguments), rounds=3, warmup_rounds=1)
    assert benchmark.stats.stats.min < 3


SHAPE = Shape(batch=1, image=4, text=3, image_width=8, text_width=8, width=8, heads=1)
TRIVIAL = [
    Job(strategy="concat", backend="eager", case=Case(shape=SHAPE, projector="identity", padding=i / 1000))
    for i in range(50)
]


def sweep(jobs: Sequence[Job], budget: Budget, plugins: Sequence[str] = ()) -> list[Record]:
    visits = (Visit(job=job) for job in jobs)
    return [record for _, record in local.run(visits, budget, plugins, lambda job: None, lambda: False)]


def test_isolation_costs_at_most_40_ms_per_job(benchmark: BenchmarkFixture) -> None:
    """Isolation: what a visit takes beside what happens in its worker. All but the timing is told beside it: building,
    honesty, checking against the reference, memory, FLOPs."""
    budget = Budget(measure_s=0.01, warmup_s=0.0, min_samples=6, max_samples=6, rounds=1)
    sweep(TRIVIAL[:1], budget)  # the server is up from here on
    isolation: list[float] = []
    beside: list[float] = []

    def run() -> None:
        start = perf_counter()
        records = sweep(TRIVIAL, budget)
        assert {record.status for record in records} == {"ok"}
        elapsed = perf_counter() - start
        isolation.append((elapsed - sum(record.wall_s for record in records)) / len(records))
        beside.append((elapsed - sum(record.phases_s["time"] for record in records)) / len(records))

    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["isolation_s_per_job"] = isolation
    benchmark.extra_info["beside_timing_s_per_job"] = beside
    assert min(isolation) < 0.040
    assert min(beside) < 0.080


def test_a_hanging_job_is_gone_within_a_second_of_its_deadline(benchmark: BenchmarkFixture) -> None:
    hangs = Job(strategy="hangs", backend="eager", case=Case(shape=SHAPE, projector="identity"))
    budget = Budget(measure_s=0.01, warmup_s=0.0, timeout_s=1.0, rounds=1)
    late: list[float] = []

    def run() -> None:
        start = perf_counter()
        (record,) = sweep([hangs], budget, [str(Path(__file__).parents[1] / "faulty.py")])
        assert record.status == "timeout"
        late.append(perf_counter() - start - budget.timeout_s)

    sweep(TRIVIAL[:1], budget)
    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["late_s"] = late
    assert max(late) < 1.0
