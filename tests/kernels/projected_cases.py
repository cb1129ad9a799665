"""Inputs of attention with its projections, for the tests of what fuses and of what absorbs them."""

from __future__ import annotations

import torch
from torch import Tensor


def made(sizes: tuple[int, ...], dtype: torch.dtype, device: str, batch: int = 2) -> tuple[Tensor, ...]:
    """x, k, v, q_weight, q_bias, out_weight, out_bias with scores of deviation one to two."""
    queries, keys, width, outputs, heads, d = sizes[:6]
    g = torch.Generator().manual_seed(queries + 7 * keys)
    inner = heads * d
    shapes = [(batch, queries, width), (batch, heads, keys, d), (batch, heads, keys, d), (inner, width), (inner,)]
    shapes += [(outputs, inner), (outputs,)]
    scales = [1, 1.5, 1, width**-0.5, 0.5, inner**-0.5, 0.5]
    return tuple(
        (torch.randn(shape, generator=g) * s).to(dtype).to(device) for shape, s in zip(shapes, scales, strict=True)
    )


def padding(keys: int, device: str) -> Tensor:
    """The first sample keeps every third key away, the second has none at all."""
    mask = torch.arange(keys) % 3 != 1
    return torch.stack([mask, torch.zeros(keys, dtype=torch.bool)]).to(device)
