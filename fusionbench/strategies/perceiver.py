"""Perceiver: learned latents read both modalities once, then attend to themselves (Jaegle 2021, arXiv 2103.03206)."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from ..blocks import Encoder, Layer, encoder_cost, layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, join, join_cost, join_masks, joint_width, projectors_cost

LATENTS = 256  # Perceiver IO's for language


def latents(case: Case) -> int:
    return case.design.latents or LATENTS


def reading(case: Case) -> Case:
    """The case of the cross-attention, whose inner width is that of what it reads and not that of the latents."""
    return msgspec.structs.replace(case, shape=msgspec.structs.replace(case.shape, width=joint_width(case)))


def refuses(case: Case) -> str | None:
    width, heads, design = joint_width(case), case.shape.heads, case.design
    if design.post_norm or design.causal or design.rope:
        return f"perceiver normalises what attention reads, and its latents have no order ({design.key})"
    if unequal := equal_widths(case):
        return unequal
    if width % heads:
        return f"perceiver's cross-attention is as wide as its inputs, and {width} is not a multiple of {heads} heads"
    return None


def cost(case: Case, impl: str) -> Cost:
    s, n, width = case.shape, latents(case), joint_width(case)
    read = layer_cost(reading(case), n, s.width, impl, keys=s.image + s.text, context_width=width, context_norm=True)
    learned = Cost(params=n * s.width, weights_read=n * s.width)
    return projectors_cost(case) + join_cost(case) + learned + read + encoder_cost(case, n, s.width, impl)


@strategy("perceiver", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses)
class Perceiver(nn.Module):
    """Let n latents read [image; text] by one cross-attention, then run ``depth`` self-attention layers over them.

    Returns the latents [B, n, W], W the shape's ``width`` (n: the design's ``latents``, or 256). The cross-attention's
    inner width is that of the stream, which with projector ``identity`` is not W. Every layer has weights of its own. A
    missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        s, width = case.shape, joint_width(case)
        self.project = Projectors(case)
        self.latents = nn.Parameter(torch.randn(latents(case), s.width))
        self.read = Layer(reading(case), s.width, impl, context_width=width, context_norm=True)
        self.encoder = Encoder(case, s.width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("perceiver needs at least one modality")
        image, text = self.project(image, text)
        stream, mask = join(image, text), join_masks(image, text, image_mask, text_mask)
        x = self.read(self.latents.repeat(stream.shape[0], 1, 1), stream, mask)
        fused: Tensor = self.encoder(x)
        return fused
