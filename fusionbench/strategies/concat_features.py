"""Concatenation of pooled vectors along the feature axis, then an MLP (ConcatMLP of facebookresearch/mmf)."""

from __future__ import annotations

from torch import Tensor, nn

from ..cost import Cost, copy, linear
from ..errors import MissingModalityError
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, join_features, pool, projected_widths, projectors_cost


def cost(case: Case, impl: str) -> Cost:
    s, features = case.shape, sum(projected_widths(case))
    before = projectors_cost(case) + (Cost() if impl == "triton" else copy(s.batch * features))
    hidden = s.units(s.width)
    if not hidden:
        return before + linear(s.batch, features, s.width)
    gelu = Cost(saved=s.batch * hidden)
    return before + linear(s.batch, features, hidden) + gelu + linear(s.batch, hidden, s.width)


@strategy("concat_features", impls=("eager", "triton"), cost=cost)
class ConcatFeatures(nn.Module):
    """Pool each modality, concatenate the two vectors, and mix them with an MLP: MLP([pool(image); pool(text)]).

    Returns [B, width]. The MLP's hidden layer has ``ffn`` x width units; ``ffn`` 0 leaves one Linear. Both
    widths may differ. A missing modality counts as the zero vector, which is what pooling no tokens gives.
    ``triton`` multiplies both vectors by their halves of the first weight and never writes the concatenation.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        s = case.shape
        self.impl = impl
        self.project = Projectors(case)
        self.widths = projected_widths(case)
        features, hidden = sum(self.widths), s.units(s.width)
        self.first = nn.Linear(features, hidden or s.width)
        self.rest = nn.Sequential(nn.GELU(), nn.Linear(hidden, s.width)) if hidden else nn.Identity()

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("concat_features needs at least one modality")
        image, text = self.project(image, text)
        image = None if image is None else pool(image, image_mask)
        text = None if text is None else pool(text, text_mask)
        fused: Tensor = self.rest(self._mix(image, text))
        return fused

    def _mix(self, image: Tensor | None, text: Tensor | None) -> Tensor:
        if image is None or text is None or self.impl == "eager":
            mixed: Tensor = self.first(join_features(image, text, self.widths))
            return mixed
        from fusionbench_kernels import concat_linear

        return concat_linear(image, text, self.first.weight, self.first.bias)
