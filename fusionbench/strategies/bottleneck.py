"""Attention bottlenecks: modalities exchange through a few tokens that all of them see (MBT, arXiv 2107.00135)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ..blocks import Layer, layer_cost
from ..cost import Cost, copy
from ..errors import MissingModalityError
from ..joint import present, stream_lengths
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, join, join_masks, joint_width, projectors_cost

BOTTLENECKS = 4  # MBT's


def bottlenecks(case: Case) -> int:
    return case.design.latents or BOTTLENECKS


def bottleneck_layer_cost(case: Case, impl: str) -> Cost:
    n, width, total = bottlenecks(case), joint_width(case), Cost()
    for length in stream_lengths(case).values():
        total += layer_cost(case, length + n, width, impl) + copy(case.shape.batch * (length + n) * width)
    return total


def cost(case: Case, impl: str) -> Cost:
    s, n, width = case.shape, bottlenecks(case), joint_width(case)
    # the first layer's copies read and write the bottlenecks as weights
    first = Cost(activations_moved=-2 * s.batch * n * width if s.depth else 0)
    learned = Cost(params=n * width, weights_read=n * width)
    return projectors_cost(case) + learned + first + bottleneck_layer_cost(case, impl) * s.depth


def refuses(case: Case) -> str | None:
    """Bottlenecks have no place in a sequence, and one width: all tokens see them, and they see all tokens."""
    if case.design.causal or case.design.rope:
        return f"bottleneck tokens have no position, which a causal or rotary design needs ({case.design.key})"
    if case.design.image_hidden:
        return f"bottleneck has one feed-forward width for both modalities ({case.design.key})"
    return equal_widths(case)


@strategy("bottleneck", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses)
class Bottleneck(nn.Module):
    """Encode each modality with weights of its own and a few tokens that both share, averaged after each layer (MBT).

    ``depth`` layers, each run per modality over its tokens and ``latents`` bottlenecks (4 if the design has no
    number). Returns (text [B, Lt, D], image [B, Li, D]), what the last bottlenecks hold not being used. It takes two
    layers for one modality to reach the other. Without one modality the other goes on with the bottlenecks alone, and
    None is in the missing one's place.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.project = Projectors(case)
        # MBT starts from a deviation of 0.02, which its norm undoes; a post-norm layer would see next to nothing
        self.bottlenecks = nn.Parameter(torch.randn(bottlenecks(case), joint_width(case)))
        depth, width = case.shape.depth, joint_width(case)
        self.image_layers = nn.ModuleList(Layer(case, width, impl) for _ in range(depth))
        self.text_layers = nn.ModuleList(Layer(case, width, impl) for _ in range(depth))

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("bottleneck needs at least one modality")
        image, text = self.project(image, text)
        streams = present(image, text)
        z = self.bottlenecks.expand(next(iter(streams.values())).shape[0], -1, -1)  # [B, n, D]
        masks = {"image": join_masks(image, z, image_mask, None), "text": join_masks(text, z, text_mask, None)}
        for image_layer, text_layer in zip(self.image_layers, self.text_layers, strict=True):
            layers = {"image": image_layer, "text": text_layer}
            seen = {name: layers[name](join(x, z), None, masks[name]) for name, x in streams.items()}
            latents = [y[:, streams[name].shape[1] :] for name, y in seen.items()]
            streams = {name: y[:, : streams[name].shape[1]] for name, y in seen.items()}
            z = functools.reduce(torch.add, latents) / len(latents)
        return streams.get("text"), streams.get("image")
