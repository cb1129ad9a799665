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


def attend(q: Tensor, k: Tensor, v: Tensor, impl: str, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Attention of every query over the keys that ``mask`` lets through; scale 1/√d.

    q [B, H, Lq, d], k and v [B, Hk, Lk, d] with H a multiple of Hk (query heads in groups share a key head), mask
    [B, Lk] bool, True at keys that take part. ``causal`` hides from each query the keys behind it, the last query
    seeing all of them. Returns [B, H, Lq, d]. A row whose keys are all masked gives 0. Raises FusionbenchError for
    an impl without code here, and for causal attention in one that has none.
    """
    if impl not in _IMPLS:
        raise FusionbenchError(f"attention has no '{impl}' impl (has: {', '.join(_IMPLS)})")
    if not causal:
        return _IMPLS[impl](q, k, v, mask)
    if impl not in _CAUSAL:
        raise FusionbenchError(f"attention has no causal '{impl}' impl (has: {', '.join(_CAUSAL)})")
    return _CAUSAL[impl](q, k, v, mask)


def probabilities(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis of scores [..., Lq, Lk]; masked keys, and rows of only such keys, get 0."""
    if mask is None:
        return scores.softmax(dim=-1)
    # Filling twice keeps a fully masked row at 0 in the forward and in the backward pass: softmax alone gives NaN.
    hidden = ~mask
    return scores.masked_fill(hidden, -math.inf).softmax(dim=-1).masked_fill(hidden, 0.0)


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _by_rows(q, k, v, None if mask is None else mask[:, None, None, :])


def _eager_causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _by_rows(q, k, v, _behind(q, k, mask))


def _behind(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """[Lq, Lk], or [B, 1, Lq, Lk] with a mask: True at keys not behind the query; the last query sees the last key."""
    queries, keys = q.shape[2], k.shape[2]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return seen if mask is None else seen & mask[:, None, None, :]


def _by_rows(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    rows = max(1, _chunk.get() // (q.shape[0] * q.shape[1] * max(1, k.shape[2])))
    if rows >= q.shape[2]:
        return _unfused(q, k, v, seen)
    per_query = seen is not None and seen.shape[-2] > 1
    parts = []
    for start in range(0, q.shape[2], rows):
        some = seen[..., start : start + rows, :] if per_query and seen is not None else seen
        parts.append(checkpoint(_unfused, q[:, :, start : start + rows], k, v, some, use_reentrant=False))
    return torch.cat(parts, dim=2)


def _unfused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """``seen`` is broadcastable to the scores [B, H, Lq, Lk]."""
    shape, shared = q.shape, k.shape[1]
    q = (q * q.shape[-1] ** -0.5).unflatten(1, (shared, -1)).flatten(2, 3)  # [B, Hk, G·Lq, d]
    scores = (q @ k.transpose(-2, -1)).view(*shape[:3], -1)
    if seen is not None and seen.dim() == 2:  # causal alone leaves every query a key
        p = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
    else:
        p = probabilities(scores, seen)
    return (p.view(*q.shape[:3], -1) @ v).view(shape)


CHUNK = 2**26  # scores that a reference holds at a time
_chunk: ContextVar[int] = ContextVar("chunk", default=2**62)


@contextmanager
def in_chunks(scores: int = CHUNK) -> Iterator[None]:
    """Let eager attention hold no more than ``scores`` scores at a time: for references, never for timings."""
    token = _chunk.set(scores)
    try:
        yield
    finally:
        _chunk.reset(token)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    seen = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=k.shape[1] != q.shape[1])


def _sdpa_causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    grouped = k.shape[1] != q.shape[1]
    if mask is None and q.shape[2] == k.shape[2]:  # is_causal aligns at the first key, which is the same for squares
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, _behind(q, k, mask), enable_gqa=grouped)


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    grouped = k.shape[1] != q.shape[1]
    if mask is None:
        return compiled_flex()(q, k, v, enable_gqa=grouped)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return torch.where(mask[b, k_index], score, -math.inf)

    return compiled_flex()(q, k, v, score_mod=score_mod, enable_gqa=grouped)


def _flex_causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    blocks, grouped = _blocks_behind(q.shape[2], k.shape[2], str(q.device)), k.shape[1] != q.shape[1]
    if mask is None:
        return compiled_flex()(q, k, v, block_mask=blocks, enable_gqa=grouped)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return torch.where(mask[b, k_index], score, -math.inf)

    return compiled_flex()(q, k, v, score_mod=score_mod, block_mask=blocks, enable_gqa=grouped)


@functools.cache
def _blocks_behind(queries: int, keys: int, device: str) -> object:
    """Which blocks of scores causal attention needs at all; made once per length, as a model does."""
    from torch.nn.attention.flex_attention import create_block_mask

    def behind(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return q_index + (keys - queries) >= k_index

    return create_block_mask(behind, None, None, queries, keys, device)


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

_CAUSAL: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "eager": _eager_causal,
    "sdpa": _sdpa_causal,
    "flex": _flex_causal,
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
