"""The peak of memory above what rests, and the ops that really ran, from one untimed call."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Literal

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

Found = tuple[Memory, tuple[str, ...], tuple[str, ...]]


def measure(call: Callable[[], object], device: torch.device, resting_bytes: int) -> Found:
    """Peak bytes that ``call`` allocates on ``device``, the telling ops it ran, and a note of what it does not free.

    CUDA: the caching allocator's peak after a warm call, so that cuBLAS workspaces are not counted.
    CPU: the running sum of the profiler's allocation events, temporaries inside ops included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak, kept = torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
        ops = trace(call)[2]
    else:
        peak, kept, ops = trace(call)
    if kept >= LEAK_BYTES:  # or is it a cycle, which the collector frees?
        kept = min(kept, _kept(call, device))
    note = f"keeps {kept / 1e6:.3g} MB more with each call"
    meter: Literal["cuda_allocator", "cpu_profiler"] = "cuda_allocator" if device.type == "cuda" else "cpu_profiler"
    used = Memory(peak_bytes=peak, resting_bytes=resting_bytes, meter=meter)
    return used, ops, (note,) if kept >= LEAK_BYTES else ()


def _kept(call: Callable[[], object], device: torch.device) -> int:
    """The bytes that are not free after another call and the collector's round."""
    gc.collect()
    if device.type == "cpu":
        return trace(lambda: (call(), gc.collect()))[1]
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    gc.collect()
    return torch.cuda.memory_allocated(device) - before


def trace(call: Callable[[], object]) -> tuple[int, int, tuple[str, ...]]:
    """(peak bytes on the CPU, bytes kept at the end, names of telling ops and of our Triton kernels) of one call."""
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=False) as session, watching() as launched:
        call()
    # The public events() folds the allocations into the ops and loses their order; the raw list keeps it.
    events = session.profiler.kineto_results.events()
    total = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        if event.device_type().name == "CPU":
            total += event.nbytes()
            peak = max(peak, total)
    names = {match.group(0) for e in events if (match := _TELLING.search(e.name()))}
    return peak, total, tuple(sorted(names | {f"triton:{name}" for name in launched}))
