"""Mixture of Transformers: one self-attention, all other weights per modality (Liang et al. 2024, arXiv 2411.04996).

So is BEiT-3's multiway Transformer (Wang et al. 2022, arXiv 2208.10442) in its code, microsoft/torchscale, but for
the norms that it adds inside attention and feed-forward.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..cost import Cost
from ..errors import MissingModalityError
from ..joint import JointAttention, Streams, hidden_units, joint_attention_cost, present, stream_lengths, stream_widths
from ..parts import FeedForwardBlock, Gate, feed_forward_block_cost, gate_cost, norm, norm_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, join_masks, projectors_cost


class UntiedLayer(nn.Module):
    """One Transformer layer over both streams: the softmax is shared, every weight belongs to one modality."""

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        widths, hidden = stream_widths(case), hidden_units(case)
        self.post = case.design.post_norm
        self.norms = nn.ModuleDict({name: norm(width, case) for name, width in widths.items()})
        self.attention = JointAttention(case, impl)
        self.gates = nn.ModuleDict({name: Gate(case) for name in widths})
        self.ffns = nn.ModuleDict({name: FeedForwardBlock(case, widths[name], hidden[name]) for name in widths})

    def forward(self, streams: Streams, mask: Mask = None) -> Streams:
        attended = self.attention(streams if self.post else self._normed(streams), mask)
        streams = {name: x + self.gates[name](attended[name]) for name, x in streams.items()}
        return {name: self.ffns[name](x) for name, x in (self._normed(streams) if self.post else streams).items()}

    def _normed(self, streams: Streams) -> Streams:
        return {name: self.norms[name](x) for name, x in streams.items()}


def untied_layer_cost(case: Case, impl: str) -> Cost:
    lengths, hidden, total = stream_lengths(case), hidden_units(case), joint_attention_cost(case, impl)
    for name, width in stream_widths(case).items():
        rows = case.shape.batch * lengths[name]
        total += norm_cost(rows, width, case) + gate_cost(rows, width, case)
        total += feed_forward_block_cost(case, lengths[name], width, hidden[name])
    return total


def cost(case: Case, impl: str) -> Cost:
    return projectors_cost(case) + untied_layer_cost(case, impl) * case.shape.depth


@strategy("mixture_of_transformers", impls=ATTENTION_IMPLS, cost=cost)
class MixtureOfTransformers(nn.Module):
    """Attend over both modalities at once with norms, projections and feed-forward layers of each one's own.

    ``depth`` layers of concat_attention's FLOPs and twice its parameters. Returns (text [B, Lt, Dt], image
    [B, Li, Di]); the widths may differ. Without one modality the other attends to itself, and None is in the missing
    one's place. The authors' code normalises what a sub-layer returns; the design decides here (pre-norm).
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.project = Projectors(case)
        self.layers = nn.ModuleList(UntiedLayer(case, impl) for _ in range(case.shape.depth))

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("mixture_of_transformers needs at least one modality")
        image, text = self.project(image, text)
        mask, streams = join_masks(image, text, image_mask, text_mask), present(image, text)
        for layer in self.layers:
            streams = layer(streams, mask)
        return streams.get("text"), streams.get("image")
