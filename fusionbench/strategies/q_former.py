"""Q-Former: learned queries read an image in every second layer (BLIP-2, Li et al. 2023, arXiv 2301.12597)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..blocks import AttentionBlock, attention_block_cost
from ..cost import Cost, copy
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, feed_forward_block_cost, norm, norm_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, join, join_masks, projected_widths, projectors_cost

QUERIES = 32  # BLIP-2's
CROSS_EVERY = 2  # layers 0, 2, ... read the image


def query_count(case: Case) -> int:
    return case.design.latents or QUERIES


def refuses(case: Case, with_text: bool = False) -> str | None:
    width, text_width = case.shape.width, projected_widths(case)[1]
    if not case.shape.depth:
        return "q_former of depth 0 has no layer that reads the image"
    if case.design.causal or case.design.rope:
        return f"q_former's queries have no order, unlike in {case.design.key}"
    if with_text and not case.shape.units(width):
        return "q_former:with_text gives text a feed-forward part of its own, and the shape has none (ffn 0)"
    if with_text and text_width != width:
        return f"q_former:with_text puts text of width {text_width} beside queries of width {width} (use 'linear')"
    return None


def layer_cost(case: Case, impl: str, text: int, crosses: bool, saves_image: bool) -> Cost:
    """``QFormerLayer`` over the queries and ``text`` tokens per sample; one cross-attention keeps the image for all."""
    s, n, image_width = case.shape, query_count(case), projected_widths(case)[0]
    total = attention_block_cost(case, n + text, s.width, impl) + feed_forward_block_cost(case, n, s.width)
    if crosses:
        total += attention_block_cost(
            case, n, s.width, impl, keys=s.image, context_width=image_width, saves_context=saves_image
        )
    if text:
        total += feed_forward_block_cost(case, text, s.width) + copy(s.batch * (n + text) * s.width)
    return total


def cost(case: Case, impl: str, with_text: bool = False) -> Cost:
    s, n, text = case.shape, query_count(case), case.shape.text if with_text else 0
    joined = copy(s.batch * (n + s.text) * s.width) if projected_widths(case)[1] == s.width else Cost()
    total = projectors_cost(case) + joined + norm_cost(s.batch * (n + text), s.width, case)
    for i in range(s.depth):
        total += layer_cost(case, impl, text, crosses=i % CROSS_EVERY == 0, saves_image=i == 0)
    return total + Cost(params=n * s.width, weights_read=n * s.width)


class QFormerLayer(nn.Module):
    """Self-attention over queries and text together, then cross-attention and feed-forward of the queries.

    x [B, n + Lt, W], queries first, image [B, Li, Di] -> [B, n + Lt, W]; mask [B, n + Lt], image_mask [B, Li]. Text has
    a feed-forward part of its own.
    """

    def __init__(self, case: Case, impl: str, crosses: bool, with_text: bool) -> None:
        super().__init__()
        width, image_width = case.shape.width, projected_widths(case)[0]
        self.attention = AttentionBlock(case, width, impl)
        self.cross = AttentionBlock(case, width, impl, context_width=image_width) if crosses else None
        self.query_ffn = FeedForwardBlock(case, width)
        self.text_ffn = FeedForwardBlock(case, width) if with_text else nn.Identity()

    def forward(self, x: Tensor, n: int, image: Tensor | None, mask: Mask, image_mask: Mask) -> Tensor:
        x = self.attention(x, None, mask)
        if not n:
            text: Tensor = self.text_ffn(x)
            return text
        queries = x[:, :n]
        if self.cross is not None:
            queries = self.cross(queries, image, image_mask)
        queries = self.query_ffn(queries)
        return queries if n == x.shape[1] else torch.cat([queries, self.text_ffn(x[:, n:])], dim=1)


@strategy("q_former", impls=ATTENTION_IMPLS, cost=cost, variants={"with_text": {"with_text": True}}, refuses=refuses)
class QFormer(nn.Module):
    """Compress the image to n learned queries, which read it in every second of ``depth`` layers, in front of the text.

    Text is not read: as in BLIP-2's second stage, image and text meet in what attends to the result. Returns
    [B, n + Lt, W], queries first (n: the design's ``latents``, or 32), or, where the text has another width than W, the
    two apart, (text [B, Lt, Dt], image [B, n, W]). In ``with_text``, BLIP-2's first stage and InstructBLIP, the queries
    also attend to the text and it to them, [B, n + Lt, W], and text must have the width W. A missing modality adds no
    tokens. The model's last Linear, to the width of a language model, is left out.
    """

    def __init__(self, case: Case, impl: str, with_text: bool = False) -> None:
        super().__init__()
        s = case.shape
        self.with_text, self.joins = with_text, projected_widths(case)[1] == s.width
        self.project = Projectors(case)
        self.queries = nn.Parameter(torch.randn(query_count(case), s.width))
        self.norm = norm(s.width, case)
        self.layers = nn.ModuleList(QFormerLayer(case, impl, i % CROSS_EVERY == 0, with_text) for i in range(s.depth))

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor | tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("q_former needs at least one modality")
        image, text = self.project(image, text)
        if self.with_text:
            return self.encode(image, text, image_mask, text_mask)
        image = None if image is None else self.encode(image, None, image_mask)
        return join(image, text) if self.joins else (text, image)

    def encode(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        """The queries, if there is an image to read, and the text [B, Lt, W], through all layers: [B, n + Lt, W]."""
        queries = None if image is None else self.queries.repeat(image.shape[0], 1, 1)
        mask = join_masks(queries, text, None, text_mask)
        x: Tensor = self.norm(join(queries, text))
        for layer in self.layers:
            x = layer(x, 0 if queries is None else queries.shape[1], image, mask, image_mask)
        return x
