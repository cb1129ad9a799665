"""The same operations in plain PyTorch: the truth of the tests, and what runs where Triton does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def keep_mask(mask: Tensor | None, lens: Tensor | None, keys: int, device: torch.device) -> Tensor | None:
    """The keys that take part, [B, Lk] bool, from a mask and lengths; None where all do."""
    if lens is None:
        return mask
    inside = torch.arange(keys, device=device)[None, :] < lens[:, None]
    return inside if mask is None else inside & mask


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lens: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, H, Lq, d], lse [B, H, Lq]), computed in fp32, or in fp64 for fp64; shapes as in ``cross_attention``.

    A row without keys gives 0 and -inf. Values at keys that take no part may be anything, NaN included.
    """
    kind = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.to(kind).repeat_interleave(group, dim=1) for x in (k, v))
    keep = keep_mask(mask, lens, k.shape[2], q.device)
    if keep is not None:
        wide_k, wide_v = (x.masked_fill(~keep[:, None, :, None], 0) for x in (wide_k, wide_v))
    scores = (q.to(kind) @ wide_k.transpose(-2, -1)) * scale
    if bias is not None:
        scores = scores + bias.to(kind)
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None, None, :], -math.inf)
    if k.shape[2] == 0:
        # The zero product keeps both outputs part of the graph of their inputs.
        nothing = scores.sum(-1) + wide_v.sum() * 0
        return (nothing[..., None] * q).to(q.dtype), nothing - math.inf
    m = scores.amax(-1, keepdim=True).detach()
    p = torch.exp(scores - m.masked_fill(m == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    out = (p / total.masked_fill(total == 0, 1.0)) @ wide_v
    lse = (m + total.masked_fill(total == 0, 1.0).log()).squeeze(-1)
    return out.to(q.dtype), lse


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dS): the gradients, and the scores' [B, H, Lq, Lk], whose sum over broadcast sizes is dbias."""
    kind = torch.promote_types(q.dtype, torch.float32)
    heads = q.shape[1]
    group = heads // k.shape[1]
    keep = keep_mask(mask, lens, k.shape[2], q.device)
    wide_q, wide_do = q.to(kind), dout.to(kind)
    wide_k, wide_v = (x.to(kind).repeat_interleave(group, dim=1) for x in (k, v))
    if keep is not None:
        wide_k, wide_v = (x.masked_fill(~keep[:, None, :, None], 0) for x in (wide_k, wide_v))
    scores = (wide_q @ wide_k.transpose(-2, -1)) * scale
    if bias is not None:
        scores = scores + bias.to(kind)
    p = torch.exp(scores - lse.masked_fill(lse == -math.inf, math.inf)[..., None])
    if keep is not None:
        p = p.masked_fill(~keep[:, None, None, :], 0)
    delta = (out.to(kind) * wide_do).sum(-1)
    if dlse is not None:
        delta = delta - dlse.masked_fill(lse == -math.inf, 0.0)
    ds = p * (wide_do @ wide_v.transpose(-2, -1) - delta[..., None])
    dq = scale * ds @ wide_k
    dk = (scale * ds.transpose(-2, -1) @ wide_q).view(*k.shape[:2], group, *k.shape[2:]).sum(2)
    dv = (p.transpose(-2, -1) @ wide_do).view(*k.shape[:2], group, *k.shape[2:]).sum(2)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), ds
