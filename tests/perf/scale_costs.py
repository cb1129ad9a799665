"""What a simulation of many slots is fed with, measured on this machine: the driver's work for a visit, planning, Ray.

Computing is counted on the core, which other work on this machine hardly moves; what waits for a disk, for another process
or for other threads is timed by the clock.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time, sleep, thread_time

import msgspec
from msgspec.structs import replace

from fusionbench import launch, store, suite
from fusionbench.engines import local
from fusionbench.environment import capture
from fusionbench.record import Record, decode_record, encode_record
from fusionbench.remarks import remarked
from fusionbench.runner import Silent, complete, run
from fusionbench.schedule import Agenda
from fusionbench.slices import Slices
from fusionbench.slicing import cost_s
from fusionbench.spec import Budget, Job, Visit
from tests.perf import scale_model as model
from tests.perf.test_sweep_perf import TRIVIAL

_encoder = msgspec.json.Encoder()

VISITS = 2_000  # of the driver that are timed
STARTS = 3  # of a worker
RAY_SCRIPT = Path(__file__).with_name("scale_ray.py")
PLANNED = """
title = "A plan of 2,048 jobs"
[[sweep]]
strategies = ["concat_attention", "cross_attention", "co_attention", "bottleneck"]
backends = ["sdpa", "eager"]
batch = [1, 2, 3, 4]
image = [16, 32, 48, 64, 80, 96, 112, 128]
text = [16, 32, 48, 64, 80, 96, 112, 128]
image_width = [64]
text_width = [64]
width = [64]
heads = [2]
"""


# --- jobs ------------------------------------------------------------------------------------------------------------


def questions_of(records: Iterable[Record], budget: Budget) -> list[list[model.Job]]:
    """The measured jobs of a run, question by question: what slicing.py expects of each, and what each visit took.

    ``phases_s`` is of the first round; the others share evenly what is left of ``wall_s``.
    """
    found: dict[str, list[model.Job]] = {}
    for record in records:
        if record.status == "ok" and record.time:
            job = model.Job(cost_s(record.job, budget), _visits(record, len(record.time.round_sizes)))
            found.setdefault(record.job.case.question, []).append(job)
    return list(found.values())


def _visits(record: Record, rounds: int) -> tuple[float, ...]:
    if rounds == 1:
        return (record.wall_s,)
    first = min(sum(record.phases_s.values()), record.wall_s)
    return (first, *[(record.wall_s - first) / (rounds - 1)] * (rounds - 1))


def isolation_s() -> float:
    """What starting and ending its process adds to each visit, on any slot."""
    budget = Budget(measure_s=0.01, warmup_s=0.0, min_samples=6, max_samples=6, rounds=1)

    def elapsed(count: int) -> float:
        start = perf_counter()
        visits = (Visit(job=job) for job in TRIVIAL[:count])
        records = [record for _, record in local.run(visits, budget, (), lambda job: None, lambda: False)]
        return (perf_counter() - start - sum(record.wall_s for record in records)) / count

    elapsed(1)  # the server is up from here on
    return min(elapsed(len(TRIVIAL)) for _ in range(3))


# --- the process that keeps the run ------------------------------------------------------------------------------------


@dataclass
class Replay:
    """An engine that has measured everything already: it notes what the thread computes from one request to the next,
    without what ``appends_s`` says of storing."""

    answers: dict[str, bytes]
    python_s: list[float] = field(default_factory=list)
    appends_s: list[float] = field(default_factory=list)

    def __call__(
        self, visits: Iterable[Visit], budget: Budget, plugins: Sequence[str], *_: object
    ) -> Generator[tuple[Visit, Record], None, None]:
        start = thread_time()
        for visit in visits:
            _encoder.encode({"visit": visit, "budget": budget})
            yield visit, decode_record(self.answers[visit.job.key])
            now = thread_time()
            self.python_s.append(now - start - self.appends_s[-1])
            start = now


def python_s(records: Sequence[Record], folder: Path) -> list[float]:
    """What the runner computes for each of many visits, beside storing the record."""
    jobs = dict(_others(records, VISITS))
    engine = Replay({job.key: encode_record(replace(record, job=job)) for job, record in jobs.items()})
    environment = capture()
    with store.Writer(_new_run(folder), environment) as writer:

        def append(record: Record) -> None:
            start = thread_time()
            writer.append(record)
            engine.appends_s.append(thread_time() - start)

        run(list(jobs), engine, environment, append, Silent(), budget=Budget(rounds=1), seed=1)
    return engine.python_s


@dataclass(frozen=True)
class Together:
    """What threads that share a store took: in all, and for each record while the others could store none."""

    elapsed_s: float
    stores_s: list[float]


def together(records: Sequence[Record], folder: Path, slots: int, visits: int, length_s: float) -> Together:
    """So many threads on this machine, each of which makes so many visits of ``length_s`` (asleep) and does for each record
    what the driver of many slots does. ``folder`` is on the disk that is meant."""
    jobs = dict(_others(records, slots * visits))
    environment, budget = capture(), Budget(rounds=1)
    answers = {job.key: encode_record(replace(record, job=job)) for job, record in jobs.items()}
    lock, stores_s = threading.Lock(), []

    def measure(mine: Sequence[Job]) -> None:
        agenda = Agenda(mine, budget, 1)
        for visit in agenda:
            _encoder.encode({"visit": visit, "budget": budget})
            sleep(length_s)
            found = decode_record(answers[visit.job.key])
            record = remarked(agenda.join(visit, complete(found, environment)))
            with lock:
                begun = perf_counter()
                writer.append(record)
                stores_s.append(perf_counter() - begun)

    with store.Writer(_new_run(folder), environment) as writer:
        threads = [threading.Thread(target=measure, args=(list(jobs)[number::slots],)) for number in range(slots)]
        start = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Together(perf_counter() - start, stores_s)


def _new_run(folder: Path) -> Path:
    return store.create(folder, store.new_manifest(suite_name="scale", suite_hash="h"), "")


def _others(records: Sequence[Record], count: int) -> Iterator[tuple[Job, Record]]:
    """The same records again and again, each time of another job."""
    ok = [record for record in records if record.status == "ok"]
    for number in range(count):
        batch, place = divmod(number, len(ok))
        case = ok[place].job.case
        shape = replace(case.shape, batch=1 + batch)
        yield replace(ok[place].job, case=replace(case, shape=shape)), ok[place]


# --- before the first visit ----------------------------------------------------------------------------------------------


def planning_s(folder: Path, slices: Slices | None = None) -> tuple[float, float]:
    """Computing for each job of a sweep until its first visit: what is planned before any of them is measured, and making
    the job when it is its turn.

    With ``slices`` every job of the sweep counts, not only those of the slice.
    """
    chosen = suite.parse(PLANNED, "plan", "plan")
    jobs = chosen.count
    start = process_time()
    prepared = launch.new(
        chosen, folder, budget=chosen.budget, only={}, slices=slices, fresh=True, order_seed=1, warn=print
    )
    launch.tally(prepared)
    for _ in launch._skip_records(prepared, {}):
        pass
    planned = process_time()
    for _ in prepared.jobs():
        pass
    return (planned - start) / jobs, (process_time() - planned) / jobs


def start_s() -> list[float]:
    """How long a process takes until it could measure: Python, torch, strategies."""

    def once() -> float:
        start = perf_counter()
        subprocess.run([sys.executable, "-c", "import fusionbench.engines.cradle"], check=True)
        return perf_counter() - start

    return [once() for _ in range(STARTS)]


# --- Ray -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RayCosts:
    """What Ray's part of a visit takes: ``calls_s`` of the driver's thread, ``trip_s`` the rest of a round trip,
    ``look_s`` looking for an answer in vain;
    ``create_s`` of the driver's thread for an actor, ``start_s`` until one is there."""

    version: str
    calls_s: list[float]
    trip_s: list[float]
    look_s: float
    create_s: float
    start_s: list[float]


def ray_missing() -> str | None:
    """Why Ray cannot be measured here; None if it can."""
    return None if importlib.util.find_spec("ray") else "ray is not installed (pip install 'fusionbench[ray]')"


def ray_costs(request: int, answer: int) -> RayCosts:
    """Measured in a process of its own with messages of so many bytes; raises RuntimeError with Ray's last words."""
    variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    line = [sys.executable, str(RAY_SCRIPT), str(request), str(answer)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=variables)
    if done.returncode:
        raise RuntimeError(f"Ray could not be measured: {done.stderr.strip()[-500:]}")
    return RayCosts(**json.loads(done.stdout.splitlines()[-1]))
