"""The Transformer's decoder over one modality, reading the other (Vaswani et al. 2017, arXiv 1706.03762).

With image queries it is the block of Stable Diffusion's U-Net (Rombach et al. 2022, arXiv 2112.10752).
"""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Decoder, decoder_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..generation import CACHING, Cache, Direction, Step, image_asks, reading_step, sees_ahead
from ..registry import ATTENTION_IMPLS, WHOLE, strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost


def cost(case: Case, impl: str, direction: Direction = "text_to_image") -> Cost:
    s, given, (image_width, text_width) = case.shape, step(case, direction), projected_widths(case)
    if direction == "text_to_image":
        sizes = (given.text, text_width, s.image, image_width)
    else:
        sizes = (given.image, image_width, s.text, text_width)
    decoder = decoder_cost(case, *sizes, impl, own_cached=given.own, context_cached=given.context)
    return projectors_cost(case, given) + decoder


def step(case: Case, direction: Direction = "text_to_image") -> Step:
    return reading_step(case, direction, layers=case.shape.depth, attends_itself=True)


def apart(mode: str, cache: Cache) -> tuple[Cache, Cache]:
    """What the layers' self-attentions are given, and what their cross-attentions are."""
    return {"decode": (cache[::2], cache[1::2]), "decode_uncached": (cache, ())}.get(mode, ((), cache))


def refuses(case: Case, direction: Direction = "text_to_image") -> str | None:
    if not case.shape.depth:
        return "transformer_decoder at depth 0 has no layer that fuses (use depth 1 or more)"
    return image_asks(case, direction) or sees_ahead(case)


@strategy(
    "transformer_decoder",
    impls=ATTENTION_IMPLS,
    cost=cost,
    variants={"image_to_text": {"direction": "image_to_text"}},
    refuses=refuses,
    modes=(*WHOLE, *CACHING),
    step=step,
)
class TransformerDecoder(nn.Module):
    """Let one modality attend to itself and then to the other, ``depth`` times: the Transformer's decoder layers.

    Returns the query side: [B, Lt, Dt] for ``text_to_image``, [B, Li, Di] for ``image_to_text``; the widths may
    differ (projector ``identity``). There is no norm behind the last layer. A missing context leaves
    self-attention and feed-forward; a missing query raises MissingModalityError. A ``cache`` has what came before the
    text token that is given, the context, or both, layer by layer.
    """

    def __init__(self, case: Case, impl: str, direction: Direction = "text_to_image") -> None:
        super().__init__()
        self.direction, self.mode = direction, case.mode
        self.project = Projectors(case)
        widths = projected_widths(case)
        context_width, query_width = widths if direction == "text_to_image" else widths[::-1]
        self.decoder = Decoder(case, query_width, context_width, impl)

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
            queries, context, masks = text, image, (text_mask, image_mask)
        else:
            queries, context, masks = image, text, (image_mask, text_mask)
        if queries is None:
            raise MissingModalityError(f"transformer_decoder has no output without its queries ({self.direction})")
        decoded: Tensor = self.decoder(queries, context, *masks, *apart(self.mode, cache))
        return decoded
