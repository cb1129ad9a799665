"""Fused cross-attention: softmax(QKᵀ·scale + bias)V over the keys that take part, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, descriptor, dispatch, reference
from .dispatch import MAX_HEAD_DIM, Choice, Sizes, head_tiles, key_tiles, padded_edge
from .names import Variant
from .runtime import (
    autocast,
    cdiv,
    launch,
    of_eights,
    operator,
    power_of_two,
    precision,
    settled,
    target,
    uses_triton,
    without_kernel,
)
from .table import Config, find, require


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    kv_lens: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    variant: Variant = "auto",
    splits: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(QKᵀ·scale + bias)V, every query over the keys that take part; differentiable, deterministic.

    q [B, H, Lq, d], k and v [B, Hkv, Lk, d] with H a multiple of Hkv (GQA), any strides, d up to 256; float32, float16,
    bfloat16 (float64 in plain PyTorch). ``key_padding_mask`` [B, Lk] bool, True at keys that take part; ``kv_lens`` [B]
    int, how many leading keys take part; given both, a key must pass both. ``bias`` floating, broadcastable to
    [B, H, Lq, Lk], added to the scaled scores; its gradient takes a buffer of that size. ``scale`` defaults to 1/√d.
    Products of float32 follow ``torch.backends.cuda.matmul.fp32_precision``.

    Returns out [B, H, Lq, d], with ``return_lse`` also the natural log-sum-exp of each row [B, H, Lq] float32
    (float64 for float64), differentiable. A row without keys gives 0, -inf and zero gradients; keys that take no
    part may hold NaN. There is one derivative: no double backward, no ``torch.func.grad``.

    ``variant`` forces a kernel where ``choice`` would pick another; ``splits`` with "split" the number of splits.
    The first "descriptor" of a process checks that kernel on its GPU, which takes several seconds, and raises
    RuntimeError where it fails.
    On a CPU the same is computed by plain PyTorch. Raises ValueError that names the argument which does not fit.
    """
    q, k, v = autocast(q, k, v)
    _check(q, k, v, key_padding_mask, kv_lens, bias)
    dispatch.check_variant(variant, splits)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    out, lse = attention_forward(q, k, v, key_padding_mask, kv_lens, bias, scale, variant, splits)
    return (out, lse) if return_lse else out


def choice(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    variant: Variant = "auto",
    splits: int = 0,
) -> Choice:
    """Which kernel ``cross_attention`` runs for these arguments on their device, and why; v is taken to be as k.

    "pytorch" where none does: on a CPU, and in float64.
    """
    if not uses_triton(q, k):
        return Choice("pytorch", Config({}, 0, 0), reason=without_kernel(q))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _choose(q, k, k if v is None else v, key_padding_mask, bias, scale, variant, splits)


def attention_weights(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    kv_lens: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The probabilities [B, H, Lq, Lk] of a ``cross_attention`` that returned this ``lse``, in plain PyTorch.

    In float32 (float64 for float64). They take Lq·Lk memory, which is what the kernels avoid: to look at, not to
    train through.
    """
    _check(q, k, k, key_padding_mask, kv_lens, bias)
    checks.shaped("lse", lse, *q.shape[:3])
    checks.same_device(q=q, lse=lse)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kind = torch.promote_types(q.dtype, torch.float32)
    wide_k = k.to(kind).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    with settled(q.device):
        scores = (q.to(kind) @ wide_k.transpose(-2, -1)) * scale
    if bias is not None:
        scores = scores + bias.to(kind)
    p = torch.exp(scores - lse.masked_fill(lse == -math.inf, math.inf)[..., None])
    keep = reference.keep_mask(key_padding_mask, kv_lens, k.shape[2], q.device)
    return p if keep is None else p.masked_fill(~keep[:, None, None, :], 0.0)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lens: Tensor | None, bias: Tensor | None) -> None:
    checks.shaped("q", q, None, None, None, None)
    batch, heads, _, head_dim = q.shape
    checks.shaped("k", k, batch, None, None, head_dim)
    checks.shaped("v", v, *k.shape)
    checks.alike(q=q, k=k, v=v)
    checks.head_dim(head_dim, MAX_HEAD_DIM)
    if heads == 0 or k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"q has {heads} heads and k has {k.shape[1]}; the first must be a multiple of the second")
    if mask is not None:
        checks.padding_mask("key_padding_mask", mask, batch, k.shape[2])
        checks.same_device(q=q, key_padding_mask=mask)
    if lens is not None:
        checks.lengths("kv_lens", lens, batch)
        checks.same_device(q=q, kv_lens=lens)
    if bias is not None:
        checks.same_device(q=q, bias=bias)
        full = (batch, heads, q.shape[2], k.shape[2])
        if bias.dtype not in checks.FLOATS:
            raise ValueError(f"bias is {bias.dtype}; it must be floating (for a bool mask use key_padding_mask)")
        if bias.dim() != 4 or any(have not in (1, want) for have, want in zip(bias.shape, full, strict=True)):
            raise ValueError(f"bias has shape {list(bias.shape)}; each size must be 1 or that of {list(full)}")


# --- the operators -------------------------------------------------------------------------------------------------


@operator("attention_forward")
def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    variant: str,
    splits: int,
) -> tuple[Tensor, Tensor]:
    if uses_triton(q, k, v):
        return forward(q, k, v, mask, lens, bias, scale, variant, splits)  # type: ignore[arg-type]
    out, lse = _empty(q)
    found = reference.attention(q, k, v, mask, lens, bias, scale)
    return out.copy_(found[0]), lse.copy_(found[1])


@attention_forward.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty(q)


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=kind)


@operator("attention_backward")
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    wants_ds: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if uses_triton(q, k, v):
        return backward(q, k, v, out, lse, dout, dlse, mask, lens, bias, scale, wants_ds)
    empty = _empty_gradients(q, k, v, wants_ds)
    found = reference.attention_backward(q, k, v, out, lse, dout, dlse, mask, lens, bias, scale)
    for to, value in zip(empty[: 4 if wants_ds else 3], found, strict=False):
        to.copy_(value)
    return empty


@attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(q, k, v, rest[-1])


def _empty_gradients(q: Tensor, k: Tensor, v: Tensor, wants_ds: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (*q.shape[:3], k.shape[2]) if wants_ds else (0,)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), q.new_empty(scores, dtype=kind)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, lens, bias, ctx.scale, *_ = inputs
    ctx.save_for_backward(q, k, v, *output, mask, lens, bias)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, mask, lens, bias = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    wants_ds = bool(ctx.needs_input_grad[5])
    dq, dk, dv, ds = attention_backward(q, k, v, out, lse, dout, dlse, mask, lens, bias, ctx.scale, wants_ds)
    return dq, dk, dv, None, None, ds.to(bias.dtype) if wants_ds else None, None, None, None


attention_forward.register_autograd(_differentiate, setup_context=_setup)


@register_flop_formula(torch.ops.fusionbench_kernels.attention_forward)
def _(q: Any, k: Any, *rest: Any, **kwargs: Any) -> int:
    return int(4 * math.prod(q) * k[2])  # S = QKᵀ and PV


@register_flop_formula(torch.ops.fusionbench_kernels.attention_backward)
def _(q: Any, k: Any, *rest: Any, **kwargs: Any) -> int:
    return int(10 * math.prod(q) * k[2])  # S again, dP, dV, dQ, dK; what two-pass kernels do twice counts once


# --- launching -----------------------------------------------------------------------------------------------------


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    variant: Variant = "auto",
    splits: int = 0,
) -> tuple[Tensor, Tensor]:
    """The kernels' launch: shapes as in ``cross_attention``, bias expanded to [B, H, Lq, Lk]."""
    picked = _choose(q, k, v, mask, bias, scale, variant, splits)
    out, lse = _empty(q)
    lens = _contiguous(lens)
    if picked.variant == "descriptor":
        descriptor.descriptor_launch(q, k, v, out, lse, mask, lens, bias, scale, picked.config)
    elif picked.variant == "resident":
        _resident(q, k, v, out, lse, mask, lens, bias, scale, picked)
    elif picked.splits == 1:
        _streaming(q, k, v, out[None], lse, mask, lens, bias, scale, picked)
    else:
        part = q.new_empty((picked.splits, *q.shape), dtype=torch.float32)
        part_lse = q.new_empty((picked.splits, *lse.shape), dtype=torch.float32)
        _streaming(q, k, v, part, part_lse, mask, lens, bias, scale, picked)
        _combine(part, part_lse, out, lse)
    return out, lse


def _choose(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float, variant: Variant,
    splits: int,
) -> Choice:  # fmt: skip
    usable = descriptor.usable(q, k, v, mask, bias, scale)
    return dispatch.choose(Sizes.of(q, k, bias), target(q.device), variant, splits, usable)


def _streaming(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, picked: Choice,
) -> None:  # fmt: skip
    from .device.attention_forward import streaming_forward

    batch, heads, queries, head_dim = q.shape
    group, keys, block_k = heads // k.shape[1], k.shape[2], picked.config.blocks["BLOCK_K"]
    main, tail = head_tiles(head_dim, picked.config)
    rows = queries * group if picked.packed else queries
    programs = (
        batch * (k.shape[1] if picked.packed else heads) * cdiv(rows, picked.config.blocks["BLOCK_Q"]) * picked.splits
    )
    split_keys = cdiv(cdiv(keys, block_k), picked.splits) * block_k
    launch(
        streaming_forward, programs, q, k, v, out, lse, _bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *out.stride(), *_strides(mask, 2), *_strides(bias, 4),
        scale, batch, heads, group, queries, keys, picked.splits, split_keys,
        config=picked.config, EIGHTS=of_eights(q, k, v, out),
        HEAD_DIM=head_dim, MAIN=main, TAIL=tail, PACKED=picked.packed,
        HAS_MASK=mask is not None, HAS_LENS=lens is not None, HAS_BIAS=bias is not None, PRECISION=precision(q.dtype),
    )  # fmt: skip


def _combine(part: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor) -> None:
    from .device.attention_forward import combine

    _, heads, queries, head_dim = out.shape
    width, rows = power_of_two(head_dim), lse.numel()
    config = require("combine", target(out.device).arch, head_dim=head_dim)
    launch(
        combine, cdiv(rows, config.blocks["BLOCK_Q"]), part, part_lse, out, lse, *out.stride(), heads, queries, rows,
        part.shape[0], config=config, HEAD_DIM=head_dim, WIDTH=width,
    )  # fmt: skip


def _resident(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, picked: Choice,
) -> None:  # fmt: skip
    from .device.attention_forward import resident_forward

    batch, heads, queries, head_dim = q.shape
    main, tail = head_tiles(head_dim, picked.config)
    keys_main, keys_tail = key_tiles(k.shape[2], picked.config)
    shares, tiles = shared_out(cdiv(queries, picked.config.blocks["BLOCK_Q"]), batch * heads, q.device)
    launch(
        resident_forward, batch * heads * shares, q, k, v, out, lse, _bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *out.stride(), *_strides(mask, 2), *_strides(bias, 4),
        scale, heads, heads // k.shape[1], queries, k.shape[2], shares, tiles,
        config=picked.config, EIGHTS=of_eights(q, k, v, out),
        HEAD_DIM=head_dim, MAIN=main, TAIL=tail, KEYS_MAIN=keys_main, KEYS_TAIL=keys_tail,
        HAS_MASK=mask is not None, HAS_LENS=lens is not None, HAS_BIAS=bias is not None, PRECISION=precision(q.dtype),
    )  # fmt: skip


def shared_out(tiles: int, groups: int, device: torch.device, per_multiprocessor: int = 4) -> tuple[int, int]:
    """(programs per group, tiles per program): a few programs for every multiprocessor, none without a tile."""
    wanted = max(1, per_multiprocessor * target(device).multiprocessors // max(1, groups))
    each = max(1, cdiv(tiles, min(tiles or 1, wanted)))
    return cdiv(tiles, each), each


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    wants_ds: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dS): the kernels' launch, in one pass over the scores where one side fits a program, else in two."""
    gradients = _empty_gradients(q, k, v, wants_ds)
    lse, lens = lse.contiguous(), _contiguous(lens)
    delta = _delta(out, lse, dout, dlse)
    common = (q, k, v, dout, lse, delta, mask, lens, bias, scale)
    sizes = Sizes.of(q, k, bias)
    arch, group = target(q.device).arch, sizes.heads // sizes.kv_heads
    one_pass = not wants_ds and sizes.keys > 0 and sizes.queries > 0
    if one_pass and sizes.keys <= sizes.queries and find("backward_keys_resident", arch, **sizes.row):
        _backward_keys_resident(*common, *gradients[:3])
    elif one_pass and group == 1 and find("backward_queries_resident", arch, **sizes.row):
        _backward_queries_resident(*common, *gradients[:3])
    else:
        _backward_keys(*common, *gradients[1:3])
        _backward_queries(*common, gradients[0], gradients[3] if wants_ds else None)
    return gradients


def _delta(out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> Tensor:
    from .device.attention_backward import backward_delta

    _, heads, queries, head_dim = out.shape
    delta = out.new_empty(out.shape[:3], dtype=torch.float32)
    config = require("backward_delta", target(out.device).arch, head_dim=head_dim)
    launch(
        backward_delta, cdiv(delta.numel(), config.blocks["BLOCK_Q"]), out, dout, lse, _contiguous(dlse), delta,
        *out.stride(), *dout.stride(), heads, queries, delta.numel(),
        config=config, EIGHTS=of_eights(out, dout),
        HEAD_DIM=head_dim, WIDTH=power_of_two(head_dim),
    )  # fmt: skip
    return delta


def _flags(mask: Tensor | None, lens: Tensor | None, bias: Tensor | None, q: Tensor) -> dict[str, Any]:
    return {
        "HAS_MASK": mask is not None,
        "HAS_LENS": lens is not None,
        "HAS_BIAS": bias is not None,
        "PRECISION": precision(q.dtype),
    }


def _backward_keys(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_keys

    sizes = Sizes.of(q, k, bias)
    config = require("backward_keys", target(q.device).arch, **sizes.row)
    main, tail = head_tiles(sizes.head_dim, config)
    launch(
        backward_keys, sizes.batch * sizes.kv_heads * cdiv(sizes.keys, config.blocks["BLOCK_K"]),
        q, k, v, dout, lse, delta, dk, dv, _bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dk.stride(), *dv.stride(),
        *_strides(mask, 2), *_strides(bias, 4),
        scale, sizes.heads, sizes.heads // sizes.kv_heads, sizes.queries, sizes.keys,
        config=config, EIGHTS=of_eights(q, k, v, dout, dk, dv),
        HEAD_DIM=sizes.head_dim, MAIN=main, TAIL=tail, **_flags(mask, lens, bias, q),
    )  # fmt: skip


def _backward_queries(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dq: Tensor, ds: Tensor | None,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_queries

    sizes = Sizes.of(q, k, bias)
    config = require("backward_queries", target(q.device).arch, **sizes.row)
    main, tail = head_tiles(sizes.head_dim, config)
    if ds is not None and (lens is not None or sizes.keys == 0):
        ds.zero_()  # the kernel stops at a sample's last key
    launch(
        backward_queries, sizes.batch * sizes.heads * cdiv(sizes.queries, config.blocks["BLOCK_Q"]),
        q, k, v, dout, lse, delta, dq, ds, _bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dq.stride(), *_strides(mask, 2), *_strides(bias, 4),
        scale, sizes.heads, sizes.heads // sizes.kv_heads, sizes.queries, sizes.keys,
        config=config, EIGHTS=of_eights(q, k, v, dout, dq),
        HEAD_DIM=sizes.head_dim, MAIN=main, TAIL=tail, WRITES_DS=ds is not None,
        **_flags(mask, lens, bias, q),
    )  # fmt: skip


def _backward_keys_resident(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_keys_resident

    sizes = Sizes.of(q, k, bias)
    config = require("backward_keys_resident", target(q.device).arch, **sizes.row)
    group = sizes.heads // sizes.kv_heads
    # One program per multiprocessor: each leaves a partial of [Lk, d] behind.
    shares, tiles = shared_out(cdiv(sizes.queries, config.blocks["BLOCK_Q"]), sizes.batch * sizes.heads, q.device, 1)
    parts = q.new_empty((2, shares, sizes.batch, sizes.heads, sizes.keys, sizes.head_dim), dtype=torch.float32)
    launch(
        backward_keys_resident, sizes.batch * sizes.heads * shares,
        q, k, v, dout, lse, delta, dq, parts[0], parts[1], _bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dq.stride(), *_strides(mask, 2), *_strides(bias, 4),
        scale, sizes.batch, sizes.heads, group, sizes.queries, sizes.keys, shares, tiles,
        config=config, EIGHTS=of_eights(q, k, v, dout, dq),
        HEAD_DIM=sizes.head_dim, MAIN=padded_edge(sizes.head_dim, config),
        KEYS=padded_edge(sizes.keys, config), **_flags(mask, lens, bias, q),
    )  # fmt: skip
    sums = parts.view(2, shares, sizes.batch, sizes.kv_heads, group, sizes.keys, sizes.head_dim).sum((1, 4))
    dk.copy_(sums[0])
    dv.copy_(sums[1])


def _backward_queries_resident(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_queries_resident

    sizes = Sizes.of(q, k, bias)
    config = require("backward_queries_resident", target(q.device).arch, **sizes.row)
    shares, tiles = shared_out(cdiv(sizes.keys, config.blocks["BLOCK_K"]), sizes.batch * sizes.heads, q.device, 2)
    part = q.new_empty((shares, *q.shape), dtype=torch.float32)
    launch(
        backward_queries_resident, sizes.batch * sizes.heads * shares,
        q, k, v, dout, lse, delta, part, dk, dv, _bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dk.stride(), *dv.stride(),
        *_strides(mask, 2), *_strides(bias, 4),
        scale, sizes.batch, sizes.heads, sizes.queries, sizes.keys, shares, tiles,
        config=config, EIGHTS=of_eights(q, k, v, dout, dk, dv),
        HEAD_DIM=sizes.head_dim, MAIN=padded_edge(sizes.head_dim, config),
        QUERIES=padded_edge(sizes.queries, config), **_flags(mask, lens, bias, q),
    )  # fmt: skip
    dq.copy_(part.sum(0))


def _contiguous(x: Tensor | None) -> Tensor | None:
    """Vectors come without strides: the kernels read lens, lse and dlse element after element."""
    return None if x is None else x.contiguous()


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def _strides(x: Tensor | None, sizes: int) -> tuple[int, ...]:
    return (0,) * sizes if x is None else x.stride()
