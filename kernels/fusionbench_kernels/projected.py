"""Cross-attention with its query and output projections inside: from x to out in one kernel where the width allows.

Which kernel a call gets (``projected_choice`` tells):

1. ``one_kernel``: a program takes a tile of x, goes through all heads and keeps its rows of out in registers. Where
   the table has a row that holds the keys (at most 256), the head size and the whole output width, and the tiles
   of x give at least half of the multiprocessors a program. A 64-row tile of 320 columns takes 80 registers per
   thread of 8 warps, of 640 columns 160; 1280 do not fit. Compiled for sm_90 at 77 keys, 320 columns of 8 heads take
   249 registers without spills, 640 of 10 heads 255 and 80 bytes of spills (120 with a mask).
2. ``heads``: a program per head and tile computes q and attention and stores the head's output o; PyTorch's matmul
   projects o. Where the table has such a row: any width, H times as many programs, q never in memory.
3. ``separate``: PyTorch's matmul, ``cross_attention``, PyTorch's matmul. Everywhere else.

What fusing costs: each tile of 64 rows reads all of Wq and Wo once, from the L2 cache, and x once per head (a tile of x
held in registers could not be cut into the pieces that a product's loop needs). That is less than 64 FLOP per byte
and pays where weights are small beside the activations: by this count 320 columns should win, 640 are unclear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from . import checks, projected_reference
from .attention_launch import as_bytes, strides_of
from .attention_launch import forward as launch_attention
from .cross_attention import attention_backward, attention_forward
from .dispatch import MAX_HEAD_DIM, RESIDENT_KEYS, padded_edge
from .projected_reference import merge_heads, split_heads
from .runtime import (
    autocast,
    cdiv,
    dense,
    launch,
    near,
    of_eights,
    operator,
    precision,
    settled,
    target,
    uses_triton,
    without_kernel,
)
from .table import Config, find

ProjectedVariant = Literal["auto", "one_kernel", "heads", "separate"]


@dataclass(frozen=True)
class ProjectedChoice:
    """The kernel of a call and why; ``config`` is None where PyTorch's matmul and ``cross_attention`` do the work."""

    variant: Literal["one_kernel", "heads", "separate", "pytorch"]
    config: Config | None
    reason: str


def projected_cross_attention(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    heads: int,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    variant: ProjectedVariant = "auto",
) -> Tensor:
    """linear(attention(linear(x), k, v)) without q, and where it fits without o, in memory; differentiable.

    x [B, Lq, Dx], k and v [B, H, Lk, d] already projected, weights as ``nn.Linear`` holds them: q_weight [H·d, Dx],
    q_bias [H·d], out_weight [Dx', H·d], out_bias [Dx'] -> [B, Lq, Dx']. All of one type, any strides, d up to 256.
    ``key_padding_mask`` [B, Lk] bool, True at keys that take part; a sample without any gives out_bias.

    The backward pass recomputes: q by a matmul, attention by ``cross_attention``'s kernels, which then differentiate
    it; the projections' gradients are matmuls. It saves no activation but x, k and v. Gradients of gradients are not
    defined. ``variant`` forces a kernel where ``projected_choice`` would pick another and raises ValueError where it
    cannot run. On a CPU the same is computed by plain PyTorch. Raises ValueError that names the argument.
    """
    x, k, v, q_weight, q_bias, out_weight, out_bias = autocast(x, k, v, q_weight, q_bias, out_weight, out_bias)
    _check(x, k, v, q_weight, q_bias, out_weight, out_bias, heads, key_padding_mask, variant)
    scale = k.shape[-1] ** -0.5 if scale is None else float(scale)
    out: Tensor = projected_forward(x, k, v, key_padding_mask, q_weight, q_bias, out_weight, out_bias, scale, variant)
    return out


def projected_choice(
    x: Tensor, k: Tensor, out_weight: Tensor, *, variant: ProjectedVariant = "auto"
) -> ProjectedChoice:
    """Which kernels ``projected_cross_attention`` runs for these tensors on their device, and why."""
    if not uses_triton(x, k):
        return ProjectedChoice("pytorch", None, without_kernel(x))
    where, (batch, queries, _), keys = target(x.device), x.shape, k.shape[2]
    sizes = {"head_dim": k.shape[3], "bytes": x.element_size(), "keys": keys, "outputs": out_weight.shape[0]}
    if keys <= RESIDENT_KEYS and variant in ("auto", "one_kernel"):
        config = find("projected_forward", where.arch, **sizes)
        programs = 0 if config is None else batch * cdiv(queries, config.blocks["BLOCK_Q"])
        if config is not None and (variant == "one_kernel" or 2 * programs >= where.multiprocessors):
            return ProjectedChoice("one_kernel", config, f"{sizes['outputs']} columns of out stay in one program")
    if keys <= RESIDENT_KEYS and variant in ("auto", "heads"):
        config = find("projected_heads", where.arch, **sizes)
        if config is not None:
            return ProjectedChoice("heads", config, "out is too wide for one program, or x has too few tiles")
    if variant not in ("auto", "separate"):
        raise ValueError(
            f"variant '{variant}' has no room for {keys} keys of head dim {sizes['head_dim']}, {sizes['outputs']} "
            f"columns of out and {sizes['bytes']} bytes an element on {where.arch} (use 'auto')"
        )
    return ProjectedChoice("separate", None, "asked for" if variant == "separate" else "keys or heads fill no program")


def _check(
    x: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, q_bias: Tensor | None, out_weight: Tensor,
    out_bias: Tensor | None, heads: int, mask: Tensor | None, variant: str,
) -> None:  # fmt: skip
    checks.shaped("x", x, None, None, None)
    batch, _, width = x.shape
    checks.shaped("k", k, batch, heads, None, None)
    checks.shaped("v", v, *k.shape)
    keys, head_dim = k.shape[2:]
    checks.head_dim(head_dim, MAX_HEAD_DIM)
    checks.shaped("q_weight", q_weight, heads * head_dim, width)
    checks.shaped("out_weight", out_weight, None, heads * head_dim)
    given = {"x": x, "k": k, "v": v, "q_weight": q_weight, "out_weight": out_weight}
    for name, bias, size in (("q_bias", q_bias, heads * head_dim), ("out_bias", out_bias, out_weight.shape[0])):
        if bias is not None:
            checks.shaped(name, bias, size)
            given[name] = bias
    checks.alike(**given)
    if mask is not None:
        checks.padding_mask("key_padding_mask", mask, batch, keys)
        checks.same_device(x=x, key_padding_mask=mask)
    if variant not in get_args(ProjectedVariant):
        raise ValueError(f"no projected attention '{variant}' (has: {', '.join(get_args(ProjectedVariant))})")


# --- the operator --------------------------------------------------------------------------------------------------


@operator("projected_forward")
def projected_forward(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    q_weight: Tensor,
    q_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    scale: float,
    variant: str,
) -> Tensor:
    given = (x, k, v, mask, q_weight, q_bias, out_weight, out_bias, scale)
    if uses_triton(x, k, v):
        return forward(*given, variant)  # type: ignore[arg-type]
    return _empty(x, out_weight).copy_(projected_reference.projected(*given))


@projected_forward.register_fake
def _(x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor, q_bias: Tensor | None,
      out_weight: Tensor, *rest: Any) -> Tensor:  # fmt: skip
    return _empty(x, out_weight)


def _empty(x: Tensor, out_weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], out_weight.shape[0]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    with settled(dout.device):
        return _gradients(ctx, dout)


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, k, v, mask, q_weight, q_bias, out_weight = ctx.saved_tensors
    need = ctx.needs_input_grad
    q = split_heads(F.linear(x, q_weight, q_bias), k.shape[1])
    o, lse = attention_forward(q, k, v, mask, None, None, ctx.scale, "auto", 0)
    d_out_weight = dout.flatten(0, 1).T @ merge_heads(o).flatten(0, 1) if need[6] else None
    d_out_bias = dout.sum((0, 1)) if need[7] else None
    if not any(need[:6]):
        return None, None, None, None, None, None, d_out_weight, d_out_bias, None, None
    do = split_heads(dout @ out_weight, k.shape[1])
    dq, dk, dv, _ = attention_backward(q, k, v, o, lse, do, None, mask, None, None, ctx.scale, False)
    flat = merge_heads(dq)
    return (
        flat @ q_weight if need[0] else None, dk, dv, None,
        flat.flatten(0, 1).T @ x.flatten(0, 1) if need[4] else None,
        flat.sum((0, 1)) if need[5] else None, d_out_weight, d_out_bias, None, None,
    )  # fmt: skip


projected_forward.register_autograd(_differentiate, setup_context=_setup)


@register_flop_formula(torch.ops.fusionbench_kernels.projected_forward)
def _(x: Any, k: Any, v: Any, mask: Any, q_weight: Any, q_bias: Any, out_weight: Any, *rest: Any, **kwargs: Any) -> int:
    inner, width = q_weight
    return int(2 * x[0] * x[1] * inner * (width + 2 * k[2] + out_weight[0]))  # q, S = QKᵀ and PV, out


# --- launching -----------------------------------------------------------------------------------------------------


def forward(
    x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor, q_bias: Tensor | None, out_weight: Tensor,
    out_bias: Tensor | None, scale: float, variant: ProjectedVariant = "auto",
) -> Tensor:  # fmt: skip
    """The kernels' launch: shapes as in ``projected_cross_attention``."""
    picked = projected_choice(x, k, out_weight, variant=variant)
    if picked.config is None:
        q = split_heads(F.linear(x, q_weight, q_bias), k.shape[1])
        o, _ = launch_attention(q, k, v, mask, None, None, scale)
        return F.linear(merge_heads(o), out_weight, out_bias)
    x, k, v, q_weight, out_weight = (near(y) for y in (x, k, v, q_weight, out_weight))
    if picked.variant == "heads":
        o = _heads(x, k, v, mask, q_weight, q_bias, scale, picked.config)
        return F.linear(o, out_weight, out_bias)
    return _one_kernel(x, k, v, mask, q_weight, q_bias, out_weight, out_bias, scale, picked.config)


def _tiles(k: Tensor, config: Config) -> dict[str, int]:
    """One padded tile of keys and head columns: most of the time goes into the projections, not the scores."""
    return {"HEAD_DIM": k.shape[3], "D": padded_edge(k.shape[3], config), "KEYS": padded_edge(k.shape[2], config)}


def _one_kernel(
    x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor, q_bias: Tensor | None, out_weight: Tensor,
    out_bias: Tensor | None, scale: float, config: Config,
) -> Tensor:  # fmt: skip
    from .device import projected as device

    (batch, queries, width), outputs, out = x.shape, out_weight.shape[0], _empty(x, out_weight)
    launch(
        device.projected_forward, batch * cdiv(queries, config.blocks["BLOCK_Q"]),
        x, k, v, as_bytes(mask), q_weight, dense(q_bias), out_weight, dense(out_bias), out,
        *x.stride(), *k.stride(), *v.stride(), *strides_of(mask, 2), *q_weight.stride(), *out_weight.stride(),
        *out.stride(), scale, k.shape[1], queries, k.shape[2], width, outputs,
        config=config, **_tiles(k, config), PIECES=cdiv(outputs, config.blocks["BLOCK_N"]),
        EIGHTS=of_eights(x, k, v, q_weight, out_weight),
        HAS_MASK=mask is not None, HAS_BQ=q_bias is not None, HAS_BO=out_bias is not None, PRECISION=precision(x.dtype),
    )  # fmt: skip
    return out


def _heads(
    x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor, q_bias: Tensor | None, scale: float,
    config: Config,
) -> Tensor:  # fmt: skip
    from .device import projected as device

    (batch, queries, width), (_, heads, keys, head_dim) = x.shape, k.shape
    out = x.new_empty((batch, queries, heads, head_dim))
    launch(
        device.projected_heads, batch * heads * cdiv(queries, config.blocks["BLOCK_Q"]),
        x, k, v, as_bytes(mask), q_weight, dense(q_bias), out,
        *x.stride(), *k.stride(), *v.stride(), *strides_of(mask, 2), *q_weight.stride(), *out.stride(),
        scale, heads, queries, keys, width,
        config=config, **_tiles(k, config), EIGHTS=of_eights(x, k, v, q_weight), HAS_MASK=mask is not None,
        HAS_BQ=q_bias is not None, PRECISION=precision(x.dtype),
    )  # fmt: skip
    return out.flatten(2)
