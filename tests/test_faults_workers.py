"""Workers that cannot be trusted: whatever they print, start, fill or refuse, they end in time and leave nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from fusionbench.engines import family, local, log
from fusionbench.remarks import remarked
from fusionbench.spec import Visit
from tests.test_local_engine import BUDGET, PLUGIN, job, run

CHILD = ["sleep", "61.25"]  # what the strategies of faulty.py start


@pytest.fixture(autouse=True, scope="module")
def server() -> None:
    """The fork server, with torch in it: a job that waits for that would be late."""
    local.start_server()


def children() -> list[int]:
    """The processes that misbehaving strategies have started."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == CHILD]


def worker_of(strategy: str) -> local.Worker:
    return local.Worker((strategy, "eager", "cpu", 0), [PLUGIN])


def eventually(empty: object, seconds: float = 5.0) -> bool:
    """Whether ``empty`` gives something empty within the time."""
    deadline = time.monotonic() + seconds
    while empty() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)
    return not empty()  # type: ignore[operator]


def test_a_worker_that_prints_for_ever_is_killed_at_its_deadline_and_fills_nothing() -> None:
    worker = worker_of("babbles")
    begun = time.monotonic()
    record = worker.measure(Visit(job=job("babbles")), msgspec.structs.replace(BUDGET, timeout_s=1.0), lambda: False)
    assert record.status == "timeout"
    assert 0.95 < time.monotonic() - begun < 4
    worker.log.drain()
    assert log.KEPT_BYTES // 2 < len(worker.log._tail) <= log.KEPT_BYTES
    worker.close()


@pytest.mark.parametrize(("strategy", "status"), [("breeds", "ok"), ("breeds_and_hangs", "timeout")])
def test_what_a_strategy_has_started_ends_with_its_worker(strategy: str, status: str) -> None:
    (record,) = run(job(strategy), budget=msgspec.structs.replace(BUDGET, timeout_s=1.0))
    assert record.status == status
    assert eventually(children)


def test_a_kill_by_the_kernel_for_memory_is_told_from_one_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(family, "oom_kills", lambda: next(counts))
    (record,) = run(job("killed"))
    assert (record.status, record.phase) == ("oom", "run")
    assert record.reason.startswith("worker was killed by the kernel because memory ran out")


def test_the_kernels_count_of_killed_processes_is_read() -> None:
    assert family.oom_kills() == family.oom_kills() >= 0


def test_a_worker_is_what_the_kernel_kills_first_when_memory_runs_out() -> None:
    worker = worker_of("fine")
    score = Path(f"/proc/{worker.process.pid}/oom_score_adj")
    assert eventually(lambda: score.read_text().strip() != "1000")
    worker.close()


def test_a_killed_fork_server_costs_one_job() -> None:
    run(job("fine"))
    server = local.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    kills = iter([signal.SIGKILL])

    def started(each: object) -> None:
        for number in kills:
            os.kill(server, number)
            os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)  # multiprocessing wants to find out itself

    found = list(local.run([Visit(job=job("slow")), Visit(job=job("fine"))], BUDGET, [PLUGIN], started, lambda: False))
    assert [record.status for _, record in found] == ["crash", "ok"]


def test_a_stopped_sample_is_kept_and_told() -> None:
    (record,) = run(job("stops"), budget=msgspec.structs.replace(BUDGET, rounds=1))
    assert record.time is not None
    assert sum(sample > 600_000_000 for sample in record.time.samples_ns) == 1
    (note,) = (note for note in remarked(record).notes if "as if the process was stopped" in note)
    assert note.startswith("a sample took 0.")


def test_a_run_that_was_stopped_as_a_whole_is_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z, 5 s, fg: the clock has moved on and the worker has not."""
    worker = worker_of("stops")
    ahead = [0.0]
    monkeypatch.setattr(local, "monotonic", lambda: time.monotonic() + ahead[0])

    def stopping() -> bool:  # asked after each look: the first one finds that an hour has passed
        ahead[0] = 3600.0
        return False

    record = worker.measure(Visit(job=job("stops")), msgspec.structs.replace(BUDGET, timeout_s=20.0), stopping)
    worker.close()
    assert record.status == "ok"


def test_a_worker_that_is_stopped_for_good_is_killed_at_its_deadline() -> None:
    worker = worker_of("slow")
    os.kill(worker.process.pid or 0, signal.SIGSTOP)
    record = worker.measure(Visit(job=job("slow")), msgspec.structs.replace(BUDGET, timeout_s=0.5), lambda: False)
    assert record.status == "timeout"
    worker.close()
