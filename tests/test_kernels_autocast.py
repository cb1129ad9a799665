"""Under autocast the operators take its type, as SDPA does, and compute inside as they promise; wrong types are named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusionbench_kernels import (
    absorb,
    absorbed_cross_attention,
    attention_weights,
    co_attention,
    concat_linear,
    concat_projected,
    cross_attention,
    int8_linear,
    projected_cross_attention,
)

BF16 = torch.bfloat16


def given(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_attention_gives_what_sdpa_gives() -> None:
    q, k, v = given(1, 2, 5, 16), given(1, 2, 7, 16, dtype=BF16), given(1, 2, 7, 16)
    with torch.autocast("cpu", dtype=BF16):
        out, wanted = cross_attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert isinstance(out, Tensor)
    assert out.dtype == wanted.dtype == BF16
    assert torch.equal(out, cross_attention(q.to(BF16), k, v.to(BF16)))  # no more rounding inside than without


def test_probabilities_sum_to_one() -> None:
    q, k = given(1, 2, 5, 16), given(1, 2, 7, 16)
    _, lse = cross_attention(q, k, k, return_lse=True)
    with torch.autocast("cpu", dtype=BF16):
        assert torch.allclose(attention_weights(q, k, lse).sum(-1), torch.ones(()), atol=1e-5)


def test_projections_take_fp32_weights_and_half_precision_keys() -> None:
    x, weight, bias = given(1, 5, 24), given(32, 24), given(32)
    k, out_weight = given(1, 2, 7, 16, dtype=BF16), given(24, 32)
    with torch.autocast("cpu", dtype=BF16):
        out = projected_cross_attention(x, k, k, weight, bias, out_weight, None, heads=2)
        context = absorb(k, k, weight, bias, out_weight)
        assert (context.keys.dtype, context.bias.dtype) == (BF16, torch.float32)
        absorbed = absorbed_cross_attention(x, context)
    assert out.dtype == absorbed.dtype == BF16
    same = projected_cross_attention(
        x.to(BF16), k, k, weight.to(BF16), bias.to(BF16), out_weight.to(BF16), None, heads=2
    )
    assert torch.equal(out, same)


def test_training_works() -> None:
    x, weight = given(1, 5, 24).requires_grad_(), given(32, 24).requires_grad_()
    k, out_weight = given(1, 2, 7, 16), given(24, 32).requires_grad_()
    with torch.autocast("cpu", dtype=BF16):
        projected_cross_attention(x, k, k, weight, None, out_weight, None, heads=2).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_co_attention_and_concatenations() -> None:
    text, image = given(1, 2, 5, 16), given(1, 2, 7, 16, dtype=BF16)
    a, b = given(1, 5, 24), given(1, 5, 8, dtype=BF16)
    with torch.autocast("cpu", dtype=BF16):
        assert {out.dtype for out in co_attention(text, image, text, image)} == {BF16}
        assert concat_linear(a, b, given(16, 32), given(16)).dtype == BF16
        norm = (given(24), given(24), 1e-5)
        assert concat_projected(a, b, given(16, 24), given(16, 8), norm_a=norm).dtype == BF16


def test_what_is_no_tensor_is_named() -> None:
    q = given(1, 1, 4, 8)
    with pytest.raises(ValueError, match="kv_lens is a list; it must be a tensor"):
        cross_attention(q, q, q, kv_lens=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight is a Tensor; it must be an Int8Weight"):
        int8_linear(given(2, 8), given(3, 8))  # type: ignore[arg-type]
    x, weight = given(1, 5, 8), given(4, 8)
    with pytest.raises(ValueError, match=r"norm_a is a LayerNorm; it must be a tuple \(gamma, beta, eps\)"):
        concat_projected(x, x, weight, weight, norm_a=torch.nn.LayerNorm(8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm_a's gamma is a NoneType; it must be a tensor"):
        concat_projected(x, x, weight, weight, norm_a=(None, None, 1e-5))  # type: ignore[arg-type]
