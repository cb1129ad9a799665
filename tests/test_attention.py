"""Every impl of attention computes the same numbers, whatever is masked."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from fusionbench.attention import attend, probabilities
from fusionbench.errors import FusionbenchError

SIZES = [(1, 1, 1, 1, 1), (2, 3, 7, 13, 4), (1, 2, 31, 1, 8), (3, 1, 1, 33, 5)]  # B, H, Lq, Lk, d
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
impls = pytest.mark.parametrize("impl", ["eager", "sdpa"])


def operands(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    b, h, queries, keys, d = size
    torch.manual_seed(0)
    q, k, v = (torch.randn(b, h, n, d, dtype=dtype, requires_grad=True) for n in (queries, keys, keys))
    return q, k, v


def by_definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """One query at a time, over the keys that its sample really has."""
    out = torch.zeros_like(q)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        real = torch.ones(k.shape[2], dtype=torch.bool) if mask is None else mask[b]
        if real.any():
            weights = (k[b, h, real] @ q[b, h, i] / q.shape[-1] ** 0.5).exp()
            out[b, h, i] = weights @ v[b, h, real] / weights.sum()
    return out


def masks(size: tuple[int, ...]) -> Tensor:
    """The first sample has one real key, the next ones more."""
    return torch.arange(size[3]) < torch.arange(1, size[0] + 1).unsqueeze(1)


@impls
@sizes
def test_attention_is_its_definition(impl: str, size: tuple[int, ...]) -> None:
    q, k, v = operands(size)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, impl), by_definition(q, k, v))
        torch.testing.assert_close(attend(q, k, v, impl, masks(size)), by_definition(q, k, v, masks(size)))


@sizes
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_eager_and_sdpa_have_the_same_gradients(size: tuple[int, ...], masked: bool) -> None:
    grads = []
    for impl in ("eager", "sdpa"):
        q, k, v = operands(size)
        out = attend(q, k, v, impl, masks(size) if masked else None)
        grads.append(torch.autograd.grad(out.sin().sum(), (q, k, v)))
    for eager, sdpa in zip(*grads, strict=True):
        torch.testing.assert_close(eager, sdpa)


@impls
def test_large_values_under_the_mask_change_nothing(impl: str) -> None:
    size = SIZES[1]
    q, k, v = operands(size)
    mask = masks(size)
    poison = torch.where(mask[:, None, :, None], 0.0, 1e30)
    clean = attend(q, k, v, impl, mask)
    assert torch.equal(attend(q, k + poison, v + poison, impl, mask), clean)


@impls
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_row_without_any_real_key_gives_zero_and_finite_gradients(impl: str, dtype: torch.dtype) -> None:
    size = SIZES[1]
    q, k, v = operands(size, dtype)
    mask = masks(size)
    mask[0] = False
    out = attend(q, k, v, impl, mask)
    assert not out[0].any()
    assert out[1].isfinite().all()
    assert out[1].any()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.isfinite().all()
        assert not grad[0].any()


def test_probabilities_sum_to_one_over_real_keys_and_to_zero_without_any() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    p = probabilities(torch.randn(2, 5, 3), mask[:, None, :])
    torch.testing.assert_close(p.sum(-1), torch.tensor([1.0, 0.0]).unsqueeze(1).expand(2, 5))
    assert not p[0, :, 2].any()


def test_the_scale_is_that_of_a_head_and_not_of_the_whole_width() -> None:
    q = torch.ones(1, 2, 1, 4, dtype=torch.float64)
    k = torch.stack([torch.ones(4), torch.zeros(4)]).double().expand(1, 2, 2, 4)
    weight = torch.tensor(2.0, dtype=torch.float64).sigmoid()  # 4 / sqrt(4) against 0
    for impl in ("eager", "sdpa"):
        torch.testing.assert_close(attend(q, k, k, impl)[0, 0, 0, 0], weight)


def test_an_impl_without_code_is_refused_and_never_replaced() -> None:
    q, k, v = operands(SIZES[0])
    with pytest.raises(FusionbenchError, match=r"^attention has no 'flash9' impl"):
        attend(q, k, v, "flash9")


@pytest.mark.skipif(shutil.which("g++") is None, reason="flex_attention on the CPU is compiled with g++")
@pytest.mark.filterwarnings("ignore")
def test_flex_computes_the_same_even_for_a_sample_without_any_real_key() -> None:
    q, k, v = operands((2, 2, 7, 32, 16), torch.float32)
    mask = torch.arange(32) < torch.tensor([[20], [0]])
    with torch.no_grad():
        flex, eager = (attend(q.detach(), k.detach(), v.detach(), impl, mask) for impl in ("flex", "eager"))
    torch.testing.assert_close(flex, eager, rtol=1e-4, atol=1e-5)
