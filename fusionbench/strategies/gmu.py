"""Gated multimodal unit: a learned gate per feature weighs two modalities (Arevalo et al. 2017, arXiv 1702.01992)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cost import Cost, copy, linear
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, feed_forward_block_cost
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost
from ..vectors import pool_both


def cost(case: Case, impl: str) -> Cost:
    s, (image, text) = case.shape, projected_widths(case)
    fused = impl == "triton"
    candidates = linear(s.batch, image, s.width, bias=False) + linear(s.batch, text, s.width, bias=False)
    gate = linear(s.batch, image + text, s.width, bias=False, saves_input=not fused)
    joined = Cost() if fused else copy(s.batch * (image + text))
    kept = Cost(saved=3 * s.batch * s.width)  # both candidates and the gate
    return projectors_cost(case) + candidates + joined + gate + kept + feed_forward_block_cost(case, 1, s.width)


@strategy("gmu", impls=("eager", "triton"), cost=cost)
class GatedMultimodalUnit(nn.Module):
    """Pool each modality and let a gate weigh the two per feature: z·tanh(W_i i) + (1 − z)·tanh(W_t t).

    z = σ(W_z [i; t]); no biases, as in the paper. Returns [B, width], after the feed-forward block where ``ffn``
    is not 0. Both widths may differ. A missing modality counts as the zero vector: its half of the unit is 0.
    ``triton`` multiplies both vectors by their halves of W_z and never writes the concatenation.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        width = case.shape.width
        self.impl, self.widths = impl, projected_widths(case)
        self.project = Projectors(case)
        self.image, self.text = (nn.Linear(features, width, bias=False) for features in self.widths)
        self.gate = nn.Linear(sum(self.widths), width, bias=False)
        self.ffn = FeedForwardBlock(case, width)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("gmu needs at least one modality")
        image, text = self.project(image, text)
        i, t = pool_both(image, text, image_mask, text_mask, self.widths)
        h = torch.lerp(self.text(t).tanh(), self.image(i).tanh(), self._weigh(i, t).sigmoid())  # [B, width]
        fused: Tensor = self.ffn(h)
        return fused

    def _weigh(self, image: Tensor, text: Tensor) -> Tensor:
        if self.impl == "eager":
            weighed: Tensor = self.gate(torch.cat([image, text], dim=-1))
            return weighed
        from fusionbench_kernels import concat_linear

        return concat_linear(image, text, self.gate.weight)
