"""Concatenation with the self-attention that makes it fuse (UNITER, Chen et al. 2020, arXiv 1909.11740)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Encoder, encoder_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, join, join_cost, join_masks, joint_width, projectors_cost


def cost(case: Case, impl: str) -> Cost:
    s = case.shape
    stream = encoder_cost(case, s.image + s.text, joint_width(case), impl)
    return projectors_cost(case) + join_cost(case) + stream


@strategy("concat_attention", impls=ATTENTION_IMPLS, cost=cost, refuses=equal_widths)
class ConcatAttention(nn.Module):
    """Concatenate both sequences and run ``depth`` self-attention layers over the whole stream.

    Returns [B, Li + Lt, D], image tokens first. A missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.project = Projectors(case)
        self.encoder = Encoder(case, joint_width(case), impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("concat_attention needs at least one modality")
        image, text = self.project(image, text)
        mask = join_masks(image, text, image_mask, text_mask)
        fused: Tensor = self.encoder(join(image, text), mask)
        return fused
