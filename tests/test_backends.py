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
        "eager", "sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "flex", "compile", "int8", "triton",
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
