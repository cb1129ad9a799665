"""Co-attention over one affinity matrix, read along both of its axes (Lu et al. 2016, arXiv 1606.00061, parallel)."""

from __future__ import annotations

import msgspec
from torch import Tensor, nn

from ..attention import attend, probabilities
from ..blocks import merge_heads, sharpened, split_heads
from ..cost import Cost, attention, layer_norm, linear, product
from ..errors import MissingModalityError
from ..parts import FeedForwardBlock, feed_forward_block_cost
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import PLAIN, Case
from ..streams import Mask, Projectors, projected_widths, projectors_cost


def affinity_cost(case: Case, impl: str) -> Cost:
    """Both softmaxes and both weighted sums: 6·B·Li·Lt·I FLOPs where S is made once, 8 where it is made twice.

    ``triton`` counts as its fused kernel, which writes no scores, also where both sides are too long for that.
    """
    s = case.shape
    operands = s.batch * (s.image + s.text) * s.width  # the queries of text and the keys of image together
    maps, d = s.batch * s.heads, s.width // s.heads
    scores = maps * s.image * s.text
    if impl == "triton":
        flops, rows = 6 * scores * d, maps * (s.image + s.text)
        kept = Cost(saved=3 * operands, saved_bytes=4 * rows)  # operands, values, outputs, a log-sum-exp per row
        return Cost(flops=flops, backward_flops=2 * flops, activations_moved=3 * operands) + kept
    if impl != "eager":
        both = [attention(s.batch, a, b, s.width, s.heads, impl) for a, b in ((s.text, s.image), (s.image, s.text))]
        return both[0] + both[1] + Cost(saved=-operands)  # both calls keep the same q and k
    products = product(maps, s.text, d, s.image) + product(maps, s.text, s.image, d) + product(maps, s.image, s.text, d)
    return products + Cost(activations_moved=4 * scores, saved=3 * operands + 2 * scores)


def cost(case: Case, impl: str) -> Cost:
    s, total = case.shape, projectors_cost(case) + affinity_cost(case, impl)
    for tokens, width in zip((s.image, s.text), projected_widths(case), strict=True):
        rows = s.batch * tokens
        total += layer_norm(rows, width)
        total += linear(rows, width, s.width) + linear(rows, width, s.width, saves_input=False)
        total += linear(rows, s.width, width, saves_input=False)  # attention keeps its own output
        total += Cost(linear_inputs=rows * s.width) if impl == "eager" else Cost()  # for that linear's sake
        total += feed_forward_block_cost(case, tokens, width)
    return total


def refuses(case: Case) -> str | None:
    """One affinity has queries and keys of one number of heads, and the layer around it is the plain one."""
    if case.design != msgspec.structs.replace(PLAIN, projects=case.design.projects):
        return f"co_attention_shared is built as a plain layer only, not as {case.design.key}"
    return None


@strategy("co_attention_shared", impls=ATTENTION_IMPLS, cost=cost, refuses=refuses)
class CoAttentionShared(nn.Module):
    """Let both modalities read one affinity S = Q_text K_imageᵀ/√d: softmax over its rows and over its columns.

    Returns (text [B, Lt, Dt], image [B, Li, Di]); the widths may differ (projector ``identity``). ``eager``
    and ``triton`` compute S once; every other impl makes two attention calls with the roles of Q and K swapped. Without
    one modality the layer is skipped: the other is returned projected, with None in the missing one's place.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        s, (image_width, text_width) = case.shape, projected_widths(case)
        self.heads, self.impl = s.heads, impl
        self.project = Projectors(case)
        self.image_norm, self.text_norm = nn.LayerNorm(image_width), nn.LayerNorm(text_width)
        self.image_key = sharpened(nn.Linear(image_width, s.width))
        self.text_query = sharpened(nn.Linear(text_width, s.width))
        self.image_value, self.text_value = nn.Linear(image_width, s.width), nn.Linear(text_width, s.width)
        self.image_out, self.text_out = nn.Linear(s.width, image_width), nn.Linear(s.width, text_width)
        self.image_ffn, self.text_ffn = FeedForwardBlock(case, image_width), FeedForwardBlock(case, text_width)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if image is None and text is None:
            raise MissingModalityError("co_attention_shared needs at least one modality")
        image, text = self.project(image, text)
        if image is None or text is None:
            return text, image
        i, t = self.image_norm(image), self.text_norm(text)
        q, k = split_heads(self.text_query(t), self.heads), split_heads(self.image_key(i), self.heads)
        v_text, v_image = split_heads(self.text_value(t), self.heads), split_heads(self.image_value(i), self.heads)
        for_text, for_image = self.read(q, k, v_text, v_image, text_mask, image_mask)
        text = self.text_ffn(text + self.text_out(merge_heads(for_text)))
        return text, self.image_ffn(image + self.image_out(merge_heads(for_image)))

    def read(
        self, q: Tensor, k: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Mask, image_mask: Mask
    ) -> tuple[Tensor, Tensor]:
        """What text tokens read from image tokens, and image tokens from text tokens."""
        read = {"eager": shared_attention, "triton": fused_attention}.get(self.impl, self._two_calls)
        return read(q, k, v_text, v_image, text_mask, image_mask)

    def _two_calls(
        self, q: Tensor, k: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Mask, image_mask: Mask
    ) -> tuple[Tensor, Tensor]:
        return attend(q, k, v_image, self.impl, image_mask), attend(k, q, v_text, self.impl, text_mask)


def fused_attention(
    q: Tensor, k: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Mask, image_mask: Mask
) -> tuple[Tensor, Tensor]:
    """As ``shared_attention``, by the kernel that makes S once."""
    from fusionbench_kernels import co_attention

    text, image = co_attention(q, k, v_text, v_image, text_mask=text_mask, image_mask=image_mask)[:2]
    return text, image


def shared_attention(
    q: Tensor, k: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Mask, image_mask: Mask
) -> tuple[Tensor, Tensor]:
    """Image values per text token and text values per image token, from one S; a fully masked side gives 0.

    q, v_text [B, H, Lt, d], k, v_image [B, H, Li, d]; returns [B, H, Lt, d] and [B, H, Li, d].
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, H, Lt, Li]
    over_image = probabilities(scores, None if image_mask is None else image_mask[:, None, None, :])
    over_text = probabilities(scores.transpose(-2, -1), None if text_mask is None else text_mask[:, None, None, :])
    return over_image @ v_image, over_text @ v_text
