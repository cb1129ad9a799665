"""Where the time goes: ops and kernels are told apart by what they are for, in every strategy, and nothing is left behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import asdict, astuple, replace
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fusionbench import backends, measuring, registry
from fusionbench.meters import parts
from fusionbench.meters.parts import CALL, Work
from fusionbench.parts import FeedForward
from fusionbench.record import PARTS, Parts
from fusionbench.spec import Budget, Case, Job, Mode, Projector, Shape
from fusionbench.subject import Subject, build

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = Shape(batch=2, image=16, text=8, image_width=32, text_width=32, width=32, heads=2)


def subject(strategy: str, backend: str = "eager", mode: Mode = "fwd", shape: Shape = TINY) -> Subject:
    """A strategy that is there to be measured, with the first projector and image width that it takes."""
    entry, served = registry.get(strategy), backends.get(backend)
    patches = replace(shape, image_width=48)  # of 4 x 4 pixels
    tried: tuple[tuple[Shape, Projector], ...] = ((shape, "identity"), (shape, "linear"), (patches, "linear"))
    cases = [Case(shape=s, projector=p, mode=mode) for s, p in tried]
    case = next((c for c in cases if backends.refusal(entry, served, c) is None), None)
    if case is None:
        pytest.skip(str(backends.refusal(entry, served, cases[-1])))
    return build(Job(strategy=strategy, backend=backend, case=case), served.impl_for(entry) or "", served, 0)


def spent(given: Subject) -> Parts:
    with torch.set_grad_enabled(given.training):
        given.call()
        found = parts.measure(given.call, given.module, CPU)
    assert found is not None
    return found


def named(found: Parts) -> set[str]:
    return {name.removesuffix("_ns") for name, ns in asdict(found).items() if ns}


def share(found: Parts, part: str) -> float:
    return float(getattr(found, f"{part}_ns") / sum(astuple(found)))


def expected(given: Subject) -> set[str]:
    """The parts that a module must have, from what it is made of."""
    kinds = [type(each) for each in given.module.modules()]
    has_linears = any(
        kind is nn.Linear and not _inside_feed_forward(given.module, name)
        for name, kind in ((name, type(each)) for name, each in given.module.named_modules())
    )
    found = {"other"}
    found |= {"feed_forward"} if FeedForward in kinds else set()
    found |= {"attention"} if any(callable(getattr(kind, "read", None)) for kind in kinds) else set()
    return found | ({"projections"} if has_linears else set())


def _inside_feed_forward(module: nn.Module, name: str) -> bool:
    above = ["", *itertools.accumulate(name.split("."), lambda a, b: f"{a}.{b}")]
    return any(isinstance(module.get_submodule(each), FeedForward) for each in above)


# --- every strategy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", registry.strategies())
def test_every_strategy_has_the_parts_that_it_is_made_of(strategy: str) -> None:
    given = subject(strategy)
    assert named(spent(given)) == expected(given)


@pytest.mark.parametrize("strategy", registry.strategies())
def test_a_backward_pass_goes_to_the_parts_of_its_forward_pass(strategy: str) -> None:
    given = subject(strategy, mode="fwd_bwd")
    with profile(activities=[ProfilerActivity.CPU], acc_events=False) as session, parts.marked(given.module):
        given.call()
    events = session.profiler.kineto_results.events()
    ops = parts.walk(sorted((e.start_ns(), -e.end_ns(), i, e) for i, e in enumerate(events))).ops
    nodes = {op.part for op in ops if op.name.startswith("autograd::engine")}
    assert nodes - {"other"} == (expected(given) | {"backward"}) - {"other"}
    assert named(spent(given)) == nodes | {"other"}


@pytest.mark.parametrize("strategy", ["cross_attention", "concat_attention", "mmdit", "co_attention_shared"])
def test_fused_attention_is_attention_as_eager_attention_is(strategy: str) -> None:
    assert named(spent(subject(strategy, "sdpa"))) == named(spent(subject(strategy, "eager")))


def test_a_training_step_has_an_optimizer() -> None:
    assert named(spent(subject("cross_attention", mode="step"))) == {*PARTS} - {"compiled"}


def test_attention_alone_is_attention_and_a_feed_forward_layer_alone_is_feed_forward() -> None:
    shape = replace(TINY, image=512, text=512, image_width=64, text_width=64, width=64)
    for backend in ("eager", "sdpa"):
        assert share(spent(subject("attention_core", backend, shape=shape)), "attention") > 0.8
    layer, x = FeedForward(64, 256, Case(shape=shape)), torch.randn(512, 64)
    with torch.no_grad():
        found = parts.measure(lambda: layer(x), layer, CPU)
    assert found is not None
    assert named(found) == {"feed_forward"}


def test_a_class_of_another_linear_is_a_projection() -> None:
    class HalvedLinear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T / 2

    layer, x = HalvedLinear(8, 8), torch.randn(4, 8)
    with torch.no_grad():
        found = parts.measure(lambda: layer(x) + 1, layer, CPU)
    assert found is not None
    assert named(found) == {"projections", "other"}


def test_a_record_says_where_its_time_went() -> None:
    budget = Budget(measure_s=0.001, warmup_s=0.0, min_samples=6, rounds=1)
    record = measuring.measure(Job(strategy="cross_attention", backend="sdpa", case=Case(shape=TINY)), budget)
    assert record.status == "ok"
    assert record.parts is not None
    assert named(record.parts) == {"attention", "projections", "feed_forward", "other"}
    assert "parts" in record.phases_s


# --- nothing is left behind ----------------------------------------------------------------------------------------


def own_methods(module: nn.Module) -> list[str]:
    return [name for each in module.modules() for name in ("forward", "read") if name in vars(each)]


def test_ranges_are_there_in_the_profiled_calls_alone() -> None:
    given = subject("cross_attention")
    seen: list[int] = []

    def call() -> None:
        seen.append(len(own_methods(given.module)))
        given.call()

    with torch.no_grad():
        parts.measure(call, given.module, CPU)
    assert set(seen) == {2}  # of the attention and of the feed-forward layer
    assert own_methods(given.module) == []


def test_ranges_are_taken_away_from_a_call_that_fails() -> None:
    given = subject("cross_attention")

    def fail() -> None:
        raise ValueError("a call that fails")

    with pytest.raises(ValueError, match="that fails"):
        parts.measure(fail, given.module, CPU)
    assert own_methods(given.module) == []


def test_a_compiled_module_is_not_touched_and_what_somebody_put_in_place_stays() -> None:
    class Compiled(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._orig_mod = module

    given = subject("cross_attention").module
    with parts.marked(nn.Sequential(Compiled(given))):
        assert own_methods(given) == []
    layer = given.get_submodule("layer.ffn.ffn")
    layer.forward = replaced = lambda x: x
    with parts.marked(given):
        assert layer.forward is replaced
    assert layer.forward is replaced


@pytest.mark.parametrize(("delays", "calls"), [([0], 3), ([9, 0, 9, 0], 5), ([9], 10)], ids=["calm", "mixed", "never"])
def test_calls_go_on_until_some_did_not_wait(delays: list[int], calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> Iterator[int]:
        waited = 0
        for delay in itertools.chain(delays, itertools.repeat(delays[-1])):
            yield waited  # before the call, and after it
            waited += delay
            yield waited

    monkeypatch.setattr(parts, "run_delay", lambda: nullcontext(told().__next__))
    monkeypatch.setattr(parts, "perf_counter_ns", itertools.count().__next__)
    called: list[int] = []
    parts.measure(lambda: called.append(1), nn.Identity(), CPU)
    assert len(called) == calls


def test_a_call_of_seconds_is_profiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=2_000_000_000)
    monkeypatch.setattr(parts, "perf_counter_ns", lambda: next(clock))
    called: list[int] = []
    parts.measure(lambda: called.append(1), nn.Identity(), CPU)
    assert len(called) == 1


def test_a_call_without_ops_has_no_parts() -> None:
    assert parts.measure(lambda: None, nn.Identity(), CPU) is None


# --- made-up profiles ----------------------------------------------------------------------------------------------

_numbers = itertools.count(1)


@dataclass
class Event:
    """What the profiler tells of an op, a range, a call of the driver, or a kernel."""

    called: str
    start: int
    ns: int
    kind: str = "CPU"
    thread: int = 1
    number: int = 0  # 0: one of its own
    op: int = 0
    sequence: int = -1
    forward: int = 0
    user: bool = False

    def __post_init__(self) -> None:
        self.number = self.number or next(_numbers)

    def name(self) -> str:
        return self.called

    def device_type(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.kind)

    def start_ns(self) -> int:
        return self.start

    def end_ns(self) -> int:
        return self.start + self.ns

    def duration_ns(self) -> int:
        return self.ns

    def start_thread_id(self) -> int:
        return self.thread

    def correlation_id(self) -> int:
        return self.number

    def linked_correlation_id(self) -> int:
        return self.op

    def sequence_nr(self) -> int:
        return self.sequence

    def fwd_thread_id(self) -> int:
        return self.forward

    def scope(self) -> int:
        return 7 if self.user else 0

    def is_user_annotation(self) -> bool:
        return self.user and self.kind == "CUDA"


def call(*events: Event, start: int = 0, ns: int = 1000) -> list[Event]:
    return [Event(CALL, start, ns, user=True), *events]


def shares(events: Iterable[Any], device: torch.device) -> dict[str, int]:
    found = parts.split(events, device)
    return {} if found is None else {name.removesuffix("_ns"): ns for name, ns in asdict(found).items() if ns}


def test_an_op_counts_with_all_that_it_calls_and_a_range_with_its_ops_alone() -> None:
    events = call(
        Event("fusionbench part: attention", 100, 300, user=True),
        Event("aten::matmul", 120, 100),
        Event("aten::mm", 130, 80),
        Event("aten::linear", 250, 50),  # in attention, all is attention
        Event("aten::linear", 500, 40),
        Event("aten::addmm", 510, 30),
        Event("aten::add", 600, 7),
    )
    assert shares(events, CPU) == {"attention": 150, "projections": 40, "other": 7}


def test_a_backward_node_is_for_what_made_it_on_whatever_thread_it_runs() -> None:
    node = "autograd::engine::evaluate_function: "
    events = call(
        Event("aten::linear", 0, 10, sequence=4),
        Event("aten::t", 1, 2, sequence=4),
        Event("aten::addmm", 4, 5, sequence=5),
        Event("aten::add", 20, 5, sequence=6),
        Event(f"{node}AddBackward0", 30, 5, thread=2, forward=1, sequence=6),
        Event(f"{node}AddmmBackward0", 40, 60, thread=2, forward=1, sequence=5),
        Event("AddmmBackward0", 41, 58, thread=2, forward=1, sequence=5),
        Event("aten::mm", 42, 50, thread=2),
        Event(f"{node}torch::autograd::AccumulateGrad", 200, 3, thread=2, forward=0),
        Event("Optimizer.step#AdamW.step", 300, 90, user=True),
        Event("aten::_foreach_add_", 310, 20),
    )
    assert shares(events, CPU) == {"projections": 70, "other": 10, "backward": 3, "optimizer": 20}


def test_of_compiled_code_only_attention_is_told() -> None:
    events = call(
        Event("Torch-Compiled Region: 0/0", 100, 500, user=True),
        Event("CompiledFunction", 110, 400),
        Event("aten::addmm", 120, 100),
        Event("aten::_scaled_dot_product_flash_attention_for_cpu", 250, 90),
        Event("aten::empty", 260, 10),
        Event("aten::relu", 700, 9),
    )
    assert shares(events, CPU) == {"compiled": 410, "attention": 90, "other": 9}


def test_compiled_attention_is_attention() -> None:
    events = call(
        Event("fusionbench part: attention", 100, 600, user=True),
        Event("Torch-Compiled Region: 1/0", 150, 500, user=True),
        Event("aten::empty", 160, 10),
    )
    assert shares(events, CPU) == {"attention": 500}


@pytest.mark.parametrize("seen", [lambda events: events, lambda events: events[::-1]], ids=["in order", "reversed"])
def test_kernels_are_for_what_launched_them(seen: Callable[[list[Event]], list[Event]]) -> None:
    events = call(
        Event("aten::linear", 100, 50, number=11),
        Event("aten::addmm", 110, 30, number=12),
        Event("cudaLaunchKernel", 120, 5, number=12),  # a number of the driver's, not that of the op
        Event("gemm", 5000, 70, "CUDA", number=12, op=12),
        Event("fusionbench part: attention", 200, 100, user=True),
        Event("cuLaunchKernelEx", 250, 5, number=13),  # by Triton, without an op
        Event("_attention_kernel", 6000, 200, "CUDA", number=13),
        Event("aten::copy_", 400, 10, number=14),
        Event("cudaMemcpyAsync", 402, 5, number=15),
        Event("Memcpy DtoD", 7000, 30, "CUDA", number=15, op=14),
        Event("fusionbench part: attention", 5900, 400, "CUDA", user=True),
        Event("[memory]", 410, 0, "CUDA"),
    )
    assert shares(seen(events), CUDA) == {"projections": 70, "attention": 200, "other": 30}


def test_kernels_of_several_calls_are_medians_of_each() -> None:
    events: list[Event] = []
    for start, gemm, copy in ((0, 70, 30), (10_000, 900, 31), (20_000, 71, 800)):
        linear, other = Event("aten::linear", start + 100, 50), Event("aten::copy_", start + 400, 10)
        events += call(linear, other, start=start)
        events += [Event("gemm", start + 600, gemm, "CUDA", op=linear.number)]
        events += [Event("Memcpy DtoD", start + 700, copy, "CUDA", op=other.number)]
    assert shares(events, CUDA) == {"projections": 71, "other": 31}


def test_a_profile_without_kernels_has_no_parts() -> None:
    assert shares(call(Event("aten::linear", 100, 50)), CUDA) == {}


def test_calls_that_do_not_run_the_same_ops_are_not_mixed() -> None:
    long, short = Work("aten::mm", 0, 90, "other"), Work("aten::linear", 0, 20, "projections")
    assert parts.combined([[long, short], [short]], min) == {"projections": 20}
    disturbed = [[long, replaced(short, 70)], [replaced(long, 900), short]]
    assert parts.combined(disturbed, min) == {"other": 90, "projections": 20}


def replaced(work: Work, ns: int) -> Work:
    return Work(work.name, work.moment, ns, work.part)
