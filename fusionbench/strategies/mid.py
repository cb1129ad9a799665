"""Mid fusion: separate encoders first, one joint encoder then (MBT, Nagrani et al. 2021, arXiv 2107.00135)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Encoder, encoder_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, join, join_cost, join_masks, joint_width, projectors_cost


def cost(case: Case, impl: str) -> Cost:
    s, width = case.shape, joint_width(case)
    tokens = (s.image, s.text, s.image + s.text)
    image, text, joint = (encoder_cost(case, n, width, impl) for n in tokens)
    return projectors_cost(case) + image + text + join_cost(case) + joint


@strategy("mid", impls=ATTENTION_IMPLS, cost=cost, refuses=equal_widths)
class Mid(nn.Module):
    """Encode each modality with ``depth`` layers, concatenate the latents, and encode on with ``depth`` joint layers.

    Returns [B, Li + Lt, D], image tokens first. A missing modality adds no tokens to the joint stream.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        width = joint_width(case)
        self.project = Projectors(case)
        self.image_encoder = Encoder(case, width, impl)
        self.text_encoder = Encoder(case, width, impl)
        self.joint_encoder = Encoder(case, width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("mid needs at least one modality")
        image, text = self.project(image, text)
        image = None if image is None else self.image_encoder(image, image_mask)
        text = None if text is None else self.text_encoder(text, text_mask)
        mask = join_masks(image, text, image_mask, text_mask)
        fused: Tensor = self.joint_encoder(join(image, text), mask)
        return fused
