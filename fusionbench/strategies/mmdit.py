"""MMDiT: joint attention of two streams whose layers a condition modulates (Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from ..cost import Cost, layer_norm, linear
from ..errors import MissingModalityError
from ..joint import JointAttention, Streams, hidden_units, joint_attention_cost, present, stream_lengths, stream_widths
from ..parts import FeedForward, feed_forward_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, join_masks, pool, projected_widths, projectors_cost


class Modulation(nn.Module):
    """Shift, scale and gate of each sub-layer of one stream, [B, 1, width] each, of a condition [B, condition_width].

    adaLN-Zero of DiT (Peebles & Xie 2023, arXiv 2212.09748). Training starts with all of them at 0, where the
    block is the identity; here gates start near 0.5, so that what they gate can be seen in the result.
    """

    def __init__(self, condition_width: int, width: int, sublayers: int) -> None:
        super().__init__()
        self.vectors = 3 * sublayers
        self.linear = nn.Linear(condition_width, self.vectors * width)
        with torch.no_grad():
            self.linear.bias.view(sublayers, 3, width)[:, 2].add_(0.5)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        vectors: Tensor = self.linear(nn.functional.silu(condition))
        return vectors.unsqueeze(1).chunk(self.vectors, dim=-1)


def modulation_cost(case: Case, rows: int, width: int, sublayers: int) -> Cost:
    """``Modulation`` of one stream with the norms that it follows and what it gates, ``rows`` tokens in all."""
    b, condition_width = case.shape.batch, projected_widths(case)[1]
    # a sub-layer keeps LN(x), 1 + scale and what is gated; the gates keep all of the Linear's outputs alive
    kept = sublayers * (2 * rows * width + b * width + 3 * b * width)
    norms = layer_norm(rows, width, affine=False) * sublayers
    return linear(b, condition_width, 3 * sublayers * width) + norms + Cost(saved=kept)


class JointBlock(nn.Module):
    """x + α·Attention(LN(x)·(1 + γ) + β) with joint attention, then x + α'·FFN(LN(x)·(1 + γ') + β'), per stream.

    Streams [B, L, D] and a condition [B, Dt] -> streams, same shapes. The norms have no weights.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        widths, hidden, eps = stream_widths(case), hidden_units(case), case.design.eps
        self.modulations = nn.ModuleDict(
            {name: Modulation(widths["text"], width, 2 if hidden[name] else 1) for name, width in widths.items()}
        )
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(width, eps=eps, elementwise_affine=False) for name, width in widths.items()}
        )
        self.attention = JointAttention(case, impl)
        self.ffns = nn.ModuleDict({n: FeedForward(widths[n], hidden[n], case) for n in widths if hidden[n]})

    def forward(self, streams: Streams, condition: Tensor, mask: Mask = None) -> Streams:
        vectors = {name: self.modulations[name](condition) for name in streams}
        normed = {name: self._normed(name, x, *vectors[name][:2]) for name, x in streams.items()}
        fused = {}
        for name, attended in self.attention(normed, mask).items():
            x = streams[name] + vectors[name][2] * attended
            if name in self.ffns:
                shift, scale, gate = vectors[name][3:]
                x = x + gate * self.ffns[name](self._normed(name, x, shift, scale))
            fused[name] = x
        return fused

    def _normed(self, name: str, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = self.norms[name](x) * (1 + scale) + shift
        return y


def joint_block_cost(case: Case, impl: str) -> Cost:
    lengths, hidden, total = stream_lengths(case), hidden_units(case), joint_attention_cost(case, impl)
    for name, width in stream_widths(case).items():
        rows, units = case.shape.batch * lengths[name], hidden[name]
        total += modulation_cost(case, rows, width, sublayers=2 if units else 1)
        total += feed_forward_cost(rows, width, units, case) if units else Cost()
    return total


def cost(case: Case, impl: str) -> Cost:
    s = case.shape
    condition = Cost(saved=s.batch * projected_widths(case)[1] if s.depth else 0)  # SiLU's input, in all blocks one
    return projectors_cost(case) + condition + joint_block_cost(case, impl) * s.depth


def refuses(case: Case) -> str | None:
    """The condition takes the place of the norms' weights and of the gates."""
    fixed = msgspec.structs.replace(case.design, norm="layer", post_norm=False, gated=False)
    if case.design != fixed:
        return f"mmdit's blocks are pre-LayerNorm with gates of their own, not {case.design.key}"
    return None


@strategy("mmdit", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses)
class MMDiT(nn.Module):
    """Attend over both modalities at once with weights of each one's own, modulated by the pooled text (SD3).

    ``depth`` joint blocks, all of them whole (SD3's last one drops the text stream). The condition is the mean of
    the projected text tokens [B, Dt], in the place of SD3's embedding of time step and pooled text: it costs what
    theirs costs a block, one Linear to 6·D per stream. Returns (text [B, Lt, Dt], image [B, Li, Di]); the widths may
    differ. Without one modality the other attends to itself, and None is in the missing one's place; without text
    the condition is the zero vector, which is what pooling no tokens gives.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.condition_width = projected_widths(case)[1]
        self.project = Projectors(case)
        self.blocks = nn.ModuleList(JointBlock(case, impl) for _ in range(case.shape.depth))

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("mmdit needs at least one modality")
        image, text = self.project(image, text)
        mask, streams = join_masks(image, text, image_mask, text_mask), present(image, text)
        condition = self._condition(streams, text_mask)
        for block in self.blocks:
            streams = block(streams, condition, mask)
        return streams.get("text"), streams.get("image")

    def _condition(self, streams: Streams, text_mask: Mask) -> Tensor:
        if "text" in streams:
            return pool(streams["text"], text_mask)
        return streams["image"].new_zeros(streams["image"].shape[0], self.condition_width)
