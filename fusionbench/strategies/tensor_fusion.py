"""Tensor fusion: the outer product of both vectors with 1 appended (TFN, Zadeh et al. 2017, arXiv 1707.07250)."""

from __future__ import annotations

from torch import Tensor, nn

from ..cost import Cost, layer_norm, linear
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, feed_forward_block_cost
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost
from ..vectors import pool_both


def cost(case: Case, impl: str, features: int = 32) -> Cost:
    s, side = case.shape, features + 1
    reduced = Cost()
    for width in projected_widths(case):
        reduced += layer_norm(s.batch, width) + linear(s.batch, width, features)
        reduced += Cost(saved=s.batch * (features + side))  # ReLU's output, and with the 1
    return (
        projectors_cost(case)
        + reduced
        + linear(s.batch, side * side, s.width)
        + feed_forward_block_cost(case, 1, s.width)
    )


@strategy("tensor_fusion", impls=("eager",), cost=cost, variants={"64": {"features": 64}})
class TensorFusion(nn.Module):
    """Pool and reduce each modality to ``features``, take the outer product [1; i] ⊗ [1; t], and mix it by a Linear.

    Returns [B, width], after the feed-forward block where ``ffn`` is not 0. Each vector is first normalised and
    reduced by a Linear and a ReLU, to 32 features as in the paper's subnetworks (``64``: to 64): at 768 the Linear
    behind the product would have 591,361 inputs. Normalised, since products of small numbers are lost beside the 1
    (by LayerNorm, there by batch norm). A missing modality counts as the zero vector.
    """

    def __init__(self, case: Case, impl: str, features: int = 32) -> None:
        super().__init__()
        width = case.shape.width
        self.widths = projected_widths(case)
        self.project = Projectors(case)
        self.image, self.text = (nn.Sequential(nn.LayerNorm(n), nn.Linear(n, features), nn.ReLU()) for n in self.widths)
        self.mix = nn.Linear((features + 1) ** 2, width)
        self.ffn = FeedForwardBlock(case, width)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("tensor_fusion needs at least one modality")
        image, text = self.project(image, text)
        i, t = pool_both(image, text, image_mask, text_mask, self.widths)
        fused: Tensor = self.ffn(self.mix(outer_product(self.image(i), self.text(t))))
        return fused


def outer_product(a: Tensor, b: Tensor) -> Tensor:
    """[1; a] ⊗ [1; b], flattened: a [B, m], b [B, n] -> [B, (m + 1)·(n + 1)]."""
    a, b = (nn.functional.pad(x, (1, 0), value=1.0) for x in (a, b))
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)
