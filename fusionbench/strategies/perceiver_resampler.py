"""Perceiver resampler: learned latents sum up an image in a fixed length (Flamingo, Alayrac 2022, arXiv 2204.14198)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..blocks import Attention, attention_cost
from ..cost import Cost, copy
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, Gate, feed_forward_block_cost, gate_cost, norm, norm_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, join, projected_widths, projectors_cost

LATENTS = 64  # Flamingo's


def latents(case: Case) -> int:
    return case.design.latents or LATENTS


def refuses(case: Case) -> str | None:
    if not case.shape.depth:
        return "perceiver_resampler of depth 0 has no layer that reads the image"
    if case.design.post_norm:
        return "perceiver_resampler normalises what attention reads, not its result (design post_norm)"
    return None


class ResamplerLayer(nn.Module):
    """Latents [B, n, D] query [image; latents], with a norm for each, then feed-forward; image [B, Li, D]."""

    def __init__(self, case: Case, width: int, impl: str) -> None:
        super().__init__()
        self.image_norm, self.latent_norm = norm(width, case), norm(width, case)
        self.attention = Attention(case, width, width, impl)
        self.gate = Gate(case)
        self.ffn = FeedForwardBlock(case, width)

    def forward(self, latents: Tensor, image: Tensor, mask: Mask) -> Tensor:
        queries = self.latent_norm(latents)
        context = torch.cat([self.image_norm(image), queries], dim=1)  # [B, Li + n, D]
        fused: Tensor = self.ffn(latents + self.gate(self.attention(queries, context, mask)))
        return fused


def resampler_layer_cost(case: Case, impl: str) -> Cost:
    s, n, width = case.shape, latents(case), projected_widths(case)[0]
    return (
        norm_cost(s.batch * s.image, width, case)
        + norm_cost(s.batch * n, width, case)
        + copy(s.batch * (s.image + n) * width)
        + attention_cost(case, n, s.image + n, width, width, impl, saves_context=True)
        + gate_cost(s.batch * n, width, case)
        + feed_forward_block_cost(case, n, width)
    )


class Resampler(nn.Module):
    """Image [B, Li, D] -> [B, n, D] by ``depth`` layers and a norm; mask [B, Li] is True at real tokens."""

    def __init__(self, case: Case, width: int, impl: str) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents(case), width))
        self.layers = nn.ModuleList(ResamplerLayer(case, width, impl) for _ in range(case.shape.depth))
        self.norm = norm(width, case)

    def forward(self, image: Tensor, mask: Mask) -> Tensor:
        x = self.latents.repeat(image.shape[0], 1, 1)
        seen = None if mask is None else nn.functional.pad(mask, (0, x.shape[1]), value=True)  # latents are real
        for layer in self.layers:
            x = layer(x, image, seen)
        resampled: Tensor = self.norm(x)
        return resampled


def resampler_cost(case: Case, impl: str) -> Cost:
    s, n, width = case.shape, latents(case), projected_widths(case)[0]
    learned = Cost(params=n * width, weights_read=n * width)
    one_image = Cost(saved=-(s.depth - 1) * s.batch * s.image * width)  # the norms of all layers keep the same tensor
    return resampler_layer_cost(case, impl) * s.depth + one_image + learned + norm_cost(s.batch * n, width, case)


def cost(case: Case, impl: str) -> Cost:
    s, (image_width, text_width) = case.shape, projected_widths(case)
    joined = copy(s.batch * (latents(case) + s.text) * text_width) if image_width == text_width else Cost()
    return projectors_cost(case) + resampler_cost(case, impl) + joined


@strategy("perceiver_resampler", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses)
class PerceiverResampler(nn.Module):
    """Compress the image to n latents by ``depth`` layers of cross-attention, and put them in front of the text.

    The latents query [image; latents]. Text is not read: as in Idefics2, this is a projector, and image and text
    meet in what attends to the result. Returns [B, n + Lt, D], latents first (n: the design's ``latents``, or 64), or,
    where projector ``identity`` leaves the widths unequal, the two apart, (text [B, Lt, Dt], image [B, n, Di]), as
    Flamingo's cross-attention takes them. A missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.joins = image_width == text_width
        self.project = Projectors(case)
        self.resample = Resampler(case, image_width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor | tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("perceiver_resampler needs at least one modality")
        image, text = self.project(image, text)
        image = None if image is None else self.resample(image, image_mask)
        return join(image, text) if self.joins else (text, image)
