"""A joint encoder and a decoder that reads it, the encoder-decoder of Vaswani et al. 2017 (arXiv 1706.03762).

The encoder's input is both modalities as one stream. The decoder's input is the text stream once more, in the place
of the target text that VL-T5 (Cho et al. 2021, arXiv 2102.02779) decodes.
"""

from __future__ import annotations

import msgspec
from torch import Tensor, nn

from ..blocks import Decoder, Encoder, decoder_cost, encoder_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, join, join_cost, join_masks, joint_width, projectors_cost


def encoder_case(case: Case) -> Case:
    """The case of the encoder, which hides no token from another: a causal design is the decoder's."""
    return msgspec.structs.replace(case, design=msgspec.structs.replace(case.design, causal=False))


def cost(case: Case, impl: str) -> Cost:
    s, width = case.shape, joint_width(case)
    joint = s.image + s.text
    encoder = encoder_cost(encoder_case(case), joint, width, impl)
    return projectors_cost(case) + join_cost(case) + encoder + decoder_cost(case, s.text, width, joint, width, impl)


def refuses(case: Case) -> str | None:
    if not case.shape.depth:
        return "multimodal_transformer at depth 0 has no layer that fuses (use depth 1 or more)"
    return equal_widths(case)


@strategy("multimodal_transformer", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses)
class MultimodalTransformer(nn.Module):
    """Encode both sequences as one stream, then decode text with the encoded stream as memory; ``depth`` layers each.

    Returns the decoded text [B, Lt, D]. Without an image the memory is the encoded text; without text the decoder
    has no input, which raises MissingModalityError.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        width = joint_width(case)
        self.project = Projectors(case)
        self.encoder = Encoder(encoder_case(case), width, impl)
        self.decoder = Decoder(case, width, width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if text is None:
            raise MissingModalityError("multimodal_transformer has nothing to decode without text")
        image, text = self.project(image, text)
        mask = join_masks(image, text, image_mask, text_mask)
        memory = self.encoder(join(image, text), mask)
        decoded: Tensor = self.decoder(text, memory, text_mask, mask)
        return decoded
