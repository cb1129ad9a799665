"""Co-attention on one affinity in plain PyTorch: the truth of the tests, and what runs where Triton does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def co_attention(
    x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor,
    text_mask: Tensor | None, image_mask: Tensor | None, scale: float,
) -> Four:  # fmt: skip
    """(out_text, lse_text, out_image, lse_image), in fp32 or for fp64 in fp64; shapes as in ``co_attention``."""
    kind = torch.promote_types(x_text.dtype, torch.float32)
    scores = (x_text.to(kind) @ x_image.to(kind).transpose(-2, -1)) * scale  # [B, H, Lt, Li]
    out_text, lse_text = _read(scores, v_image.to(kind), image_mask)
    out_image, lse_image = _read(scores.transpose(-2, -1), v_text.to(kind), text_mask)
    return out_text.to(x_text.dtype), lse_text, out_image.to(x_image.dtype), lse_image


def _read(scores: Tensor, values: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(scores) values over the keys to keep, and the log-sum-exp; 0 and -inf without a key."""
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None, None, :], -math.inf)
        values = values.masked_fill(~keep[:, None, :, None], 0)
    if scores.shape[-1] == 0:
        lse = scores.new_full(scores.shape[:-1], -math.inf)
        return scores @ values, lse
    m = scores.amax(-1, keepdim=True).detach()
    p = torch.exp(scores - m.masked_fill(m == -math.inf, 0.0))
    total = p.sum(-1, keepdim=True)
    total = total.masked_fill(total == 0, 1.0)
    return (p / total) @ values, (m + total.log()).squeeze(-1)


def co_attention_backward(
    x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor,
    text_mask: Tensor | None, image_mask: Tensor | None,
    out_text: Tensor, lse_text: Tensor, out_image: Tensor, lse_image: Tensor,
    dout_text: Tensor, dlse_text: Tensor | None, dout_image: Tensor, dlse_image: Tensor | None, scale: float,
) -> Four:  # fmt: skip
    """(dx_text, dx_image, dv_text, dv_image)."""
    kind = torch.promote_types(x_text.dtype, torch.float32)
    xt, ot, lt, dot, dlt = as_queries(x_text, out_text, lse_text, dout_text, dlse_text, text_mask)
    xi, oi, li, doi, dli = as_queries(x_image, out_image, lse_image, dout_image, dlse_image, image_mask)
    xt, xi, dot, doi = (x.to(kind) for x in (xt, xi, dot, doi))
    scores = (xt @ xi.transpose(-2, -1)) * scale
    p_text = _probabilities(scores, lt, image_mask)  # [B, H, Lt, Li]
    p_image = _probabilities(scores.transpose(-2, -1), li, text_mask)  # [B, H, Li, Lt]
    ds_text = p_text * _dscores(dot, ot, dlt, lt, v_image.to(kind), image_mask)
    ds_image = p_image * _dscores(doi, oi, dli, li, v_text.to(kind), text_mask)
    ds = ds_text + ds_image.transpose(-2, -1)
    dx_text, dx_image = (ds @ xi) * scale, (ds.transpose(-2, -1) @ xt) * scale
    dv_text, dv_image = p_image.transpose(-2, -1) @ doi, p_text.transpose(-2, -1) @ dot
    found = (dx_text, dx_image, dv_text, dv_image)
    like = (x_text, x_image, v_text, v_image)
    dx_text, dx_image, dv_text, dv_image = (x.to(y.dtype) for x, y in zip(found, like, strict=True))
    return dx_text, dx_image, dv_text, dv_image


def as_queries(
    x: Tensor, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The same tensors with the rows cleared that are masked out and have no finite log-sum-exp.

    Such a row holds NaN or infinity (or has no key); as a query it would carry that into the gradient of every key.
    """
    if mask is None:
        return x, out, lse, dout, dlse
    dead = ~(mask[:, None, :] | lse.isfinite())  # [B, H, L]
    x, out, dout = (y.masked_fill(dead[..., None], 0) for y in (x, out, dout))
    return x, out, lse.masked_fill(dead, -math.inf), dout, None if dlse is None else dlse.masked_fill(dead, 0)


def _probabilities(scores: Tensor, lse: Tensor, keep: Tensor | None) -> Tensor:
    p = torch.exp(scores - lse.masked_fill(lse == -math.inf, math.inf)[..., None])
    return p if keep is None else p.masked_fill(~keep[:, None, None, :], 0)


def _dscores(
    dout: Tensor, out: Tensor, dlse: Tensor | None, lse: Tensor, values: Tensor, keep: Tensor | None
) -> Tensor:
    """dO Vᵀ - delta with delta = rowsum(dO∘O) - dlse."""
    if keep is not None:
        values = values.masked_fill(~keep[:, None, :, None], 0)
    delta = (out.to(dout.dtype) * dout).sum(-1)
    if dlse is not None:
        delta = delta - dlse.masked_fill(lse == -math.inf, 0.0)
    return dout @ values.transpose(-2, -1) - delta[..., None]
