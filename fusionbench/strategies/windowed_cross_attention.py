"""Windowed cross-attention: queries read the keys around their own place (local attention, arXiv 1508.04025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..blocks import Attention, Layer, layer_cost, merge_heads, own_attention, split_heads
from ..cost import Cost, attention, copy
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost


def count_blocks(queries: int, keys: int, window: int) -> int:
    """How many equal blocks of queries share a window each.

    One where a window holds all keys; else the first divisor of ``queries`` with which a block spans at most half of
    its window, so that each query has a quarter window on either side; else blocks of one query.
    """
    if window >= keys:
        return 1
    wanted = -(-2 * keys // window)
    return next((n for n in range(wanted, queries) if queries % n == 0), queries)


def first_keys(blocks: int, block: int, window: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Where each block's window begins [B, blocks]: its middle is at the block's middle, as far as there are keys.

    ``queries`` and ``keys`` [B, 1] are the numbers of real tokens, so that padding does not move a window.
    """
    doubled = (2 * torch.arange(blocks, device=keys.device) + 1) * block  # twice the middle of each block
    middle = doubled * keys // (2 * queries.clamp(min=1))
    return torch.minimum(middle - window // 2, keys - window).clamp(min=0)


def real_tokens(x: Tensor, mask: Mask) -> Tensor:
    """How many tokens of x [B, L, D] are real: [B, 1], or [1, 1] where all of them are."""
    return torch.full((1, 1), x.shape[1], device=x.device) if mask is None else mask.sum(dim=1, keepdim=True)


def refuses(case: Case, **options: object) -> str | None:
    return own_attention(case)


class WindowedAttention(Attention):
    """``Attention`` of each block of queries over the ``window`` keys around it.

    Windows are gathered, so that blocks are a batch of short attentions: no other score is made, and any impl serves.
    """

    def __init__(self, case: Case, query_width: int, context_width: int, impl: str, window: int) -> None:
        super().__init__(case, query_width, context_width, impl)
        self.window = window

    def forward(  # type: ignore[override]  # windows of a cache are not offered
        self, x: Tensor, context: Tensor, mask: Mask = None, query_mask: Mask = None
    ) -> Tensor:
        (batch, queries), keys = x.shape[:2], context.shape[1]
        q, k, v = self.q(x), self.k(context), self.v(context)
        blocks = count_blocks(queries, keys, self.window)
        block = queries // blocks
        if self.window < keys:
            first = first_keys(blocks, block, self.window, real_tokens(x, query_mask), real_tokens(context, mask))
            rows = first.unsqueeze(-1) + torch.arange(self.window, device=x.device)  # [B, blocks, window]
            samples = torch.arange(batch, device=x.device)[:, None, None]
            k, v = k[samples, rows].flatten(0, 1), v[samples, rows].flatten(0, 1)  # [B·blocks, window, I]
            mask = None if mask is None else mask[samples, rows].flatten(0, 1)
        q, k, v = (split_heads(part, self.heads) for part in (q.view(batch * blocks, block, -1), k, v))
        attended: Tensor = self.out(merge_heads(self.read(q, k, v, mask)).view(batch, queries, -1))
        return attended


class WindowedLayer(Layer):
    """``Layer`` with windows, which the padding of the queries moves, too."""

    def __init__(self, case: Case, width: int, context_width: int, impl: str, window: int) -> None:
        super().__init__(case, width, impl, context_width=context_width)
        self.attention.attention = WindowedAttention(case, width, context_width, impl, window)

    def forward(  # type: ignore[override]
        self, x: Tensor, context: Tensor | None = None, mask: Mask = None, query_mask: Mask = None
    ) -> Tensor:
        block = self.attention
        queries = x if block.post else block.norm(x)
        y = x + block.gate(block.attention(queries, queries if context is None else context, mask, query_mask))
        fused: Tensor = self.ffn(block.norm(y) if block.post else y)
        return fused


def inner_cost(case: Case, impl: str, window: int) -> Cost:
    """4·B·Lq·w·I FLOPs; the windows of keys and values are copies, which overlap by half and more."""
    s = case.shape
    blocks = count_blocks(s.text, s.image, window)
    size = min(window, s.image)
    windows = Cost()
    if window < s.image:
        windows = copy(2 * s.batch * blocks * size * s.width) + Cost(saved_bytes=8 * (s.batch + blocks * size))  # ids
    return windows + attention(s.batch * blocks, s.text // blocks, size, s.width, s.heads, impl)


def cost(case: Case, impl: str, window: int = 64) -> Cost:
    s, (image_width, text_width) = case.shape, projected_widths(case)
    layer = layer_cost(case, s.text, text_width, impl, keys=s.image, context_width=image_width)
    dense = attention(s.batch, s.text, s.image, s.width, s.heads, impl)
    return projectors_cost(case) + layer + dense * -1 + inner_cost(case, impl, window)


@strategy(
    "windowed_cross_attention", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses, variants={"w16": {"window": 16}}
)
class WindowedCrossAttention(nn.Module):
    """Let each text token read only the ``window`` image tokens around its proportional place (64).

    For two sequences that run side by side, as speech and its words do. Blocks of neighbouring queries share a window:
    see ``count_blocks``. Masks must have their real tokens first. Projections, norms and FFN are those of
    ``cross_attention``, which this equals where a window holds the whole image. Returns the query side [B, Lt, D]. A
    missing image skips the layer; a missing text raises MissingModalityError.
    """

    def __init__(self, case: Case, impl: str, window: int = 64) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.project = Projectors(case)
        self.layer = WindowedLayer(case, text_width, image_width, impl, window)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        image, text = self.project(image, text)
        if text is None:
            raise MissingModalityError("windowed_cross_attention has no output without its queries, the text")
        return text if image is None else self.layer(text, image, image_mask, text_mask)
