"""Co-attention: both modalities query each other with separate weights (ViLBERT, Lu et al. 2019, arXiv 1908.02265)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import MutualLayer, mutual_layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost


def cost(case: Case, impl: str) -> Cost:
    return projectors_cost(case) + mutual_layer_cost(case, *projected_widths(case), impl)


@strategy("co_attention", impls=ATTENTION_IMPLS, cost=cost)
class CoAttention(nn.Module):
    """Let text query image and image query text, each direction with projections of its own.

    Returns (text [B, Lt, Dt], image [B, Li, Di]); the widths may differ (projector ``identity``). Without one
    modality the layer is skipped: the other is returned projected, with None in the missing one's place.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.project = Projectors(case)
        self.layer = MutualLayer(case, *projected_widths(case), impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("co_attention needs at least one modality")
        image, text = self.project(image, text)
        if image is not None and text is not None:
            image, text = self.layer(image, text, image_mask, text_mask)
        return text, image
