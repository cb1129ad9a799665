"""Cross-attention: one modality's tokens query the other's (Vaswani et al. 2017, the decoder's second sub-layer)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Layer, layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..generation import CACHING, Cache, Direction, Step, image_asks, reading_step
from ..registry import ATTENTION_IMPLS, WHOLE, strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost


def cost(case: Case, impl: str, direction: Direction = "text_to_image", context_norm: bool = False) -> Cost:
    s, given = case.shape, reading_step(case, direction)
    image_width, text_width = projected_widths(case)
    if direction == "text_to_image":
        queries, width, keys, context_width = given.text, text_width, s.image, image_width
    else:
        queries, width, keys, context_width = given.image, image_width, s.text, text_width
    return projectors_cost(case, given) + layer_cost(
        case, queries, width, impl, keys=keys, context_width=context_width, context_norm=context_norm,
        cached=given.context,
    )  # fmt: skip


def step(case: Case, direction: Direction = "text_to_image", context_norm: bool = False) -> Step:
    return reading_step(case, direction)


def refuses(case: Case, direction: Direction = "text_to_image", context_norm: bool = False) -> str | None:
    return image_asks(case, direction)


@strategy(
    "cross_attention",
    impls=(*ATTENTION_IMPLS, "triton_projected", "triton_absorbed"),
    cost=cost,
    variants={"image_to_text": {"direction": "image_to_text"}, "context_norm": {"context_norm": True}},
    refuses=refuses,
    modes=(*WHOLE, *CACHING),
    step=step,
)
class CrossAttention(nn.Module):
    """Let one modality's tokens query the other's: softmax(Q_text K_imageᵀ/√d) V_image.

    Returns the query side: [B, Lt, D] for ``text_to_image``, [B, Li, D] for ``image_to_text``. Query and
    context widths may differ (projector ``identity``): the K/V projections absorb it. A missing context
    skips the layer, as Llama-3.2-Vision does; a missing query raises MissingModalityError. A ``cache`` stands for
    the context.
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
        self,
        image: Tensor | None,
        text: Tensor | None,
        image_mask: Mask = None,
        text_mask: Mask = None,
        cache: Cache = (),
    ) -> Tensor:
        image, text = self.project(image, text)
        if self.direction == "text_to_image":
            queries, context, mask = text, image, image_mask
        else:
            queries, context, mask = image, text, text_mask
        if queries is None:
            raise MissingModalityError(f"cross_attention has no output without its queries ({self.direction})")
        if context is None and not cache:
            return queries
        fused: Tensor = self.layer(queries, context, mask, *cache)
        return fused
