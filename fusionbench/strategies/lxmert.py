"""LXMERT's cross-modality layers: one cross-attention for both directions (Tan & Bansal 2019, arXiv 1908.07490)."""

from __future__ import annotations

import msgspec
from torch import Tensor, nn

from ..blocks import AttentionBlock, Layer, attention_block_cost, layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, image_case, joint_width, projectors_cost


def cross_cost(case: Case, impl: str) -> Cost:
    """Both directions, the second by the weights of the first."""
    s, width = case.shape, joint_width(case)
    into_image, into_text = (
        attention_block_cost(case, queries, width, impl, keys=keys, context_width=width, saves_context=False)
        for queries, keys in ((s.image, s.text), (s.text, s.image))
    )
    return into_image + msgspec.structs.replace(into_text, params=0, weights_read=0, linear_sides=0)


def cost(case: Case, impl: str) -> Cost:
    s, width = case.shape, joint_width(case)
    own = layer_cost(image_case(case), s.image, width, impl) + layer_cost(case, s.text, width, impl)
    return projectors_cost(case) + (cross_cost(case, impl) + own) * s.depth


class CrossModalityLayer(nn.Module):
    """Cross-attention in both directions, then a Transformer layer of each stream; one stream alone skips the first.

    image [B, Li, D], text [B, Lt, D] -> both, same shapes.
    """

    def __init__(self, case: Case, width: int, impl: str) -> None:
        super().__init__()
        self.cross = AttentionBlock(case, width, impl, context_width=width)
        self.image_layer = Layer(image_case(case), width, impl)
        self.text_layer = Layer(case, width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask, text_mask: Mask
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is not None and text is not None:
            image, text = self.cross(image, text, text_mask), self.cross(text, image, image_mask)
        return (
            None if image is None else self.image_layer(image, None, image_mask),
            None if text is None else self.text_layer(text, None, text_mask),
        )


@strategy("lxmert", impls=ATTENTION_IMPLS, cost=cost, refuses=equal_widths)
class Lxmert(nn.Module):
    """Let both streams query each other with the same weights, then encode each on its own, ``depth`` times.

    Returns (text [B, Lt, D], image [B, Li, D]). A modality that is alone runs through its own layers, with None in the
    missing one's place.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        width = joint_width(case)
        self.project = Projectors(case)
        self.layers = nn.ModuleList(CrossModalityLayer(case, width, impl) for _ in range(case.shape.depth))

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("lxmert needs at least one modality")
        image, text = self.project(image, text)
        for layer in self.layers:
            image, text = layer(image, text, image_mask, text_mask)
        return text, image
