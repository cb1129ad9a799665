"""Top-k cross-attention: each query reads its k best keys alone (Zhao et al. 2019, arXiv 1912.11637)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..attention import probabilities
from ..blocks import Attention, Layer, layer_cost, own_attention
from ..cost import Cost, attention, copy, product
from ..errors import MissingModalityError
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost


def topk_attention(q: Tensor, k: Tensor, v: Tensor, chosen: int, mask: Mask) -> Tensor:
    """softmax over each query's ``chosen`` highest scores, all [B, H, L, d], mask [B, Lk]; returns [B, H, Lq, d].

    Where fewer keys take part, all of them are read; a query without any gives 0. Of equal scores either may win.
    The scores that choose are those that weigh, in the compute dtype: every backend rounds q, k and them at the same
    places and so chooses alike. Against fp64, bf16 has another last key in 12 to 22 of 100 queries (k = 32 of 196 and
    of 1024), with a weight of 1 %; fp32 in none of 131,072.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, H, Lq, Lk]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    best, keys = scores.topk(min(chosen, k.shape[2]), dim=-1, sorted=False)  # [B, H, Lq, k]
    weights = probabilities(best, None if mask is None else best > -math.inf)
    samples, heads = (torch.arange(n, device=v.device) for n in v.shape[:2])
    # Not gather, which keeps V for the backward pass as well as the copy, and takes 4x the time (CPU, 64 x 32 of 576).
    values = v[samples[:, None, None, None], heads[:, None, None], keys]  # [B, H, Lq, k, d]
    return (weights.unsqueeze(-2) @ values).squeeze(-2)


def inner_cost(batch: int, queries: int, keys: int, width: int, heads: int, chosen: int) -> Cost:
    """2·B·Lq·Lk·I FLOPs for the scores, of all keys, and 2·B·Lq·k·I for the values of the chosen ones.

    The selection reads every score and writes k of them per query; the values that it points at are a copy, Lq·k/Lk
    times as large as V.
    """
    maps, d, count = batch * heads, width // heads, min(chosen, keys)
    q, picked = batch * queries * width, maps * queries * count
    selection = Cost(activations_moved=maps * queries * keys + picked)
    softmax = Cost(activations_moved=2 * picked)
    values = copy(picked * d)
    ids = batch + heads + picked  # int64, of samples, heads and keys
    kept = Cost(saved=2 * q + batch * keys * width + picked * (1 + d), saved_bytes=8 * ids)
    scores, read = product(maps, queries, d, keys), product(maps * queries, 1, count, d)
    return scores + selection + softmax + values + read + kept


def cost(case: Case, impl: str, k: int = 32) -> Cost:
    s, (image_width, text_width) = case.shape, projected_widths(case)
    layer = layer_cost(case, s.text, text_width, impl, keys=s.image, context_width=image_width)
    dense = attention(s.batch, s.text, s.image, s.width, s.heads, impl)
    return projectors_cost(case) + layer + dense * -1 + inner_cost(s.batch, s.text, s.image, s.width, s.heads, k)


def refuses(case: Case, **options: object) -> str | None:
    return own_attention(case)


class TopKAttention(Attention):
    """``Attention`` whose softmax and values are those of each query's ``chosen`` best keys."""

    def __init__(self, case: Case, query_width: int, context_width: int, chosen: int) -> None:
        super().__init__(case, query_width, context_width, "eager")
        self.chosen = chosen

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        return topk_attention(q, k, v, self.chosen, mask)


@strategy("topk_cross_attention", impls=("eager",), cost=cost, refuses=refuses, variants={"k8": {"k": 8}})
class TopKCrossAttention(nn.Module):
    """Let each text token read only the k image tokens that it scores highest (k = 32).

    Projections, norms and FFN are those of ``cross_attention``, which this equals where k reaches the number of
    image tokens. Returns the query side [B, Lt, D]. A missing image skips the layer; a missing text raises
    MissingModalityError.
    """

    def __init__(self, case: Case, impl: str, k: int = 32) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.project = Projectors(case)
        self.layer = Layer(case, text_width, impl, context_width=image_width)
        self.layer.attention.attention = TopKAttention(case, text_width, image_width, k)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        image, text = self.project(image, text)
        if text is None:
            raise MissingModalityError("topk_cross_attention has no output without its queries, the text")
        return text if image is None else self.layer(text, image, image_mask)
