"""Co-attention: both modalities query each other with separate weights (ViLBERT, Lu et al. 2019, arXiv 1908.02265)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Attention, MutualLayer, attention_cost, mutual_layer_cost
from ..cost import Cost, linear
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, feed_forward_block_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, joint_width, projected_widths, projectors_cost


class SharedOutLayer(nn.Module):
    """Attention in both directions whose results pass through one output projection, and nothing around it.

    image [B, Li, D], text [B, Lt, D] -> both, same shapes: 6 projections and 1. Neither norm nor residual; then
    the feed-forward part per side, where there is one.
    """

    def __init__(self, case: Case, width: int, impl: str) -> None:
        super().__init__()
        self.image_attention, self.text_attention = (Attention(case, width, width, impl) for _ in range(2))
        self.out = self.image_attention.out
        self.image_attention.out = self.text_attention.out = nn.Identity()  # type: ignore[assignment]
        self.image_ffn, self.text_ffn = FeedForwardBlock(case, width), FeedForwardBlock(case, width)

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor, Tensor]:
        for_image = self.image_attention(image, text, text_mask)
        for_text = self.text_attention(text, image, image_mask)
        return self.image_ffn(self.out(for_image)), self.text_ffn(self.out(for_text))


def shared_out_layer_cost(case: Case, width: int, impl: str) -> Cost:
    s = case.shape
    cost = linear(0, s.width, width, bias=case.design.out_bias) * -1  # the weights that two directions have once
    for queries, keys in ((s.image, s.text), (s.text, s.image)):
        cost += attention_cost(case, queries, keys, width, width, impl, saves_context=False)
        cost += feed_forward_block_cost(case, queries, width)
    return cost


def cost(case: Case, impl: str, shared_out: bool = False) -> Cost:
    if shared_out:
        return projectors_cost(case) + shared_out_layer_cost(case, joint_width(case), impl)
    return projectors_cost(case) + mutual_layer_cost(case, *projected_widths(case), impl)


def refuses(case: Case, shared_out: bool = False) -> str | None:
    if not shared_out:
        return None
    if case.design.gated or case.design.post_norm:
        return f"co_attention:shared_out has no residual to gate and no norm to place ({case.design.key})"
    return equal_widths(case)


@strategy(
    "co_attention",
    impls=ATTENTION_IMPLS,
    cost=cost,
    variants={"shared_out": {"shared_out": True}},
    refuses=refuses,
)
class CoAttention(nn.Module):
    """Let text query image and image query text, each direction with projections of its own.

    Returns (text [B, Lt, Dt], image [B, Li, Di]); the widths may differ (projector ``identity``). With ``shared_out``
    both directions end in one output projection, without residual and norm, and the widths must be equal. Without one
    modality the layer is skipped: the other is returned projected, with None in the missing one's place.
    """

    def __init__(self, case: Case, impl: str, shared_out: bool = False) -> None:
        super().__init__()
        self.project = Projectors(case)
        self.layer = (
            SharedOutLayer(case, joint_width(case), impl)
            if shared_out
            else MutualLayer(case, *projected_widths(case), impl)
        )

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("co_attention needs at least one modality")
        image, text = self.project(image, text)
        if image is not None and text is not None:
            image, text = self.layer(image, text, image_mask, text_mask)
        return text, image
