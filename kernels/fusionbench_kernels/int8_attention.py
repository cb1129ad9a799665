"""Attention with int8 scores (SageAttention's recipe): K smoothed by its mean, Q and K in int8, PV in 16 or 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, int8_reference
from .attention_launch import as_bytes, combine_splits, strides_of
from .dispatch import MAX_HEAD_DIM, split_count
from .runtime import aligned, cdiv, launch, operator, power_of_two, precision, target, uses_triton
from .table import require

Granularity = Literal["token", "block"]
Product = Literal["fp16", "fp8"]
BLOCK = 64  # rows that share a scale with granularity "block": a layout of the data, whatever the tiles are
PART_KEYS = 1024  # keys whose sum one program forms
# e4m3fn of the OCP standard in the tensor cores; gfx942 has the fnuz kind, older chips none.
_FP8 = frozenset({"sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121", "gfx950"})


@dataclass(frozen=True)
class QuantizedKV:
    """Keys (with ``pv="fp8"`` values too) as ``quantize_kv`` left them: made once, given to many ``int8_attention``."""

    keys: Tensor  # [B, Hkv, Lk, d up to a multiple of 16] int8
    key_scale: Tensor  # [B, Hkv, Lk or ⌈Lk / 64⌉] fp32
    key_mean: Tensor | None  # [B, Hkv, d] fp32, where smoothed
    values: Tensor  # [B, Hkv, Lk, d], or [B, Hkv, d, Lk up to a multiple of 16] e4m3
    value_scale: Tensor | None  # [B, Hkv, d] fp32, where e4m3
    key_padding_mask: Tensor | None
    kv_lens: Tensor | None
    head_dim: int
    grain: int


def int8_attention(
    q: Tensor,
    k: Tensor | QuantizedKV,
    v: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
    kv_lens: Tensor | None = None,
    scale: float | None = None,
    smooth_k: bool = True,
    granularity: Granularity = "token",
    pv: Product = "fp16",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(QKᵀ·scale)V with QKᵀ in int8; shapes, masks and results as in ``cross_attention``. Inference only.

    ``int8_attention(q, k, v)`` quantises inside the call; ``int8_attention(q, quantize_kv(k, v))`` does it once for
    many, with the mask and the options given there. ``smooth_k`` takes the mean of the keys that take part from K,
    which softmax does not see and int8 needs wherever a few channels of K lie far from zero (SageAttention,
    arXiv 2410.02367); lse is that of K itself. ``granularity``: a scale per token, or per 64 rows of Q and of K.

    ``pv``: "fp16" multiplies P and V in the type of v (float16, bfloat16; float32 as PyTorch's ``fp32_precision``
    says, but in TF32 on sm_100, where Triton 3.7 takes no other wish), "fp8" in e4m3 with a scale per channel of V, on
    sm_89, sm_90 and later and gfx950 only: 3 bits of P and V add errors of a few percent to a mean of many keys. All
    sums are float32. A value that is not finite, where it takes part, gives NaN: in q in its row (its block of rows),
    in k in its head.

    Raises ValueError that names the argument which does not fit, NotImplementedError where there is no fp8, and
    RuntimeError in a backward pass.
    """
    if isinstance(k, QuantizedKV):
        if v is not None or key_padding_mask is not None or kv_lens is not None:
            raise ValueError("v, key_padding_mask and kv_lens are in the QuantizedKV; give them to quantize_kv")
        if (smooth_k, granularity, pv) != (True, "token", "fp16"):
            raise ValueError("smooth_k, granularity and pv are settled in the QuantizedKV; give them to quantize_kv")
        cache = k
    elif v is None:
        raise ValueError("v is missing; give k and v, or the QuantizedKV of quantize_kv")
    else:
        cache = quantize_kv(
            k, v, key_padding_mask=key_padding_mask, kv_lens=kv_lens,
            smooth_k=smooth_k, granularity=granularity, pv=pv,
        )  # fmt: skip
    _check_query(q, cache)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, lse = attend(
        q, cache.keys, cache.key_scale, cache.key_mean, cache.values, cache.value_scale,
        cache.key_padding_mask, cache.kv_lens, scale, cache.grain,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def quantize_kv(
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    kv_lens: Tensor | None = None,
    smooth_k: bool = True,
    granularity: Granularity = "token",
    pv: Product = "fp16",
) -> QuantizedKV:
    """K (and with ``pv="fp8"`` V) quantised for ``int8_attention``; arguments as there, v is kept, not copied."""
    if granularity not in get_args(Granularity):
        raise ValueError(f"no granularity '{granularity}' (has: {', '.join(get_args(Granularity))})")
    if pv not in get_args(Product):
        raise ValueError(f"no pv '{pv}' (has: {', '.join(get_args(Product))})")
    checks.shaped("k", k, None, None, None, None)
    checks.shaped("v", v, *k.shape)
    checks.alike(k=k, v=v)
    checks.head_dim(k.shape[3], MAX_HEAD_DIM)
    if key_padding_mask is not None:
        checks.padding_mask("key_padding_mask", key_padding_mask, k.shape[0], k.shape[2])
        checks.same_device(k=k, key_padding_mask=key_padding_mask)
    if kv_lens is not None:
        checks.lengths("kv_lens", kv_lens, k.shape[0])
        checks.same_device(k=k, kv_lens=kv_lens)
    grain, fp8 = BLOCK if granularity == "block" else 1, pv == "fp8"
    keys, key_scale, mean, v8, v_scale = quantize(k, v, key_padding_mask, kv_lens, smooth_k, grain, fp8)
    return QuantizedKV(
        keys, key_scale, mean if smooth_k else None, v8 if fp8 else v, v_scale if fp8 else None,
        key_padding_mask, kv_lens, k.shape[3], grain,
    )  # fmt: skip


def _check_query(q: Tensor, cache: QuantizedKV) -> None:
    checks.shaped("q", q, cache.keys.shape[0], None, None, cache.head_dim)
    checks.same_device(q=q, keys=cache.keys)
    checks.alike(q=q) if cache.value_scale is not None else checks.alike(q=q, v=cache.values)
    if cache.value_scale is not None and q.dtype == torch.float64:
        raise ValueError("q is float64; with values in e4m3 it must be float32, float16 or bfloat16")
    if cache.keys.shape[1] == 0 or q.shape[1] % cache.keys.shape[1]:
        raise ValueError(
            f"q has {q.shape[1]} heads and k has {cache.keys.shape[1]}; the first must be a multiple of the second"
        )


# --- the operators -------------------------------------------------------------------------------------------------


@operator("quantize_kv")
def quantize(
    k: Tensor, v: Tensor, mask: Tensor | None, lens: Tensor | None, smooth: bool, grain: int, fp8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if uses_triton(k, v):
        return quantize_forward(k, v, mask, lens, smooth, grain, fp8)
    if fp8:
        raise NotImplementedError(
            f"pv 'fp8' runs in Triton on a GPU only, and k is {str(k.dtype).removeprefix('torch.')} on {k.device}; "
            "use pv 'fp16'"
        )
    empty = _empty_quantized(k, smooth, grain, fp8)
    keys, scale, mean = int8_reference.quantize_keys(k, mask, lens, smooth, grain)
    empty[0].zero_()[..., : k.shape[3]].copy_(keys)
    empty[1].copy_(scale)
    if smooth:
        empty[2].copy_(mean)
    return empty


@quantize.register_fake
def _(
    k: Tensor, v: Tensor, mask: Tensor | None, lens: Tensor | None, smooth: bool, grain: int, fp8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_quantized(k, smooth, grain, fp8)


def _empty_quantized(k: Tensor, smooth: bool, grain: int, fp8: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, count, head_dim = k.shape
    # Rows of a multiple of 16 bytes: loads of 16 bytes and asynchronous copies need them aligned.
    keys = k.new_empty((batch, heads, count, aligned(head_dim)), dtype=torch.int8)
    scale = k.new_empty((batch, heads, cdiv(count, grain)), dtype=torch.float32)
    mean = k.new_empty((batch, heads, head_dim) if smooth else (0,), dtype=torch.float32)
    v8 = k.new_empty((batch, heads, head_dim, aligned(count)) if fp8 else (0,), dtype=torch.float8_e4m3fn)
    return keys, scale, mean, v8, k.new_empty((batch, heads, head_dim) if fp8 else (0,), dtype=torch.float32)


@operator("int8_attention")
def attend(
    q: Tensor,
    keys: Tensor,
    key_scale: Tensor,
    mean: Tensor | None,
    v: Tensor,
    v_scale: Tensor | None,
    mask: Tensor | None,
    lens: Tensor | None,
    scale: float,
    grain: int,
) -> tuple[Tensor, Tensor]:
    if uses_triton(q, keys, v):
        return attend_forward(q, keys, key_scale, mean, v, v_scale, mask, lens, scale, grain)
    out, lse = _empty(q)
    found = int8_reference.attention(q, keys, key_scale, mean, v, mask, lens, scale, grain)
    return out.copy_(found[0]), lse.copy_(found[1])


@attend.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty(q)


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "int8_attention is for inference and has no gradients: train through cross_attention, "
        "or call it under torch.no_grad()"
    )


quantize.register_autograd(_refuse)
attend.register_autograd(_refuse)


@register_flop_formula(torch.ops.fusionbench_kernels.int8_attention)
def _(q: Any, keys: Any, *rest: Any, **kwargs: Any) -> int:
    return int(4 * math.prod(q) * keys[2])  # S = QKᵀ in int8 and PV


# --- launching -----------------------------------------------------------------------------------------------------


def quantize_forward(
    k: Tensor, v: Tensor, mask: Tensor | None, lens: Tensor | None, smooth: bool, grain: int, fp8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The launch of the kernels that quantise: one where a program holds all keys, else their statistics first."""
    arch = target(k.device).arch
    if fp8 and arch not in _FP8:
        raise NotImplementedError(f"pv 'fp8' needs e4m3 products ({', '.join(sorted(_FP8))}), not {arch}; use 'fp16'")
    from .device.int8_attention import quantize_keys

    found = _empty_quantized(k, smooth, grain, fp8)
    batch, heads, count, head_dim = k.shape
    config = require("quantize_keys", arch, head_dim=head_dim, grain=grain)
    tiles = cdiv(count, config.blocks["BLOCK_K"])
    statistics = _statistics(k, v, mask, lens, smooth, fp8) if tiles > 1 and (smooth or fp8) else (None, None, None)
    pointers = found[3:] if fp8 else (None, None)  # not even as a type does sm_80 know e4m3
    launch(
        quantize_keys, batch * heads * tiles, k, v, *statistics, as_bytes(mask), lens, *found[:3], *pointers,
        *k.stride(), *v.stride(), *strides_of(mask, 2), heads, count, aligned(count), cdiv(count, PART_KEYS), tiles,
        config=config, HEAD_DIM=head_dim, STORED=aligned(head_dim), WIDTH=_width(head_dim), GRAIN=grain,
        ONE_TILE=tiles == 1, SMOOTH=smooth, FP8=fp8, HAS_MASK=mask is not None, HAS_LENS=lens is not None,
    )  # fmt: skip
    if count == 0:
        for x in found[2:]:
            x.zero_()
    return found


def _statistics(
    k: Tensor, v: Tensor, mask: Tensor | None, lens: Tensor | None, smooth: bool, fp8: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from .device.int8_attention import key_statistics

    batch, heads, count, head_dim = k.shape
    parts = cdiv(count, PART_KEYS)
    sums, largest = (k.new_empty((batch, heads, parts, head_dim), dtype=torch.float32) for _ in range(2))
    counts = k.new_empty((batch, heads, parts), dtype=torch.float32)
    launch(
        key_statistics, batch * heads * parts, k, v, sums, counts, largest, as_bytes(mask), lens,
        *k.stride(), *v.stride(), *strides_of(mask, 2), heads, count, parts, PART_KEYS,
        config=require("key_statistics", target(k.device).arch, head_dim=head_dim), HEAD_DIM=head_dim,
        WIDTH=_width(head_dim), SMOOTH=smooth, FP8=fp8, HAS_MASK=mask is not None, HAS_LENS=lens is not None,
    )  # fmt: skip
    return sums, counts, largest


def attend_forward(
    q: Tensor, keys: Tensor, key_scale: Tensor, mean: Tensor | None, v: Tensor, v_scale: Tensor | None,
    mask: Tensor | None, lens: Tensor | None, scale: float, grain: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The launch of the attention kernel; where queries are few, the keys are split over programs and merged."""
    batch, heads, queries, head_dim = q.shape
    # A slice of a QuantizedKV is strided, and the kernel reads all but q and 16-bit values densely.
    keys, key_scale, mean = keys.contiguous(), key_scale.contiguous(), None if mean is None else mean.contiguous()
    v, v_scale = (v, None) if v_scale is None else (v.contiguous(), v_scale.contiguous())
    count, here = keys.shape[2], target(q.device)
    config = require("int8_forward", here.arch, head_dim=head_dim, bytes=v.element_size(), grain=grain, queries=queries)
    tiles, key_tiles = cdiv(queries, config.blocks["BLOCK_Q"]), cdiv(count, config.blocks["BLOCK_K"])
    splits = split_count(batch * heads * tiles, key_tiles, here.multiprocessors)
    out, lse = _empty(q)
    if splits == 1:
        part, part_lse = out[None], lse
    else:
        part = q.new_empty((splits, *q.shape), dtype=torch.float32)
        part_lse = q.new_empty((splits, *lse.shape), dtype=torch.float32)
    from .device.int8_attention import int8_forward

    launch(
        int8_forward, batch * heads * tiles * splits,
        q, keys, key_scale, mean, v, v_scale, part, part_lse, as_bytes(mask), lens,
        *q.stride(), *v.stride(), *part.stride(), *strides_of(mask, 2),
        scale, batch, heads, heads // keys.shape[1], queries, count, aligned(count), splits,
        cdiv(key_tiles, splits) * config.blocks["BLOCK_K"],
        config=config, HEAD_DIM=head_dim, STORED=keys.shape[3], WIDTH=max(config.edge, _width(head_dim)), GRAIN=grain,
        SMOOTH=mean is not None, FP8=v_scale is not None, HAS_MASK=mask is not None, HAS_LENS=lens is not None,
        PRECISION=precision(v.dtype),
    )  # fmt: skip
    if splits > 1:
        combine_splits(part, part_lse, out, lse)
    return out, lse


def _width(head_dim: int) -> int:
    """Columns of a tile: a product of 8-bit numbers needs at least 32."""
    return max(32, power_of_two(head_dim))
