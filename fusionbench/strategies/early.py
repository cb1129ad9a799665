"""Early fusion: pixels and token ids enter one Transformer with no encoder before it (Fuyu; ViLT, Kim et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..blocks import Encoder, encoder_cost
from ..cost import Cost, copy, embedding, linear
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, Inputs, strategy
from ..spec import Case
from ..streams import Mask, join, join_masks

VOCABULARY = 30522  # BERT's
CHANNELS = 3


def patch_size(case: Case) -> int:
    """P of a patch of image_width = 3·P² values; ``refuses`` has seen to it that there is one."""
    return math.isqrt(case.shape.image_width // CHANNELS)


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Pixels [B, 3, P, P·Li], one row of patches, and ids [B, Lt]; as data, neither asks for a gradient."""
    s, p = case.shape, patch_size(case)
    pixels = torch.randn(s.batch, CHANNELS, p, p * s.image, generator=generator)
    return Inputs(pixels, torch.randint(VOCABULARY, (s.batch, s.text), generator=generator))


def refuses(case: Case, patches: str = "linear") -> str | None:
    width = case.shape.image_width
    if case.projector != "linear":
        return f"early's projector is its patch embedding, which is 'linear', not '{case.projector}'"
    if CHANNELS * patch_size(case) ** 2 != width:
        legal = CHANNELS * (patch_size(case) + 1) ** 2
        return f"early cuts pixels into patches of 3·P² values, and image_width {width} is none (next: {legal})"
    return None


def cost(case: Case, impl: str, patches: str = "linear") -> Cost:
    """The backward pass makes no gradient of the pixels: they are data."""
    s = case.shape
    tokens = s.batch * (s.image + s.text) * s.width
    patch = linear(s.batch * s.image, s.image_width, s.width, input_gradient=False)
    words = embedding(s.batch * s.text, VOCABULARY, s.width)
    types = Cost(params=2 * s.width, weights_read=2 * s.width) if case.type_embedding else Cost()
    return patch + words + types + copy(tokens) + encoder_cost(case, s.image + s.text, s.width, impl)


class LinearPatches(nn.Module):
    """Pixels [B, 3, P, P·L] -> tokens [B, L, D]: cut into patches, then one Linear."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.embed = size, nn.Linear(CHANNELS * size * size, width)

    def forward(self, pixels: Tensor) -> Tensor:
        columns = pixels.view(*pixels.shape[:3], -1, self.size)  # [B, 3, P, L, P]
        tokens: Tensor = self.embed(columns.permute(0, 3, 1, 2, 4).flatten(2))  # [B, L, 3·P·P] -> [B, L, D]
        return tokens


class ConvPatches(nn.Conv2d):
    """Pixels [B, 3, P, P·L] -> tokens [B, L, D]: a convolution whose stride is its kernel; equals LinearPatches."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(CHANNELS, width, kernel_size=size, stride=size)

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).flatten(2).transpose(1, 2)


_PATCHES: dict[str, type[LinearPatches] | type[ConvPatches]] = {"linear": LinearPatches, "conv": ConvPatches}


@strategy(
    "early",
    impls=ATTENTION_IMPLS,
    cost=cost,
    variants={"conv": {"patches": "conv"}},
    refuses=refuses,
    inputs=inputs,
)
class Early(nn.Module):
    """Embed raw pixels and token ids into one stream and run ``depth`` self-attention layers over it.

    image [B, 3, P, P·Li] floating, image_width = 3·P²; text [B, Lt] int64 below 30522 (``text_width`` is not used).
    Returns [B, Li + Lt, D], image tokens first. A missing modality adds no tokens. There are no position embeddings.
    """

    def __init__(self, case: Case, impl: str, patches: str = "linear") -> None:
        super().__init__()
        s = case.shape
        self.patches = _PATCHES[patches](patch_size(case), s.width)
        self.words = nn.Embedding(VOCABULARY, s.width)
        self.types = nn.Parameter(torch.randn(2, s.width) * 0.02) if case.type_embedding else None
        self.encoder = Encoder(case, s.width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("early needs at least one modality")
        image = None if image is None else self._typed(self.patches(image), 0)
        text = None if text is None else self._typed(self.words(text), 1)
        mask = join_masks(image, text, image_mask, text_mask)
        fused: Tensor = self.encoder(join(image, text), mask)
        return fused

    def _typed(self, tokens: Tensor, modality: int) -> Tensor:
        return tokens if self.types is None else tokens + self.types[modality]
