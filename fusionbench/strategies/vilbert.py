"""ViLBERT's co-attentional Transformer layers (co-TRM) in a stack (Lu et al. 2019, arXiv 1908.02265)."""

from __future__ import annotations

import msgspec
from torch import Tensor, nn

from ..blocks import Layer, MutualLayer, layer_cost, mutual_layer_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, image_case, projected_widths, projectors_cost


def own_cases(case: Case) -> tuple[Case, Case]:
    """The case as each stream's own layers see it, image's and text's: attention is as wide inside as the stream."""
    image_width, text_width = projected_widths(case)
    wide = msgspec.structs.replace(image_case(case).shape, width=image_width)
    narrow = msgspec.structs.replace(case.shape, width=text_width, heads=case.design.text_heads or case.shape.heads)
    return msgspec.structs.replace(case, shape=wide), msgspec.structs.replace(case, shape=narrow)


def refuses(case: Case, with_self: bool = False) -> str | None:
    for modality, own in zip(("image", "text"), own_cases(case) if with_self else (), strict=False):
        if own.shape.width % own.shape.heads:
            return (
                f"vilbert:with_self splits {modality} of width {own.shape.width} into heads, "
                f"and {own.shape.heads} do not divide it"
            )
    return None


def cost(case: Case, impl: str, with_self: bool = False) -> Cost:
    s, widths = case.shape, projected_widths(case)
    level = mutual_layer_cost(case, *widths, impl)
    if with_self:
        image, text = own_cases(case)
        level += layer_cost(image, s.image, widths[0], impl) + layer_cost(text, s.text, widths[1], impl)
    return projectors_cost(case) + level * s.depth


class Level(nn.Module):
    """One co-TRM, then, ``with_self``, a Transformer layer of each stream; a modality that is alone skips the first."""

    def __init__(self, case: Case, impl: str, with_self: bool) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        image, text = own_cases(case)
        self.exchange = MutualLayer(case, image_width, text_width, impl)
        self.image_layer = Layer(image, image_width, impl) if with_self else None
        self.text_layer = Layer(text, text_width, impl) if with_self else None

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask, text_mask: Mask
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is not None and text is not None:
            image, text = self.exchange(image, text, image_mask, text_mask)
        if image is not None and self.image_layer is not None:
            image = self.image_layer(image, None, image_mask)
        if text is not None and self.text_layer is not None:
            text = self.text_layer(text, None, text_mask)
        return image, text


@strategy("vilbert", impls=ATTENTION_IMPLS, cost=cost, variants={"with_self": {"with_self": True}}, refuses=refuses)
class Vilbert(nn.Module):
    """Run ``depth`` layers of co-attention between two streams that keep widths and weights of their own.

    Returns (text [B, Lt, Dt], image [B, Li, Di]); the widths may differ (projector ``identity``), with the shape's
    ``width`` inside the co-attention and the design's ``image_hidden`` in the image's feed-forward part. In
    ``with_self`` a Transformer layer of each stream follows every co-TRM, as in the model, whose first text layers,
    before any image, are the caller's. A co-TRM without one modality is skipped, with None in its place. The
    q_dense1 and q_dense2 of the authors' BertBiOutput, which nothing reads, are left out.
    """

    def __init__(self, case: Case, impl: str, with_self: bool = False) -> None:
        super().__init__()
        self.project = Projectors(case)
        self.levels = nn.ModuleList(Level(case, impl, with_self) for _ in range(case.shape.depth))

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("vilbert needs at least one modality")
        image, text = self.project(image, text)
        for level in self.levels:
            image, text = level(image, text, image_mask, text_mask)
        return text, image
