"""The tensors that a strategy is called with: made on the CPU from a seed, so that every device sees the same."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from .blocks import kv_heads
from .generation import DECODING, Cache, Step
from .prune import narrowed
from .registry import Inputs, Strategy
from .spec import Case
from .streams import MERGED, projected_widths

# Deviations of the keys and values that fresh projections make of normalised tokens (keys are ``sharpened``).
KEYS, VALUES = math.sqrt(3), math.sqrt(1 / 3)


def make_inputs(strategy: Strategy, case: Case, seed: int, dtype: torch.dtype, device: torch.device | str) -> Inputs:
    """Inputs of ``case`` in ``dtype`` on ``device``: image [B, Li, image_width], text [B, Lt, text_width].

    Projector ``patch_merge`` makes each image token of 4, so 4·Li come in. A strategy with ``inputs`` of its own
    makes its own image and text, and says by ``requires_grad`` which of them want a gradient; of the default tokens
    both do in training. Masks are None without padding. In modes of generation the strategy's step says which tokens
    come in and which stand in a cache.
    """
    s, generator = case.shape, torch.Generator().manual_seed(seed)
    made = (
        strategy.inputs(case, generator)
        if strategy.inputs
        else _tokens(narrowed(case), strategy.given(case), generator)
    )
    text_mask = padding_mask(s.batch, s.text, case.padding, device)

    def place(x: Tensor) -> Tensor:
        wants_gradient = x.requires_grad and case.training
        moved = x.detach().to(device, dtype if x.is_floating_point() else x.dtype)
        return moved.requires_grad_(wants_gradient)

    return dataclasses.replace(
        made.each(place),
        image_mask=padding_mask(s.batch, s.image, case.padding, device),
        text_mask=text_mask.flip(1) if text_mask is not None and case.mode in DECODING else text_mask,
    )


def padding_mask(batch: int, tokens: int, padding: float, device: torch.device | str) -> Tensor | None:
    """[B, L] bool, True at real tokens; None when ``padding`` is 0.

    The samples' lengths are spread evenly from ceil((1 - padding)·L), at least 1, up to L; a batch of one is
    the shortest.
    """
    if not padding:
        return None
    shortest = max(1, math.ceil(round((1 - padding) * tokens, 6)))  # (1 - 0.7) * 10 is 3.0000000000000004
    lengths = torch.linspace(shortest, tokens, batch).round() if batch > 1 else torch.tensor([float(shortest)])
    return (torch.arange(tokens) < lengths.unsqueeze(1)).to(device)


def _tokens(case: Case, step: Step, generator: torch.Generator) -> Inputs:
    s = case.shape

    def normal(tokens: int, width: int) -> Tensor | None:
        return torch.randn(s.batch, tokens, width, generator=generator, requires_grad=True) if tokens else None

    image = normal(step.image * (MERGED if case.projector == "patch_merge" else 1), s.image_width)
    if step.projected:
        image = normal(step.projected, projected_widths(case)[0])
    return Inputs(image, normal(step.text, s.text_width), cache=_cache(case, step, generator))


def _cache(case: Case, step: Step, generator: torch.Generator) -> Cache:
    s, keys = case.shape, 1.0 if case.design.qk_norm else KEYS

    def made(tokens: int, deviation: float) -> Tensor:
        sizes = (s.batch, kv_heads(case), tokens, s.width // s.heads)
        return deviation * torch.randn(sizes, generator=generator)

    return tuple((made(tokens, keys), made(tokens, VALUES)) for tokens in step.caches)
