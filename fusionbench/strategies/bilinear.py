"""Bilinear pooling, factorised: MFB (arXiv 1708.01471), MUTAN (arXiv 1705.06676) and MLB (arXiv 1610.04325)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..cost import Cost, linear
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, feed_forward_block_cost
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost
from ..vectors import FactorProduct, factor_product_cost, pool_both

FACTORS = 5  # MFB's k
RANK = 10  # MUTAN's R
# The slope of the root is bounded by 1/√ε = 1/0.06, as it is by the layer that MFB was trained with: Caffe's SignedSqrt
# has the gradient 0.5 / (√|x| + 0.03). At ε = 1e-4, gradients overflow in fp16 and are off by 37 % in bf16.
EPSILON = 0.06**2


class Mfb(nn.Module):
    """Sums of ``FACTORS`` products per feature, power normalisation, length 1 (Yu et al. 2017)."""

    def __init__(self, widths: tuple[int, int], width: int) -> None:
        super().__init__()
        self.factors = FactorProduct(widths, FACTORS, width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        roots = signed_sqrt(self.factors(a, b).sum(1))
        return nn.functional.normalize(roots, dim=-1, eps=EPSILON)  # its own 1e-12 is 0 in fp16


def signed_sqrt(x: Tensor) -> Tensor:
    """x / √(|x| + ε): sign(x)·√|x| where |x| ≫ ε, but smooth at 0, where the root has no gradient."""
    return x * (x.abs() + EPSILON).rsqrt()


def mfb_cost(batch: int, widths: tuple[int, int], width: int) -> Cost:
    """Of the normalisations autograd keeps x, 1/√(|x| + ε), their product, and its length twice."""
    return factor_product_cost(batch, widths, FACTORS, width) + Cost(saved=batch * (3 * width + 2))


class Mutan(nn.Module):
    """Tucker decomposition whose core has slices of rank ``RANK``: tanh(W a), tanh(W b), summed products."""

    def __init__(self, widths: tuple[int, int], width: int) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(n, width) for n in widths)
        self.core = FactorProduct((width, width), RANK, width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        slices: Tensor = self.core(self.image(a).tanh(), self.text(b).tanh())  # [B, RANK, width]
        return slices.sum(1)


def mutan_cost(batch: int, widths: tuple[int, int], width: int) -> Cost:
    embeddings = linear(batch, widths[0], width) + linear(batch, widths[1], width)
    # tanh keeps its outputs, and so does the core, where its weights are trained
    return embeddings + factor_product_cost(batch, (width, width), RANK, width) + Cost(linear_inputs=-2 * batch * width)


class Mlb(nn.Module):
    """The Hadamard product of both projections: tanh(U a) ∘ tanh(V b) (Kim et al. 2017)."""

    def __init__(self, widths: tuple[int, int], width: int) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(n, width) for n in widths)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joint: Tensor = self.image(a).tanh() * self.text(b).tanh()
        return joint


def mlb_cost(batch: int, widths: tuple[int, int], width: int) -> Cost:
    return linear(batch, widths[0], width) + linear(batch, widths[1], width) + Cost(saved=2 * batch * width)


@dataclass(frozen=True)
class Pooling:
    """How two vectors [B, Di] and [B, Dt] become one [B, width], and what that costs."""

    build: Callable[[tuple[int, int], int], nn.Module]
    cost: Callable[[int, tuple[int, int], int], Cost]


POOLINGS = {"mfb": Pooling(Mfb, mfb_cost), "mutan": Pooling(Mutan, mutan_cost), "mlb": Pooling(Mlb, mlb_cost)}


def cost(case: Case, impl: str, pooling: str = "mfb") -> Cost:
    s = case.shape
    return (
        projectors_cost(case)
        + POOLINGS[pooling].cost(s.batch, projected_widths(case), s.width)
        + linear(s.batch, s.width, s.width)
        + feed_forward_block_cost(case, 1, s.width)
    )


@strategy(
    "bilinear",
    impls=("eager",),
    cost=cost,
    variants={name: {"pooling": name} for name in POOLINGS if name != "mfb"},
)
class Bilinear(nn.Module):
    """Pool each modality and multiply the two vectors by a factorised bilinear form, then a Linear.

    ``pooling``: ``mfb``, norm(root(Σ_k U_k i ∘ V_k t)) with k = 5; ``mutan``, Σ_r M_r tanh(U i) ∘ N_r tanh(V t) with
    r = 1…10; ``mlb``, tanh(U i) ∘ tanh(V t). All of ``width`` features and with biases. Returns [B, width], after
    the feed-forward block where ``ffn`` is not 0. A missing modality counts as the zero vector, which leaves the
    biases in its place.
    """

    def __init__(self, case: Case, impl: str, pooling: str = "mfb") -> None:
        super().__init__()
        width = case.shape.width
        self.widths = projected_widths(case)
        self.project = Projectors(case)
        self.pooling = POOLINGS[pooling].build(self.widths, width)
        self.out = nn.Linear(width, width)
        self.ffn = FeedForwardBlock(case, width)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("bilinear needs at least one modality")
        image, text = self.project(image, text)
        joint = self.pooling(*pool_both(image, text, image_mask, text_mask, self.widths))
        fused: Tensor = self.ffn(self.out(joint))
        return fused
