"""Does the tool's timer tell the truth on a GPU: known durations, launches that return early, a flush that flushes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter_ns

import torch

from ..meters import cuda_time as timer
from .check import Check, ok
from .probes import proportional

SPIN_CYCLES = 20_000_000  # 10 to 20 ms at 1 to 2 GHz: a launch takes 5 µs
EARLY = 0.1  # of the kernel's time, in which the launch must have returned
COLD = 1.05  # how much slower cold inputs must be than hot ones


def begin(device: torch.device) -> None:
    """Initialise CUDA and load the waiting kernel, so that neither is in a timing."""
    torch.cuda.set_device(device)
    spin(1000)
    torch.cuda.synchronize(device)


def attention(device: torch.device) -> Callable[[], object]:
    """Scaled dot product attention of 69 GFLOP in half precision: 0.2 ms on an H100's data sheet."""
    q, k, v = (torch.randn(4, 16, 2048, 64, device=device, dtype=torch.float16) for _ in range(3))
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def spin(cycles: int) -> None:
    """A kernel that waits for this many clock cycles. Private in PyTorch, used by its own tests since 2017."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def known_time(device: torch.device, took: Callable[[int], float] | None = None) -> Check:
    """Twice and four times the cycles must take twice and four times the time between two events."""
    milliseconds = took or (lambda cycles: _between_events(lambda: spin(cycles), device))
    times = {factor: min(milliseconds(factor * SPIN_CYCLES) for _ in range(3)) for factor in (1, 2, 4)}
    ratios = {factor: times[factor] / times[1] for factor in (2, 4)}
    return proportional(ratios, 1e3 * times[1])


def _between_events(call: Callable[[], object], device: torch.device) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end))


def synchronizing(device: torch.device) -> Check:
    """A launch must return long before its kernel ends, and synchronize must wait for that end."""
    launched, waited, kernel = [], [], []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start = perf_counter_ns()
        begin.record()
        spin(SPIN_CYCLES)
        end.record()
        launched.append((perf_counter_ns() - start) / 1e6)
        torch.cuda.synchronize(device)
        waited.append((perf_counter_ns() - start) / 1e6)
        kernel.append(float(begin.elapsed_time(end)))
    return judged_sync(statistics.median(launched), statistics.median(waited), statistics.median(kernel))


def judged_sync(launched_ms: float, waited_ms: float, kernel_ms: float) -> Check:
    """The verdict on: when the launch returned, when synchronize did, and how long the kernel took."""
    name = "sync"
    found = f"a kernel of {kernel_ms:.1f} ms: launched in {launched_ms:.3f} ms, waited for until {waited_ms:.1f} ms"
    if waited_ms < 0.9 * kernel_ms:
        remedy = "synchronize returns before the kernel ends: no timing of this device can be trusted"
        return Check(name=name, status="fail", found=found, value=waited_ms, unit="ms", remedy=remedy)
    if launched_ms > EARLY * kernel_ms:
        remedy = "launches wait for their kernels: look for CUDA_LAUNCH_BLOCKING, a debugger or a profiler"
        return Check(
            name=name, status="fail", found=found, value=launched_ms, unit="ms", remedy=remedy,
            command="unset CUDA_LAUNCH_BLOCKING",
        )  # fmt: skip
    return ok(name, found, launched_ms, "ms")


def flushing(device: torch.device) -> Check:
    """A kernel whose inputs fit the L2 cache must be slower after the tool's flush than without it."""
    cache, l2 = timer.flush_buffer(device), torch.cuda.get_device_properties(device).L2_cache_size
    size = max(l2 // 4, 1 << 20)  # read one, write one: half of the cache
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))

    def add() -> None:
        torch.add(source, 1.0, out=target)

    cold, hot = [], []
    for _ in range(20):
        cold.append(_after(cache.zero_, add, device))
        hot.append(_after(add, add, device))
    return judged_flush(statistics.median(cold), statistics.median(hot), size)


def _after(before: Callable[[], object], call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of ``call`` behind ``before``, queued behind a wait, so that no launch gap is in it."""
    before()
    spin(SPIN_CYCLES // 100)
    return _between_events(call, device)


def judged_flush(cold_ms: float, hot_ms: float, size: int) -> Check:
    """The verdict on the same kernel with and without its inputs in the cache."""
    name, ratio = "flush", cold_ms / hot_ms
    rates = [2 * size / ms / 1e6 for ms in (hot_ms, cold_ms)]
    found = f"hot {rates[0]:,.0f} GB/s, flushed {rates[1]:,.0f} GB/s: {ratio:.2f}× slower from cold"
    if ratio < COLD:
        remedy = "the flush leaves inputs in the cache, or the device is shared: read cold timings as hot ones"
        return Check(name=name, status="warn", found=found, value=ratio, unit="×", remedy=remedy)
    return ok(name, found, ratio, "×")
