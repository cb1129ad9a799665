"""One representative call of every kernel, by the sizes a row of the table bounds: what is compiled ahead of time.

Tensors are of device ``meta``: the host function runs as always and its launches are recorded (``compiling_for``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .co_attention import Output, Side
from .co_attention import backward as co_backward
from .co_attention import forward as co_forward
from .concat_tokens import forward as concat_tokens
from .cross_attention import _backward_keys, _backward_queries, _combine, backward, forward
from .names import Variant

Where = Mapping[str, int]
LONG, BATCH, HEADS = 1024, 2, 8


def tensor(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def element(where: Where) -> torch.dtype:
    """The type of the widest element a row allows."""
    return torch.float16 if where.get("bytes", 4) == 2 else torch.float32


def qkv(where: Where) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, Lq, d], k and v [B, H, Lk, d] at the row's upper bounds; without one, long and of head dim 256."""
    queries, keys, d = where.get("queries", LONG), where.get("keys", LONG), where.get("head_dim", 256)
    q, kv = tensor(BATCH, HEADS, queries, d, dtype=element(where)), (BATCH, HEADS, keys, d)
    return q, tensor(*kv, dtype=element(where)), tensor(*kv, dtype=element(where))


def _forward(variant: Variant) -> Callable[[Where], None]:
    def call(where: Where) -> None:
        q, k, v = qkv(where)
        forward(q, k, v, None, None, None, q.shape[-1] ** -0.5, variant)

    return call


def _backward(where: Where) -> None:
    q, k, v = qkv(where)
    lse = tensor(*q.shape[:3], dtype=torch.float32)
    backward(q, k, v, q, lse, q, None, None, None, None, q.shape[-1] ** -0.5)


def _two_pass_backward(where: Where) -> None:
    q, k, v = qkv(where)
    lse = tensor(*q.shape[:3], dtype=torch.float32)
    common = (q, k, v, q, lse, lse, None, None, None, q.shape[-1] ** -0.5)
    _backward_keys(*common, k, v)
    _backward_queries(*common, q, None)


def _co_sides(where: Where) -> tuple[Side, Side]:
    """Text at the row's upper bound, image long, both masked: masks cost registers."""
    short, d = where.get("short", 64), where.get("head_dim", 128)
    text, image = (tensor(BATCH, HEADS, tokens, d, dtype=element(where)) for tokens in (short, 4 * LONG))
    masks = (tensor(BATCH, tokens, dtype=torch.bool) for tokens in (short, 4 * LONG))
    return Side(text, text, next(masks)), Side(image, image, next(masks))


def _co_forward(where: Where) -> None:
    co_forward(*_co_sides(where), 0.125, "fused")


def _co_backward(where: Where) -> None:
    text, image = _co_sides(where)
    of_text, of_image = (Output(s.x, tensor(*s.x.shape[:3], dtype=torch.float32), s.x, None) for s in (text, image))
    co_backward(text, image, of_text, of_image, 0.125, "fused")


CALLS: dict[str, Callable[[Where], object]] = {
    "streaming_forward": _forward("streaming"),
    "resident_forward": _forward("resident"),
    "descriptor_forward": _forward("descriptor"),
    "combine": lambda where: _combine(
        tensor(4, BATCH, HEADS, 64, where.get("head_dim", 256), dtype=torch.float32),
        tensor(4, BATCH, HEADS, 64, dtype=torch.float32),
        tensor(BATCH, HEADS, 64, where.get("head_dim", 256)),
        tensor(BATCH, HEADS, 64, dtype=torch.float32),
    ),
    "co_forward": _co_forward,
    "co_backward": _co_backward,
    # More text than the one-pass backward holds, where a row of it would be found first.
    "co_backward_side": lambda where: _co_backward({"short": 256 if where.get("head_dim", 0) <= 64 else 64, **where}),
    "concat_tokens": lambda where: concat_tokens(tensor(BATCH, LONG, 768), tensor(BATCH, 64, 768)),
    "backward_delta": _backward,
    "backward_keys": _two_pass_backward,
    "backward_queries": _two_pass_backward,
    "backward_keys_resident": _backward,
    "backward_queries_resident": lambda where: _backward({"keys": 4 * LONG, **where}),
}
