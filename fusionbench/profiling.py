"""One job under a profiler: a trace for Perfetto, and where its time goes, op by op.

The job runs in a process of its own, started for it: a crash costs one line, what the profiler and C++ print ends in a
log, and torch, which takes two seconds to import, is imported once, by that process alone.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from . import suite
from .errors import FusionbenchError, nearest, printable

if TYPE_CHECKING:
    import torch

    from .spec import Budget, Job
    from .subject import Subject

FOLDER = Path("results/profiles")
CALL = "fusionbench call"  # the span around every call, in the trace
PYTHON = "(Python, outside of ops)"
SHOWN = 5  # jobs to choose from
MAX_TRACE_BYTES = 4 << 30  # unpacked; 20 calls of a layer are 1 MB


class Request(Struct, frozen=True, kw_only=True):
    """What to profile, and where the files go."""

    suite: str
    only: dict[str, list[str]] = {}
    plugins: tuple[str, ...] = ()
    job: str | None = None
    calls: int = 20
    shapes: bool = False
    output: str | None = None
    proton: str | None = None
    meter: Literal["torch", "proton"] = "torch"


class Row(Struct, frozen=True, kw_only=True):
    """One op or kernel over all calls: its own time without that of the ops it called."""

    name: str
    place: Literal["host", "device"]
    calls: int
    self_ns: int
    memory_bytes: int = 0  # allocated less freed, by itself
    shapes: str = ""


class Profile(Struct, frozen=True, kw_only=True):
    """Where the time of one job went. ``plain_ns`` and ``profiled_ns`` are per call, without and with the profiler."""

    job: str
    device: str
    calls: int
    plain_ns: int
    profiled_ns: int
    rows: tuple[Row, ...]
    trace: str
    events: int
    proton: str = ""

    def of(self, place: str) -> list[Row]:
        """The rows of the host or of the device, largest first."""
        return sorted((row for row in self.rows if row.place == place), key=lambda row: -row.self_ns)


class Failure(Struct, frozen=True, kw_only=True):
    """Why there is no profile; ``usage``: what was asked for cannot be had."""

    reason: str
    usage: bool
    keys: tuple[str, ...] = ()  # of the jobs to choose from


class JobFailedError(FusionbenchError):
    """The job was skipped, wrong or failed, so that there is nothing to profile."""

    exit_code = 3


class SeveralJobsError(FusionbenchError):
    """More than one job could be meant; ``keys`` are the first of them."""

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


def run(request: Request) -> Profile:
    """Profile the one job that ``request`` means, and write its trace.

    Raises FusionbenchError for what does not exist or would be overwritten, SeveralJobsError where no job was named and
    there are several, and JobFailedError where the job does not run here, or takes twice its suite's timeout_s.
    """
    limit_s = 2 * suite.narrow(suite.read(request.suite), request.only).budget.timeout_s
    for path in (request.output, request.proton):
        if path is not None:
            _refuse_existing(Path(path))
    found = _profile_of(_asked(request, limit_s))
    if request.proton:  # in a process of its own: Kineto and Proton do not share CUPTI, which each wants for itself
        second = msgspec.structs.replace(request, job=found.job, meter="proton")
        return msgspec.structs.replace(found, proton=_profile_of(_asked(second, limit_s)).proton)
    return found


def _profile_of(found: Answer) -> Profile:
    if found.profile is not None:
        return found.profile
    failure = found.failure or Failure(reason="the job's process sent an empty answer", usage=False)
    if failure.keys:
        raise SeveralJobsError(failure.reason, failure.keys)
    raise FusionbenchError(failure.reason) if failure.usage else JobFailedError(failure.reason)


def _asked(request: Request, limit_s: float) -> Answer:
    """The answer of a fresh process, which does not outlive this call."""
    with tempfile.NamedTemporaryFile(prefix="fusionbench-profile-") as log:
        return _answer_of(request, Path(log.name), limit_s)


def _answer_of(request: Request, log: Path, limit_s: float) -> Answer:
    """The same, with what the process prints in ``log``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_enter, args=(theirs, str(log), request, os.getpid()), daemon=True)
    resource_tracker.ensure_running()  # first: when it starts, it unblocks signals
    with _signals_blocked():  # else Ctrl-C while it starts would print its traceback here
        process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise JobFailedError(f"no profile after {limit_s:g} s (twice the suite's budget timeout_s)")
        found = msgspec.json.decode(ours.recv_bytes(), type=Answer)
        process.join(1)  # compilers that it started end with it
        return found
    except EOFError:
        process.join(5)
        raise JobFailedError(_death(process.exitcode, log)) from None
    finally:
        process.kill()
        process.join()
        ours.close()
        _unfinished(_folder(request), process.pid or 0).unlink(missing_ok=True)


class Answer(Struct, frozen=True, kw_only=True):
    """What the process sends back: one of the two."""

    profile: Profile | None = None
    failure: Failure | None = None


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _death(code: int | None, log: Path) -> str:
    """One line about a process that ended without an answer."""
    how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"the job's process was {how}" + (f": {printable(lines[-1], 300)}" if lines else "")


def _enter(pipe: Connection, log: str, request: Request, parent: int) -> None:
    """The process's first step: leave the terminal alone, end with the parent, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _end_with(parent)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    pipe.send_bytes(msgspec.json.encode(answer(request)))


def _end_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends."""
    import ctypes

    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def answer(request: Request) -> Answer:
    """The profile, or why there is none."""
    try:
        return Answer(profile=_profile(request))
    except JobFailedError as error:
        return Answer(failure=Failure(reason=str(error), usage=False))
    except SeveralJobsError as error:
        return Answer(failure=Failure(reason=str(error), usage=True, keys=error.keys))
    except FusionbenchError as error:
        return Answer(failure=Failure(reason=str(error), usage=True))
    except Exception as error:
        traceback.print_exc()
        what = printable(" ".join(str(error).split()), 300)
        return Answer(failure=Failure(reason=f"the profile failed: {type(error).__name__}: {what}", usage=False))


def _profile(request: Request) -> Profile:
    chosen = suite.read(request.suite)
    import torch

    from . import registry, worker
    from .subject import build, resolve

    for plugin in request.plugins:
        registry.load_plugin(Path(plugin))
    job = one_job(suite.narrow(chosen, request.only), request.job)
    if request.proton and job.case.device == "cpu":
        raise FusionbenchError("proton needs a CUDA device: it sees what Triton launches (leave --proton away)")
    if request.proton and request.meter == "proton":
        return _with_proton(job, shortest(chosen.budget), request.calls, Path(request.proton))
    trace = Path(request.output) if request.output else _folder(request) / f"{safe_name(job.key)}.json.gz"
    _refuse_existing(trace)
    # The worker's own way through the job, with the fewest samples, says whether it is right, and sets up torch.
    budget = shortest(chosen.budget)
    record = worker.measure(job, budget)
    if record.status != "ok":
        where = f" in {record.phase}" if record.phase else ""
        raise JobFailedError(f"job '{job.key}' is {record.status}{where}: {record.reason}")
    backend, impl, _ = resolve(job)
    with torch.set_grad_enabled(job.case.training), backend.context():
        subject = build(job, impl or "", backend, budget.seed)
        return profiled(job, subject, request.calls, trace, shapes=request.shapes)


def _with_proton(job: Job, budget: Budget, calls: int, path: Path) -> Profile:
    """An otherwise empty profile with Proton's file; the job was found to be right before."""
    import torch

    from . import worker
    from .subject import build, resolve

    worker._set_up(job.case, budget)
    backend, impl, _ = resolve(job)
    with torch.set_grad_enabled(job.case.training), backend.context():
        subject = build(job, impl or "", backend, budget.seed)
        for _ in range(3):  # compilation is no part of the profile
            subject.call()
        written = proton(subject.call, calls, path)
    return Profile(
        job=job.key, device=job.case.device, calls=calls, plain_ns=0, profiled_ns=0, rows=(), trace="", events=0,
        proton=written,
    )  # fmt: skip


def shortest(budget: Budget) -> Budget:
    """The budget with no more sampling than a record needs."""
    return msgspec.structs.replace(budget, measure_s=0.001, warmup_s=0.0, min_samples=6, energy_s=0.0, rounds=1)


def _folder(request: Request) -> Path:
    return Path(request.output).parent if request.output else FOLDER


def _unfinished(folder: Path, process: int) -> Path:
    """The trace while it is written, which only that process and its parent know of."""
    return folder / f".{process}.unfinished.json.gz"


def one_job(chosen: suite.Suite, key: str | None) -> Job:
    """The job called ``key``, or the only one there is; raises with what to choose from, or why it is skipped."""
    from .plan import Plan
    from .spec import Skip

    plan = Plan(chosen)
    plan.check()
    if key is not None:
        item = next(iter(Plan(chosen, None, key)), None)
        if item is None:
            keys = [(each.job if isinstance(each, Skip) else each).key for each in plan]
            close = nearest(key, keys) if len(keys) <= 20_000 else ""
            close = close if close.startswith(";") else ""
            raise FusionbenchError(
                f"suite '{chosen.name}' has no job '{printable(key)}'{close} (see: fusionbench plan {chosen.name})"
            )
        if isinstance(item, Skip):
            raise JobFailedError(f"job '{item.job.key}' is skipped: {item.reason}")
        return item
    jobs = [item for item in plan if not isinstance(item, Skip)]
    if len(jobs) == 1:
        return jobs[0]
    if not jobs:
        raise JobFailedError(f"suite '{chosen.name}' has no job to run here (see: fusionbench plan {chosen.name})")
    raise SeveralJobsError(
        f"suite '{chosen.name}' has {len(jobs)} jobs; choose one with --job KEY (see: fusionbench plan {chosen.name})",
        [job.key for job in jobs[:SHOWN]],
    )


def safe_name(key: str) -> str:
    """A job's key as the name of a file, at most 150 characters."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", key).strip("_.")[:150]


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FusionbenchError(f"'{printable(str(path))}' is there already; name another file with -o FILE")


def profiled(job: Job, subject: Subject, calls: int, trace: Path, *, shapes: bool) -> Profile:
    """Run ``subject`` ``calls`` times without and with torch.profiler; writes the trace and checks it."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    device = torch.device(job.case.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]

    def spanned() -> None:
        with record_function(CALL):
            subject.call()

    before_ns = _per_call(subject.call, calls, device)
    with profile(activities=activities, acc_events=False):  # starts what starts once: 1.7 s the first time
        spanned()
    with profile(activities=activities, record_shapes=shapes, profile_memory=True, acc_events=False) as session:
        profiled_ns = _per_call(spanned, calls, device, warm=0)
    plain_ns = min(before_ns, _per_call(subject.call, calls, device))
    rows = tuple(_rows(session.key_averages(group_by_input_shape=shapes), shapes))
    events = write_trace(session.export_chrome_trace, trace)
    return Profile(
        job=job.key,
        device=job.case.device,
        calls=calls,
        plain_ns=plain_ns,
        profiled_ns=profiled_ns,
        rows=rows,
        trace=str(trace),
        events=events,
    )


def _per_call(call: Callable[[], object], calls: int, device: torch.device, warm: int = 3) -> int:
    """Nanoseconds per call, back to back: the median; on a GPU, where calls overlap, the mean until all are done."""
    import torch

    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    for _ in range(warm):
        call()
    wait()
    times = [perf_counter_ns()]
    for _ in range(calls):
        call()
        times.append(perf_counter_ns())
    wait()
    if device.type == "cuda":
        return (perf_counter_ns() - times[0]) // calls
    return round(statistics.median(after - before for before, after in itertools.pairwise(times)))


def _rows(averages: Sequence[Any], shapes: bool) -> Iterator[Row]:
    """Host rows by their own CPU time, device rows by their own device time.

    An op also carries the device time of the kernels that it launched: counted once, at the kernels. What our span
    has for itself is time in which no op ran, Python as a rule.
    """
    for average in averages:
        on_host = average.device_type.name == "CPU"
        if average.key == CALL and not on_host:  # the span's shadow on the device, no kernel
            continue
        yield Row(
            name=PYTHON if average.key == CALL else average.key,
            place="host" if on_host else "device",
            calls=average.count,
            self_ns=round(1e3 * (average.self_cpu_time_total if on_host else average.self_device_time_total)),
            memory_bytes=_allocated(average) if on_host and average.key != CALL else 0,
            shapes=_sizes(average.input_shapes) if shapes and average.key != CALL else "",
        )


def _allocated(average: Any) -> int:
    return int(average.self_cpu_memory_usage + average.self_device_memory_usage)


def _sizes(shapes: Sequence[Any] | None) -> str:
    """``[[2, 64], [64, 8], []]`` as ``2×64, 64×8``: arguments that are tensors."""
    return ", ".join("×".join(map(str, shape)) for shape in shapes or () if shape and not isinstance(shape[0], list))


def write_trace(export: Callable[[str], object], path: Path) -> int:
    """Let ``export`` write a gzipped Chrome trace to ``path``, which must not exist; returns its number of spans.

    Raises FusionbenchError where what was written is no trace; then nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path.parent, os.getpid())
    try:
        export(str(unfinished))
        spans = check_trace(unfinished)
        try:
            os.link(unfinished, path)  # unlike a rename it overwrites nothing
        except FileExistsError:
            _refuse_existing(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return spans


def check_trace(path: Path) -> int:
    """How many spans a gzipped Chrome trace has; raises FusionbenchError where it is none, or has none."""
    try:
        with gzip.open(path) as file:
            events = json.loads(file.read(MAX_TRACE_BYTES))["traceEvents"]
        spans = [event for event in events if event.get("ph") == "X"]
        bad = sum(not (isinstance(e.get("ts"), int | float) and e.get("dur", -1) >= 0) for e in spans)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FusionbenchError(
            f"the profiler wrote no trace: {type(error).__name__}: {printable(str(error))}"
        ) from error
    if bad or not spans:
        raise FusionbenchError(f"the profiler wrote a trace of {len(spans)} spans, {bad} of them without time")
    return len(spans)


def proton(call: Callable[[], object], calls: int, path: Path) -> str:
    """Profile ``call`` with Triton's own profiler into ``path`` (.hatchet); returns the path. Needs a CUDA device."""
    try:
        profiler = importlib.import_module("triton.profiler")
    except ImportError as error:
        raise FusionbenchError(f"proton is not in this triton: {printable(str(error))}") from error
    import torch

    _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    session = profiler.start(str(path.with_suffix("")), hook="triton")  # it adds the suffix itself
    try:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    finally:
        profiler.finalize(session, output_format="hatchet")
    return str(path)
