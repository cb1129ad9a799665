"""softmax(QKᵀ·scale)V, computed by the impl that was asked for and by no other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import FusionbenchError


def attend(q: Tensor, k: Tensor, v: Tensor, impl: str, mask: Tensor | None = None) -> Tensor:
    """Attention of every query over the keys that ``mask`` lets through; non-causal, scale 1/√d.

    q [B, H, Lq, d], k and v [B, H, Lk, d], mask [B, Lk] bool, True at keys that take part.
    Returns [B, H, Lq, d]. A row whose keys are all masked gives 0. Raises FusionbenchError
    for an impl without code here.
    """
    if impl not in _IMPLS:
        raise FusionbenchError(f"attention has no '{impl}' impl (has: {', '.join(_IMPLS)})")
    return _IMPLS[impl](q, k, v, mask)


def probabilities(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis of scores [..., Lq, Lk]; masked keys, and rows of only such keys, get 0."""
    if mask is None:
        return scores.softmax(dim=-1)
    # Filling twice keeps a fully masked row at 0 in the forward and in the backward pass: softmax alone gives NaN.
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1).masked_fill(~mask, 0.0)


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    rows = max(1, _chunk.get() // (q.shape[0] * q.shape[1] * max(1, k.shape[2])))
    if rows >= q.shape[2]:
        return _unfused(q, k, v, mask)
    parts = [checkpoint(_unfused, part, k, v, mask, use_reentrant=False) for part in torch.split(q, rows, dim=2)]
    return torch.cat(parts, dim=2)


def _unfused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, H, Lq, Lk]
    return probabilities(scores, None if mask is None else mask[:, None, None, :]) @ v


_chunk: ContextVar[int] = ContextVar("chunk", default=2**62)


@contextmanager
def in_chunks(scores: int = 2**26) -> Iterator[None]:
    """Let eager attention hold no more than ``scores`` scores at a time: for references, never for timings."""
    token = _chunk.set(scores)
    try:
        yield
    finally:
        _chunk.reset(token)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None, :])


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return compiled_flex()(q, k, v)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return torch.where(mask[b, k_index], score, -math.inf)

    return compiled_flex()(q, k, v, score_mod=score_mod)


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    """flex_attention under torch.compile, which it needs in order not to write the scores to memory."""
    # Without fullgraph the ninth shape of a process runs uncompiled, with a warning at most; with it, it raises.
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return compiled


def _triton(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    # Registers its operators when it is imported, which other impls need not pay for.
    from fusionbench_kernels import cross_attention

    out: Tensor = cross_attention(q, k, v, key_padding_mask=mask)  # type: ignore[assignment]
    return out


def _triton_int8(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from fusionbench_kernels import int8_attention

    out: Tensor = int8_attention(q, k, v, key_padding_mask=mask)  # type: ignore[assignment]
    return out


def _sage(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from sageattention import sageattn

    out: Tensor = sageattn(q, k, v, tensor_layout="HND", is_causal=False)
    return out


_IMPLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "flex": _flex,
    "triton": _triton,
    "triton_int8": _triton_int8,
    "sage": _sage,
}


def _projected(x: Tensor, k: Tensor, v: Tensor, q: nn.Linear, out: nn.Linear, mask: Tensor | None) -> Tensor:
    from fusionbench_kernels import projected_cross_attention

    return projected_cross_attention(
        x, k, v, q.weight, q.bias, out.weight, out.bias, heads=k.shape[1], key_padding_mask=mask
    )


def _absorbed(x: Tensor, k: Tensor, v: Tensor, q: nn.Linear, out: nn.Linear, mask: Tensor | None) -> Tensor:
    from fusionbench_kernels import absorb, absorbed_cross_attention

    return absorbed_cross_attention(x, absorb(k, v, q.weight, q.bias, out.weight, key_padding_mask=mask), out.bias)


# Impls that take the projections of queries and outputs with them: (x [B, Lq, D], k, v, q, out, mask) -> [B, Lq, D].
WITH_PROJECTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, nn.Linear, nn.Linear, Tensor | None], Tensor]] = {
    "triton_projected": _projected,
    "triton_absorbed": _absorbed,
}
