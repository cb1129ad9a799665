"""Calls that take each way through the kernels, for the tests that only a GPU can run: one line per way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionbench_kernels import co_attention, cross_attention
from fusionbench_kernels.co_attention import CoVariant
from fusionbench_kernels.names import Variant

Results = Sequence[Tensor]


@dataclass(frozen=True)
class Call:
    """``make(small)`` draws inputs and returns the call: outputs, then gradients. ``small`` is for the sanitizer."""

    make: Callable[[bool], Callable[[], Results]]


def attention(
    variant: Variant, queries: int, keys: int, head_dim: int, heads: int = 8, *, padded: bool = False
) -> Call:
    """Forward by ``variant``; backward by the way that these sizes take."""

    def make(small: bool) -> Callable[[], Results]:
        batch = 1 if small else 2
        tokens, context = (min(queries, 200), min(keys, 600)) if small else (queries, keys)
        shapes = ((batch, heads, tokens, head_dim), *((batch, heads, context, head_dim),) * 2)
        q, k, v = (torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes)
        mask = torch.rand(batch, context, device="cuda") < 0.7 if padded else None
        dout, dlse = torch.randn_like(q), torch.randn(q.shape[:3], device="cuda")

        def call() -> Results:
            out, row = cross_attention(q, k, v, key_padding_mask=mask, return_lse=True, variant=variant)
            return out.detach(), row.detach(), *torch.autograd.grad((out, row), (q, k, v), (dout, dlse))

        return call

    return Call(make)


def both_ways(text: int, image: int, head_dim: int, variant: CoVariant = "auto", *, padded: bool = False) -> Call:
    """Co-attention on one affinity, forward and backward."""

    def make(small: bool) -> Callable[[], Results]:
        batch = 1 if small else 2
        lengths = (text, min(image, 600) if small else image) * 2
        xs = [
            torch.randn(batch, 8, tokens, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for tokens in lengths
        ]
        masks = [torch.rand(batch, tokens, device="cuda") < 0.7 if padded else None for tokens in lengths[:2]]
        douts = [torch.randn_like(x) for x in xs[:2]]

        def call() -> Results:
            outs = co_attention(*xs, text_mask=masks[0], image_mask=masks[1], variant=variant)
            return *(out.detach() for out in outs), *torch.autograd.grad(outs, xs, douts)

        return call

    return Call(make)


CALLS: dict[str, Call] = {
    "streaming, two-pass backward": attention("streaming", 1000, 1023, 64),
    "streaming, head dim 128, padded": attention("streaming", 777, 1030, 128, padded=True),
    "streaming, head dim 40": attention("streaming", 1000, 1023, 40),
    "streaming, head dim 256": attention("streaming", 300, 513, 256),
    "resident, keys in one program backward": attention("resident", 4000, 77, 64),
    "resident, padded": attention("resident", 4000, 128, 64, padded=True),
    "resident, 256 keys": attention("resident", 1000, 256, 64),
    "split, queries in one program backward": attention("split", 64, 8190, 64),
    "split, padded": attention("split", 100, 8190, 128, padded=True),
    "descriptor": attention("descriptor", 1000, 1024, 64),
    "both ways, one-pass backward": both_ways(77, 4000, 64),
    "both ways, backward by side": both_ways(250, 4000, 64),
    "both ways, padded": both_ways(77, 1000, 128, padded=True),
    "both ways, two calls": both_ways(500, 700, 64, "two_calls"),
}

# What the sanitizer watches: each compiles for half a minute, so one of each kind.
SANITIZED = (
    "streaming, two-pass backward",
    "resident, keys in one program backward",
    "split, queries in one program backward",
    "both ways, one-pass backward",
)
