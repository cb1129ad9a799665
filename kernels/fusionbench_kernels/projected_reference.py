"""Projected attention, absorbed attention and fused projections in plain PyTorch: what runs where Triton does not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import reference


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H·d] -> [B, H, L, d]"""
    # Not view(…, -1): that size is ambiguous where a batch or a length is 0.
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, L, d] -> [B, L, H·d]"""
    return x.transpose(1, 2).flatten(2)


def projected(
    x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor, q_bias: Tensor | None,
    out_weight: Tensor, out_bias: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    """Linear, attention, linear; shapes as in ``projected_cross_attention``."""
    q = split_heads(F.linear(x, q_weight, q_bias), k.shape[1])
    o, _ = reference.attention(q, k, v, mask, None, None, scale)
    return F.linear(merge_heads(o), out_weight, out_bias)


def absorb(
    k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor, q_bias: Tensor | None, out_weight: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(A [B, H, Lk, Dx], c [B, H, Lk], V' [B, H, Lk, Dx']): products in fp32 (fp64 of fp64), rounded once."""
    kind = torch.promote_types(k.dtype, torch.float32)
    heads = k.shape[1]
    wide_k, wide_v = k.to(kind) * scale, v.to(kind)
    if mask is not None:
        wide_k, wide_v = (y.masked_fill(~mask[:, None, :, None], 0) for y in (wide_k, wide_v))
    a = wide_k @ q_weight.to(kind).reshape(heads, k.shape[3], -1)
    values = wide_v @ out_weight.to(kind).T.reshape(heads, k.shape[3], -1)
    bias = torch.zeros(a.shape[:3], dtype=kind, device=a.device)
    if q_bias is not None:
        bias = (wide_k @ q_bias.to(kind).view(heads, -1, 1)).squeeze(-1)
    if mask is not None:
        bias = bias.masked_fill(~mask[:, None, :], -torch.inf)
    return a.to(k.dtype), bias, values.to(v.dtype)


def absorbed(x: Tensor, a: Tensor, bias: Tensor, values: Tensor, out_bias: Tensor | None) -> Tensor:
    """Σ_h softmax(x·A_hᵀ + c_h)·V'_h + out_bias, in fp32 (fp64 of fp64); a sample without keys gives out_bias."""
    kind = torch.promote_types(x.dtype, torch.float32)
    scores = x.to(kind)[:, None] @ a.to(kind).transpose(-2, -1) + bias[:, :, None]  # [B, H, Lq, Lk]
    if scores.shape[-1]:
        m = scores.amax(-1, keepdim=True)
        p = torch.exp(scores - m.masked_fill(m == -torch.inf, 0.0))
        total = p.sum(-1, keepdim=True)
        scores = p / total.masked_fill(total == 0, 1.0)
    out = (scores @ values.to(kind)).sum(1)
    return (out if out_bias is None else out + out_bias.to(kind)).to(x.dtype)


def normed(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension; x itself without gamma."""
    return x if gamma is None else F.layer_norm(x, x.shape[-1:], gamma, beta, eps)
