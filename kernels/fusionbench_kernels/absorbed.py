"""Cross-attention with both projections absorbed into a context that stays: Σ_h softmax(x·A_hᵀ + c_h)·V'_h.

A_h = scale·K_h·Wq_h and V'_h = V_h·Wo_hᵀ are computed once per context (a prompt of many diffusion steps): then there
is no q, no o and no projection per call. Against projected attention over the same keys a query's FLOPs change from
4·H·d·(D + Lk) to 4·H·Lk·D, by Lk/d · D/(D + Lk) at D wide in and out; with D = H·d that is 1 at Lk = d·H/(H - 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, projected_reference
from .dispatch import MAX_HEAD_DIM, RESIDENT_KEYS, padded_edge
from .runtime import autocast, cdiv, launch, near, operator, precision, settled, target, uses_triton
from .table import find


@dataclass(frozen=True)
class AbsorbedContext:
    """What ``absorb`` made of keys, values and weights.

    ``keys`` [B, H, Lk, Dx] and ``values`` [B, H, Lk, Dx'] in the inputs' type, a key's features side by side as
    the kernel reads them; ``bias`` [B, H, Lk] float32, the scores' share of q_bias and -inf at keys that take no part.
    """

    keys: Tensor
    bias: Tensor
    values: Tensor


def absorption_pays(head_dim: int, keys: int) -> bool:
    """Whether absorbed attention takes no more FLOPs than projected attention: keys <= 1.1·head_dim.

    The ratio is Lk/d · D/(D + Lk) (see this file's head): 1 at Lk = d·H/(H - 1), which is 1.14·d at 8 heads and 1.05·d
    at 20. For 77 keys it is 1.55 at C320/H8, 1.07 at C640/H10, 1.14 at C1280/H20; for 32 keys at C640/H10 it is 0.48.
    Keys that are padding count too: cut the context to its longest sample first.
    """
    return keys <= 1.1 * head_dim


def absorb(
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    out_weight: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> AbsorbedContext:
    """Keys and values k, v [B, H, Lk, d] with the projections of ``projected_cross_attention`` multiplied in.

    In plain PyTorch, products in float32 and rounded once to the inputs' type. Lk at most 256. Masked keys may hold
    NaN. Raises ValueError that names the argument, RuntimeError where a gradient would be needed.
    """
    k, v, q_weight, q_bias, out_weight = autocast(k, v, q_weight, q_bias, out_weight)
    checks.shaped("k", k, None, None, None, None)
    batch, heads, keys, head_dim = k.shape
    checks.shaped("v", v, *k.shape)
    checks.shaped("q_weight", q_weight, heads * head_dim, None)
    checks.shaped("out_weight", out_weight, None, heads * head_dim)
    given = {"k": k, "v": v, "q_weight": q_weight, "out_weight": out_weight}
    if q_bias is not None:
        checks.shaped("q_bias", q_bias, heads * head_dim)
        given["q_bias"] = q_bias
    checks.alike(**given)
    checks.head_dim(head_dim, MAX_HEAD_DIM)
    if keys > RESIDENT_KEYS:
        raise ValueError(f"k has {keys} keys; absorbed attention holds at most {RESIDENT_KEYS} (use cross_attention)")
    if key_padding_mask is not None:
        checks.padding_mask("key_padding_mask", key_padding_mask, batch, keys)
        checks.same_device(k=k, key_padding_mask=key_padding_mask)
    _no_gradients(**given)
    scale = head_dim**-0.5 if scale is None else float(scale)
    with settled(k.device):
        found = projected_reference.absorb(k, v, key_padding_mask, q_weight, q_bias, out_weight, scale)
    return AbsorbedContext(*found)


def absorbed_cross_attention(x: Tensor, context: AbsorbedContext, out_bias: Tensor | None = None) -> Tensor:
    """Σ_h softmax(x·A_hᵀ + c_h)·V'_h + out_bias in one kernel: x [B, Lq, Dx], out_bias [Dx'] -> [B, Lq, Dx'].

    For inference: raises RuntimeError where a gradient would be needed. A sample without keys gives out_bias. Outputs
    too wide for one program's registers are split over programs that each compute the scores again. float32 has no
    kernel on a GPU (products without tensor cores spilled 4 KB a thread): PyTorch's matmuls compute it.

    The weights' products are rounded once more than in projected attention: an element of A off by the relative
    u of its type moves a score by up to u·Σ|x·A|, and the output by that times the spread of the values.
    """
    x, out_bias = autocast(x, out_bias)
    keys, bias, values = context.keys, context.bias, context.values
    checks.shaped("x", x, keys.shape[0], None, keys.shape[3])
    checks.shaped("context.bias", bias, *keys.shape[:3])
    checks.shaped("context.values", values, *keys.shape[:3], None)
    given = {"x": x, "context.keys": keys, "context.values": values}
    if out_bias is not None:
        checks.shaped("out_bias", out_bias, values.shape[3])
        given["out_bias"] = out_bias
    checks.alike(**given)
    checks.same_device(x=x, **{"context.bias": bias})
    _no_gradients(**given)
    out: Tensor = absorbed_forward(x, keys, bias, values, out_bias)
    return out


def _no_gradients(**tensors: Tensor) -> None:
    asking = [name for name, x in tensors.items() if x.requires_grad]
    if asking and torch.is_grad_enabled():
        raise RuntimeError(
            f"{asking[0]} requires a gradient; absorbed attention is for inference (use torch.no_grad, or train "
            "with projected_cross_attention)"
        )


# --- the operator --------------------------------------------------------------------------------------------------


@operator("absorbed_forward")
def absorbed_forward(x: Tensor, keys: Tensor, bias: Tensor, values: Tensor, out_bias: Tensor | None) -> Tensor:
    if uses_triton(x, keys, values):
        return forward(x, keys, bias, values, out_bias)
    return _empty(x, values).copy_(projected_reference.absorbed(x, keys, bias, values, out_bias))


@absorbed_forward.register_fake
def _(x: Tensor, keys: Tensor, bias: Tensor, values: Tensor, out_bias: Tensor | None) -> Tensor:
    return _empty(x, values)


def _empty(x: Tensor, values: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], values.shape[3]))


@register_flop_formula(torch.ops.fusionbench_kernels.absorbed_forward)
def _(x: Any, keys: Any, bias: Any, values: Any, *rest: Any, **kwargs: Any) -> int:
    return int(2 * x[0] * x[1] * keys[1] * keys[2] * (keys[3] + values[3]))  # scores and output


# --- launching -----------------------------------------------------------------------------------------------------


def forward(x: Tensor, keys: Tensor, bias: Tensor, values: Tensor, out_bias: Tensor | None) -> Tensor:
    """The kernel's launch: shapes as in ``absorbed_cross_attention``."""
    from .device import absorbed as device

    (batch, queries, width), (_, heads, count, _), outputs = x.shape, keys.shape, values.shape[3]
    config = find("absorbed_forward", target(x.device).arch, bytes=x.element_size(), keys=count, outputs=outputs)
    if config is None:
        return projected_reference.absorbed(x, keys, bias, values, out_bias)
    out = _empty(x, values)
    x, keys, values = near(x), near(keys), near(values)
    blocks = config.blocks
    splits = cdiv(outputs, blocks["BLOCK_N"] * blocks["PIECES"])
    launch(
        device.absorbed_forward, batch * cdiv(queries, blocks["BLOCK_Q"]) * splits,
        x, keys, bias, values, None if out_bias is None else out_bias.contiguous(), out,
        *x.stride(), *keys.stride(), *bias.stride(), *values.stride(), *out.stride(),
        heads, queries, count, width, outputs,
        config=config, KEYS=padded_edge(count, config), HAS_BO=out_bias is not None, PRECISION=precision(x.dtype),
    )  # fmt: skip
    return out
