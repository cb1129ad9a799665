"""Token merging: similar image tokens become one before fusion (ToMe, Bolya et al. 2023, arXiv 2210.09461).

As in ToMe for diffusion (Bolya & Hoffman 2023, arXiv 2303.17604), tokens are compared as they come in, and what was
merged is put back into the place of each at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import Attention, Encoder, own_attention
from ..cost import Cost, copy, product
from ..errors import MissingModalityError
from ..registry import strategy
from ..spec import Case
from ..streams import Mask, Projectors, equal_widths, join, joint_width
from .concat_attention import cost as concat_attention_cost


@dataclass(frozen=True)
class Merging:
    """Which tokens become one: those at odd positions, the sources, join those at even ones, except some that stay.

    ``own`` [B, even, 1] and ``joined`` [B, even, odd] are the weights of the means, ``stay`` [B, n] the positions of
    the sources that stay. ``sizes`` [B, even + n] says how many tokens each result stands for (0: padding), ``place``
    [B, Li] where each token went.
    """

    own: Tensor
    joined: Tensor
    stay: Tensor
    sizes: Tensor
    place: Tensor

    def apply(self, image: Tensor) -> Tensor:
        """[B, Li, W] -> [B, even + n, W]"""
        # A product, where a scatter would add up in another order on every run of a GPU.
        merged = image[:, ::2] * self.own + self.joined @ image[:, 1::2]
        return torch.cat([merged, rows(image, self.stay)], dim=1) if self.stay.shape[1] else merged


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows of x [B, L, D] that index [B, n] names, for each sample its own: [B, n, D]."""
    return x[torch.arange(x.shape[0], device=x.device).unsqueeze(1), index]


@torch.no_grad()
def match(image: Tensor, mask: Mask, ratio: float) -> Merging:
    """Bipartite soft matching by cosine: ``2·ratio`` of a sample's sources, the most similar ones, join their nearest.

    image [B, Li, W], mask [B, Li]. A choice that rounding can turn would be judged as an error of the result. Tokens
    are therefore compared as they come in, in fp32: the same numbers, which fp32 holds exactly, for every backend of a
    job and for its fp64 reference. Padding joins nothing; an even place that is padding has no share in the mean.
    """
    real = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device) if mask is None else mask
    real_even, real_odd = real[:, ::2], real[:, 1::2]
    unit = F.normalize(image.float(), dim=-1)
    cosine = unit[:, 1::2] @ unit[:, ::2].transpose(1, 2)  # [B, odd, even]
    nearest, partner = cosine.masked_fill(~real_even.unsqueeze(1), -torch.inf).max(dim=-1)  # [B, odd]

    order = nearest.masked_fill(~real_odd, torch.inf).argsort(dim=1, stable=True)  # those that stay come first
    count = (real_odd.sum(dim=1, keepdim=True).double() * (1 - 2 * ratio)).long()  # [B, 1]
    slots, even = staying(real_odd.shape[1], ratio), real_even.shape[1]
    rank = order.argsort(dim=1)
    stays = rank < count

    targets = torch.arange(even, device=image.device)
    joined = (partner.unsqueeze(1) == targets.unsqueeze(1)) & (real_odd & ~stays).unsqueeze(1)  # [B, even, odd]
    sizes = real_even + joined.sum(dim=-1)  # [B, even]
    share = (1 / sizes.clamp(min=1)).unsqueeze(-1)
    kept = torch.arange(slots, device=image.device) < count  # [B, slots]
    place = torch.empty(real.shape, dtype=torch.long, device=image.device)
    place[:, ::2], place[:, 1::2] = targets, torch.where(stays, even + rank, partner)
    return Merging(
        own=(real_even.unsqueeze(-1) * share).to(image.dtype),
        joined=(joined * share).to(image.dtype),
        stay=2 * order[:, :slots] + 1,
        sizes=torch.cat([sizes, kept], dim=1),
        place=place,
    )


def staying(sources: int, ratio: float) -> int:
    """How many of the sources stay tokens of their own."""
    return int(sources * (1 - 2 * ratio))


class ProportionalAttention(Attention):
    """``Attention`` in which a token weighs as many as it stands for; ``mask`` [B, Lk] has their logarithms."""

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        bias = q.new_zeros(k.shape[::2]) if mask is None else mask
        return _ATTENTION[self.impl](q, k, v, bias[:, None, None, :])


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias  # [B, H, L, L]
    attended: Tensor = scores.softmax(dim=-1) @ v
    return attended


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, bias)


def _triton(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    from fusionbench_kernels import cross_attention

    out: Tensor = cross_attention(q, k, v, bias=bias)  # type: ignore[assignment]
    return out


_ATTENTION = {"eager": _eager, "sdpa": _sdpa, "triton": _triton}


def cost(case: Case, impl: str, ratio: float = 0.5) -> Cost:
    """``concat_attention`` of fewer tokens, and what the merging takes: 4·B·(Li/2)²·Wi FLOPs, the half without a
    gradient, and the copy that puts the tokens back."""
    s = case.shape
    odd, even = s.image // 2, s.image - s.image // 2
    stay, width = staying(odd, ratio), joint_width(case)
    fewer = msgspec.structs.replace(case, shape=msgspec.structs.replace(s, image=even + stay))
    matching, merging = product(s.batch, odd, s.image_width, even), product(s.batch, even, odd, s.image_width)
    total = concat_attention_cost(fewer, impl)
    total += msgspec.structs.replace(matching, backward_flops=0)
    total += msgspec.structs.replace(merging, backward_flops=merging.flops)
    total += Cost(saved=s.batch * even * (odd + 1))  # the weights of the means
    if stay:
        total += copy(s.batch * stay * s.image_width) + copy(s.batch * (even + stay) * s.image_width)
        total += Cost(saved_bytes=8 * s.batch * (1 + stay))
    if impl != "eager" and s.depth:
        total += Cost(saved=s.batch * (even + stay + s.text))  # the sizes' logarithms
    return total + copy(s.batch * (s.image + s.text) * width) + Cost(saved_bytes=8 * s.batch * (1 + s.image + s.text))


def refuses(case: Case, **options: object) -> str | None:
    if case.projector == "patch_merge":
        return "token_merge merges tokens before their projector, and 'patch_merge' needs all of them"
    return equal_widths(case) or own_attention(case)


@strategy(
    "token_merge",
    impls=tuple(_ATTENTION),
    cost=cost,
    variants={"quarter": {"ratio": 0.25}},
    refuses=refuses,
)
class TokenMerge(nn.Module):
    """Merge each similar pair of image tokens, then concatenate and run self-attention as concat_attention does.

    ``ratio``, at most 0.5, is the share of the image tokens that go; a merged token weighs as many as it stands for.
    Projector, attention and FFN all have fewer tokens, which is why this feeds the concatenation: of a text query's
    cross-attention, FFN and half of the projections would stay as they are. Returns [B, Li + Lt, D], image tokens
    first, merged ones in the place of each of their tokens. A missing modality adds no tokens.
    """

    def __init__(self, case: Case, impl: str, ratio: float = 0.5) -> None:
        super().__init__()
        width = joint_width(case)
        self.ratio = ratio
        self.project = Projectors(case)
        self.encoder = Encoder(case, width, impl)
        for layer in self.encoder.layers:
            layer.get_submodule("attention").attention = ProportionalAttention(case, width, width, impl)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("token_merge needs at least one modality")
        sizes, places = [], []
        if image is not None:
            merging = match(image, image_mask, self.ratio)
            image = merging.apply(image)
            sizes, places = [merging.sizes], [merging.place]
        if text is not None:
            before, one = (
                0 if image is None else image.shape[1],
                torch.ones(text.shape[:2], dtype=torch.long, device=text.device),
            )
            sizes.append(one if text_mask is None else text_mask)
            places.append(torch.arange(before, before + text.shape[1], device=text.device).expand(one.shape))
        stream = join(*self.project(image, text))
        # The lowest number in place of -inf: a sample that is padding throughout averages it, where NaN would spread.
        weights = torch.cat(sizes, dim=1).to(stream.dtype).log().clamp(min=torch.finfo(stream.dtype).min)
        return rows(self.encoder(stream, weights), torch.cat(places, dim=1))
