"""One visit of a job, step by step: built, run, found right and honest, timed, found so again, weighed."""

from __future__ import annotations

import contextlib
import sys
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from types import FrameType

import msgspec
import torch

from . import backends, honesty, registry, rounds, settings
from .device_loss import loss
from .errors import UnknownNameError
from .meters import control, energy, flops, memory, parts, time
from .meters.device import Monitor
from .meters.device import notes as seen_by
from .meters.sampler import TimerError
from .record import Record, Status, Timing
from .spec import Budget, Case, Job, Visit
from .subject import Subject, build, closed_form, resolve
from .verify import ReferenceFailed, check

OTHER_TIMERS = 0.2  # of the budget, for each timer beside the first


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


@dataclass(frozen=True)
class Sampling:
    """What every timing of a visit needs."""

    visit: Visit
    subject: Subject
    device: torch.device
    monitor: Monitor
    interrupt: Interrupt
    turns: time.Turns | None


def measure(
    visit: Visit | Job, budget: Budget, interrupt: Interrupt | None = None, turns: time.Turns | None = None
) -> Record:
    """Visit a job and return the record of this round; a failure of the job is a record, not an exception.

    With ``turns`` another process is measured between the samples: it is they that say when, and for how long.
    """
    visit = visit if isinstance(visit, Visit) else Visit(job=visit)
    job, phases, started, start = visit.job, Phases(), datetime.now(UTC), perf_counter()
    try:
        found = _measure(visit, budget, phases, interrupt or Interrupt(), turns)
    except Exception as error:
        traceback.print_exc()
        status, reason = _classify(error)
        found = Record(job=job, status=status, reason=reason, phase="" if status == "skipped" else phases.current)
    return msgspec.structs.replace(
        found,
        source=_source(job),
        started_at=started.isoformat(timespec="milliseconds"),
        wall_s=perf_counter() - start,
        phases_s=phases.seconds,
    )


def _source(job: Job) -> str:
    """The hash of the job's code; empty where there is none."""
    try:
        return backends.source(registry.get(job.strategy), backends.get(job.backend))
    except UnknownNameError:
        return ""


def _measure(
    visit: Visit, budget: Budget, phases: Phases, interrupt: Interrupt, turns: time.Turns | None = None
) -> Record:
    """Everything in the first round; in a later one the samples, and in one of those whether the result is right."""
    job, first = visit.job, visit.round == 0
    backend, impl, reason = resolve(job)
    if impl is None or reason is not None:
        return Record(job=job, status="skipped", reason=reason or "")
    where, errors = _set_up(job.case, budget), None
    if "torch._dynamo" in sys.modules:  # else reset imports it, 1.2 s
        torch.compiler.reset()  # a worker that serves many shapes would stop compiling at the ninth (recompile_limit)
    with (
        torch.set_grad_enabled(job.case.training),
        backend.context(),
        settings.kept() as kept,
        Monitor(job.case.device, turns.root if turns else 0) as monitor,
    ):
        with phases.enter("build"):
            subject = build(job, impl, backend, budget.seed, budget.seed + visit.round)
        with phases.enter("first call"):
            first_call_ns = time.first_call(subject.call, where)
        notes: tuple[str, ...] = ()
        if first:
            with phases.enter("honesty"):
                problem, notes = honesty.before(job, subject)
            if (problem := kept.changed() or problem) is not None:
                return Record(job=job, status="wrong", reason=problem, phase="honesty")
            with phases.enter("accuracy"):
                errors, problem = check(job, subject, budget)
            if problem is not None:
                return Record(job=job, status="wrong", reason=problem, phase="accuracy", accuracy=errors)
        sampling = Sampling(visit, subject, where, monitor, interrupt, turns)
        with phases.enter("time"):
            timing = _time(sampling, rounds.share(budget, phases.seconds, visit.round), first_call_ns)
        problem = kept.changed()
        if problem is None and (first or visit.round == _checked_again(visit, budget)):
            with phases.enter("recheck"):
                problem = honesty.after(job, subject, budget)
        if problem is not None:
            return Record(job=job, status="wrong", reason=problem, phase="recheck", accuracy=errors)
        state = monitor.state()
        notes += seen_by(state, job.case.device)
        timed = Record(job=job, status="ok", time=timing, device=state, accuracy=errors, notes=notes)
        return _weighed(timed, sampling, impl, budget, phases, kept) if first else timed


def _checked_again(visit: Visit, budget: Budget) -> int:
    """The later round after which the result is compared once more: every one looks alike to what is measured."""
    return 1 + zlib.crc32(f"{budget.seed} {visit.job.key}".encode()) % max(1, budget.rounds - 1)


def _time(sampling: Sampling, budget: Budget, first_call_ns: int) -> Timing:
    """The samples of one round, between two looks at how fast this machine is just now; by turns the other process is
    the look at the machine."""
    visit, subject, where = sampling.visit, sampling.subject, sampling.device
    if sampling.turns is not None and where.type == "cuda":
        torch.cuda.empty_cache()  # what the reference needed is the other process's to use
    before = control.control_ns(where) if sampling.turns is None else 0
    timing = time.measure(
        subject.call, budget, where, lambda: sampling.interrupt.asked, first_call_ns,
        loops=visit.loops, turn=subject.turn, monitor=sampling.monitor, turns=sampling.turns,
    )  # fmt: skip
    controls = ((before + control.control_ns(where)) // 2,) if sampling.turns is None else ()
    return msgspec.structs.replace(
        timing,
        rounds=(len(timing.samples_ns),),
        seeds=(budget.seed + visit.round,),
        control_ns=controls,
    )


def _weighed(
    timed: Record, sampling: Sampling, impl: str, budget: Budget, phases: Phases, kept: settings.Kept
) -> Record:
    """The record with all that one round is enough for: the other timers, memory, parts, FLOPs and energy."""
    job, subject, where = timed.job, sampling.subject, sampling.device
    backend = backends.get(job.backend)
    others = where.type == "cuda" and sampling.turns is None
    timers, silent = _other_timers(sampling, budget, phases) if others else ((), ())
    with phases.enter("memory"):
        used = memory.measure(subject.call, where, subject.resting_bytes)
    if backend.compiles and "Torch-Compiled" not in used.kernels:
        raise RuntimeError(f"backend '{backend.name}' ran without compiling")
    if backend.impl.startswith("triton") and not any(name.startswith("triton:") for name in used.kernels):
        return Record(job=job, status="skipped", reason="fusionbench_kernels has no kernel for this device")
    with phases.enter("parts"):
        spent = parts.measure(subject.call, subject.module, where)
    with phases.enter("flops"):
        counted = None if backend.compiles else flops.count_flops(subject.call).flops
    drawn = None
    if budget.energy_s:
        with phases.enter("energy"):
            drawn = energy.measure(subject.call, where, budget.energy_s, lambda: sampling.interrupt.asked)
    costs = closed_form(job, impl, counted)
    # int8 products are padded to the sizes that the hardware takes, and counted so.
    differs = counted is not None and counted != costs.flops and job.case.dtype != "int8"
    note = f"FlopCounterMode counts {counted} FLOPs, the closed form says {costs.flops}"
    return msgspec.structs.replace(
        timed,
        timers=timers,
        memory=used.memory,
        energy=drawn,
        costs=costs,
        kernels=used.kernels,
        launches=used.launches,
        parts=spent,
        notes=timed.notes + silent + used.notes + kept.notes() + ((note,) if differs else ()),
    )


def _other_timers(sampling: Sampling, budget: Budget, phases: Phases) -> tuple[tuple[Timing, ...], tuple[str, ...]]:
    """The same call by the budget's other timers on CUDA, and why one of them could not time it."""
    found, notes = [], []
    for timer in dict.fromkeys(budget.timers[1:]):
        try:
            with phases.enter(f"timer {timer}"):
                timing = time.measure(
                    sampling.subject.call, budget, sampling.device, lambda: sampling.interrupt.asked,
                    timer=timer, turn=sampling.subject.turn, monitor=sampling.monitor, share=OTHER_TIMERS,
                )  # fmt: skip
            found.append(timing)
        except (TimerError, RuntimeError) as error:  # a call that synchronises cannot be captured in a graph
            if loss(error) is not None:
                raise
            for leaf in sampling.subject.leaves:  # what broke off in a backward pass has left gradients to add to
                leaf.grad = None
            notes.append(f"no timer '{timer}': {(str(error).splitlines() or [type(error).__name__])[0][:200]}")
    return tuple(found), tuple(notes)


def _set_up(case: Case, budget: Budget) -> torch.device:
    torch.set_num_threads(budget.threads)
    where = torch.device(case.device)
    if where.type == "cuda":
        if where.index is not None:
            torch.cuda.set_device(where)
        # cuDNN's convolutions use tf32 by default: an fp32 row would not be one.
        torch.set_float32_matmul_precision("high" if case.dtype == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
    return where


_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


def _classify(error: Exception) -> tuple[Status, str]:
    """The status and the one-line reason that an exception stands for."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
    if isinstance(error, ReferenceFailed):
        return "error", text
    if isinstance(error, UnknownNameError):  # another revision than the one that planned the job
        return "skipped", str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return "oom", text
    if any(words in str(error) for words in ("No available kernel", "No viable backend")):
        return "skipped", text
    return "error", text
