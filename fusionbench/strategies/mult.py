"""MulT: a crossmodal Transformer per direction, over the other modality's low-level tokens.

Tsai et al. 2019, arXiv 1906.00295; what the paper leaves open is as in the authors' code, Multimodal-Transformer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..blocks import Layer, layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..parts import norm, norm_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, joint_width, projectors_cost

MEMORY_LAYERS = 3  # of self-attention behind each direction, or ``depth`` where that is more, as the authors have it


class Positioned(nn.Module):
    """√D·x plus a sinusoidal position, counted from 1: [B, L, D] -> same, for up to ``tokens`` tokens."""

    positions: Tensor

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / max(1, half - 1))
        angles = torch.outer(torch.arange(1, tokens + 1, dtype=torch.float64), frequencies)
        waves = torch.cat([angles.sin(), angles.cos(), torch.zeros(tokens, width % 2)], dim=1)
        self.scale = width**0.5
        self.register_buffer("positions", waves.float(), persistent=False)  # [L, D]

    def forward(self, x: Tensor) -> Tensor:
        placed: Tensor = self.scale * x + self.positions[: x.shape[1]]
        return placed


def crossmodal_layer(case: Case, width: int, impl: str) -> Layer:
    """Cross-attention and feed-forward; one norm serves the queries and the context, as in the authors' code."""
    layer = Layer(case, width, impl, context_width=width)
    layer.attention.context_norm = layer.attention.norm
    return layer


class Stack(nn.Module):
    """Layers over x [B, L, D] that all read the same context, where there is one, and a last norm."""

    def __init__(self, case: Case, width: int, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm(width, case)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Mask = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, context, mask)
        y: Tensor = self.norm(x)
        return y


def memory_layers(case: Case) -> int:
    return max(case.shape.depth, MEMORY_LAYERS)


def cost(case: Case, impl: str) -> Cost:
    s, width, total = case.shape, joint_width(case), projectors_cost(case)
    for queries, keys in ((s.text, s.image), (s.image, s.text)):
        # of the context's norm: its weights are the queries' and its input is kept as the other direction's queries
        statistics = Cost(saved_bytes=norm_cost(s.batch * keys, width, case).saved_bytes)
        total += (layer_cost(case, queries, width, impl, keys=keys, context_width=width) + statistics) * s.depth
        total += layer_cost(case, queries, width, impl) * memory_layers(case)
        total += norm_cost(s.batch * queries, width, case) * 2
    return total


def refuses(case: Case) -> str | None:
    if case.design.post_norm:
        return "mult normalises before each sub-layer and has no post-norm design"
    return equal_widths(case)


@strategy("mult", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses)
class Mult(nn.Module):
    """Adapt each modality to the other by ``depth`` crossmodal layers, then by self-attention layers of its own.

    Keys and values of every crossmodal layer come from the other modality's projected tokens, never from its fused
    ones. Returns (text [B, Lt, D], image [B, Li, D]), whose last tokens the paper concatenates for its classifier.
    A causal or rotary design applies to self-attention alone. A modality that is alone runs through its
    self-attention layers, with None in the missing one's place.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        s, width = case.shape, joint_width(case)

        def crossmodal() -> Stack:
            return Stack(case, width, (crossmodal_layer(case, width, impl) for _ in range(s.depth)))

        def memory() -> Stack:
            return Stack(case, width, (Layer(case, width, impl) for _ in range(memory_layers(case))))

        self.project = Projectors(case)
        self.positioned = Positioned(width, max(s.image, s.text))
        self.text_from_image, self.image_from_text = crossmodal(), crossmodal()
        self.text_memory, self.image_memory = memory(), memory()

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("mult needs at least one modality")
        image, text = self.project(image, text)
        if image is not None and text is not None:
            low_image, low_text = self.positioned(image), self.positioned(text)
            text = self.text_from_image(low_text, low_image, image_mask)
            image = self.image_from_text(low_image, low_text, text_mask)
        text = None if text is None else self.text_memory(self.positioned(text), None, text_mask)
        image = None if image is None else self.image_memory(self.positioned(image), None, image_mask)
        return text, image
