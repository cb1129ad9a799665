"""The attention inside fusion, of queries, keys and values that are given: what an attention kernel is judged by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..attention import attend
from ..blocks import merge_heads, split_heads
from ..cost import Cost, attention
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, Inputs, strategy
from ..spec import PLAIN, Case
from ..streams import Mask
from .co_attention_shared import affinity_cost, fused_attention, shared_attention

Direction = Literal["text_to_image", "image_to_text"]

# Scores of deviation 3, as the blocks' ``sharpened`` gives them: where softmax is flat, wrong scores hide in rounding.
SHARPNESS = 3.0


def refuses(case: Case) -> str | None:
    s = case.shape
    if case.design != PLAIN:
        return f"attention alone has no layers that a design could change ({case.design.key})"
    if case.projector != "identity" or case.type_embedding:
        return "attention alone has no projector and no type embedding (use projector 'identity')"
    if not s.image_width == s.text_width == s.width:
        return f"attention alone needs both widths equal to width {s.width}, not {s.image_width} and {s.text_width}"
    return None


def tokens(case: Case, length: int, parts: int, generator: torch.Generator) -> Tensor:
    """``parts`` operands side by side [B, L, parts·W], standard normal."""
    return torch.randn(case.shape.batch, length, parts * case.shape.width, generator=generator)


# --- one direction -------------------------------------------------------------------------------------------------


def one_way_inputs(case: Case, generator: torch.Generator, direction: Direction) -> Inputs:
    """Queries [B, Lq, W] in one modality's place, keys and values side by side [B, Lk, 2W] in the other's."""
    image_asks = direction == "image_to_text"
    image = tokens(case, case.shape.image, 1 if image_asks else 2, generator)
    text = tokens(case, case.shape.text, 2 if image_asks else 1, generator)
    (image if image_asks else text).mul_(SHARPNESS)
    return Inputs(image.requires_grad_(), text.requires_grad_())


def one_way_cost(case: Case, impl: str, direction: Direction) -> Cost:
    s = case.shape
    queries, keys = (s.text, s.image) if direction == "text_to_image" else (s.image, s.text)
    nobodys = s.batch * queries * s.width if impl == "eager" else 0  # eager's output, kept only by what comes behind
    return attention(s.batch, queries, keys, s.width, s.heads, impl) + Cost(saved=-nobodys)


@strategy(
    "attention_core",
    impls=ATTENTION_IMPLS,
    cost=functools.partial(one_way_cost, direction="text_to_image"),
    inputs=functools.partial(one_way_inputs, direction="text_to_image"),
    refuses=refuses,
)
class AttentionCore(nn.Module):
    """Attention alone, without projections: softmax(QKᵀ/√d)V of given Q, K and V.

    The context's place holds keys and values side by side, [B, Lk, 2W], as a packed projection leaves them; in
    training the ``cat`` of their two gradients is in every backend's time. Returns the query side [B, Lq, W].
    """

    direction: Direction = "text_to_image"

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.heads, self.impl = case.shape.heads, impl

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None or text is None:
            raise MissingModalityError(f"attention_core has nothing to attend to without both ({self.direction})")
        queries, context, mask = text, image, image_mask
        if self.direction == "image_to_text":
            queries, context, mask = image, text, text_mask
        q, k, v = (split_heads(x, self.heads) for x in (queries, *context.chunk(2, dim=-1)))
        return merge_heads(self.read(q, k, v, mask))

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        return attend(q, k, v, self.impl, mask)


@strategy(
    "attention_core:image_to_text",
    impls=ATTENTION_IMPLS,
    cost=functools.partial(one_way_cost, direction="image_to_text"),
    inputs=functools.partial(one_way_inputs, direction="image_to_text"),
    refuses=refuses,
)
class ImageAttentionCore(AttentionCore):
    """Attention alone, without projections: image queries over text keys and values that are given."""

    direction = "image_to_text"


# --- both directions over one affinity -----------------------------------------------------------------------------


def shared_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Queries and values of text [B, Lt, 2W], keys and values of image [B, Li, 2W], each side by side."""
    image, text = tokens(case, case.shape.image, 2, generator), tokens(case, case.shape.text, 2, generator)
    text[..., : case.shape.width].mul_(SHARPNESS)
    return Inputs(image.requires_grad_(), text.requires_grad_())


def shared_cost(case: Case, impl: str) -> Cost:
    s = case.shape
    saved = 0
    if impl == "eager":
        saved -= s.batch * (s.image + s.text) * s.width  # both outputs are kept only by what comes behind
        if s.batch == 1 or s.heads == 1:  # the values of text are a view then, which keeps its queries with it
            saved += s.batch * s.text * s.width
    return affinity_cost(case, impl) + Cost(saved=saved)


_ONE_AFFINITY: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Mask, Mask], tuple[Tensor, Tensor]]] = {
    "eager": shared_attention,
    "triton": fused_attention,
}


@strategy("attention_core_shared", impls=ATTENTION_IMPLS, cost=shared_cost, inputs=shared_inputs, refuses=refuses)
class AttentionCoreShared(nn.Module):
    """Co-attention alone, without projections: one affinity of given operands, read along both of its axes.

    Text brings queries and values [B, Lt, 2W], image keys and values [B, Li, 2W]; returns (text [B, Lt, W],
    image [B, Li, W]). What ``_ONE_AFFINITY`` names makes the affinity once, every other impl makes two attention calls.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.heads, self.impl = case.shape.heads, impl

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor, Tensor]:
        if image is None or text is None:
            raise MissingModalityError("attention_core_shared has nothing to attend to without both modalities")
        q, v_text = (split_heads(x, self.heads) for x in text.chunk(2, dim=-1))
        k, v_image = (split_heads(x, self.heads) for x in image.chunk(2, dim=-1))
        for_text, for_image = self.read(q, k, v_text, v_image, text_mask, image_mask)
        return merge_heads(for_text), merge_heads(for_image)

    def read(
        self, q: Tensor, k: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Mask, image_mask: Mask
    ) -> tuple[Tensor, Tensor]:
        read = _ONE_AFFINITY.get(self.impl, self._two_calls)
        return read(q, k, v_text, v_image, text_mask, image_mask)

    def _two_calls(
        self, q: Tensor, k: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Mask, image_mask: Mask
    ) -> tuple[Tensor, Tensor]:
        return attend(q, k, v_image, self.impl, image_mask), attend(k, q, v_text, self.impl, text_mask)
