"""Hierarchical fusion: two encoders that exchange information after every layer (ViLBERT's streams, Lu et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Layer, MutualLayer, layer_cost, mutual_layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, image_case, projected_widths, projectors_cost


def cost(case: Case, impl: str) -> Cost:
    s, (image_width, text_width) = case.shape, projected_widths(case)
    image_layer = layer_cost(image_case(case), s.image, image_width, impl)
    encoders = image_layer + layer_cost(case, s.text, text_width, impl)
    return projectors_cost(case) + (encoders + mutual_layer_cost(case, image_width, text_width, impl)) * s.depth


class Level(nn.Module):
    """One layer of each encoder, then attention between them; a modality that is alone is only encoded."""

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.image_layer = Layer(image_case(case), image_width, impl)
        self.text_layer = Layer(case, text_width, impl)
        self.exchange = MutualLayer(case, image_width, text_width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask, text_mask: Mask
    ) -> tuple[Tensor | None, Tensor | None]:
        image = None if image is None else self.image_layer(image, None, image_mask)
        text = None if text is None else self.text_layer(text, None, text_mask)
        if image is None or text is None:
            return image, text
        exchanged: tuple[Tensor | None, Tensor | None] = self.exchange(image, text, image_mask, text_mask)
        return exchanged


@strategy("hierarchical", impls=ATTENTION_IMPLS, cost=cost)
class Hierarchical(nn.Module):
    """Fuse at every layer: ``depth`` levels of self-attention per modality and attention in both directions.

    Returns (text [B, Lt, Dt], image [B, Li, Di]); the widths may differ (projector ``identity``). A modality
    that is alone runs through its encoder, with None in the missing one's place.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.project = Projectors(case)
        self.levels = nn.ModuleList(Level(case, impl) for _ in range(case.shape.depth))

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("hierarchical needs at least one modality")
        image, text = self.project(image, text)
        for level in self.levels:
            image, text = level(image, text, image_mask, text_mask)
        return text, image
