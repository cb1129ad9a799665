"""Backends: which impl serves a strategy, and what is refused without a machine to ask."""

from __future__ import annotations

import pytest

from fusionbench import backends, registry
from fusionbench.errors import FusionbenchError, UnknownNameError
from fusionbench.spec import Case, Shape

SHAPE = Shape(batch=1, image=4, text=3, image_width=8, text_width=8, width=8, heads=2)
CUDA = {"shape": SHAPE, "device": "cuda"}


def refusal(backend: str, case: Case, strategy: str = "cross_attention") -> str | None:
    return backends.refusal(registry.get(strategy), backends.get(backend), case)


def test_the_backends_are_those_of_the_design() -> None:
    assert list(backends.BACKENDS) == [
        "eager", "sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "flex", "compile", "int8", "sparse",
        "triton", "triton-projected", "triton-absorbed", "triton-int8", "sage",
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="no backend named 'spda'; did you mean 'sdpa'"):
        backends.get("spda")


@pytest.mark.parametrize(
    ("backend", "case", "reason"),
    [
        ("sdpa-flash", Case(**CUDA, dtype="bf16"), None),
        (
            "sdpa-flash",
            Case(**CUDA, dtype="bf16", padding=0.5),
            "PyTorch's flash attention takes no key-padding mask on CUDA",
        ),
        ("sdpa-flash", Case(**CUDA), "this attention kernel computes in fp16 and bf16 on CUDA, not in fp32"),
        ("sdpa-cudnn", Case(**CUDA, dtype="fp16"), None),
        ("sdpa-efficient", Case(**CUDA), None),
        ("sdpa-efficient", Case(shape=SHAPE), "PyTorch has this attention kernel for CUDA only"),
        ("sdpa", Case(**CUDA, dtype="tf32"), None),
        ("int8", Case(**CUDA, dtype="int8"), None),
        ("triton", Case(**CUDA, dtype="fp32", mode="fwd_bwd", padding=0.5), None),
        ("triton-projected", Case(**CUDA, dtype="bf16", mode="fwd_bwd"), None),
        ("triton-absorbed", Case(**CUDA, dtype="bf16"), None),
        (
            "triton-absorbed",
            Case(**CUDA, dtype="bf16", mode="fwd_bwd"),
            "absorbed attention is for inference: its products of weights have no gradients",
        ),
        ("triton-absorbed", Case(**CUDA), "absorbed attention has kernels for fp16 and bf16, not for fp32"),
        ("triton-int8", Case(**CUDA, dtype="int8"), None),
        ("triton-int8", Case(**CUDA, dtype="int8", mode="fwd_bwd"), "int8 products have no backward pass"),
        ("triton-int8", Case(**CUDA), "backend 'triton-int8' computes in int8, not in fp32 (use dtype 'int8')"),
        (
            "sage",
            Case(**CUDA, dtype="int8"),
            "needs the package sageattention, which is not installed here (pip install sageattention==1.0.6)",
        ),
        ("sage", Case(**CUDA, dtype="int8", padding=0.5), "sageattention takes no padding mask"),
    ],
)
def test_refusals_follow_the_device_and_the_dtype(backend: str, case: Case, reason: str | None) -> None:
    assert refusal(backend, case) == reason


def test_a_transform_serves_strategies_without_attention_and_an_attention_backend_does_not() -> None:
    features = registry.get("concat_features")
    assert backends.get("compile").impl_for(features) == "eager"
    assert backends.get("int8").impl_for(features) == "eager"
    assert backends.get("sdpa").impl_for(features) is None
    assert backends.get("compile").impl_for(registry.get("cross_attention")) == "sdpa"


def test_triton_serves_every_strategy_but_those_without_a_product_that_it_has() -> None:
    case = Case(**CUDA, dtype="bf16", projector="identity")
    accepted = {n: s for n, s in registry.strategies().items() if s.refusal(case) is None}
    refused = {n.partition(":")[0] for n, s in accepted.items() if backends.refusal(s, backends.get("triton"), case)}
    own_attention = {"linear_cross_attention", "topk_cross_attention"}
    assert refused == {"bilinear", "film", "low_rank", "tensor_fusion"} | own_attention


def test_a_strategy_without_the_impl_is_refused_with_those_it_has() -> None:
    wanted = "backend 'triton-projected' skips 'concat': it has no 'triton_projected' impl (has: eager, triton)"
    assert refusal("triton-projected", Case(**CUDA, dtype="bf16"), "concat") == wanted


def test_a_record_counts_as_done_until_the_kernels_it_ran_change(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = registry.get("cross_attention")
    names = ("sdpa", "triton")
    before = [backends.source(strategy, backends.get(name)) for name in names]
    monkeypatch.setattr(backends, "kernels_source", lambda: "other")
    after = [backends.source(strategy, backends.get(name)) for name in names]
    assert before[0] == after[0] == strategy.source
    assert before[1] != after[1]


def test_without_a_compiler_compiled_backends_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    backends.missing_compiler.cache_clear()
    try:
        for backend in ("compile", "flex"):
            assert "install g++" in (refusal(backend, Case(shape=SHAPE)) or "")
    finally:
        backends.missing_compiler.cache_clear()


def test_int8_refuses_a_module_without_linears() -> None:
    from torch import nn

    with pytest.raises(FusionbenchError, match="no Linear layer"):
        backends.get("int8").prepare(nn.Sequential(nn.GELU()))
