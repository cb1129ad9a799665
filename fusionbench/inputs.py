"""The tensors that a strategy is called with: made on the CPU from a seed, so that every device sees the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .registry import Inputs, Strategy
from .spec import Case
from .streams import MERGED


def make_inputs(strategy: Strategy, case: Case, seed: int, dtype: torch.dtype, device: torch.device | str) -> Inputs:
    """Inputs of ``case`` in ``dtype`` on ``device``: image [B, Li, image_width], text [B, Lt, text_width].

    Projector ``patch_merge`` makes each image token of 4, so 4·Li come in. A strategy with ``inputs`` of its own
    makes its own image and text, and says by ``requires_grad`` which of them want a gradient; of the default tokens
    both do in training. Masks are None without padding.
    """
    s, generator = case.shape, torch.Generator().manual_seed(seed)
    made = (strategy.inputs or _tokens)(case, generator)

    def place(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        wants_gradient = x.requires_grad and case.training
        moved = x.detach().to(device, dtype if x.is_floating_point() else x.dtype)
        return moved.requires_grad_(wants_gradient)

    return Inputs(
        image=place(made.image),
        text=place(made.text),
        image_mask=padding_mask(s.batch, s.image, case.padding, device),
        text_mask=padding_mask(s.batch, s.text, case.padding, device),
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


def _tokens(case: Case, generator: torch.Generator) -> Inputs:
    s = case.shape
    patches = s.image * (MERGED if case.projector == "patch_merge" else 1)
    image = torch.randn(s.batch, patches, s.image_width, generator=generator, requires_grad=True)
    return Inputs(image, torch.randn(s.batch, s.text, s.text_width, generator=generator, requires_grad=True))
