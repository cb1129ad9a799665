"""What vector-level strategies are built from: pooled vectors and low-rank products of them; each cost beside it."""

from __future__ import annotations

from torch import Tensor, nn

from .cost import Cost, linear
from .errors import MissingModalityError
from .streams import Mask, pool


def pool_both(
    image: Tensor | None, text: Tensor | None, image_mask: Mask, text_mask: Mask, widths: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """One vector per modality, [B, Di] and [B, Dt]; a missing one is the zero vector, as pooling no tokens gives."""
    present = image if image is not None else text
    if present is None:
        raise MissingModalityError("vectors of no modality cannot be pooled")
    given = ((image, image_mask, widths[0]), (text, text_mask, widths[1]))
    a, b = (present.new_zeros(present.shape[0], n) if x is None else pool(x, mask) for x, mask, n in given)
    return a, b


class FactorProduct(nn.Module):
    """(U_r a + c_r) ∘ (V_r b + d_r) for r = 1…rank: a [B, Da], b [B, Db] -> [B, rank, outputs].

    A bilinear form a^T W b of low rank, whose biases are what a 1 appended to a and b would multiply.
    """

    def __init__(self, widths: tuple[int, int], rank: int, outputs: int) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(width, rank * outputs) for width in widths)
        self.rank = rank

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        products: Tensor = self.image(a) * self.text(b)
        return products.view(a.shape[0], self.rank, -1)


def factor_product_cost(batch: int, widths: tuple[int, int], rank: int, outputs: int) -> Cost:
    """``FactorProduct`` of ``batch`` pairs; autograd keeps both factors."""
    units = rank * outputs
    return linear(batch, widths[0], units) + linear(batch, widths[1], units) + Cost(saved=2 * batch * units)
