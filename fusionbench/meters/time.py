"""How long a call takes: raw samples, taken until the median is known or the budget is spent."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns

import torch

from ..collector import paused
from ..record import Stop, Timing
from ..spec import Budget
from ..stats import half_width

Call = Callable[[], object]

# A sample shorter than this is made of several calls: reading the clock twice costs about 0.1 µs here, 0.05 % of it.
MIN_SAMPLE_NS = 200_000
# Neighbouring samples resemble each other, so a short stretch can look more precise than it is: no verdict before
# this share of the budget is over.
MIN_SHARE = 0.1
# On CUDA the samples of one batch are queued before the host waits, so that its waiting is not measured.
CUDA_BATCH = 10


def first_call(call: Call, device: torch.device) -> int:
    """Nanoseconds of the first call of all: lazy initialisation and compilation."""
    start = perf_counter_ns()
    call()
    _synchronize(device)
    return perf_counter_ns() - start


def measure(
    call: Call, budget: Budget, device: torch.device, interrupted: Callable[[], bool], first_call_ns: int = 0
) -> Timing:
    """Time ``call`` on ``device``; ``interrupted`` is asked between samples and ends the sampling early.

    CPU: wall clock, cache as the call leaves it (``hot``). CUDA: events around each call, or with the budget's timer
    "graph" around the replay of a graph of it, after the L2 cache was flushed (``cold``). A graph leaves out what the
    host takes to launch kernels, which outlasts many of them. The garbage collector is off while samples are taken.
    """
    warmup_calls, call_ns = _warm_up(call, budget, device)
    graph = device.type == "cuda" and budget.timers[0] == "graph"
    loops = 1 if device.type == "cuda" or call_ns >= MIN_SAMPLE_NS else _calibrate(call)
    taken: list[tuple[int, int | None]] = []
    gc.collect()
    with paused():
        timed = _captured(call) if graph else call
        sampler = _cuda_samples(timed, device) if device.type == "cuda" else _cpu_samples(call, loops)
        stop = _take(sampler, taken, budget, interrupted)
    delays = [delay for _, delay in taken if delay is not None]
    return Timing(
        timer="cuda_graph" if graph else "cuda_event" if device.type == "cuda" else "wall",
        cache="cold" if device.type == "cuda" else "hot",
        loops=loops,
        samples_ns=tuple(sample for sample, _ in taken),
        run_delay_ns=tuple(delays),
        stop=stop,
        first_call_ns=first_call_ns,
        warmup_calls=warmup_calls,
        threads=torch.get_num_threads(),
    )


def _warm_up(call: Call, budget: Budget, device: torch.device) -> tuple[int, int]:
    """Call until ``warmup_s`` is over, at least twice; returns how often, and the nanoseconds of the fastest call."""
    calls, fastest, start = 0, 2**62, perf_counter_ns()
    while calls < 2 or perf_counter_ns() - start < budget.warmup_s * 1e9:
        before = perf_counter_ns()
        call()
        _synchronize(device)
        calls, fastest = calls + 1, min(fastest, perf_counter_ns() - before)
    return calls, fastest


def _calibrate(call: Call) -> int:
    """How many calls make a sample of at least MIN_SAMPLE_NS."""
    loops = 1
    while True:
        # The faster of two: one interruption must not make a short call look long.
        elapsed = max(min(_elapsed(call, loops), _elapsed(call, loops)), 1)
        if elapsed >= MIN_SAMPLE_NS:
            return loops
        loops = max(loops + 1, min(100 * loops, -(-loops * MIN_SAMPLE_NS * 5 // (elapsed * 4))))


def _elapsed(call: Call, loops: int) -> int:
    start = perf_counter_ns()
    for _ in itertools.repeat(None, loops):
        call()
    return perf_counter_ns() - start


def _take(
    sampler: Iterator[tuple[int, int | None]],
    taken: list[tuple[int, int | None]],
    budget: Budget,
    interrupted: Callable[[], bool],
) -> Stop:
    """Fill ``taken`` from ``sampler`` and say why it stopped."""
    start, next_check = perf_counter_ns(), budget.min_samples
    while True:
        taken.append(next(sampler))
        n = len(taken)
        if interrupted():
            return "interrupted"
        if n < budget.min_samples:
            continue
        # Looking after every sample would stop on luck; a look at every further quarter keeps the looks few.
        if n >= next_check:
            long_enough = perf_counter_ns() - start >= MIN_SHARE * budget.measure_s * 1e9
            if long_enough and half_width([sample for sample, _ in taken]) <= budget.ci:
                return "precise"
            next_check = n + max(n // 4, 5)
        if n >= budget.max_samples:
            return "samples"
        if perf_counter_ns() - start >= budget.measure_s * 1e9:
            return "budget"


def _cpu_samples(call: Call, loops: int) -> Iterator[tuple[int, int | None]]:
    with _run_delay() as waited:
        while True:
            before = waited()
            elapsed = _elapsed(call, loops)
            after = waited()
            yield elapsed, None if before is None or after is None else after - before


@contextlib.contextmanager
def _run_delay() -> Iterator[Callable[[], int | None]]:
    """A function that tells how long this process's threads have waited for a core, in ns; None where unknown.

    From schedstat, which needs no rights: with one thread, wall time less this delay is the undisturbed time
    (measured in shared/research/ecosystem.md 5.4 as 373 ms of 374 ms under two competing processes).
    """
    files = []
    with contextlib.suppress(OSError):
        files = [os.open(task / "schedstat", os.O_RDONLY) for task in Path("/proc/self/task").iterdir()]

    def waited() -> int | None:
        try:
            return sum(int(os.pread(file, 128, 0).split()[1]) for file in files) if files else None
        except (OSError, IndexError):  # a thread has ended
            return None

    try:
        yield waited
    finally:
        for file in files:
            os.close(file)


def _cuda_samples(call: Call, device: torch.device) -> Iterator[tuple[int, None]]:
    cache = flush_buffer(device)
    while True:
        events = [(_event(), _event()) for _ in range(CUDA_BATCH)]
        for begin, end in events:
            cache.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
        for begin, end in events:
            yield round(begin.elapsed_time(end) * 1e6), None


def _captured(call: Call) -> Call:
    """The replay of a CUDA graph of ``call``."""
    # PyTorch asks for a few calls on a side stream first: autograd and cuBLAS set themselves up per stream.
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def flush_buffer(device: torch.device) -> torch.Tensor:
    """A buffer of twice the L2 cache; writing it leaves nothing of the inputs there."""
    size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 32 << 20)
    return torch.empty(size, dtype=torch.uint8, device=device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
