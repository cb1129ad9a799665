"""The CUDA side of a job; run with `make gpu` on a machine that has a device."""

from __future__ import annotations

import msgspec
import pytest
import torch

from fusionbench import backends, registry
from fusionbench.measuring import measure
from fusionbench.plan import settled
from fusionbench.record import TIMED_AS
from fusionbench.spec import Budget, Case, Dtype, Job, Mode, Shape, Skip, Timer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() == 0,
        reason="no CUDA device; the plan's refusals are tested in test_plan, the timers' order in test_cuda_timers",
    ),
]
BUDGET = Budget(measure_s=0.05, warmup_s=0.01, min_samples=6, max_samples=20)
SHAPE = Shape(batch=2, image=196, text=32, image_width=768, text_width=768, width=256, heads=4)


def measured(
    strategy: str, backend: str, dtype: Dtype, mode: Mode = "fwd", padding: float = 0.0, timer: Timer = "cold"
) -> None:
    case = Case(shape=SHAPE, dtype=dtype, device="cuda", mode=mode, padding=padding)
    job = Job(strategy=strategy, backend=backend, case=case)
    planned = settled(job)
    if isinstance(planned, Skip):
        pytest.skip(planned.reason)
    record = measure(job, msgspec.structs.replace(BUDGET, timers=(timer,)))
    assert (record.status, record.reason) in (("ok", ""), ("skipped", record.reason))
    if record.status == "ok":
        assert record.time
        assert (record.time.timer, record.time.cache) == TIMED_AS[timer]
        assert min(record.time.samples_ns) > 0
        assert record.memory
        assert record.memory.meter == "cuda_allocator"
        assert record.memory.peak_bytes > 0


@pytest.mark.parametrize("dtype", ["fp32", "tf32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("backend", list(backends.BACKENDS))
def test_every_backend_measures_or_refuses_every_dtype(backend: str, dtype: Dtype) -> None:
    measured("cross_attention", backend, dtype)


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("name", [name for name, s in sorted(registry.strategies().items()) if "sdpa" in s.impls])
def test_every_strategy_is_right_in_bf16_with_padding(name: str, mode: Mode) -> None:
    measured(name, "sdpa", "bf16", mode, padding=0.5)


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("backend", ["sdpa", "sdpa-cudnn", "flex", "triton"])
@pytest.mark.parametrize("timer", ["hot", "graph", "kernel", "host"])
def test_every_timer_times_forward_and_training(timer: Timer, backend: str, mode: Mode) -> None:
    measured("cross_attention", backend, "bf16", mode, timer=timer)
