"""How long a call takes: raw samples, taken until the median is known or the budget is spent."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import Protocol

import torch

from ..collector import paused
from ..record import Stop, Timing
from ..spec import Budget, Timer
from ..stats import BLOCKS, half_width
from . import cuda_time
from .sampler import Call, Sample, Sampler, TimerError

# A sample shorter than this is made of several calls: reading the clock twice costs about 0.1 µs here, 0.05 % of it.
MIN_SAMPLE_NS = 200_000
MOST_LOOPS = 1_000_000  # a call takes 30 ns at the least: with so many of them it is the clock that stands still
# Neighbouring samples resemble each other, so a short stretch can look more precise than it is: no verdict before
# this share of the budget is over.
MIN_SHARE = 0.1
STILL = 1000  # calls in a row during which the clock does not move: it never will
FEWEST = 3  # samples, however small the share: a median, and one on either side
BLOCK = 10  # samples after which the inputs change and the device is asked whether it throttled
RETRIES = 5  # blocks of a timing that are thrown away because of throttling; whatever comes then is kept
PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.5  # for a device to cool down, doubled every time (as in nvbench)


class Monitor(Protocol):
    """Who watches a device while it is timed, block by block (meters.device has the one of NVML)."""

    def restart(self) -> None:
        """What was until now belongs to no block."""

    def throttled(self) -> bool:
        """Whether the device throttled at any time in the block that is over."""
        ...

    def keep(self) -> None:
        """The block is kept, throttled as it was."""


class Turns(Protocol):
    """Who says when samples are taken: two processes that are held against each other sample by turns."""

    slice_s: float
    root: int  # the process that both descend from; 0: nobody says

    def next(self, taken: list[Sample], loops: int, throttled: bool) -> bool:
        """Hand over what the last turn brought, and whether the device throttled in it, and wait for the next one;
        False when there is no other."""
        ...


@dataclass(frozen=True)
class Bounds:
    """How many samples there are to be, and how long they may take."""

    least: int
    most: int
    seconds: float
    ci: float


def first_call(call: Call, device: torch.device) -> int:
    """Nanoseconds of the first call of all: lazy initialisation and compilation."""
    start = perf_counter_ns()
    call()
    _synchronize(device)
    return perf_counter_ns() - start


def measure(
    call: Call,
    budget: Budget,
    device: torch.device,
    interrupted: Callable[[], bool],
    first_call_ns: int = 0,
    *,
    timer: Timer | None = None,
    loops: int = 0,
    turn: Callable[[], object] | None = None,
    monitor: Monitor | None = None,
    share: float = 1.0,
    turns: Turns | None = None,
) -> Timing:
    """Time ``call`` on ``device``; ``interrupted`` is asked between samples and ends the sampling early.

    CPU: wall clock, cache as the call leaves it (``hot``). CUDA: by ``timer`` (None: the budget's first).
    ``loops`` calls make a sample, as in an earlier round of the job; 0: to be found out. ``share`` is the part of the
    budget's seconds and samples that this round or timer gets. ``turn`` changes the values of the inputs between blocks
    of samples, out of the timing; ``monitor`` is asked after each block on CUDA whether to throw it away. With
    ``turns`` samples are taken when these say so, and no budget ends them. The garbage collector is off while samples
    are taken. Raises TimerError where this timer cannot time this call.
    """
    warmup_calls, call_ns = _warm_up(call, budget, device)
    least = max(min(FEWEST, budget.min_samples), math.ceil(share * budget.min_samples))
    bounds = Bounds(
        least=least,
        most=max(least, math.ceil(share * budget.max_samples)),
        seconds=share * budget.measure_s,
        ci=budget.ci,
    )
    gc.collect()
    with paused(), contextlib.ExitStack() as stack:
        if device.type == "cuda":
            sampler = cuda_time.sampler(timer or budget.timers[0], call, device, loops)
        else:
            sampler = stack.enter_context(_wall(call, loops or _calibrate(call, call_ns)))
            monitor = None
        taken, stop, discarded = (
            _take(sampler, bounds, interrupted, turn, monitor)
            if turns is None
            else _take_turns(sampler, turns, turn, monitor)
        )
    delays = [delay for _, delay in taken if delay is not None]
    return Timing(
        timer=sampler.timer,
        cache=sampler.cache,
        loops=sampler.loops,
        samples_ns=tuple(sample for sample, _ in taken),
        run_delay_ns=tuple(delays) if len(delays) == len(taken) else (),
        stop=stop,
        first_call_ns=first_call_ns,
        warmup_calls=warmup_calls,
        threads=torch.get_num_threads(),
        discarded=discarded,
    )


def _warm_up(call: Call, budget: Budget, device: torch.device) -> tuple[int, int]:
    """Call until ``warmup_s`` is over, at least twice; returns how often, and the nanoseconds of the fastest call."""
    calls, fastest, still, start = 0, 2**62, 0, perf_counter_ns()
    while calls < 2 or perf_counter_ns() - start < budget.warmup_s * 1e9:
        before = perf_counter_ns()
        call()
        _synchronize(device)
        elapsed = perf_counter_ns() - before
        calls, fastest, still = calls + 1, min(fastest, elapsed), 0 if elapsed > 0 else still + 1
        if still >= STILL:
            raise TimerError(f"the clock stood still for {still} calls in a row; see what changes the system's time")
    return calls, fastest


def _calibrate(call: Call, call_ns: int) -> int:
    """How many calls make a sample of at least MIN_SAMPLE_NS, where one takes about ``call_ns``."""
    loops, elapsed = 1, call_ns
    while elapsed < MIN_SAMPLE_NS:
        if loops >= MOST_LOOPS:
            raise TimerError(f"below resolution: {loops} calls take {elapsed} ns; time a larger case")
        enough = -(-loops * MIN_SAMPLE_NS * 5 // (max(elapsed, 1) * 4))
        loops = max(loops + 1, min(100 * loops, enough))
        # The faster of two: one interruption must not make a short call look long.
        elapsed = min(_elapsed(call, loops), _elapsed(call, loops))
    return loops


def _elapsed(call: Call, loops: int) -> int:
    start = perf_counter_ns()
    for _ in itertools.repeat(None, loops):
        call()
    return perf_counter_ns() - start


def _take(
    sampler: Sampler,
    bounds: Bounds,
    interrupted: Callable[[], bool],
    turn: Callable[[], object] | None,
    monitor: Monitor | None,
) -> tuple[list[Sample], Stop, int]:
    """Samples in the order taken, why they ended, and how many were thrown away; a block at a time."""
    taken: list[Sample] = []
    kept = discarded = retries = 0  # kept: samples of the blocks that are over
    next_look = max(bounds.least, BLOCKS)
    if monitor is not None:
        monitor.restart()
    start = begun = perf_counter_ns()
    while True:
        taken += sampler.take(max(1, min(sampler.batch, bounds.most - len(taken))))
        stop = _reason(taken, bounds, perf_counter_ns() - start, len(taken) >= next_look)
        if len(taken) >= next_look:
            # Looking after every sample would stop on luck; a look at every further quarter keeps the looks few.
            next_look = len(taken) + max(len(taken) // 4, 5)
        if stop is None and interrupted():  # else the round is whole, and says why
            stop = "interrupted"
        if stop is None and len(taken) - kept < BLOCK:
            continue
        if monitor is not None and monitor.throttled():
            if retries < RETRIES and stop != "interrupted":
                discarded, retries = discarded + len(taken) - kept, retries + 1
                del taken[kept:]
                _cool_down(retries, sampler, monitor)
                start += perf_counter_ns() - begun  # throttling must not use up the budget
                begun = perf_counter_ns()
                continue
            monitor.keep()
        if stop is not None:
            return taken, stop, discarded
        if turn is not None:
            turn()
            sampler.settle()
        kept, begun = len(taken), perf_counter_ns()


def _take_turns(
    sampler: Sampler, turns: Turns, turn: Callable[[], object] | None, monitor: Monitor | None
) -> tuple[list[Sample], Stop, int]:
    """The samples of all turns, as ``_take`` gives them. The first call of each is not timed: the other process has
    had the caches. None is taken again where the device throttled: whoever gives the turns knows of both sides."""
    taken: list[Sample] = []
    latest: list[Sample] = []
    throttled, at_once, slice_ns = False, 1, round(turns.slice_s * 1e9)
    while turns.next(latest, sampler.loops, throttled):
        if monitor is not None:
            monitor.restart()
        if turn is not None:
            turn()
        sampler.settle()
        latest, start = [], perf_counter_ns()
        while not latest or perf_counter_ns() - start < slice_ns:
            latest += sampler.take(at_once)
            at_once = max(1, min(sampler.batch, slice_ns // latest[-1][0]))  # a turn of 10 calls of 1 s would be none
        throttled = monitor is not None and monitor.throttled()
        if monitor is not None:
            monitor.keep()
        taken += latest
    return taken, "samples", 0


def _on_core(taken: list[Sample]) -> list[int]:
    """The samples without the time that the one thread waited for a core; of several threads some went on."""
    alone = torch.get_num_threads() == 1
    return [max(ns - (waited or 0), 1) if alone else ns for ns, waited in taken]


def _cool_down(retries: int, sampler: Sampler, monitor: Monitor) -> None:
    sleep(min(PAUSE_S * 2 ** (retries - 1), LONGEST_PAUSE_S))
    sampler.settle()
    monitor.restart()


def _reason(taken: list[Sample], bounds: Bounds, spent_ns: int, look: bool) -> Stop | None:
    """Why sampling is over, if it is; the interval of the median is looked at only with ``look``."""
    if look and spent_ns >= MIN_SHARE * bounds.seconds * 1e9 and half_width(_on_core(taken)) <= bounds.ci:
        return "precise"
    if len(taken) >= bounds.most:
        return "samples"
    if len(taken) >= bounds.least and spent_ns >= bounds.seconds * 1e9:
        return "budget"
    return None


@contextlib.contextmanager
def _wall(call: Call, loops: int) -> Iterator[Sampler]:
    """The wall clock around ``loops`` calls."""
    with run_delay() as waited:

        def take(n: int) -> list[Sample]:
            return [_sample(call, loops, waited) for _ in range(n)]

        yield Sampler(timer="wall", cache="hot", loops=loops, batch=1, take=take, settle=lambda: _elapsed(call, 1))


def _sample(call: Call, loops: int, waited: Callable[[], int | None]) -> Sample:
    """One sample, and how much of its time was waiting: what was waited between the two clocks, before or after the
    calls, is not (of 20,000 samples of 0.4 ms beside five busy processes, 41 had waited longer than they took)."""
    start = perf_counter_ns()
    before = waited()
    elapsed = _elapsed(call, loops)
    after = waited()
    beside = perf_counter_ns() - start - elapsed
    if elapsed <= 0:
        raise TimerError(f"below resolution: {loops} calls took {elapsed} ns; see what changes the system's time")
    return elapsed, None if before is None or after is None else max(0, after - before - beside)


@contextlib.contextmanager
def run_delay() -> Iterator[Callable[[], int | None]]:
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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
