"""Absorbed attention is projected attention over the same keys, within what rounding the weights' products may cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fusionbench_kernels import AbsorbedContext, absorb, absorbed_cross_attention, absorption_pays, projected_reference
from tests.kernels.projected_cases import made, padding

BF16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not torch.cuda.device_count(), reason="bf16 is wrong in Triton's interpreter"),
)
DTYPES = [torch.float32, torch.float16, BF16]
# Lq, Lk, Dx, Dx', heads, d, padded; the interpreter's program holds 32 columns of out
SIZES = [
    (1, 1, 24, 24, 1, 8, False),
    (7, 7, 40, 24, 2, 16, True),
    (17, 16, 48, 40, 3, 24, True),
    (17, 17, 80, 80, 2, 40, False),
    (63, 17, 24, 48, 1, 40, True),
    (7, 77, 40, 40, 2, 16, True),
]


def truth_and_bound(inputs: tuple[Tensor, ...], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The fp64 result and, element by element, how far rounding may move it.

    With u the type's unit roundoff and w float32's: A = fl(A) (1 + u), and its score is a sum of Dx + 2 products in
    float32, so it is off by at most e = (u + (d + Dx + 4) w) Σ|x||A| + (d + 4) w |c|. Probabilities whose scores are
    off by e are off by a factor within exp(±2 max e); p, V' are rounded once each (2u, d·w from V' 's own
    sum), the sum over heads and keys costs H·Lk·w of Σ p|V'|, and the result is rounded once.
    """
    x, k, v, wq, bq, wo, bo = (y.double() for y in inputs)
    heads, keys, d = k.shape[1:]
    u, w = torch.finfo(inputs[0].dtype).eps / 2, torch.finfo(torch.float32).eps / 2
    a, c, values = projected_reference.absorb(k, v, mask, wq, bq, wo, d**-0.5)
    truth = projected_reference.projected(x, k, v, mask, wq, bq, wo, bo, d**-0.5)  # not by way of A and V'
    scores = x[:, None] @ a.transpose(-2, -1) + c[:, :, None]
    p = torch.softmax(scores, -1).nan_to_num()
    kept = torch.ones_like(c[:, :1, None], dtype=torch.bool) if mask is None else mask[:, None, None]
    # A and c are sums over d whose terms' absolute values bound what cancels in them.
    wide_a = (k.abs().nan_to_num() * d**-0.5) @ wq.abs().view(heads, d, -1)
    wide_values = v.abs().nan_to_num() @ wo.abs().T.reshape(heads, d, -1)
    wide_c = ((k.abs().nan_to_num() * d**-0.5) @ bq.abs().view(heads, d, 1)).squeeze(-1)
    reach = x.abs()[:, None] @ (u * a.abs() + (d + x.shape[-1] + 4) * w * wide_a).transpose(-2, -1)
    reach = (reach + (d + 4) * w * (wide_c[:, :, None] + scores.abs().nan_to_num(posinf=0))).masked_fill(~kept, 0)
    moved = torch.expm1(2 * reach.amax(-1, keepdim=True)) + 2 * u + (heads * keys + 8) * w
    moved = moved * (p @ values.abs()) + p @ (d * w * wide_values)
    return truth, moved.sum(1) + u * truth.abs() + 2 * w * bo.abs()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_is_within_the_bound_of_its_roundings(dtype: torch.dtype, sizes: tuple[int, ...], device: str) -> None:
    inputs = made(sizes, dtype, device)
    mask = padding(sizes[1], device) if sizes[6] else None
    x, k, v, wq, bq, wo, bo = inputs
    truth, bound = truth_and_bound(inputs, mask)
    context = absorb(k, v, wq, bq, wo, key_padding_mask=mask)
    found = absorbed_cross_attention(x, context, bo)
    assert found.dtype == dtype
    assert ((found.double() - truth).abs() <= bound).all()
    # The bound adds what in truth has random signs; on the whole the error stays near projected attention's.
    plain = projected_reference.projected(x, k, v, mask, wq, bq, wo, bo, sizes[5] ** -0.5)
    error, other = ((y.double() - truth).square().mean().sqrt().item() for y in (found, plain))
    assert error <= 3 * other + torch.finfo(dtype).eps * truth.abs().mean().item()


def test_without_rounding_it_is_projected_attention() -> None:
    inputs = made(SIZES[2], torch.float64, "cpu")
    x, k, v, wq, bq, wo, bo = inputs
    mask = padding(16, "cpu")
    found = absorbed_cross_attention(x, absorb(k, v, wq, bq, wo, key_padding_mask=mask, scale=0.3), bo)
    expected = projected_reference.projected(x, k, v, mask, wq, bq, wo, bo, 0.3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


def test_what_masked_keys_hold_is_never_read(device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[2], torch.float32, device)
    mask = padding(16, device)
    poisoned = [torch.where(mask[:, None, :, None], y, torch.nan) for y in (k, v)]
    clean, found = (
        absorbed_cross_attention(x, absorb(*kv, wq, bq, wo, key_padding_mask=mask), bo) for kv in ((k, v), poisoned)
    )
    assert torch.equal(found, clean)
    assert torch.equal(found[1], bo.expand_as(found[1]))  # no keys at all


def test_no_keys_and_no_biases_give_zero(device: str) -> None:
    x, k, v, wq, _, wo, _ = made(SIZES[1], torch.float32, device)
    assert (absorbed_cross_attention(x, absorb(k[:, :, :0], v[:, :, :0], wq, None, wo)) == 0).all()


def test_strides_do_not_matter_and_repeats_are_equal(device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[3], torch.float32, device)
    context = absorb(k, v, wq, bq, wo)
    expected = absorbed_cross_attention(x, context, bo)

    def turned(y: Tensor) -> Tensor:
        return y.transpose(-2, -1).contiguous().transpose(-2, -1)

    other = AbsorbedContext(turned(context.keys), context.bias, turned(context.values))
    assert torch.equal(absorbed_cross_attention(turned(x), other, torch.stack([bo, bo], -1)[:, 0]), expected)
    assert torch.equal(absorbed_cross_attention(x, context, bo), expected)


def test_a_gradient_is_refused(device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[1], torch.float32, device)
    context = absorb(k, v, wq, bq, wo)
    with pytest.raises(RuntimeError, match="x requires a gradient; absorbed attention is for inference"):
        absorbed_cross_attention(x.requires_grad_(), context, bo)
    with pytest.raises(RuntimeError, match="q_weight requires a gradient"):
        absorb(k, v, wq.requires_grad_(), bq, wo)
    with torch.no_grad():
        absorbed_cross_attention(x, absorb(k, v, wq, bq, wo), bo)


def test_a_context_cannot_be_changed_and_arguments_that_do_not_fit_are_named() -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[1], torch.float32, "cpu")
    context = absorb(k, v, wq, bq, wo)
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.bias = context.bias  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"x has shape \[2, 7, 39\]; it must be \[2, any, 40\]"):
        absorbed_cross_attention(x[..., :39], context, bo)
    with pytest.raises(ValueError, match="out_bias is float16 and x is float32"):
        absorbed_cross_attention(x, context, bo.half())
    with pytest.raises(ValueError, match="k has 259 keys; absorbed attention holds at most 256"):
        absorb(k.repeat(1, 1, 37, 1), v.repeat(1, 1, 37, 1), wq, bq, wo)


def test_absorption_pays_up_to_as_many_keys_as_a_tenth_more_than_the_head() -> None:
    assert absorption_pays(64, 70)
    assert not absorption_pays(64, 71)
    # The rule against the count it stands for, at 10 heads of 64: 1.11·d.
    heads, d, width = 10, 64, 640
    for keys in (32, 64, 70, 77, 128):
        projected, absorbed = 4 * heads * d * (width + keys), 4 * heads * keys * width
        assert absorption_pays(d, keys) == (absorbed <= projected)


def test_it_passes_opcheck(device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[1], torch.float32, device)
    context = absorb(k, v, wq, bq, wo)
    torch.library.opcheck(
        torch.ops.fusionbench_kernels.absorbed_forward.default, (x, context.keys, context.bias, context.values, bo)
    )


def test_it_compiles_and_exports_in_one_graph(device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[1], torch.float32, device)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return absorbed_cross_attention(x, absorb(k, v, wq, bq, wo), bo)

    expected = Module()(x, k, v)
    assert torch.equal(torch.compile(Module(), fullgraph=True, backend="aot_eager")(x, k, v), expected)
    assert torch.equal(torch.export.export(Module(), (x, k, v)).module()(x, k, v), expected)


def test_flops_are_two_products_per_head(device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[1], torch.float32, device)
    context = absorb(k, v, wq, bq, wo)
    with FlopCounterMode(display=False) as counter:
        absorbed_cross_attention(x, context, bo)
    assert counter.get_total_flops() == 2 * 2 * 7 * (2 * 7) * (40 + 24)
