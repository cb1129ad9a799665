"""The timers of a CUDA device: cold, hot, graph, kernel and host."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from time import perf_counter_ns, sleep

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from ..record import TIMED_AS
from ..spec import Timer
from .sampler import Call, Sample, Sampler, TimerError

# Events have "a resolution of around 0.5 microseconds" (CUDA Runtime API, cudaEventElapsedTime): 1 % of 50 µs.
RESOLUTION_NS = 500
MIN_SAMPLE_NS = 100 * RESOLUTION_NS
MOST_LOOPS = 100  # a call that needs more is shorter than the resolution
PROBES = 5  # calls that are timed to find out how many make a sample
BATCH = 10  # samples for which graphs are queued, or calls are profiled, at once
RANGE = "fusionbench::call"
# Between two profiled calls: their kernels are told apart by time, and the profiler brings the clocks of device and
# host together to some µs.
GAP_S = 50e-6

Pairs = Callable[[int], list[float]]  # ns of n calls, each between two events of its own


def sampler(timer: Timer, call: Call, device: torch.device, loops: int = 0) -> Sampler:
    """The timer of this name for ``call``; with events, ``loops`` calls make a sample (0: to be found out).

    Raises TimerError where the call is too short for events, and where the profiler sees no kernels.
    """
    if timer == "host":
        return _sampler(timer, call, device, partial(_host, call, device))
    if timer == "kernel":
        _profiled(call, device, 1)  # sets CUPTI up, and fails early where that cannot be
        return _sampler(timer, call, device, partial(_profiled, call, device), batch=BATCH)
    if timer == "graph":
        call = _captured(call, device)
        pairs: Pairs = partial(_queued, call, device, flush_buffer(device))
    else:
        pairs = partial(_blocking, call, device, flush_buffer(device) if timer == "cold" else None)
    loops = loops or _loops(median(pairs(PROBES)))
    return _sampler(timer, call, device, pairs, loops, BATCH if timer == "graph" else 1)


def _sampler(timer: Timer, call: Call, device: torch.device, pairs: Pairs, loops: int = 1, batch: int = 1) -> Sampler:
    def take(n: int) -> list[Sample]:
        times = iter(pairs(n * loops))
        return [(_positive(sum(itertools.islice(times, loops))), None) for _ in range(n)]

    def settle() -> None:
        call()
        torch.cuda.synchronize(device)

    clock, cache = TIMED_AS[timer]
    return Sampler(timer=clock, cache=cache, loops=loops, batch=batch, take=take, settle=settle)


def _positive(ns: float) -> int:
    if round(ns) <= 0:
        raise TimerError(f"below resolution: a sample of {ns:.0f} ns; time a larger case")
    return round(ns)


def _loops(call_ns: float) -> int:
    """How many calls add up to a sample that the resolution is 1 % of."""
    loops = max(1, math.ceil(MIN_SAMPLE_NS / call_ns)) if call_ns > 0 else MOST_LOOPS + 1
    if loops > MOST_LOOPS:
        raise TimerError(
            f"below resolution: a call takes {call_ns:.0f} ns, CUDA events resolve {RESOLUTION_NS}; time a larger case"
        )
    return loops


def _blocking(call: Call, device: torch.device, cache: torch.Tensor | None, n: int) -> list[float]:
    """One call at a time on an idle device, so that whatever the host is late with is inside the events."""
    (begin, end), found = event_pair(), list[float]()
    for _ in range(n):
        if cache is not None:
            cache.zero_()
        torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        found.append(begin.elapsed_time(end) * 1e6)
    return found


def _queued(replay: Call, device: torch.device, cache: torch.Tensor, n: int) -> list[float]:
    """All replays launched before the host waits: the device finds the next one ready behind every flush."""
    events = [event_pair() for _ in range(n)]
    cache.zero_()  # a head start for the host, whose first launch would otherwise come late
    for begin, end in events:
        cache.zero_()
        begin.record()
        replay()
        end.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) * 1e6 for begin, end in events]


def _host(call: Call, device: torch.device, n: int) -> list[float]:
    """How long each call takes to return; the device is idle before it and its work is waited for outside."""
    found: list[float] = []
    for _ in range(n):
        torch.cuda.synchronize(device)
        start = perf_counter_ns()
        call()
        found.append(perf_counter_ns() - start)
    torch.cuda.synchronize(device)
    return found


def _profiled(call: Call, device: torch.device, n: int) -> list[float]:
    """The summed time of the kernels, copies and fills of each of ``n`` calls."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as session:
        for _ in range(n):
            with record_function(RANGE):
                call()
                torch.cuda.synchronize(device)
            sleep(GAP_S)
    return kernel_times(session.events(), n)


def kernel_times(events: Iterable[FunctionEvent], calls: int) -> list[float]:
    """Nanoseconds of device work of each call, from the events of a profile that holds ``calls`` ranges named RANGE.

    By time and not by the op that launched: the backward pass launches from another thread, which knows no range.
    Raises TimerError where a call has none.
    """
    events = list(events)
    ranges = sorted(
        (e.time_range.start, e.time_range.end) for e in events if e.name == RANGE and e.device_type.name == "CPU"
    )
    borders = [(end + start) / 2 for (_, end), (start, _) in itertools.pairwise(ranges)]
    sums = [0.0] * calls
    for event in events:
        # The ranges of the host come back as ranges of the device, from its first kernel to its last.
        if event.device_type.name == "CUDA" and not event.is_user_annotation and event.name != RANGE:
            sums[bisect_right(borders, event.time_range.start)] += (event.time_range.end - event.time_range.start) * 1e3
    if not any(sums):
        raise TimerError(
            "the profiler saw no kernels; CUPTI may need rights here (NVreg_RestrictProfilingToAdminUsers=0)"
        )
    if len(ranges) != calls or not all(sums):
        raise TimerError(
            f"the profiler saw kernels of {sum(map(bool, sums))} calls of {calls}; it lost some, so measure again"
        )
    return sums


def _captured(call: Call, device: torch.device) -> Call:
    """The replay of a CUDA graph of ``call``, which has run once."""
    # PyTorch asks for a few calls on a side stream first: autograd and cuBLAS set themselves up per stream.
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()  # the first replay uploads the graph
    torch.cuda.synchronize(device)
    return graph.replay


def event_pair() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def flush_buffer(device: torch.device) -> torch.Tensor:
    """A buffer of twice the L2 cache; writing it leaves nothing of the inputs there."""
    size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 32 << 20)
    return torch.empty(size, dtype=torch.uint8, device=device)
