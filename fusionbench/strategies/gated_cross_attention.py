"""Gated cross-attention: text reads image through tanh gates (Flamingo, Alayrac et al. 2022, arXiv 2204.14198)."""

from __future__ import annotations

import functools
from itertools import zip_longest

import msgspec
from torch import Tensor, nn

from ..blocks import Layer, layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..generation import CACHING, Cache, Step, reading_step
from ..registry import ATTENTION_IMPLS, WHOLE, strategy
from ..spec import Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost


def gated(case: Case) -> Case:
    """The case with gates, whatever its design says."""
    return msgspec.structs.replace(case, design=msgspec.structs.replace(case.design, gated=True))


def refuses(case: Case) -> str | None:
    return None if case.shape.depth else "gated_cross_attention of depth 0 has no layer that reads the image"


def cost(case: Case, impl: str) -> Cost:
    s, given, (image_width, text_width) = case.shape, step(case), projected_widths(case)
    layer = functools.partial(
        layer_cost, gated(case), given.text, text_width, impl, keys=s.image, context_width=image_width,
        cached=given.context,
    )  # fmt: skip
    # every layer reads the same image, which autograd keeps once
    return projectors_cost(case, given) + layer() + layer(saves_context=False) * (s.depth - 1)


def step(case: Case) -> Step:
    return reading_step(case, layers=case.shape.depth)


@strategy(
    "gated_cross_attention",
    impls=(*ATTENTION_IMPLS, "triton_projected", "triton_absorbed"),
    cost=cost,
    refuses=refuses,
    modes=(*WHOLE, *CACHING),
    step=step,
)
class GatedCrossAttention(nn.Module):
    """Let text query image in ``depth`` gated layers: x + tanh(g)·Attention(x, image), x + tanh(g')·FFN(x).

    Returns text [B, Lt, Dt]; the widths may differ (projector ``identity``). With gates at 0, where models start,
    the layers are the identity; here gates start at 0.5. A missing image skips the layers, as Llama-3.2-Vision does;
    without text MissingModalityError is raised. All text tokens of a sample read all of its image tokens. A ``cache``
    stands for the image, layer by layer.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.project = Projectors(case)
        self.layers = nn.ModuleList(
            Layer(gated(case), text_width, impl, context_width=image_width) for _ in range(case.shape.depth)
        )

    def forward(
        self,
        image: Tensor | None,
        text: Tensor | None,
        image_mask: Mask = None,
        text_mask: Mask = None,
        cache: Cache = (),
    ) -> Tensor:
        image, text = self.project(image, text)
        if text is None:
            raise MissingModalityError("gated_cross_attention has no output without text, which queries")
        if image is None and not cache:
            return text
        for layer, given in zip_longest(self.layers, cache):
            text = layer(text, image, image_mask, given)
        return text
