"""The peak of memory above what rests, the ops that really ran and how many there were, from one untimed call."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from fusionbench_kernels.runtime import watching

from ..record import Memory

# Names that say which code computed attention or int8 products; the rest of the trace is for `profile`.
_TELLING = re.compile(
    r"_scaled_dot_product\w+|_(flash|efficient|cudnn)_attention\w*|_int_mm\b|flex_attention|Torch-Compiled"
)

# What a warm call may keep without a word: allocations of torch's own and of Python's are far below it.
LEAK_BYTES = 1 << 20


@dataclass(frozen=True)
class Found:
    """What one call of a job needs, and a note of what it does not free."""

    memory: Memory
    kernels: tuple[str, ...]  # names of telling ops and of our Triton kernels
    launches: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """What the profiler saw of one call. ``launches`` are the kernels, copies and fills of a CUDA device, None where
    CUPTI shows none; on the CPU the ops that call no other op, and our Triton kernels where they are interpreted."""

    peak_bytes: int  # on the CPU
    kept_bytes: int
    kernels: tuple[str, ...]
    launches: int | None


def measure(call: Callable[[], object], device: torch.device, resting_bytes: int) -> Found:
    """Peak bytes that ``call`` allocates on ``device`` and what it launches there.

    CUDA: the caching allocator's peak after a warm call, so that cuBLAS workspaces are not counted.
    CPU: the running sum of the profiler's allocation events, temporaries inside ops included.
    """
    allocated = _allocated(call, device) if device.type == "cuda" else None
    traced = trace(call, device)
    peak, kept = allocated or (traced.peak_bytes, traced.kept_bytes)
    if kept >= LEAK_BYTES:  # or is it a cycle, which the collector frees?
        kept = min(kept, _kept(call, device))
    note = f"keeps {kept / 1e6:.3g} MB more with each call; look in the strategy for what holds on to its results"
    meter: Literal["cuda_allocator", "cpu_profiler"] = "cuda_allocator" if device.type == "cuda" else "cpu_profiler"
    used = Memory(peak_bytes=peak, resting_bytes=resting_bytes, meter=meter)
    return Found(used, traced.kernels, traced.launches, (note,) if kept >= LEAK_BYTES else ())


def _allocated(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """The allocator's peak in one call and what the call keeps, both above what was there before."""
    torch.cuda.synchronize(device)
    # A cached block that is a little too large counts whole, and which ones there are depends on the jobs before.
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before


def _kept(call: Callable[[], object], device: torch.device) -> int:
    """The bytes that are not free after another call and the collector's round."""
    gc.collect()
    if device.type == "cpu":
        return trace(lambda: (call(), gc.collect()), device).kept_bytes
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    gc.collect()
    return torch.cuda.memory_allocated(device) - before


def trace(call: Callable[[], object], device: torch.device) -> Trace:
    """Run ``call`` once and say what it allocated and launched on ``device``."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, profile_memory=True, acc_events=False) as session, watching() as watched:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    # The public events() folds the allocations into the ops and loses their order; the raw list keeps it.
    events = session.profiler.kineto_results.events()
    total = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        if event.device_type().name == "CPU":
            total += event.nbytes()
            peak = max(peak, total)
    names = {match.group(0) for e in events if (match := _TELLING.search(e.name()))}
    kernels = tuple(sorted(names | {f"triton:{name}" for name in watched}))
    launches = _device_work(events) or None if device.type == "cuda" else _leaves(events) + watched.total()
    return Trace(peak, total, kernels, launches)


def _device_work(events: Iterable[Any]) -> int:
    """How many kernels, copies and fills a CUDA device ran; ranges of the host come back as ranges of the device."""
    on_device = (e for e in events if e.device_type().name == "CUDA" and e.name() != "[memory]")
    return sum(not e.is_user_annotation() for e in on_device)


def _leaves(events: Iterable[Any]) -> int:
    """How many ATen ops call no other: those that do the work, views and allocations among them."""
    threads: dict[int, list[tuple[int, int]]] = {}
    for event in events:
        if event.name().startswith("aten::"):
            threads.setdefault(event.start_thread_id(), []).append((event.start_ns(), -event.end_ns()))
    # In order of their beginnings, the longer one first, whoever calls another is followed by it.
    return sum(
        1 + sum(later[0] >= -earlier[1] for earlier, later in pairwise(sorted(spans))) for spans in threads.values()
    )
