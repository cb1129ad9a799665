"""The peak of memory above what rests, and the ops that really ran, from one untimed call."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from fusionbench_kernels.runtime import watching

from ..record import Memory

# Names that say which code computed attention or int8 products; the rest of the trace is for `profile`.
_TELLING = re.compile(
    r"_scaled_dot_product\w+|_(flash|efficient|cudnn)_attention\w*|_int_mm\b|flex_attention|Torch-Compiled"
)


def measure(call: Callable[[], object], device: torch.device, resting_bytes: int) -> tuple[Memory, tuple[str, ...]]:
    """Peak bytes that ``call`` allocates on ``device``, and the telling ops it ran.

    CUDA: the caching allocator's peak after a warm call, so that cuBLAS workspaces are not counted.
    CPU: the running sum of the profiler's allocation events, temporaries inside ops included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        ops = trace(call)[1]
        return Memory(peak_bytes=peak, resting_bytes=resting_bytes, meter="cuda_allocator"), ops
    peak, ops = trace(call)
    return Memory(peak_bytes=peak, resting_bytes=resting_bytes, meter="cpu_profiler"), ops


def trace(call: Callable[[], object]) -> tuple[int, tuple[str, ...]]:
    """(peak bytes on the CPU, names of telling ops and of our Triton kernels) of one call under torch.profiler."""
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
    return peak, tuple(sorted(names | {f"triton:{name}" for name in launched}))
