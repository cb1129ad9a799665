"""The int8 operations in plain PyTorch, quantised as in the kernels: their tests' truth, and what runs on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import keep_mask

TINY = 1e-30  # rows below it get its scale: 127 / TINY is finite in fp32, 127 / 0 is not


def scale_of(largest: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, 1 / scale) that bring ``largest`` (fp32) to 127; NaN where it is not finite."""
    safe = largest.clamp_min(TINY)
    safe = safe.masked_fill(safe == math.inf, math.nan)
    # Tensors on both sides: torch turns a scalar's division into a product with a reciprocal, which rounds twice.
    top = torch.full_like(safe, 127.0)
    return safe / top, top / safe


def to_int8(x: Tensor) -> Tensor:
    """x rounded half to even and saturated at ±127; NaN gives -127 (its scale is NaN already)."""
    return x.round().clamp(-127, 127).nan_to_num(-127.0).to(torch.int8)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] as int8 and a scale [...] fp32 per row: x ≈ values · scale, rows of zeros included."""
    x = x.float()
    scale, inverse = scale_of(x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1]))
    return to_int8(x * inverse[..., None]), scale


def quantize_blocks(x: Tensor, grain: int) -> tuple[Tensor, Tensor]:
    """x [..., L, d] as int8, and a scale [..., ⌈L / grain⌉] fp32 for every ``grain`` rows."""
    x = x.float()
    rows = x.shape[-2]
    padded = F.pad(x, (0, 0, 0, -rows % grain))
    scale, inverse = scale_of(
        padded.reshape(*x.shape[:-2], padded.shape[-2] // grain, grain, x.shape[-1]).abs().amax((-1, -2))
    )
    return to_int8(x * inverse.repeat_interleave(grain, -1)[..., :rows, None]), scale


def quantize_keys(
    k: Tensor, mask: Tensor | None, lens: Tensor | None, smooth: bool, grain: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(keys int8 [B, Hkv, Lk, d], scale [B, Hkv, ⌈Lk / grain⌉], mean [B, Hkv, d]), keys that take no part as zeros."""
    k = k.float()
    keep = keep_mask(mask, lens, k.shape[2], k.device)
    count = torch.tensor(float(k.shape[2]), device=k.device)
    if keep is not None:
        k = k.masked_fill(~keep[:, None, :, None], 0)
        count = keep.sum(-1)[:, None, None]
    mean = k.sum(2) / count.clamp_min(1)
    if smooth:
        k = k - mean[:, :, None]
        k = k if keep is None else k.masked_fill(~keep[:, None, :, None], 0)
    values, scale = quantize_blocks(k, grain)
    return values, scale, mean


def attention(
    q: Tensor, keys: Tensor, key_scale: Tensor, mean: Tensor | None, v: Tensor, mask: Tensor | None,
    lens: Tensor | None, scale: float, grain: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, lse) of q, quantised here, against keys [B, Hkv, Lk, ≥ d] of ``quantize_keys``; PV in the type of v."""
    group, columns, count = q.shape[1] // keys.shape[1], q.shape[3], keys.shape[2]
    q8, q_scale = quantize_blocks(q, grain)
    q_scale = q_scale.repeat_interleave(grain, -1)[..., : q.shape[2]]
    k_scale = key_scale.repeat_interleave(grain, -1)[..., :count].repeat_interleave(group, 1)
    wide_k = keys[..., :columns].repeat_interleave(group, 1)
    # Sums of 127²·256 at most: fp32 holds them exactly.
    scores = (q8.float() @ wide_k.float().transpose(-2, -1)) * (q_scale * scale)[..., None] * k_scale[:, :, None]
    keep = keep_mask(mask, lens, count, q.device)
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None, None, :], -math.inf)
        v = v.masked_fill(~keep[:, None, :, None], 0)
    if count == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf, dtype=torch.float32)
    m = scores.amax(-1, keepdim=True)
    p = torch.exp(scores - m.masked_fill(m == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    divisor = total.masked_fill(total == 0, 1.0)
    kind = torch.promote_types(v.dtype, torch.float32)
    out = (p.to(v.dtype).to(kind) @ v.to(kind).repeat_interleave(group, 1)) / divisor
    lse = (m + divisor.log()).squeeze(-1)
    if mean is not None:
        lse = lse + (q.float() * mean.repeat_interleave(group, 1)[:, :, None]).sum(-1) * scale
    return out.to(q.dtype), lse


def linear(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, norm: bool,
    gamma: Tensor | None, beta: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """x [M, K], normalised before if asked and quantised per row, times values [N, ≥ K] int8 of ``scale`` [N]."""
    wide = x.float()
    if norm:
        wide = F.layer_norm(
            wide, x.shape[-1:], None if gamma is None else gamma.float(), None if beta is None else beta.float(), eps
        )
    rows, row_scale = quantize_rows(wide)
    # float64 holds every sum of int8 products, on any device and for any size.
    product = (rows.double() @ values[:, : x.shape[1]].double().t()).float()
    out = product * row_scale[:, None] * scale
    out = out if bias is None else out + bias.float()
    out = out if residual is None else out + residual.float()
    return out.to(x.dtype)
