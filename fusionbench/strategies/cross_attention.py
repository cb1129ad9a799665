"""Cross-attention: one modality's tokens query the other's (Vaswani et al. 2017, the decoder's second sub-layer)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..blocks import Layer, layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost

Direction = Literal["text_to_image", "image_to_text"]


def cost(case: Case, impl: str, direction: Direction = "text_to_image", context_norm: bool = False) -> Cost:
    s = case.shape
    image_width, text_width = projected_widths(case)
    image, text = (s.image, image_width), (s.text, text_width)
    (queries, width), (keys, context_width) = (text, image) if direction == "text_to_image" else (image, text)
    return projectors_cost(case) + layer_cost(
        case, queries, width, impl, keys=keys, context_width=context_width, context_norm=context_norm
    )


@strategy(
    "cross_attention",
    impls=(*ATTENTION_IMPLS, "triton_projected", "triton_absorbed"),
    cost=cost,
    variants={"image_to_text": {"direction": "image_to_text"}, "context_norm": {"context_norm": True}},
)
class CrossAttention(nn.Module):
    """Let one modality's tokens query the other's: softmax(Q_text K_imageᵀ/√d) V_image.

    Returns the query side: [B, Lt, D] for ``text_to_image``, [B, Li, D] for ``image_to_text``. Query and
    context widths may differ (projector ``identity``): the K/V projections absorb it. A missing context
    skips the layer, as Llama-3.2-Vision does; a missing query raises MissingModalityError.
    """

    def __init__(
        self, case: Case, impl: str, direction: Direction = "text_to_image", context_norm: bool = False
    ) -> None:
        super().__init__()
        self.direction = direction
        self.project = Projectors(case)
        widths = projected_widths(case)
        context_width, query_width = widths if direction == "text_to_image" else widths[::-1]
        self.layer = Layer(case, query_width, impl, context_width=context_width, context_norm=context_norm)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        image, text = self.project(image, text)
        if self.direction == "text_to_image":
            queries, context, mask = text, image, image_mask
        else:
            queries, context, mask = image, text, text_mask
        if queries is None:
            raise MissingModalityError(f"cross_attention has no output without its queries ({self.direction})")
        return queries if context is None else self.layer(queries, context, mask)
