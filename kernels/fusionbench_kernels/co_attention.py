"""Co-attention on one shared affinity: two modalities read each other through the same scores, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks
from . import co_attention_reference as reference
from .attention_launch import as_bytes, combine_splits, delta_of, shared_out, strides_of
from .attention_launch import backward as attention_backward
from .attention_launch import forward as attention_forward
from .dispatch import MAX_HEAD_DIM
from .runtime import (
    Target,
    autocast,
    cdiv,
    launch,
    operator,
    power_of_two,
    precision,
    target,
    uses_triton,
    without_kernel,
)
from .table import Config, find, require

CoVariant = Literal["auto", "fused", "two_calls"]
RESIDENT_TOKENS = 256
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def co_attention(
    x_text: Tensor,
    x_image: Tensor,
    v_text: Tensor,
    v_image: Tensor,
    *,
    text_mask: Tensor | None = None,
    image_mask: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    variant: CoVariant = "auto",
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """softmax over image(S) V_image and softmax over text(Sᵀ) V_text of one S = X_text X_imageᵀ·scale; differentiable.

    x_text, v_text [B, H, Lt, d], x_image, v_image [B, H, Li, d], any strides, d up to 256; float32, float16, bfloat16
    (float64 in plain PyTorch). Masks [B, L] bool, True at tokens that take part. ``scale`` defaults to 1/√d.

    The outputs are those of two attention calls, (x_text, x_image, v_image) with the image mask as key padding and
    (x_image, x_text, v_text) with the text mask: a masked token is nobody's key, but still has an output of its own.
    It may hold NaN: then that output is undefined, and nothing of it reaches another token or its gradient.
    A side whose other side is fully masked or empty gets 0, -inf and zero gradients.

    Returns out_text [B, H, Lt, d] and out_image [B, H, Li, d]; with ``return_lse`` (out_text, out_image, lse_text,
    lse_image), natural log-sum-exps [B, H, L] float32, differentiable. Deterministic. ``variant`` forces what
    ``co_attention_choice`` would choose. Raises ValueError that names the argument which does not fit.

    Source: parallel co-attention of Lu et al. 2016 (arXiv 1606.00061) with X_text X_imageᵀ as the affinity.
    """
    x_text, x_image, v_text, v_image = autocast(x_text, x_image, v_text, v_image)
    _check(x_text, x_image, v_text, v_image, text_mask, image_mask, variant)
    scale = x_text.shape[-1] ** -0.5 if scale is None else float(scale)
    out_text, lse_text, out_image, lse_image = co_attention_forward(
        x_text, x_image, v_text, v_image, text_mask, image_mask, scale, variant
    )
    return (out_text, out_image, lse_text, lse_image) if return_lse else (out_text, out_image)


def _check(
    x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor,
    text_mask: Tensor | None, image_mask: Tensor | None, variant: str,
) -> None:  # fmt: skip
    checks.shaped("x_text", x_text, None, None, None, None)
    batch, heads, _, head_dim = x_text.shape
    checks.shaped("x_image", x_image, batch, heads, None, head_dim)
    checks.shaped("v_text", v_text, *x_text.shape)
    checks.shaped("v_image", v_image, *x_image.shape)
    checks.alike(x_text=x_text, x_image=x_image, v_text=v_text, v_image=v_image)
    checks.head_dim(head_dim, MAX_HEAD_DIM)
    if variant not in get_args(CoVariant):
        raise ValueError(f"no co-attention kernel '{variant}' (has: {', '.join(get_args(CoVariant))})")
    for name, mask, x in (("text_mask", text_mask, x_text), ("image_mask", image_mask, x_image)):
        if mask is not None:
            checks.padding_mask(name, mask, batch, x.shape[2])
            checks.same_device(**{"x_text": x_text, name: mask})


# --- which kernel --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoChoice:
    """The kernel of a call, its block sizes (None for two attention calls), and why."""

    variant: Literal["fused", "two_calls", "pytorch"]
    config: Config | None
    reason: str


def co_attention_choice(x_text: Tensor, x_image: Tensor, *, variant: CoVariant = "auto") -> CoChoice:
    """Which kernel ``co_attention`` runs for these tensors on their device, and why.

    1. ``fused`` where the table has a row that holds the shorter side (at most 256 tokens) of this head size in one
       program: the longer side streams past it once, each score is computed once for both directions. 6 instead of 8
       products of Lt·Li·d forward, and 7 instead of 10 backward (two passes of 5 where one does not fit the registers).
    2. ``two_calls`` everywhere else: ``cross_attention`` once per direction. With both sides long neither softmax can
       be finished inside of one program. A fused kernel would have to exchange partial sums of one direction through
       memory, and on an H200 reach 450 TFLOP/s to be even with two calls at the 600 TFLOP/s of the best libraries
       (6/8 of the products), more than Triton's kernels of this kind do.
    """
    if not uses_triton(x_text, x_image):
        return CoChoice("pytorch", None, without_kernel(x_text))
    return choose(
        x_text.shape[2], x_image.shape[2], x_text.shape[3], x_text.element_size(), target(x_text.device), variant
    )


def choose(text: int, image: int, head_dim: int, size: int, on: Target, variant: CoVariant = "auto") -> CoChoice:
    """As ``co_attention_choice``, for token counts, head dim and bytes per element on a target."""
    short = min(text, image)
    if variant in ("auto", "fused"):
        config = find("co_forward", on.arch, head_dim=head_dim, bytes=size, short=short)
        if config is not None and short <= RESIDENT_TOKENS:
            return CoChoice("fused", config, f"{short} tokens of the shorter side stay in one program")
        if variant == "fused":
            raise ValueError(
                f"variant 'fused' holds up to {RESIDENT_TOKENS} tokens of the shorter side in one program and has no "
                f"room for {short} tokens of head dim {head_dim} and {size} bytes on {on.arch} (use 'auto')"
            )
    why = "asked for" if variant == "two_calls" else f"{short} tokens of head dim {head_dim} do not fit one program"
    return CoChoice("two_calls", None, why)


# --- the operators -------------------------------------------------------------------------------------------------


@operator("co_attention_forward")
def co_attention_forward(
    x_text: Tensor,
    x_image: Tensor,
    v_text: Tensor,
    v_image: Tensor,
    text_mask: Tensor | None,
    image_mask: Tensor | None,
    scale: float,
    variant: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if uses_triton(x_text, x_image, v_text, v_image):
        text, image = Side(x_text, v_text, text_mask), Side(x_image, v_image, image_mask)
        return forward(text, image, scale, variant)  # type: ignore[arg-type]
    empty = _empty(x_text, x_image)
    found = reference.co_attention(x_text, x_image, v_text, v_image, text_mask, image_mask, scale)
    for to, value in zip(empty, found, strict=True):
        to.copy_(value)
    return empty


@co_attention_forward.register_fake
def _(x_text: Tensor, x_image: Tensor, *rest: Any) -> Four:
    return _empty(x_text, x_image)


def _empty(x_text: Tensor, x_image: Tensor) -> Four:
    kind = torch.float64 if x_text.dtype == torch.float64 else torch.float32
    lse_text, lse_image = (x.new_empty(x.shape[:3], dtype=kind) for x in (x_text, x_image))
    return torch.empty_like(x_text), lse_text, torch.empty_like(x_image), lse_image


@operator("co_attention_backward")
def co_attention_backward(
    x_text: Tensor,
    x_image: Tensor,
    v_text: Tensor,
    v_image: Tensor,
    text_mask: Tensor | None,
    image_mask: Tensor | None,
    out_text: Tensor,
    lse_text: Tensor,
    out_image: Tensor,
    lse_image: Tensor,
    dout_text: Tensor,
    dlse_text: Tensor | None,
    dout_image: Tensor,
    dlse_image: Tensor | None,
    scale: float,
    variant: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if uses_triton(x_text, x_image, v_text, v_image):
        text, image = Side(x_text, v_text, text_mask), Side(x_image, v_image, image_mask)
        of_text = Output(out_text, lse_text, dout_text, dlse_text)
        of_image = Output(out_image, lse_image, dout_image, dlse_image)
        return backward(text, image, of_text, of_image, scale, variant)  # type: ignore[arg-type]
    empty = _empty_gradients(x_text, x_image, v_text, v_image)
    found = reference.co_attention_backward(
        x_text, x_image, v_text, v_image, text_mask, image_mask,
        out_text, lse_text, out_image, lse_image, dout_text, dlse_text, dout_image, dlse_image, scale,
    )  # fmt: skip
    for to, value in zip(empty, found, strict=True):
        to.copy_(value)
    return empty


@co_attention_backward.register_fake
def _(x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor, *rest: Any) -> Four:
    return _empty_gradients(x_text, x_image, v_text, v_image)


def _empty_gradients(x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor) -> Four:
    return torch.empty_like(x_text), torch.empty_like(x_image), torch.empty_like(v_text), torch.empty_like(v_image)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
    *tensors, ctx.scale, ctx.variant = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dout_text: Tensor | None, dlse_text: Tensor | None, dout_image: Tensor | None, dlse_image: Tensor | None
) -> tuple[Tensor | None, ...]:
    out_text, out_image = ctx.saved_tensors[6], ctx.saved_tensors[8]
    dout_text = torch.zeros_like(out_text) if dout_text is None else dout_text
    dout_image = torch.zeros_like(out_image) if dout_image is None else dout_image
    gradients = co_attention_backward(
        *ctx.saved_tensors, dout_text, dlse_text, dout_image, dlse_image, ctx.scale, ctx.variant
    )
    return *gradients, None, None, None, None


co_attention_forward.register_autograd(_differentiate, setup_context=_setup)


@register_flop_formula(torch.ops.fusionbench_kernels.co_attention_forward)
def _(x_text: Any, x_image: Any, *rest: Any, **kwargs: Any) -> int:
    return int(6 * math.prod(x_text) * x_image[2])  # S and two weighted sums; what two calls do twice counts once


@register_flop_formula(torch.ops.fusionbench_kernels.co_attention_backward)
def _(x_text: Any, x_image: Any, *rest: Any, **kwargs: Any) -> int:
    return int(14 * math.prod(x_text) * x_image[2])  # S again, two dP, two dV, two dX


# --- launching -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One modality: x and v [B, H, L, d], mask [B, L]."""

    x: Tensor
    v: Tensor
    mask: Tensor | None

    @property
    def tokens(self) -> int:
        return self.x.shape[2]


@dataclass(frozen=True)
class Output:
    """One side's result and its gradients, as the backward pass gets them."""

    out: Tensor
    lse: Tensor
    dout: Tensor
    dlse: Tensor | None


@dataclass(frozen=True)
class _Ready(Side):
    """What the backward kernels read of one side, and where they write."""

    dout: Tensor
    lse: Tensor
    delta: Tensor
    dx: Tensor
    dv: Tensor


def forward(text: Side, image: Side, scale: float, variant: CoVariant = "auto", splits: int = 0) -> Four:
    """(out_text, lse_text, out_image, lse_image): the kernels' launch; ``splits`` forces the programs per head."""
    picked = choose(text.tokens, image.tokens, text.x.shape[3], text.x.element_size(), target(text.x.device), variant)
    if picked.config is None:
        return (
            *attention_forward(text.x, image.x, image.v, image.mask, None, None, scale),
            *attention_forward(image.x, text.x, text.v, text.mask, None, None, scale),
        )
    out_text, lse_text, out_image, lse_image = results = _empty(text.x, image.x)
    if min(text.tokens, image.tokens) == 0:
        for out, lse in ((out_text, lse_text), (out_image, lse_image)):
            out.zero_()
            lse.fill_(-math.inf)
    elif text.tokens <= image.tokens:
        _fused(text, image, out_text, lse_text, out_image, lse_image, scale, picked.config, splits)
    else:
        _fused(image, text, out_image, lse_image, out_text, lse_text, scale, picked.config, splits)
    return results


def _fused(
    short: Side, long: Side, out: Tensor, lse: Tensor, out_long: Tensor, lse_long: Tensor, scale: float,
    config: Config, splits: int,
) -> None:  # fmt: skip
    from .device.co_attention import co_forward

    batch, heads = short.x.shape[:2]
    shares, tiles = _shares(cdiv(long.tokens, config.blocks["BLOCK_S"]), batch * heads, short.x.device, splits)
    part, part_lse = out[None], lse
    if shares > 1:
        part = out.new_empty((shares, *out.shape), dtype=torch.float32)
        part_lse = lse.new_empty((shares, *lse.shape))
    launch(
        co_forward, batch * heads * shares,
        short.x, short.v, long.x, long.v, part, part_lse, out_long, lse_long, as_bytes(short.mask), as_bytes(long.mask),
        *short.x.stride(), *short.v.stride(), *long.x.stride(), *long.v.stride(), *part.stride(), *out_long.stride(),
        *strides_of(short.mask, 2), *strides_of(long.mask, 2),
        scale, batch, heads, short.tokens, long.tokens, shares, tiles,
        config=config, RESIDENT=_edge(short.tokens, short.x), **_constants(short, long),
    )  # fmt: skip
    if shares > 1:
        combine_splits(part, part_lse, out, lse)


def _shares(tiles: int, groups: int, device: torch.device, splits: int = 0) -> tuple[int, int]:
    """(programs per head, tiles per program); at least four tiles each, to be worth loading the resident side."""
    each = cdiv(tiles, splits) if splits else max(shared_out(tiles, groups, device, 2)[1], 4)
    return cdiv(tiles, min(each, tiles)), min(each, tiles)


def _edge(size: int, x: Tensor) -> int:
    """The edge of a tile that holds ``size`` rows or columns.

    Tiles narrower than 64 in kernels of several products have read outside of shared memory on sm_90 (triton #10486,
    #10573, #11366).
    """
    return max(64 if target(x.device).arch == "sm_90" else 16, power_of_two(size))


def _constants(r: Side, s: Side) -> dict[str, Any]:
    return {
        "HEAD_DIM": r.x.shape[3],
        "WIDTH": _edge(r.x.shape[3], r.x),
        "HAS_MASK_R": r.mask is not None,
        "HAS_MASK_S": s.mask is not None,
        "PRECISION": precision(r.x.dtype),
    }


def backward(
    text: Side, image: Side, of_text: Output, of_image: Output, scale: float, variant: CoVariant = "auto",
    splits: int = 0,
) -> Four:  # fmt: skip
    """(dx_text, dx_image, dv_text, dv_image): the kernels' launch; ``splits`` forces the programs per head or tile."""
    head_dim, size, on = text.x.shape[3], text.x.element_size(), target(text.x.device)
    short = min(text.tokens, image.tokens)
    if choose(text.tokens, image.tokens, head_dim, size, on, variant).variant == "two_calls":
        return _two_backwards(text, image, of_text, of_image, scale)
    results = dx_text, dx_image, dv_text, dv_image = _empty_gradients(text.x, image.x, text.v, image.v)
    if short == 0:
        for x in results:
            x.zero_()
        return results
    sides = _ready(text, of_text, dx_text, dv_text), _ready(image, of_image, dx_image, dv_image)
    config = find("co_backward", on.arch, head_dim=head_dim, bytes=size, short=short)
    if config is not None:
        _one_pass(*(sides if text.tokens <= image.tokens else sides[::-1]), scale, config, splits)
    else:
        config = require("co_backward_side", on.arch, head_dim=head_dim, bytes=size)
        _one_side(*sides, scale, config, splits)
        _one_side(*sides[::-1], scale, config, splits)
    return results


def _two_backwards(text: Side, image: Side, of_text: Output, of_image: Output, scale: float) -> Four:
    dx_text, dx_image, dv_image = _as_attention(text, of_text, image, scale)
    dx_image2, dx_text2, dv_text = _as_attention(image, of_image, text, scale)
    # Into tensors laid out as x, as the fake operator promises: a sum takes the layout of what a mask was applied to.
    sums = torch.empty_like(text.x), torch.empty_like(image.x)
    torch.add(dx_text, dx_text2, out=sums[0])
    torch.add(dx_image, dx_image2, out=sums[1])
    return *sums, dv_text, dv_image


def _as_attention(queries: Side, of: Output, keys: Side, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    q, out, lse, dout, dlse = reference.as_queries(queries.x, of.out, of.lse, of.dout, of.dlse, queries.mask)
    return attention_backward(q, keys.x, keys.v, out, lse, dout, dlse, keys.mask, None, None, scale)[:3]


def _ready(side: Side, of: Output, dx: Tensor, dv: Tensor) -> _Ready:
    return _Ready(side.x, side.v, side.mask, of.dout, of.lse, delta_of(of.out, of.lse, of.dout, of.dlse), dx, dv)


def _operands(r: _Ready, s: _Ready) -> tuple[Tensor, ...]:
    return r.x, r.v, r.dout, s.x, s.v, s.dout, r.lse, r.delta, s.lse, s.delta


def _operand_strides(r: _Ready, s: _Ready) -> tuple[int, ...]:
    return tuple(stride for x in (r.x, r.v, r.dout, s.x, s.v, s.dout) for stride in x.stride())


def _one_pass(short: _Ready, long: _Ready, scale: float, config: Config, splits: int) -> None:
    from .device.co_attention import co_backward

    batch, heads = short.x.shape[:2]
    shares, tiles = _shares(cdiv(long.tokens, config.blocks["BLOCK_S"]), batch * heads, short.x.device, splits)
    parts = short.x.new_empty((2, shares, *short.x.shape), dtype=torch.float32)
    launch(
        co_backward, batch * heads * shares, *_operands(short, long), parts[0], parts[1], long.dx, long.dv,
        as_bytes(short.mask), as_bytes(long.mask), *_operand_strides(short, long), *long.dx.stride(), *long.dv.stride(),
        *strides_of(short.mask, 2), *strides_of(long.mask, 2),
        scale, batch, heads, short.tokens, long.tokens, shares, tiles,
        config=config, RESIDENT=_edge(short.tokens, short.x), **_constants(short, long),
    )  # fmt: skip
    for to, part in ((short.dx, parts[0]), (short.dv, parts[1])):
        to.copy_(part.sum(0))


def _one_side(r: _Ready, s: _Ready, scale: float, config: Config, splits: int) -> None:
    """dx and dv of side r."""
    from .device.co_attention import co_backward_side

    batch, heads, tokens, _ = r.x.shape
    block_r, block_s = config.blocks["BLOCK_R"], config.blocks["BLOCK_S"]
    groups = batch * heads * cdiv(tokens, block_r)
    shares, tiles = _shares(cdiv(s.tokens, block_s), groups, r.x.device, splits)
    dx, dv = r.dx[None], r.dv[None]
    if shares > 1:
        dx, dv = r.x.new_empty((2, shares, *r.x.shape), dtype=torch.float32)
    launch(
        co_backward_side, groups * shares, *_operands(r, s), dx, dv, as_bytes(r.mask), as_bytes(s.mask),
        *_operand_strides(r, s), *dx.stride(), *dv.stride(), *strides_of(r.mask, 2), *strides_of(s.mask, 2),
        scale, heads, tokens, s.tokens, shares, tiles, config=config, **_constants(r, s),
    )  # fmt: skip
    if shares > 1:
        r.dx.copy_(dx.sum(0))
        r.dv.copy_(dv.sum(0))
