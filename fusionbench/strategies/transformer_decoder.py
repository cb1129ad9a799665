"""The Transformer's decoder over one modality, reading the other (Vaswani et al. 2017, arXiv 1706.03762).

With image queries it is the block of Stable Diffusion's U-Net (Rombach et al. 2022, arXiv 2112.10752).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..blocks import Decoder, decoder_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost

Direction = Literal["text_to_image", "image_to_text"]


def cost(case: Case, impl: str, direction: Direction = "text_to_image") -> Cost:
    s, (image_width, text_width) = case.shape, projected_widths(case)
    image, text = (s.image, image_width), (s.text, text_width)
    queries, context = (text, image) if direction == "text_to_image" else (image, text)
    return projectors_cost(case) + decoder_cost(case, *queries, *context, impl)


def refuses(case: Case, direction: Direction = "text_to_image") -> str | None:
    return None if case.shape.depth else "transformer_decoder at depth 0 has no layer that fuses (use depth 1 or more)"


@strategy(
    "transformer_decoder",
    impls=ATTENTION_IMPLS,
    cost=cost,
    variants={"image_to_text": {"direction": "image_to_text"}},
    refuses=refuses,
)
class TransformerDecoder(nn.Module):
    """Let one modality attend to itself and then to the other, ``depth`` times: the Transformer's decoder layers.

    Returns the query side: [B, Lt, Dt] for ``text_to_image``, [B, Li, Di] for ``image_to_text``; the widths may
    differ (projector ``identity``). There is no norm behind the last layer. A missing context leaves
    self-attention and feed-forward; a missing query raises MissingModalityError.
    """

    def __init__(self, case: Case, impl: str, direction: Direction = "text_to_image") -> None:
        super().__init__()
        self.direction = direction
        self.project = Projectors(case)
        widths = projected_widths(case)
        context_width, query_width = widths if direction == "text_to_image" else widths[::-1]
        self.decoder = Decoder(case, query_width, context_width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        image, text = self.project(image, text)
        if self.direction == "text_to_image":
            queries, context, masks = text, image, (text_mask, image_mask)
        else:
            queries, context, masks = image, text, (image_mask, text_mask)
        if queries is None:
            raise MissingModalityError(f"transformer_decoder has no output without its queries ({self.direction})")
        decoded: Tensor = self.decoder(queries, context, *masks)
        return decoded
