"""Where the time of a call goes: what its ops or kernels took, by what they were for, from a few profiled calls.

While these calls run, and only then, ranges are put around the methods of modules that say what they are for: ``read``
and ``read_projected`` are a module's attention, a class called …FeedForward, …FFN or …MLP is a feed-forward layer, one
called …Linear a projection. ``nn.Linear`` and attention that has an op of its own are known by the names of their ops.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median_low
from time import perf_counter_ns
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..record import PARTS, Parts
from .time import run_delay

CALL = "fusionbench call"
_RANGE = "fusionbench part: "
ATTENTION, PROJECTIONS, FEED_FORWARD, OTHER, COMPILED, BACKWARD, OPTIMIZER = PARTS

# Calls go on until a few did not wait for a core, but neither too often nor for too long.
CALM_CALLS, MOST_CALLS, TOO_LONG_NS = 3, 10, 1_000_000_000
CALM = 0.01  # of a call, waited

_METHODS = ("read", "read_projected")
_FEED_FORWARD = re.compile(r"(FeedForward|FFN|MLP|Mlp)$")
_ATTENTION = re.compile(r"::\w*attention")
_COMPILED = re.compile(r"^(Torch-Compiled Region|## Call CompiledFxGraph)")
_BY_NAME = (
    (_COMPILED, COMPILED),
    (re.compile(r"^Optimizer\.step"), OPTIMIZER),
    (_ATTENTION, ATTENTION),
    (re.compile(r"::(\w+_)?linear$"), PROJECTIONS),
)
_NODE = "autograd::engine::evaluate_function: "
_RUNTIME = re.compile(r"(cuda|cu|hip)[A-Z]")  # calls of the driver, whose numbers are their own
_USER_SCOPE = 7  # of at::RecordScope: a range of Python's, not an op; what is compiled has no ops inside, and counts


def measure(call: Callable[[], object], module: nn.Module, device: torch.device) -> Parts | None:
    """What the ops of one ``call`` took, on CUDA its kernels, copies and fills; None where the profiler sees none."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with marked(module), run_delay() as waited, profile(activities=activities, acc_events=False) as session:
        begun, calm = perf_counter_ns(), 0
        for _ in range(MOST_CALLS):
            start, before = perf_counter_ns(), waited() or 0
            with record_function(CALL):
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            calm += (waited() or 0) - before <= CALM * (perf_counter_ns() - start)
            if calm == CALM_CALLS or perf_counter_ns() - begun > TOO_LONG_NS:
                break
    return split(session.profiler.kineto_results.events(), device)


# --- ranges --------------------------------------------------------------------------------------------------------


@contextmanager
def marked(module: nn.Module) -> Iterator[None]:
    """Ranges around the methods of ``module`` that tell what is done there; in this block alone."""
    changed: list[tuple[nn.Module, str]] = []
    try:
        for each in _open(module):
            for name, part in _marks(each):
                if name not in vars(each):
                    setattr(each, name, _ranged(getattr(each, name), part))
                    changed.append((each, name))
        yield
    finally:
        for each, name in changed:
            delattr(each, name)


def _open(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that Python runs one by one: compiled code would be compiled again for a range inside it."""
    if not hasattr(module, "_orig_mod") and getattr(module, "_compiled_call_impl", None) is None:
        yield module
        for child in module.children():
            yield from _open(child)


def _marks(module: nn.Module) -> Iterator[tuple[str, str]]:
    """The methods of a module that are a part each."""
    kind = type(module)
    if _FEED_FORWARD.search(kind.__name__):
        yield "forward", FEED_FORWARD
    elif kind.__name__.endswith("Linear") and kind is not nn.Linear:
        yield "forward", PROJECTIONS
    yield from ((name, ATTENTION) for name in _METHODS if isinstance(getattr(kind, name, None), FunctionType))


def _ranged(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    def within(*arguments: Any, **named: Any) -> Any:
        with record_function(_RANGE + part):
            return function(*arguments, **named)

    return within


# --- what the profiler saw -----------------------------------------------------------------------------------------


@dataclass
class Work:
    """An op or a kernel: when it began or was launched on the host, how long it took, what for."""

    name: str
    moment: int
    ns: int
    part: str


@dataclass
class Thread:
    """Where one thread of the host is: in which op, and in which ranges, each with its end and what it is for."""

    op: Work
    until: int = 0
    attention_until: int = 0  # within compiled code
    ranges: list[tuple[int, str | None]] = field(default_factory=list)


@dataclass
class Host:
    """The outermost ops of all threads, what each op is for, by its number, and the ranges that were open when."""

    ops: list[Work] = field(default_factory=list)
    parts: dict[int, str] = field(default_factory=dict)
    ranges: list[tuple[int, int, str]] = field(default_factory=list)


def split(events: Iterable[Any], device: torch.device) -> Parts | None:
    """The parts of a call, from the profiler's raw events of a few."""
    on_cuda = device.type == "cuda"
    ordered = sorted(((e.start_ns(), -e.end_ns(), i, e) for i, e in enumerate(events)), key=lambda each: each[:3])
    if on_cuda:
        on_host = [each for each in ordered if each[3].device_type().name == "CPU"]
        runtime = {e.correlation_id(): start for start, _, _, e in on_host if _RUNTIME.match(e.name())}
        host = walk([each for each in on_host if not _RUNTIME.match(each[3].name())])
        work = _kernels([e for *_, e in ordered if e.device_type().name == "CUDA"], host, runtime)
    else:
        on_host = ordered
        work = walk(on_host).ops
    calls = [(start, -end) for start, end, _, e in on_host if e.name() == CALL]
    by_call = [[each for each in work if first <= each.moment < last] for first, last in calls]
    # What disturbs an op on the CPU makes it longer; kernels are held against a median, and are medians as well.
    sums = combined(by_call, median_low if on_cuda else min)
    found = {f"{part}_ns": ns for part, ns in sums.items()}
    return Parts(**found) if any(found.values()) else None


def combined(calls: Sequence[Sequence[Work]], pick: Callable[[Iterable[int]], int]) -> dict[str, int]:
    """What the ops of a call took by part, each what ``pick`` says of its times in all calls; those of the quickest
    call where the calls do not run the same ops."""
    if len({tuple(work.name for work in call) for call in calls}) > 1:
        calls = [min(calls, key=lambda call: sum(work.ns for work in call))]
    sums: dict[str, int] = defaultdict(int)
    for same in zip(*calls, strict=True):
        sums[same[0].part] += pick(work.ns for work in same)
    return sums


def walk(ordered: Iterable[tuple[int, int, int, Any]]) -> Host:
    """What each op of the host is for: what the range around it says, else its name, and so all ops that it calls.

    Only attention is told from the compiled code that it is in. A node of the backward pass is for what the op was for
    that made it: of the ops of one thread that bear the number of the node, the one that began last.
    """
    host, made = Host(), dict[tuple[int, int], str]()
    threads: dict[int, Thread] = defaultdict(lambda: Thread(Work("", 0, 0, OTHER)))
    for start, ends, _, event in ordered:
        number, end = event.start_thread_id(), -ends
        thread = threads[number]
        if start < thread.until:
            part = _inside(thread, start, end, event, host)
        elif (found := _outermost(thread, start, end, event, made, host)) is not None:
            part = found
        else:
            continue
        host.parts[event.correlation_id()] = part
        made[number, event.sequence_nr()] = part
    return host


def _outermost(
    thread: Thread, start: int, end: int, event: Any, made: Mapping[tuple[int, int], str], host: Host
) -> str | None:
    """What an op is for that no other calls; None for a range, in which only Python runs beside the ops."""
    while thread.ranges and thread.ranges[-1][0] <= start:
        thread.ranges.pop()
    name = event.name()
    part = thread.ranges[-1][1] if thread.ranges else None
    part = part or _own_part(name, event, made)
    if event.scope() == _USER_SCOPE and not _COMPILED.search(name):
        thread.ranges.append((end, part))
        host.ranges += [(start, end, part)] if part else []
        return None
    thread.op, thread.until = Work(name, start, end - start, part or OTHER), end
    host.ops.append(thread.op)
    host.ranges += [(start, end, COMPILED)] if part == COMPILED else []
    return thread.op.part


def _inside(thread: Thread, start: int, end: int, event: Any, host: Host) -> str:
    """What an op is for that another calls."""
    if thread.op.part != COMPILED:
        return thread.op.part
    if start >= thread.attention_until and _ATTENTION.search(event.name()):
        thread.attention_until = end
        thread.op.ns -= end - start
        host.ops.append(Work(event.name(), start, end - start, ATTENTION))
    return ATTENTION if start < thread.attention_until else COMPILED


def _own_part(name: str, event: Any, made: Mapping[tuple[int, int], str]) -> str | None:
    if name.startswith(_RANGE):
        return name.removeprefix(_RANGE)
    if name.startswith(_NODE):
        node = (event.fwd_thread_id(), event.sequence_nr())
        return made.get(node, BACKWARD) if node[1] >= 0 else BACKWARD
    return next((part for pattern, part in _BY_NAME if pattern.search(name)), None)


def _kernels(events: Iterable[Any], host: Host, launched: Mapping[int, int]) -> list[Work]:
    """The kernels, copies and fills by when they were launched; each is for what the op was for that launched it.

    Where no op launched a kernel, as where Python calls Triton, it is for what the host was at when it was launched.
    """
    found = []
    for event in events:
        if event.is_user_annotation() or event.name() == "[memory]":
            continue
        moment = launched.get(event.correlation_id(), event.start_ns())
        part = host.parts.get(event.linked_correlation_id()) if event.linked_correlation_id() > 0 else None
        part = part or next((part for start, end, part in host.ranges if start <= moment < end), OTHER)
        found.append(Work(event.name(), moment, event.duration_ns(), part))
    return sorted(found, key=lambda work: work.moment)
