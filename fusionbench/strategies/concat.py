"""Concatenation along the sequence, alone: the copy that LLaVA begins with (Liu et al. 2023, arXiv 2304.08485)."""

from __future__ import annotations

from torch import Tensor, nn

from ..cost import Cost
from ..errors import MissingModalityError
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, join, join_cost


def cost(case: Case, impl: str) -> Cost:
    """Reads and writes every token once; no arithmetic, nothing kept for the backward pass."""
    return join_cost(case)


def refuses(case: Case) -> str | None:
    if case.projector != "identity":
        return f"concat is the cat alone and has no projector '{case.projector}' (use 'identity')"
    if case.type_embedding:
        return "concat is the cat alone and has no type embedding"
    s = case.shape
    if s.image_width != s.text_width:
        return f"concat is the cat alone and needs equal widths, not image {s.image_width} and text {s.text_width}"
    return None


@strategy("concat", impls=("eager", "triton"), cost=cost, refuses=refuses)
class Concat(nn.Module):
    """Put both token sequences into one: [image; text]. Nothing interacts until something attends to it.

    Returns [B, Li + Lt, D]. Both widths must be D. A missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.impl = impl

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("concat needs at least one modality")
        if image is None or text is None or self.impl == "eager":
            return join(image, text)
        from fusionbench_kernels import concat_tokens

        return concat_tokens(image, text)
