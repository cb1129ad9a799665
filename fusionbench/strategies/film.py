"""FiLM: text scales and shifts the channels of image tokens (Perez et al. 2018, arXiv 1709.07871)."""

from __future__ import annotations

from torch import Tensor, nn

from ..cost import Cost, layer_norm, linear
from ..errors import MissingModalityError
from ..parts import FeedForward, feed_forward_cost
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, pool, projected_widths, projectors_cost


def cost(case: Case, impl: str, gated: bool = False) -> Cost:
    s, (width, condition) = case.shape, projected_widths(case)
    rows, vectors = s.batch * s.image, 3 if gated else 2
    modulation = linear(s.batch, condition, vectors * width) + Cost(
        saved=rows * width + s.batch * width
    )  # LN(x), 1 + γ
    if gated:  # SiLU's input, what is gated, and the gates in one tensor with γ and β
        modulation += Cost(saved=s.batch * condition + rows * width + s.batch * vectors * width)
    hidden = s.units(width)
    ffn = feed_forward_cost(rows, width, hidden, case) if hidden else Cost()
    return projectors_cost(case) + layer_norm(rows, width, affine=False) + modulation + ffn


@strategy("film", impls=("eager",), cost=cost, variants={"adaln_zero": {"gated": True}})
class Film(nn.Module):
    """Scale and shift the channels of image tokens x by a function of the pooled text: x + FFN(LN(x)·(1 + γ) + β).

    γ and β [B, Di] are a Linear of the text's mean. Returns the image side [B, Li, Di]; without ``ffn`` the
    modulated tokens are added as they are. FiLM follows a normalisation without weights and precedes what the
    residual branch computes, as in the paper's blocks (there batch norm, here LayerNorm as in T5-FiLM, arXiv
    2206.05408). ``adaln_zero`` adds a gate per channel, x + α·FFN(…), and a SiLU before the Linear (DiT, Peebles &
    Xie 2023, arXiv 2212.09748, whose blocks have two such branches). DiT starts its training with all of them at
    0, where the layer is the identity; here gates start at 0.5, so that what they gate can be seen in the result.
    Widths may differ. A missing text counts as the zero vector; a missing image raises MissingModalityError.
    """

    def __init__(self, case: Case, impl: str, gated: bool = False) -> None:
        super().__init__()
        width, self.condition_width = projected_widths(case)
        self.project = Projectors(case)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.activation = nn.SiLU() if gated else nn.Identity()
        self.modulation = nn.Linear(self.condition_width, (3 if gated else 2) * width)
        hidden = case.shape.units(width)
        self.ffn = FeedForward(width, hidden, case) if hidden else nn.Identity()
        if gated:
            nn.init.constant_(self.modulation.bias[2 * width :], 0.5)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        image, text = self.project(image, text)
        if image is None:
            raise MissingModalityError("film has no output without the image tokens that it modulates")
        condition = image.new_zeros(len(image), self.condition_width) if text is None else pool(text, text_mask)
        modulation = self.modulation(self.activation(condition)).unsqueeze(1)  # [B, 1, 2·Di or 3·Di]
        scale, shift, *gate = modulation.split(image.shape[-1], dim=-1)
        branch = self.ffn(self.norm(image) * (1 + scale) + shift)
        fused: Tensor = image + (gate[0] * branch if gate else branch)
        return fused
