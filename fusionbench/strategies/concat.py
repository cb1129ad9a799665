"""Concatenation along the sequence, alone and with the self-attention that makes it fuse (LLaVA, UNITER)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import (
    Encoder,
    Mask,
    Projector,
    encoder_cost,
    equal_widths,
    join,
    join_masks,
    projected_width,
    projectors_cost,
)
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case


def cat_cost(case: Case, impl: str) -> Cost:
    """Reads and writes every token once; no arithmetic, nothing kept for the backward pass."""
    s = case.shape
    return Cost(activations_moved=2 * s.batch * (s.image + s.text) * s.image_width)


def cat_refuses(case: Case) -> str | None:
    s = case.shape
    if case.projector != "identity":
        return f"concat is the cat alone and has no projector '{case.projector}' (use 'identity')"
    if case.type_embedding:
        return "concat is the cat alone and has no type embedding"
    return equal_widths(case) if s.image_width != s.text_width else None


@strategy("concat", impls=("eager",), cost=cat_cost, refuses=cat_refuses)
class Concat(nn.Module):
    """Put both token sequences into one: [image; text]. Nothing interacts until something attends to it.

    Returns [B, Li + Lt, D]. Both widths must be D. A missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("concat needs at least one modality")
        return join(image, text)


def attention_stack_cost(case: Case, impl: str) -> Cost:
    s = case.shape
    return projectors_cost(case) + encoder_cost(s, s.image + s.text, projected_width(s.text_width, case), impl)


@strategy("concat_attention", impls=ATTENTION_IMPLS, cost=attention_stack_cost, refuses=equal_widths)
class ConcatAttention(nn.Module):
    """Concatenate both sequences and run ``depth`` self-attention layers over the whole stream.

    Returns [B, Li + Lt, D], image tokens first. A missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        s = case.shape
        self.project_image = Projector(s.image_width, case)
        self.project_text = Projector(s.text_width, case)
        self.encoder = Encoder(s, projected_width(s.text_width, case), impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("concat_attention needs at least one modality")
        image = None if image is None else self.project_image(image)
        text = None if text is None else self.project_text(text)
        return self.encoder(join(image, text), join_masks(image, text, image_mask, text_mask))
