"""Low-rank fusion: tensor fusion whose weight is a sum of rank-1 tensors (LMF, Liu et al. 2018, arXiv 1806.00064)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cost import Cost
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, feed_forward_block_cost
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost
from ..vectors import FactorProduct, factor_product_cost, pool_both


def cost(case: Case, impl: str, rank: int = 4) -> Cost:
    s = case.shape
    flops = 2 * s.batch * rank * s.width
    weighted = Cost(
        flops=flops,
        backward_flops=2 * flops,
        params=rank + s.width,
        weights_read=rank + s.width,
        activations_moved=s.batch * (rank + 1) * s.width,
        saved=s.batch * rank * s.width,
        other_flops=flops,
        other_inputs=s.batch * rank * s.width,
    )
    return (
        projectors_cost(case)
        + factor_product_cost(s.batch, projected_widths(case), rank, s.width)
        + weighted
        + feed_forward_block_cost(case, 1, s.width)
    )


@strategy("low_rank", impls=("eager",), cost=cost, variants={"rank1": {"rank": 1}, "rank16": {"rank": 16}})
class LowRank(nn.Module):
    """Pool each modality and sum ``rank`` products of their projections: Σ_r w_r · U_r[1; i] ∘ V_r[1; t] + c.

    What tensor fusion computes, [1; i] ⊗ [1; t] times a weight W = Σ_r w_r U_r ⊗ V_r, without forming either.
    Returns [B, width], after the feed-forward block where ``ffn`` is not 0. ``rank`` is 4; the factors are the
    weights and biases of two Linears, w starts at 1. A missing modality counts as the zero vector, which leaves
    the other one's terms.
    """

    def __init__(self, case: Case, impl: str, rank: int = 4) -> None:
        super().__init__()
        width = case.shape.width
        self.widths = projected_widths(case)
        self.project = Projectors(case)
        self.factors = FactorProduct(self.widths, rank, width)
        self.weights, self.bias = nn.Parameter(torch.ones(rank)), nn.Parameter(torch.zeros(width))
        self.ffn = FeedForwardBlock(case, width)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("low_rank needs at least one modality")
        image, text = self.project(image, text)
        products = self.factors(*pool_both(image, text, image_mask, text_mask, self.widths))  # [B, rank, width]
        weights = self.weights.expand(products.shape[0], 1, -1)
        fused: Tensor = self.ffn((weights @ products).squeeze(1) + self.bias)
        return fused
