"""Our timers against those of others, in turns in one run, where both measure the same thing (METHODOLOGY.md, Time)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from fusionbench.meters import time
from fusionbench.spec import Budget
from fusionbench.spec import Timer as TimerName
from fusionbench.stats import median

SHARE = 0.02
BUDGET = Budget(measure_s=0.2, warmup_s=0.05, min_samples=20, max_samples=400, ci=1e-6)
CPU = torch.device("cpu")


def gpu(test: Callable[[], None]) -> Callable[[], None]:
    """A test of `make gpu`."""
    absent = pytest.mark.skipif(
        torch.cuda.device_count() == 0, reason="no CUDA device; test_cuda_timers has a made-up one"
    )
    return pytest.mark.gpu(absent(test))


def per_call_ns(call: Callable[[], object], timer: TimerName) -> float:
    timing = time.measure(call, BUDGET, torch.device("cuda"), lambda: False, timer=timer)
    return median(sorted(timing.samples_ns)) / timing.loops


def middle_ratio(ours: Callable[[], float], theirs: Callable[[], float], turns: int = 9) -> float:
    """Ours over theirs; either goes first every other time, and the middle of an odd number of turns counts."""
    ratios = []
    for turn in range(turns):
        if turn % 2:
            other = theirs()
            ratios.append(ours() / other)
        else:
            ratios.append(ours() / theirs())
    return median(sorted(ratios))


@pytest.mark.parametrize(("length", "heads"), [(32, 2), (160, 4)], ids=["of 15 µs", "of 0.4 ms"])
def test_the_wall_clock_agrees_with_torchs_timer_within_2_percent(benchmark: Any, length: int, heads: int) -> None:
    """With as many calls to a sample: blocked_autorange makes samples of 2 to 20 ms, and where others want the cores
    too, a sample so long is interrupted and a short one is not (its median then was 2.5 times ours)."""
    torch.set_num_threads(1)
    q, k = (torch.randn(1, heads, length, 64) for _ in range(2))

    def call() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, k)

    timer = Timer("call()", globals={"call": call}, num_threads=1)
    quick = replace(BUDGET, measure_s=0.05)
    loops = time.measure(call, quick, CPU, lambda: False).loops

    def ours() -> float:
        timing = time.measure(call, quick, CPU, lambda: False, loops=loops)
        return median(sorted(timing.samples_ns)) / loops

    def theirs() -> float:
        return median(sorted(timer.timeit(loops).median for _ in range(60))) * 1e9

    ratio = benchmark.pedantic(middle_ratio, args=(ours, theirs, 31))
    benchmark.extra_info["ratio"] = ratio
    assert abs(ratio - 1) < SHARE


@gpu
def test_cold_agrees_with_do_bench_on_a_kernel_of_a_millisecond_and_more() -> None:
    """The launch, some 10 µs of it, is in ours alone: below 1 % of such a kernel."""
    from triton.testing import do_bench

    n = 8192
    x, y = (torch.randn(n, n, dtype=torch.float16, device="cuda") for _ in range(2))

    def call() -> torch.Tensor:
        return x @ y

    def theirs() -> float:
        return float(do_bench(call, return_mode="median")) * 1e6

    assert per_call_ns(call, "cold") > 1e6
    assert abs(middle_ratio(lambda: per_call_ns(call, "cold"), theirs) - 1) < SHARE


@gpu
def test_the_kernel_timer_agrees_with_the_sum_of_cuptis_kernel_times() -> None:
    """The sum over a whole profile, by the profiler's own table, against our calls told apart."""
    x = torch.randn(2048, 2048, device="cuda")
    calls = 20

    def call() -> torch.Tensor:
        return torch.softmax(x @ x, dim=-1)

    def theirs() -> float:
        with profile(activities=[ProfilerActivity.CUDA]) as session:
            for _ in itertools.repeat(None, calls):
                call()
                torch.cuda.synchronize()
        return 1e3 * sum(float(e.self_device_time_total) for e in session.key_averages()) / calls

    assert abs(middle_ratio(lambda: per_call_ns(call, "kernel"), theirs) - 1) < SHARE


@gpu
def test_of_one_long_kernel_events_and_cupti_say_the_same() -> None:
    x = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
    assert abs(per_call_ns(lambda: x @ x, "kernel") / per_call_ns(lambda: x @ x, "hot") - 1) < SHARE
