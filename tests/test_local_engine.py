"""Isolation: whatever a job does to its process costs that job alone, and leaves no process behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fusionbench.engines import local
from fusionbench.record import Record
from fusionbench.spec import Budget, Case, Job, Shape, Visit

PLUGIN = str(Path(__file__).with_name("faulty.py"))
SHAPE = Shape(batch=1, image=3, text=2, image_width=8, text_width=8, width=8, heads=1)
BUDGET = Budget(measure_s=0.02, warmup_s=0.0, min_samples=6, max_samples=20, timeout_s=30, rounds=1)


def job(strategy: str, backend: str = "eager") -> Job:
    return Job(strategy=strategy, backend=backend, case=Case(shape=SHAPE, projector="identity"))


def run(*jobs: Job, budget: Budget = BUDGET, stopping: Callable[[], bool] = lambda: False) -> list[Record]:
    visits = (Visit(job=each) for each in jobs)
    return [record for _, record in local.run(visits, budget, [PLUGIN], lambda job: None, stopping)]


def workers() -> list[psutil.Process]:
    """The processes that were forked from the server: below it, not the server or the resource tracker."""
    return [p for p in psutil.Process().children(recursive=True) if p.ppid() != psutil.Process().pid]


@pytest.mark.parametrize(
    ("strategy", "status", "reason"),
    [
        ("raises", "error", "ValueError: the cat is out"),
        ("segfaults", "crash", "worker was killed by SIGSEGV: Fatal Python error: Segmentation fault"),
        ("leaves", "crash", "worker exited with code 0 without a result"),
        ("killed", "crash", "worker was killed by SIGKILL (by hand, or by the kernel when memory ran out)"),
        ("hoards", "oom", "can't allocate memory"),
        ("confined", "oom", "can't allocate memory"),
        ("half_an_answer", "crash", "worker exited with code 0 without a result"),
    ],
)
def test_a_fault_costs_one_job_and_the_next_one_runs(strategy: str, status: str, reason: str) -> None:
    faulty, fine = run(job(strategy), job("fine"))
    assert faulty.status == status
    assert reason in faulty.reason
    assert "\n" not in faulty.reason
    assert faulty.phase == ("run" if status == "crash" else "first call")
    assert fine.status == "ok"


def test_a_hanging_job_is_killed_at_its_deadline() -> None:
    begun = time.monotonic()
    hung, fine = run(job("hangs"), job("fine"), budget=Budget(measure_s=0.02, warmup_s=0.0, timeout_s=1.0))
    assert (hung.status, hung.reason) == ("timeout", "no result after 1 s (budget timeout_s)")
    assert 0.95 < hung.wall_s < 3
    assert fine.status == "ok"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(("strategy", "reason"), [("lies", "output: max error"), ("breaks_down", "output: not finite")])
def test_a_wrong_result_is_never_timed(strategy: str, reason: str) -> None:
    honest, wrong = run(job(strategy), job(strategy, "sdpa"))
    assert honest.status == "ok"
    assert (wrong.status, wrong.time) == ("wrong", None)
    assert wrong.reason.startswith(reason)


def test_a_flood_of_output_reaches_neither_the_record_nor_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    (record,) = run(job("floods"))
    assert record.status == "ok"
    assert capfd.readouterr() == ("", "")


def test_no_worker_outlives_the_run() -> None:
    run(job("fine"), job("raises"))
    deadline = time.monotonic() + 5
    while workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers() == []


def test_an_interrupted_job_ends_after_its_sample_and_no_other_begins() -> None:
    asked: list[float] = []

    def stopping() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 2  # not before the first job, but once it runs

    long = Budget(measure_s=60, warmup_s=0.0, min_samples=6, max_samples=100_000, ci=1e-6)
    begun = time.monotonic()
    records = run(job("slow"), job("fine"), budget=long, stopping=stopping)
    assert time.monotonic() - begun < 20
    assert [record.job.strategy for record in records] == ["slow"]
    assert records[0].time is not None
    assert records[0].time.stop == "interrupted"


def test_a_job_that_does_not_react_to_an_interruption_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "INTERRUPT_GRACE_S", 0.5)
    asked = iter([False])
    assert run(job("hangs"), stopping=lambda: next(asked, True)) == []


def test_on_cuda_the_jobs_of_a_round_share_a_process_and_the_next_round_has_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even of a suite with one strategy and one backend, where nothing else comes in between."""
    begun: list[FakeWorker] = []

    class FakeWorker:
        def __init__(self, serving: local.Serving, plugins: object) -> None:
            self.serving, self.served = serving, 0
            begun.append(self)

        serves = local.Worker.serves

        def measure(self, visit: Visit, budget: Budget, stopping: object) -> Record:
            self.served += 1
            return Record(job=visit.job, status="ok")

        def close(self) -> None:
            pass

    monkeypatch.setattr(local, "Worker", FakeWorker)
    monkeypatch.setattr(local, "start_server", lambda: None)
    on_gpu = [Job(strategy="fine", backend=name, case=Case(shape=SHAPE, device="cuda")) for name in ("eager", "eager")]
    visits = [Visit(job=each, round=number) for number in range(3) for each in on_gpu]
    assert len(list(local.run(visits, BUDGET, [], lambda job: None, lambda: False))) == 6
    assert [worker.served for worker in begun] == [2, 2, 2]
