"""Attention pooling: learned queries pool tokens by one cross-attention (CoCa, Yu et al. 2022, arXiv 2205.01917)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..blocks import Attention, attention_cost
from ..cost import Cost, copy
from ..errors import MissingModalityError
from ..parts import norm, norm_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, join, join_cost, join_masks, projected_widths, projectors_cost

Pooled = Literal["both", "image"]

QUERIES = {"both": 1, "image": 256}  # CoCa's contrastive query; CoCa's for captions, and Qwen-VL's


def queries(case: Case, pools: Pooled) -> int:
    return case.design.latents or QUERIES[pools]


def refuses(case: Case, pools: Pooled = "both") -> str | None:
    if case.design.post_norm or case.design.gated:
        return f"attention_pooling has no residual stream to normalise or to gate ({case.design.key})"
    return equal_widths(case) if pools == "both" else None


class Pooler(nn.Module):
    """norm(Attention(norm(queries), norm(x))), without residual: x [B, L, D] -> [B, n, W]; mask [B, L]."""

    def __init__(self, case: Case, count: int, width: int, impl: str) -> None:
        super().__init__()
        pooled = case.shape.width
        self.queries = nn.Parameter(torch.randn(count, pooled))
        self.query_norm, self.norm, self.pooled_norm = norm(pooled, case), norm(width, case), norm(pooled, case)
        self.attention = Attention(case, pooled, width, impl)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        queries = self.query_norm(self.queries).repeat(x.shape[0], 1, 1)  # [B, n, W]
        pooled: Tensor = self.pooled_norm(self.attention(queries, self.norm(x), mask))
        return pooled


def pooler_cost(case: Case, count: int, tokens: int, width: int, impl: str) -> Cost:
    """The norm of the queries keeps no input: that is a parameter."""
    b, pooled = case.shape.batch, case.shape.width
    learned = Cost(params=count * pooled, weights_read=count * pooled, saved=-count * pooled)
    return (
        learned
        + norm_cost(count, pooled, case)
        + norm_cost(b * tokens, width, case)
        + attention_cost(case, count, tokens, pooled, width, impl, saves_context=True)
        + norm_cost(b * count, pooled, case)
    )


def cost(case: Case, impl: str, pools: Pooled = "both") -> Cost:
    s, n, (image_width, text_width) = case.shape, queries(case, pools), projected_widths(case)
    if pools == "both":
        return projectors_cost(case) + join_cost(case) + pooler_cost(case, n, s.image + s.text, image_width, impl)
    joined = copy(s.batch * (n + s.text) * s.width) if text_width == s.width else Cost()
    return projectors_cost(case) + pooler_cost(case, n, s.image, image_width, impl) + joined


@strategy(
    "attention_pooling",
    impls=ATTENTION_IMPLS,
    cost=cost,
    variants={"image": {"pools": "image"}},
    refuses=refuses,
)
class AttentionPooling(nn.Module):
    """Let n learned queries pool tokens by one cross-attention, of [image; text] or of the image alone.

    Returns the pooled vectors [B, n, W] of the joined stream (n: the design's ``latents``, or 1). ``image`` pools the
    image (n: 256) and puts its vectors in front of the text, [B, n + Lt, W], as Qwen-VL does, or, where the
    text has another width than W, returns (text [B, Lt, Dt], image [B, n, W]). One layer whatever the ``depth``,
    without feed-forward part and without positions. A missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str, pools: Pooled = "both") -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.pools, self.joins = pools, text_width == case.shape.width
        self.project = Projectors(case)
        self.pool = Pooler(case, queries(case, pools), image_width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor | tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("attention_pooling needs at least one modality")
        image, text = self.project(image, text)
        if self.pools == "both":
            pooled: Tensor = self.pool(join(image, text), join_masks(image, text, image_mask, text_mask))
            return pooled
        image = None if image is None else self.pool(image, image_mask)
        return join(image, text) if self.joins else (text, image)
