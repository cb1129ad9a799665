"""Meters: what they report for calls whose time, memory and error are known."""

from __future__ import annotations

import gc
import itertools
import math
import time as clock
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace

from fusionbench.meters import accuracy, control, memory, time
from fusionbench.meters.sampler import TimerError
from fusionbench.record import Deviation
from fusionbench.spec import Budget

CPU = torch.device("cpu")
QUICK = Budget(measure_s=0.1, warmup_s=0.0, min_samples=6, max_samples=50)


def never() -> bool:
    return False


def test_a_call_of_known_length_is_timed_at_that_length() -> None:
    timing = time.measure(lambda: clock.sleep(0.003), QUICK, CPU, never)
    ordered = sorted(sample / timing.loops for sample in timing.samples_ns)
    # sleep() never returns early; how late it returns is the kernel's business, so the bound above is generous.
    assert ordered[0] >= 3.0e6
    assert ordered[len(ordered) // 2] < 30e6


def test_a_short_call_is_looped_until_the_clock_no_longer_matters() -> None:
    timing = time.measure(lambda: None, QUICK, CPU, never)
    assert timing.loops > 100
    assert min(timing.samples_ns) > time.MIN_SAMPLE_NS / 4


def test_sampling_stops_when_the_median_is_known() -> None:
    loose = Budget(measure_s=2, warmup_s=0.0, min_samples=6, max_samples=10_000, ci=0.99)
    timing = time.measure(lambda: clock.sleep(0.001), loose, CPU, never)
    assert timing.stop == "precise"
    assert sum(timing.samples_ns) >= 0.9 * time.MIN_SHARE * 2e9  # not before a tenth of the budget
    assert len(timing.samples_ns) < 500


@pytest.mark.parametrize(
    ("budget", "stop"),
    [
        (Budget(measure_s=0.02, warmup_s=0.0, min_samples=6, max_samples=10_000, ci=1e-9), "budget"),
        (Budget(measure_s=60, warmup_s=0.0, min_samples=6, max_samples=8, ci=1e-9), "samples"),
    ],
)
def test_the_timing_says_why_it_stopped(budget: Budget, stop: str) -> None:
    timing = time.measure(lambda: clock.sleep(0.001), budget, CPU, never)
    assert timing.stop == stop
    assert len(timing.samples_ns) >= budget.min_samples


def test_an_interruption_ends_the_sampling_after_the_running_sample() -> None:
    timing = time.measure(lambda: clock.sleep(0.001), Budget(measure_s=60), CPU, lambda: True)
    assert timing.stop == "interrupted"
    assert len(timing.samples_ns) == 1


def test_an_interruption_in_the_last_sample_does_not_undo_the_others() -> None:
    asked = iter([False] * 7)
    budget = Budget(measure_s=60, warmup_s=0.0, min_samples=6, max_samples=8, ci=1e-9)
    timing = time.measure(lambda: clock.sleep(0.001), budget, CPU, lambda: next(asked, True))
    assert (timing.stop, len(timing.samples_ns)) == ("samples", 8)


def test_the_collector_is_off_while_sampling_and_on_again_after() -> None:
    seen = []
    time.measure(lambda: seen.append(gc.isenabled()), QUICK, CPU, never)
    assert seen[-1] is False
    assert gc.isenabled()


def test_waiting_for_a_core_is_recorded_where_linux_tells() -> None:
    timing = time.measure(lambda: clock.sleep(0.001), QUICK, CPU, never)
    assert len(timing.run_delay_ns) in (0, len(timing.samples_ns))
    assert all(delay >= 0 for delay in timing.run_delay_ns)


@pytest.mark.parametrize("inside", [True, False], ids=["inside the sample", "between the two clocks"])
def test_only_what_was_waited_inside_a_sample_counts(inside: bool) -> None:
    delay_ns = 0

    def wait() -> None:
        nonlocal delay_ns
        start = clock.perf_counter_ns()
        clock.sleep(0.1)
        delay_ns += clock.perf_counter_ns() - start

    def waited() -> int:
        if not inside:
            wait()
        return delay_ns

    elapsed, delay = time._sample(wait if inside else lambda: None, 1, waited)
    assert delay is not None
    assert 0.5 * elapsed < delay < elapsed if inside else delay == 0


@dataclass
class Slow:
    """A call of 1 ms by a clock that only it moves, and the values it was called with."""

    now: int = 0
    value: int = 0
    seen: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        self.now += 1_000_000
        self.seen.append(self.value)

    def turn(self) -> None:
        self.value += 1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    call = Slow()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: call.now)
    return call


def test_inputs_change_between_blocks_and_the_first_call_on_new_ones_is_not_timed(slow: Slow) -> None:
    budget = Budget(measure_s=60, warmup_s=0.0, min_samples=25, max_samples=25, ci=1e-9)
    timing = time.measure(slow, budget, CPU, never, turn=slow.turn)
    assert timing.samples_ns == (1_000_000,) * 25
    # Two calls of warm-up, then blocks of ten; one call more after each change.
    assert [slow.seen.count(value) for value in range(4)] == [2 + time.BLOCK, 1 + time.BLOCK, 1 + 5, 0]


def test_a_share_of_the_budget_is_a_share_of_its_seconds_and_of_its_samples(slow: Slow) -> None:
    budget = Budget(measure_s=0.6, warmup_s=0.0, min_samples=12, max_samples=10_000, ci=1e-9)
    spread = itertools.count(1)

    def uneven() -> None:
        slow()
        slow.now += 10_000 * (next(spread) % 7)

    timing = time.measure(uneven, budget, CPU, never, share=1 / 6)
    assert timing.stop == "budget"
    assert 0.1e9 <= sum(timing.samples_ns) <= 0.102e9
    few = time.measure(uneven, replace(budget, measure_s=1e-4), CPU, never, share=1 / 6)
    assert (few.stop, len(few.samples_ns)) == ("budget", time.FEWEST)
    full = time.measure(uneven, replace(budget, max_samples=60), CPU, never, share=1 / 6)
    assert (full.stop, len(full.samples_ns)) == ("samples", 10)


def test_fewer_samples_than_an_interval_needs_are_never_precise(slow: Slow) -> None:
    budget = Budget(measure_s=1e-3, warmup_s=0.0, min_samples=6, max_samples=10_000, ci=0.99)
    assert time.measure(slow, budget, CPU, never, share=1 / 6).stop == "budget"
    assert time.measure(slow, replace(budget, measure_s=0.1), CPU, never, share=1 / 6).stop == "precise"


def test_later_rounds_make_as_many_calls_per_sample_as_the_first() -> None:
    first = time.measure(lambda: None, QUICK, CPU, never)
    assert time.measure(lambda: None, QUICK, CPU, never, loops=first.loops).loops == first.loops


def test_the_cpu_has_one_timer_and_asks_no_monitor() -> None:
    nobody = SimpleNamespace()
    timing = time.measure(lambda: None, QUICK, CPU, never, timer="graph", monitor=nobody)
    assert (timing.timer, timing.cache, timing.discarded) == ("wall", "hot", 0)


@pytest.mark.parametrize("warmup_s", [0.0, 0.05])
def test_a_clock_that_stands_still_is_an_error_and_not_a_hang(warmup_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 7)
    monkeypatch.setattr(time, "MOST_LOOPS", 10_000)
    with pytest.raises(TimerError, match=r"below resolution: 10000 calls take 0 ns|the clock stood still"):
        time.measure(lambda: None, replace(QUICK, warmup_s=warmup_s), CPU, never)
    with pytest.raises(TimerError, match=r"below resolution: 5 calls took 0 ns|the clock stood still"):
        time.measure(lambda: None, replace(QUICK, warmup_s=warmup_s), CPU, never, loops=5)


def test_the_control_is_about_the_same_every_time_and_leaves_the_jobs_random_numbers_alone() -> None:
    state = torch.random.get_rng_state()
    found = [control.control_ns(CPU) for _ in range(5)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert max(found) < 100 * min(found)
    assert min(found) > 1000


def test_the_peak_on_cuda_begins_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block left by the job before may be larger than what is asked for, and counts whole."""
    log: list[str] = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: log.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 164)
    assert memory._allocated(lambda: log.append("call"), torch.device("cuda")) == (64, 0)
    assert log == ["synchronize", "empty_cache", "reset_peak_memory_stats", "call", "synchronize"]


def test_peak_memory_is_exact() -> None:
    def three_live_tensors() -> None:
        a = torch.empty(2**20, dtype=torch.float32)
        b = torch.empty(2**20, dtype=torch.float32)
        del a
        c = torch.empty(2**20, dtype=torch.float32)
        d = torch.empty(2**20, dtype=torch.float32)
        del b, c, d

    found = memory.measure(three_live_tensors, CPU, resting_bytes=7)
    assert found.memory.peak_bytes == 3 * 4 * 2**20
    assert found.memory.resting_bytes == 7
    assert found.notes == ()


def test_the_kernel_that_really_ran_is_named() -> None:
    q = torch.randn(1, 2, 5, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert memory.trace(lambda: attention(q, q, q), CPU).kernels == ("_scaled_dot_product_flash_attention_for_cpu",)
    masked = torch.ones(5, 5).requires_grad_()
    assert "_scaled_dot_product_attention_math" in memory.trace(lambda: attention(q, q, q, masked), CPU).kernels


def test_what_a_call_launches_on_the_cpu_are_the_ops_that_call_no_other() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    assert memory.trace(lambda: torch.add(x, x), CPU).launches == 1
    alone = memory.trace(lambda: torch.mm(x, weight.t()), CPU).launches  # a view of a view, and a product
    assert memory.trace(lambda: F.linear(x, weight), CPU).launches == alone  # composed of the same
    assert memory.trace(lambda: [torch.mm(x, weight.t()) for _ in range(3)], CPU).launches == 3 * (alone or 0)


def test_a_backward_pass_launches_too_and_every_time_as_much() -> None:
    x = torch.randn(4, 8, requires_grad=True)

    def step() -> None:
        x.grad = None
        F.gelu(x).sum().backward()

    found = {memory.trace(step, CPU).launches for _ in range(3)}
    assert len(found) == 1
    assert found.pop() > memory.trace(lambda: F.gelu(x).sum(), CPU).launches


@dataclass
class Event:
    """What the profiler tells of one activity on a CUDA device."""

    called: str
    kind: str = "CUDA"
    annotation: bool = False

    def name(self) -> str:
        return self.called

    def device_type(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.kind)

    def is_user_annotation(self) -> bool:
        return self.annotation


def test_what_a_call_launches_on_cuda_are_kernels_copies_and_fills() -> None:
    seen = [Event("gemm"), Event("gemm"), Event("Memcpy DtoD"), Event("Memset"), Event("triton_poi_fused_0")]
    other = [Event("[memory]"), Event("Torch-Compiled Region: 0/0", annotation=True), Event("aten::mm", kind="CPU")]
    assert memory._device_work(seen + other) == 5


NONE = accuracy.Allowance(order=0.0, rounding=0.0)


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(values, dtype=torch.float64)]


def test_deviation_is_what_it_says() -> None:
    found = accuracy.deviation(tensors(1.0, 2.5), tensors(1.0, 2.0))
    assert (found.max_abs, found.mean_abs) == (0.5, 0.25)
    assert found.rel_l2 == pytest.approx(0.5 / math.sqrt(5))
    assert accuracy.deviation(tensors(0.0), tensors(0.0)) == Deviation(
        max_abs=0.0, mean_abs=0.0, rel_l2=0.0, cosine=1.0
    )


def test_the_deviation_of_several_tensors_is_that_of_all_their_numbers() -> None:
    torch.manual_seed(0)
    truths = [torch.randn(n, dtype=torch.float64) for n in (7, 0, 300)]
    results = [t + 0.1 * torch.randn_like(t) for t in truths]
    apart, joined = accuracy.deviation(results, truths), accuracy.deviation([torch.cat(results)], [torch.cat(truths)])
    for name in ("max_abs", "mean_abs", "rel_l2", "cosine"):
        assert getattr(apart, name) == pytest.approx(getattr(joined, name), rel=1e-12), name


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_wrong(bad: float) -> None:
    found = accuracy.deviation(tensors(1.0, bad), tensors(1.0, 2.0))
    assert found.max_abs is None
    reason = accuracy.verdict(tensors(1.0, bad), tensors(1.0, 2.0), tensors(1.0, 2.0), NONE, 2.0)
    assert reason == "not finite where the reference is"


def test_twice_the_error_of_eager_passes_and_more_does_not() -> None:
    truth, eager = tensors(1.0, 1.0), tensors(1.01, 1.01)
    for error, right in ((0.0199, True), (0.0202, False)):
        result = tensors(1 + error, 1 + error)
        assert (accuracy.verdict(result, eager, truth, NONE, 2.0) is None) is right


def test_each_tensor_is_held_against_its_own_yardstick() -> None:
    many = (1.0,) * accuracy.FEW
    truth = [torch.tensor(many, dtype=torch.float64) * 1000, torch.tensor(many, dtype=torch.float64)]
    eager = [truth[0] + 1, truth[1] + 0.0001]
    assert accuracy.verdict([truth[0] + 1.5, truth[1] + 0.0001], eager, truth, NONE, 2.0) is None
    wrong = accuracy.verdict([truth[0] + 1, truth[1] + 0.5], eager, truth, NONE, 2.0)
    assert wrong is not None
    assert wrong.startswith("tensor 2 of 2: max error 0.5")


def test_a_single_number_is_held_against_eagers_largest_error_anywhere() -> None:
    truth = [torch.ones(1000, dtype=torch.float64), *tensors(1.0)]
    lucky = [truth[0] + 0.01, *tensors(1.0)]
    assert accuracy.verdict([truth[0] + 0.01, *tensors(1.015)], lucky, truth, NONE, 2.0) is None
    assert accuracy.verdict([truth[0] + 0.01, *tensors(1.025)], lucky, truth, NONE, 2.0) is not None


def test_where_eager_is_exact_the_order_of_summation_is_allowed_for() -> None:
    truth = tensors(1.0, 0.5)
    allowed = accuracy.allowance(torch.float32, 100)
    assert allowed.order == 10 * 2**-24
    near, far = tensors(1 + 0.9 * allowed.order, 0.5), tensors(1 + 1.1 * allowed.order, 0.5)
    assert accuracy.verdict(near, truth, truth, allowed, 2.0) is None
    assert accuracy.verdict(far, truth, truth, allowed, 2.0) is not None


def test_a_rounding_is_allowed_instead_of_eagers_error_and_not_on_top_of_it() -> None:
    truth, eager, allowed = tensors(1.0, 1.0), tensors(1.01, 1.01), accuracy.Allowance(order=0.0, rounding=0.015)
    assert accuracy.verdict(tensors(1.014, 1.014), truth, truth, allowed, 2.0) is None
    assert accuracy.verdict(tensors(1.022, 1.022), eager, truth, allowed, 2.0) is not None


def test_the_allowance_covers_adding_one_after_another_and_not_a_coarser_format() -> None:
    torch.manual_seed(0)
    n = 4096
    terms = torch.randn(2000, n, dtype=torch.float64).float()
    truth = terms.double().sum(dim=1)
    total = torch.zeros(2000)
    for k in range(n):
        total += terms[:, k]
    allowance = accuracy.allowance(torch.float32, n).order
    assert float((total - truth).abs().max()) < allowance * float(truth.abs().max())
    assert float((total - truth).abs().mean()) < allowance * float(truth.abs().mean())
    assert allowance < accuracy.TF32_ROUNDING / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_rounding_unit_is_half_the_machine_epsilon(dtype: torch.dtype) -> None:
    assert accuracy.rounding(dtype) == torch.finfo(dtype).eps / 2
