"""Concatenation with the self-attention that makes it fuse (UNITER, Chen et al. 2020, arXiv 1909.11740)."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Encoder, encoder_cost
from ..cost import Cost
from ..errors import MissingModalityError
from ..generation import DECODING, Cache, sees_ahead, stream_step
from ..registry import ATTENTION_IMPLS, WHOLE, strategy
from ..spec import Case
from ..streams import (
    Mask,
    Projectors,
    cache_mask,
    equal_widths,
    join,
    join_cost,
    join_masks,
    joint_width,
    projectors_cost,
)


def cost(case: Case, impl: str) -> Cost:
    s, given, width = case.shape, stream_step(case), joint_width(case)
    if given.own:
        stream = encoder_cost(case, given.text, width, impl, cached=given.own)
    else:
        stream = join_cost(case) + encoder_cost(case, s.image + s.text, width, impl)
    return projectors_cost(case, given) + stream


def refuses(case: Case) -> str | None:
    return equal_widths(case) or sees_ahead(case)


@strategy(
    "concat_attention",
    impls=ATTENTION_IMPLS,
    cost=cost,
    refuses=refuses,
    modes=(*WHOLE, *DECODING),
    step=stream_step,
)
class ConcatAttention(nn.Module):
    """Concatenate both sequences and run ``depth`` self-attention layers over the whole stream.

    Returns [B, Li + Lt, D], image tokens first. A missing modality adds no tokens. With a ``cache`` of the stream, text
    is its last token, and only that is returned, [B, 1, D], as in mode ``decode_uncached``.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        self.project = Projectors(case)
        self.encoder = Encoder(case, joint_width(case), impl)
        self.returned = slice(-1, None) if case.mode in DECODING else slice(None)

    def forward(
        self,
        image: Tensor | None,
        text: Tensor | None,
        image_mask: Mask = None,
        text_mask: Mask = None,
        cache: Cache = (),
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("concat_attention needs at least one modality")
        image, text = self.project(image, text)
        if cache:
            mask = cache_mask(cache[0][0].shape[2], image_mask, text_mask)
        else:
            mask = join_masks(image, text, image_mask, text_mask)
        fused: Tensor = self.encoder(join(image, text), mask, cache)
        return fused[:, self.returned]
