"""Linear cross-attention: the context is summed up in one d x d matrix per head, whatever its length.

Katharopoulos et al. 2020 (arXiv 2006.16236) with φ = elu + 1; Shen et al. 2021 (arXiv 1812.01243) with softmax.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from ..attention import probabilities
from ..blocks import Attention, Layer, layer_cost, own_attention
from ..cost import Cost, attention, copy, product
from ..errors import MissingModalityError
from ..generation import Direction
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost

Features = Literal["elu", "softmax"]


def linear_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """φ(Q)(φ(K)ᵀV) / φ(Q)Σφ(K) with φ = elu + 1 > 0; without any key 0. All [B, H, L, d], mask [B, Lk]."""
    q, k = elu(q) + 1, elu(k) + 1
    if mask is not None:
        k = k.masked_fill(~mask[:, None, :, None], 0.0)
    # Sums over thousands of keys pass fp16's largest number, so they are made means, which the quotient cancels. Half
    # of the factor 1/Lk goes to either side of a product: the whole would push one side below fp16's smallest.
    root = k.shape[2] ** -0.5
    k = k * root
    summary = torch.cat([k.transpose(-2, -1) @ (v * root), k.sum(dim=2).unsqueeze(-1) * root], dim=-1)  # [B, H, d, d+1]
    read = q @ summary
    values, total = read[..., :-1], read[..., -1:]
    return values / total.masked_fill(total == 0, 1.0)  # 0 only where no key takes part


def efficient_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """softmax(Q)(softmax(K)ᵀV): over the features of each query, over the tokens of each feature of the keys.

    Means of means of V, so nothing overflows; without any key 0. All [B, H, L, d], mask [B, Lk].
    """
    weights = probabilities(k.transpose(-2, -1), None if mask is None else mask[:, None, None, :])  # [B, H, d, Lk]
    return q.softmax(dim=-1) @ (weights @ v)


_ATTENTION = {"elu": linear_attention, "softmax": efficient_attention}


def inner_cost(batch: int, queries: int, keys: int, width: int, heads: int, features: Features) -> Cost:
    """2·B·(Lq + Lk)·I·d FLOPs and, for ``elu``, the normaliser's 2·B·Lq·I; d = I / heads."""
    q, kv, d, maps = batch * queries * width, batch * keys * width, width // heads, batch * heads
    if features == "softmax":
        normalised = Cost(activations_moved=2 * q + 2 * kv)  # each softmax is read and written
        kept = Cost(saved=q + 2 * kv + maps * d * d + q)  # both softmaxes, v, the summary, the output
        return product(maps, d, keys, d) + product(maps, queries, d, d) + normalised + kept
    summary, quotient = maps * d * (d + 1), maps * queries * (d + 2)  # a quotient keeps both of its sides
    kept = Cost(saved=2 * q + 3 * kv + summary + quotient + q, saved_bytes=maps * queries)  # elu keeps its input, too
    return product(maps, d, keys, d) + copy(summary) + product(maps, queries, d, d + 1) + kept


def cost(case: Case, impl: str, direction: Direction = "text_to_image", features: Features = "elu") -> Cost:
    s = case.shape
    image_width, text_width = projected_widths(case)
    image, text = (s.image, image_width), (s.text, text_width)
    (queries, width), (keys, context_width) = (text, image) if direction == "text_to_image" else (image, text)
    layer = layer_cost(case, queries, width, impl, keys=keys, context_width=context_width)
    dense = attention(s.batch, queries, keys, s.width, s.heads, impl)
    return projectors_cost(case) + layer + dense * -1 + inner_cost(s.batch, queries, keys, s.width, s.heads, features)


def refuses(case: Case, **options: object) -> str | None:
    return own_attention(case)


class LinearAttention(Attention):
    """``Attention`` with the scores never made: φ(Q)(φ(K)ᵀV) instead of softmax(QKᵀ)V."""

    def __init__(self, case: Case, query_width: int, context_width: int, features: Features) -> None:
        super().__init__(case, query_width, context_width, "eager")
        self.features = features

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        return _ATTENTION[self.features](q, k, v, mask)


@strategy(
    "linear_cross_attention",
    impls=("eager",),
    cost=cost,
    refuses=refuses,
    variants={"image_to_text": {"direction": "image_to_text"}, "efficient": {"features": "softmax"}},
)
class LinearCrossAttention(nn.Module):
    """Cross-attention at a cost linear in both lengths: φ(Q_text)(φ(K_image)ᵀV_image), normalised.

    ``features``: ``elu`` (φ = elu + 1) or ``softmax`` (of Q over features, of K over tokens). Projections, norms and
    FFN are those of ``cross_attention``. Returns the query side: [B, Lt, D] for ``text_to_image``, [B, Li, D] for
    ``image_to_text``. A missing context skips the layer; a missing query raises MissingModalityError.
    """

    def __init__(
        self, case: Case, impl: str, direction: Direction = "text_to_image", features: Features = "elu"
    ) -> None:
        super().__init__()
        widths = projected_widths(case)
        context_width, query_width = widths if direction == "text_to_image" else widths[::-1]
        self.direction = direction
        self.project = Projectors(case)
        self.layer = Layer(case, query_width, impl, context_width=context_width)
        self.layer.attention.attention = LinearAttention(case, query_width, context_width, features)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        image, text = self.project(image, text)
        if self.direction == "text_to_image":
            queries, context, mask = text, image, image_mask
        else:
            queries, context, mask = image, text, text_mask
        if queries is None:
            raise MissingModalityError(f"linear_cross_attention has no output without its queries ({self.direction})")
        return queries if context is None else self.layer(queries, context, mask)
