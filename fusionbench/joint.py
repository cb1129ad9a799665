"""One softmax over both modalities' tokens, the projections around it each modality's own; with its cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import attend
from .blocks import kv_heads, merge_heads, sharpened
from .cost import Cost, attention, copy, linear
from .parts import HeadNorm, Rotary, head_norm_cost, rotary_cost, rotated
from .spec import Case
from .streams import Mask, projected_widths

Streams = dict[str, Tensor]  # by modality, image first: tokens [B, L, D]; a missing modality is not in it


def present(image: Tensor | None, text: Tensor | None) -> Streams:
    """The modalities that are there, image first."""
    return {name: x for name, x in (("image", image), ("text", text)) if x is not None}


def stream_widths(case: Case) -> dict[str, int]:
    """The width of each projected modality, image first."""
    return dict(zip(("image", "text"), projected_widths(case), strict=True))


def stream_lengths(case: Case) -> dict[str, int]:
    """The tokens of each projected modality."""
    return {"image": case.shape.image, "text": case.shape.text}


def hidden_units(case: Case) -> dict[str, int]:
    """The feed-forward width of each modality; 0: it has no feed-forward layer."""
    units = {name: case.shape.units(width) for name, width in stream_widths(case).items()}
    return units | {"image": case.design.image_hidden or units["image"]}


class HeadProjections(nn.Module):
    """Queries [B, L, H, d], keys and values [B, L, Hk, d] of one stream's tokens [B, L, width]."""

    def __init__(self, case: Case, width: int) -> None:
        super().__init__()
        s, bias = case.shape, case.design.qkv_bias
        self.head_dim = s.width // s.heads
        kv_width = self.head_dim * kv_heads(case)
        self.q = sharpened(nn.Linear(width, s.width, bias=bias))
        self.k = sharpened(nn.Linear(width, kv_width, bias=bias))
        self.v = nn.Linear(width, kv_width, bias=bias)
        self.q_norm, self.k_norm = HeadNorm(self.head_dim, case), HeadNorm(self.head_dim, case)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)) for layer in (self.q, self.k, self.v))
        return self.q_norm(q), self.k_norm(k), v


class JointAttention(nn.Module):
    """Multi-head self-attention over the tokens of all streams together, each with weights of its own.

    Streams [B, L, D] -> the same; their widths may differ, the inner width is shared. A rotary or causal design
    counts positions from the first image token to the last text token. ``mask`` is that of the joined streams.
    """

    def __init__(self, case: Case, impl: str) -> None:
        super().__init__()
        s, design = case.shape, case.design
        widths = stream_widths(case)
        self.impl, self.causal = impl, design.causal
        self.projections = nn.ModuleDict({name: HeadProjections(case, width) for name, width in widths.items()})
        self.turn = Rotary(s.image + s.text, s.width // s.heads, case) if design.rope else nn.Identity()
        self.out = nn.ModuleDict(
            {name: nn.Linear(s.width, width, bias=design.out_bias) for name, width in widths.items()}
        )

    def forward(self, streams: Streams, mask: Mask = None) -> Streams:
        own = [self.projections[name](x) for name, x in streams.items()]
        q, k, v = (torch.cat(parts, dim=1) for parts in zip(*own, strict=True))  # [B, Li + Lt, H, d]
        q, k, v = self.turn(q).transpose(1, 2), self.turn(k).transpose(1, 2), v.transpose(1, 2)
        attended = merge_heads(self.read(q, k, v, mask))
        parts = torch.split(attended, [x.shape[1] for x in streams.values()], dim=1)
        # Linear copies rows that lie apart in any case, and then adds its bias in a pass of its own
        return {name: self.out[name](part.contiguous()) for name, part in zip(streams, parts, strict=True)}

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """What queries [B, H, L, d] read from keys and values [B, Hk, L, d] of all streams: [B, H, L, d]."""
        return attend(q, k, v, self.impl, mask, causal=self.causal)


def joint_attention_cost(case: Case, impl: str) -> Cost:
    """``JointAttention`` of both modalities: three copies join queries, keys and values."""
    s, design = case.shape, case.design
    b, inner, head_dim, tokens = s.batch, s.width, s.width // s.heads, s.image + s.text
    kv_width = head_dim * kv_heads(case)
    total = attention(b, tokens, tokens, inner, s.heads, impl, kv_width) + copy(b * tokens * (inner + 2 * kv_width))
    for length, width in zip((s.image, s.text), projected_widths(case), strict=True):
        rows = b * length
        total += linear(rows, width, inner, bias=design.qkv_bias)
        total += linear(rows, width, kv_width, bias=design.qkv_bias, saves_input=False) * 2
        total += linear(rows, inner, width, bias=design.out_bias, saves_input=False)
        for heads in (s.heads, kv_heads(case)):
            total += head_norm_cost(b, length, heads, head_dim, case) + rotary_cost(b, length, heads, head_dim, case)
    total += Cost(saved=2 * tokens * rotated(head_dim, case))  # the rotary tables
    read = b * tokens * inner
    if impl == "eager":  # which keeps its output for the sake of the Linears alone
        return total + Cost(saved_bytes=tokens * tokens if design.causal else 0, linear_inputs=read)
    # The output is kept by attention whole and by the Linears in parts, which of one sample are views of the whole.
    return total + (Cost(saved=read, linear_inputs=read) if b > 1 else Cost())
