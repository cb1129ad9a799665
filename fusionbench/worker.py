"""Measure jobs inside a process of its own: each request comes through a pipe and leaves as one record."""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from types import FrameType

import msgspec
import torch

from . import backends, registry, rounds
from .meters import control, flops, memory, time
from .record import Record, Status, Timing, encode_record
from .spec import Budget, Case, Job, Visit
from .subject import Subject, build, closed_form, resolve
from .verify import ReferenceFailed, check


class Request(msgspec.Struct, frozen=True):
    """What the runner sends."""

    visit: Visit
    budget: Budget


@dataclass
class Interrupt:
    """Whether the user asked to stop; told by SIGINT, read by the timer between two samples."""

    asked: bool = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@dataclass
class Phases:
    """Which step runs now, and how long each one took."""

    current: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def enter(self, name: str) -> Iterator[None]:
        self.current, start = name, perf_counter()
        yield
        self.seconds[name] = perf_counter() - start


def serve(pipe: Connection, plugins: Sequence[str] = ()) -> None:
    """Answer requests with records until the other side closes the pipe."""
    interrupt = Interrupt()
    signal.signal(signal.SIGINT, interrupt.note)
    for plugin in plugins:
        registry.load_plugin(Path(plugin))
    while True:
        try:
            request = msgspec.json.decode(pipe.recv_bytes(), type=Request)
        except EOFError:
            return
        pipe.send_bytes(encode_record(measure(request.visit, request.budget, interrupt)))


def measure(visit: Visit | Job, budget: Budget, interrupt: Interrupt | None = None) -> Record:
    """Visit a job and return the record of this round; a failure of the job is a record, not an exception."""
    visit = visit if isinstance(visit, Visit) else Visit(job=visit)
    job = visit.job
    phases, started, start = Phases(), datetime.now(UTC), perf_counter()
    try:
        found = _measure(visit, budget, phases, interrupt or Interrupt())
    except Exception as error:
        traceback.print_exc()
        status, reason = _classify(error)
        found = Record(job=job, status=status, reason=reason, phase="" if status == "skipped" else phases.current)
    return msgspec.structs.replace(
        found,
        source=backends.source(registry.get(job.strategy), backends.get(job.backend)),
        started_at=started.isoformat(timespec="milliseconds"),
        wall_s=perf_counter() - start,
        phases_s=phases.seconds,
    )


def _measure(visit: Visit, budget: Budget, phases: Phases, interrupt: Interrupt) -> Record:
    job = visit.job
    backend, impl, reason = resolve(job)
    if impl is None or reason is not None:
        return Record(job=job, status="skipped", reason=reason or "")
    device = _set_up(job.case, budget)
    torch.compiler.reset()  # a worker that serves many shapes would stop compiling at the ninth (recompile_limit)
    with torch.set_grad_enabled(job.case.training), backend.context():
        with phases.enter("build"):
            subject = build(job, impl, backend, budget.seed, budget.seed + visit.round)
        with phases.enter("first call"):
            first_call_ns = time.first_call(subject.call, device)
        with phases.enter("accuracy"):
            errors, problem = check(job, subject, budget)
        if problem is not None:
            return Record(job=job, status="wrong", reason=problem, phase="accuracy", accuracy=errors)
        with phases.enter("time"):
            timing = _time(visit, subject, rounds.share(budget, phases.seconds), device, interrupt, first_call_ns)
        if visit.round > 0:
            return Record(job=job, status="ok", time=timing, accuracy=errors)
        with phases.enter("memory"):
            used, kernels = memory.measure(subject.call, device, subject.resting_bytes)
        if backend.compiles and "Torch-Compiled" not in kernels:
            raise RuntimeError(f"backend '{backend.name}' ran without compiling")
        if backend.impl.startswith("triton") and not any(name.startswith("triton:") for name in kernels):
            return Record(job=job, status="skipped", reason="fusionbench_kernels has no kernel for this device")
        with phases.enter("flops"):
            counted = None if backend.compiles else flops.count_flops(subject.call).flops
    costs = closed_form(job, impl, counted)
    # int8 products are padded to the sizes that the hardware takes, and counted so.
    differs = counted is not None and counted != costs.flops and job.case.dtype != "int8"
    note = f"FlopCounterMode counts {counted} FLOPs, the closed form says {costs.flops}"
    return Record(
        job=job,
        status="ok",
        time=timing,
        memory=used,
        accuracy=errors,
        costs=costs,
        kernels=kernels,
        notes=(note,) if differs else (),
    )


def _time(
    visit: Visit, subject: Subject, budget: Budget, device: torch.device, interrupt: Interrupt, first_call_ns: int
) -> Timing:
    """The samples of one round, between two looks at how fast this machine is just now."""
    before = control.control_ns(device)
    timing = time.measure(subject.call, budget, device, lambda: interrupt.asked, first_call_ns, loops=visit.loops)
    after = control.control_ns(device)
    return msgspec.structs.replace(
        timing,
        rounds=(len(timing.samples_ns),),
        seeds=(budget.seed + visit.round,),
        control_ns=((before + after) // 2,),
    )


def _set_up(case: Case, budget: Budget) -> torch.device:
    torch.set_num_threads(budget.threads)
    device = torch.device(case.device)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        # cuDNN's convolutions use tf32 by default: an fp32 row would not be one.
        torch.set_float32_matmul_precision("high" if case.dtype == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
    return device


_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


def _classify(error: Exception) -> tuple[Status, str]:
    """The status and the one-line reason that an exception stands for."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
    if isinstance(error, ReferenceFailed):
        return "error", text
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return "oom", text
    if any(words in str(error) for words in ("No available kernel", "No viable backend")):
        return "skipped", text
    return "error", text
