"""The worker's side of a job: every backend, dtype and mode comes back as a complete and right record."""

from __future__ import annotations

import shutil

import pytest
import torch

from fusionbench import attention, measuring
from fusionbench.measuring import measure
from fusionbench.meters.device import Monitor
from fusionbench.record import decode_record, encode_record
from fusionbench.registry import strategies
from fusionbench.spec import Budget, Case, Dtype, Job, Mode, Shape, Visit
from fusionbench.subject import Subject, build, resolve

BUDGET = Budget(measure_s=0.02, warmup_s=0.0, min_samples=6, max_samples=10, rounds=1)
# image_width 48 = 3 x 4 x 4 is a patch that `early` can take
SHAPE = Shape(batch=2, image=7, text=5, image_width=48, text_width=24, width=16, heads=2)


def job(strategy: str, backend: str, dtype: Dtype = "fp32", mode: Mode = "fwd", padding: float = 0.0) -> Job:
    case = Case(shape=SHAPE, dtype=dtype, mode=mode, padding=padding)
    if strategy == "concat":
        shape = Shape(batch=2, image=7, text=5, image_width=16, text_width=16, width=16, heads=2)
        case = Case(shape=shape, dtype=dtype, mode=mode, padding=padding, projector="identity")
    return Job(strategy=strategy, backend=backend, case=case)


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("name", sorted(strategies()))
def test_every_strategy_is_measured_whole(name: str, mode: Mode) -> None:
    backend = "sdpa" if "sdpa" in strategies()[name].impls else "eager"
    record = measure(job(name, backend, mode=mode, padding=0.5), BUDGET)
    if strategies()[name].refusal(record.job.case):
        assert record.status == "skipped"
        return
    assert (record.status, record.reason, record.notes) == ("ok", "", ())
    assert record.time
    assert record.memory
    assert record.accuracy
    assert record.costs
    assert record.costs.counted_flops == record.costs.flops
    assert len(record.time.samples_ns) >= BUDGET.min_samples
    assert record.accuracy.reference == "fp64"
    assert (record.accuracy.gradient is not None) == (mode == "fwd_bwd")
    assert record.source == strategies()[name].source
    phases = {"build", "first call", "honesty", "accuracy", "time", "recheck", "memory", "flops", "parts"}
    assert set(record.phases_s) == phases
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize(
    ("backend", "kernel"),
    [
        ("eager", None),
        ("sdpa", "_scaled_dot_product_flash_attention_for_cpu"),
        ("sdpa-flash", "_scaled_dot_product_flash_attention_for_cpu"),
        ("sdpa-math", "_scaled_dot_product_attention_math"),
    ],
)
def test_a_backend_runs_the_kernel_it_names(backend: str, kernel: str | None) -> None:
    record = measure(job("cross_attention", backend), BUDGET)
    assert record.status == "ok"
    assert record.kernels == ((kernel,) if kernel else ())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_no_worse_than_eager_allows(dtype: Dtype) -> None:
    record = measure(job("co_attention", "sdpa", dtype, "fwd_bwd"), BUDGET)
    assert record.status == "ok"
    assert record.accuracy
    assert record.accuracy.output.rel_l2
    assert 1e-5 < record.accuracy.output.rel_l2 < 0.1


def test_int8_is_judged_by_the_suites_thresholds() -> None:
    right = measure(job("cross_attention", "int8", "int8"), BUDGET)
    assert right.status == "ok"
    assert "_int_mm" in right.kernels
    assert right.costs
    assert right.costs.counted_flops == right.costs.flops
    strict = Budget(measure_s=0.02, warmup_s=0.0, int8_rel_l2=1e-6)
    wrong = measure(job("cross_attention", "int8", "int8"), strict)
    assert (wrong.status, wrong.phase, wrong.time) == ("wrong", "accuracy", None)
    assert "above the suite's int8_rel_l2 1e-06" in wrong.reason


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; the refusal is tested in test_backends"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_compiled_backends_are_measured_with_their_compile_time() -> None:
    for backend in ("compile", "flex"):
        record = measure(job("cross_attention", backend, padding=0.5), BUDGET)
        assert (record.status, record.reason) == ("ok", "")
        assert record.costs
        assert record.costs.counted_flops is None
        assert record.time
        assert record.time.first_call_ns > 5e7  # compiling


def test_a_job_that_makes_no_sense_comes_back_as_a_skip() -> None:
    record = measure(job("cross_attention", "triton"), BUDGET)
    assert record.status == "skipped"
    assert record.reason.startswith("Triton kernels need a GPU")


def test_the_same_seed_gives_the_same_errors() -> None:
    first, second = (measure(job("mid", "sdpa"), BUDGET) for _ in range(2))
    assert first.accuracy == second.accuracy


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; the refusal is tested in test_backends"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_worker_that_serves_many_shapes_goes_on_compiling() -> None:
    for tokens in range(2, 12):  # torch gives up at the ninth shape of one function unless it is reset
        shape = Shape(batch=1, image=tokens, text=2, image_width=8, text_width=8, width=8, heads=1, ffn=0)
        case = Case(shape=shape, projector="identity")
        record = measure(Job(strategy="cross_attention", backend="compile", case=case), BUDGET)
        assert (record.status, record.kernels[:1]) == ("ok", ("Torch-Compiled",))


BF16 = Shape(batch=2, image=576, text=16, image_width=64, text_width=64, width=64, heads=4)
MUTANTS = {
    "ignores the scores": lambda q, k, v, mask: v.mean(dim=2, keepdim=True).expand_as(q),
    "scales by 1/d": lambda q, k, v, mask: (q @ k.transpose(-2, -1) / q.shape[-1]).softmax(-1) @ v,
    "drops the last 16 keys": lambda q, k, v, mask: attention._sdpa(q, k[:, :, :-16], v[:, :, :-16], None),
    "ignores the mask": lambda q, k, v, mask: attention._sdpa(q, k, v, None),
    "is wrong beyond the first sample": lambda q, k, v, mask: torch.cat(
        [
            attention._sdpa(q[:1], k[:1], v[:1], mask[:1] if mask is not None else None),
            v.mean(2, keepdim=True).expand_as(q)[1:],
        ]
    ),
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("wrong", list(MUTANTS))
def test_a_wrong_attention_kernel_is_caught(wrong: str, dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = 0.5 if wrong == "ignores the mask" else 0.0
    job = Job(strategy="cross_attention", backend="sdpa", case=Case(shape=BF16, dtype=dtype, padding=padding))
    assert measure(job, BUDGET).status == "ok"
    monkeypatch.setitem(attention._IMPLS, "sdpa", MUTANTS[wrong])
    record = measure(job, BUDGET)
    assert (record.status, record.phase) == ("wrong", "accuracy")


def subject_of(mode: Mode) -> Subject:
    each = job("cross_attention", "eager", mode=mode)
    backend, impl, _ = resolve(each)
    assert impl is not None
    return build(each, impl, backend, seed=0)


def test_the_first_training_call_is_one_pass_forward_as_two_may_not_fit_into_memory() -> None:
    subject, passes = subject_of("fwd_bwd"), []
    subject.module.register_forward_hook(lambda *_: passes.append(1))
    with torch.enable_grad():
        subject.call()
    assert len(passes) == 1


def test_a_timer_that_breaks_off_leaves_no_gradients_for_the_next_call_to_add_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = subject_of("fwd_bwd")

    def breaks_off(call: object, *_: object, **__: object) -> None:
        subject.leaves[0].grad = torch.ones_like(subject.leaves[0])
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(measuring.time, "measure", breaks_off)
    visit = Visit(job=job("cross_attention", "eager"))
    sampling = measuring.Sampling(visit, subject, torch.device("cpu"), Monitor("cpu"), measuring.Interrupt(), None)
    budget = Budget(timers=("cold", "graph"))
    assert measuring._other_timers(sampling, budget, measuring.Phases()) == (
        (),
        (
            "no timer 'graph': operation not permitted when stream is capturing; "
            "the others stand (--timer says which are tried)",
        ),
    )
    assert all(leaf.grad is None for leaf in subject.leaves)
