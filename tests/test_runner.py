"""The runner: what it adds to a record, what it throws away, and how two interruptions differ from one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from fusionbench.record import Environment, Record, Status, Timing
from fusionbench.runner import run
from fusionbench.spec import Budget, Case, Dtype, Job, Shape, Visit

ONCE = Budget(rounds=1)

SHAPE = Shape(batch=1, image=3, text=2, image_width=8, text_width=8, width=8, heads=1)
OLD_CPU = Environment(
    id="e1",
    machine="m",
    system="Linux",
    python="3.11",
    torch="2.13.0",
    triton="",
    cpu="old",
    cores=2,
    memory_bytes=1,
    cpu_flags=("avx2",),
)


def job(dtype: Dtype = "fp32", strategy: str = "concat") -> Job:
    return Job(strategy=strategy, backend="eager", case=Case(shape=SHAPE, dtype=dtype))


def timing(samples: int, stop: str = "precise") -> Timing:
    return Timing(
        timer="wall", cache="hot", loops=1, samples_ns=(1,) * samples, stop=stop,  # type: ignore[arg-type]
        first_call_ns=1, warmup_calls=2, threads=1,
    )  # fmt: skip


@dataclass
class Heard:
    """A listener that remembers."""

    begun: list[Job] = field(default_factory=list)
    done: list[Record] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)

    def started(self, job: Job) -> None:
        self.begun.append(job)

    def visited(self, visit: Visit, record: Record, last: bool) -> None:
        self.done.append(record)

    def interrupted(self, signal_name: str) -> None:
        self.signals.append(signal_name)


def engine(answer: Callable[[Job], Record], stops: bool = True):  # type: ignore[no-untyped-def]
    """An engine without processes: ``answer`` makes the record."""

    def fake(
        visits: Iterable[Visit],
        budget: Budget,
        plugins: Sequence[str],
        started: Callable[[Job], None],
        stopping: Callable[[], bool],
    ) -> Iterator[tuple[Visit, Record]]:
        for visit in visits:
            if stops and stopping():
                return
            started(visit.job)
            yield visit, answer(visit.job)

    return fake


def test_every_record_is_stored_before_the_next_job_begins() -> None:
    log: list[str] = []

    def answer(each: Job) -> Record:
        log.append(f"measure {each.strategy}")
        return Record(job=each, status="ok", time=timing(10))

    jobs = [job(strategy="a"), job(strategy="b")]
    run(jobs, engine(answer), OLD_CPU, lambda r: log.append(f"store {r.job.strategy}"), Heard(), budget=ONCE)
    assert log in (
        ["measure a", "store a", "measure b", "store b"],
        ["measure b", "store b", "measure a", "store a"],
    )


@pytest.mark.parametrize(
    ("dtype", "words"), [("bf16", "bf16 is emulated"), ("fp16", "fp16 is emulated"), ("fp32", None)]
)
def test_a_dtype_that_the_hardware_emulates_is_noted_in_the_record(dtype: Dtype, words: str | None) -> None:
    stored: list[Record] = []
    run(
        [job(dtype)], engine(lambda each: Record(job=each, status="ok", time=timing(10))), OLD_CPU, stored.append, Heard(),
        budget=ONCE,
    )  # fmt: skip
    (record,) = stored
    assert record.environment == "e1"
    assert [note for note in record.notes if words and words in note] == list(record.notes)
    assert bool(record.notes) == (words is not None)


def test_statuses_are_counted() -> None:
    statuses: Iterator[Status] = iter(["ok", "oom", "ok", "wrong"])
    outcome = run(
        [job(strategy=name) for name in "abcd"], engine(lambda each: Record(job=each, status=next(statuses))), OLD_CPU,
        lambda record: None, Heard(), budget=ONCE,
    )  # fmt: skip
    assert outcome.statuses == {"ok": 2, "oom": 1, "wrong": 1}
    assert outcome.signal == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_run_after_the_running_job(number: signal.Signals) -> None:
    stored, heard = [], Heard()

    def answer(each: Job) -> Record:
        os.kill(os.getpid(), number)
        return Record(job=each, status="ok", time=timing(10, "interrupted"))

    outcome = run([job(strategy="a"), job(strategy="b")], engine(answer), OLD_CPU, stored.append, heard, budget=ONCE)
    assert [record.job for record in stored] == heard.begun
    assert len(stored) == 1
    assert (outcome.signal, heard.signals) == (number, [number.name])
    assert signal.getsignal(number) is not None


def test_a_job_cut_off_with_too_few_samples_is_not_done() -> None:
    stored: list[Record] = []
    run(
        [job()], engine(lambda each: Record(job=each, status="ok", time=timing(3, "interrupted"))), OLD_CPU, stored.append,
        Heard(), budget=Budget(min_samples=6, rounds=1),
    )  # fmt: skip
    assert stored == []


def test_a_job_whose_other_timers_were_cut_off_is_not_done() -> None:
    stored: list[Record] = []
    whole, cut = timing(10), timing(1, "interrupted")
    run(
        [job()], engine(lambda each: Record(job=each, status="ok", time=whole, timers=(whole, cut))), OLD_CPU,
        stored.append, Heard(), budget=ONCE,
    )  # fmt: skip
    assert stored == []


def test_the_second_signal_ends_the_run_at_once() -> None:
    stored = []

    def answer(each: Job) -> Record:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal should have ended this")

    outcome = run([job()], engine(answer), OLD_CPU, stored.append, Heard(), budget=ONCE)
    assert (stored, outcome.signal) == ([], signal.SIGINT)


def test_the_users_own_signal_handlers_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run([], engine(lambda each: Record(job=each, status="ok")), OLD_CPU, lambda record: None, Heard(), budget=ONCE)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
