"""Calls that take each way through the kernels, for the tests that only a GPU can run: one line per way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusionbench_kernels import (
    Int8Weight,
    absorb,
    absorbed_cross_attention,
    co_attention,
    concat_linear,
    concat_projected,
    concat_tokens,
    cross_attention,
    int8_attention,
    int8_linear,
    projected_cross_attention,
)
from fusionbench_kernels.co_attention import CoVariant
from fusionbench_kernels.names import Variant
from fusionbench_kernels.projected import ProjectedVariant

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


def numbers(*shapes: tuple[int, ...], grad: bool = False) -> list[Tensor]:
    """Standard normal bf16; matrices scaled as weights are."""
    found = [torch.randn(shape, device="cuda") * (shape[1] ** -0.5 if len(shape) == 2 else 1.0) for shape in shapes]
    return [x.to(torch.bfloat16).requires_grad_(grad) for x in found]


def with_projections(variant: ProjectedVariant, width: int, heads: int, *, padded: bool = False) -> Call:
    """Attention with its projections inside, 77 keys, and the gradients that the attention kernels make."""

    def make(small: bool) -> Callable[[], Results]:
        batch, tokens, d = (1, 200, width // heads) if small else (4, 4000, width // heads)
        kv = (batch, heads, 77, d)
        x, k, v, *weights = numbers((batch, tokens, width), kv, kv, *((width, width), (width,)) * 2, grad=True)
        mask = torch.rand(batch, 77, device="cuda") < 0.7 if padded else None
        dout = torch.randn_like(x)

        def call() -> Results:
            out = projected_cross_attention(x, k, v, *weights, heads=heads, key_padding_mask=mask, variant=variant)
            return out.detach(), *torch.autograd.grad(out, (k, v), dout)

        return call

    return Call(make)


def absorbed(width: int, heads: int, keys: int) -> Call:
    def make(small: bool) -> Callable[[], Results]:
        batch, tokens = (1, 200) if small else (2, 4000)
        kv = (batch, heads, keys, width // heads)
        k, v, x, q_weight, out_weight, bias = numbers(kv, kv, (batch, tokens, width), *((width, width),) * 2, (width,))
        mask = torch.rand(batch, keys, device="cuda") < 0.7
        context = absorb(k, v, q_weight, None, out_weight, key_padding_mask=mask)
        return lambda: [absorbed_cross_attention(x, context, bias)]

    return Call(make)


def joined(what: Literal["features", "sequences", "tokens"]) -> Call:
    def make(small: bool) -> Callable[[], Results]:
        rows = 200 if small else 3000
        a, b, wide = numbers((2, rows, 136), (2, rows, 200), (2, 77, 136))
        first, second, both, bias = numbers((130, 136), (130, 136), (130, 336), (130,))
        norm = (*numbers((136,), (136,)), 1e-5)
        calls: dict[str, Callable[[], Tensor]] = {
            "features": lambda: concat_linear(a, b, both, bias),
            "sequences": lambda: concat_projected(a, wide, first, second, bias, None, norm),
            "tokens": lambda: concat_tokens(a, wide),
        }
        return lambda: [calls[what]()]

    return Call(make)


def in_int8(
    queries: int, keys: int, head_dim: int, *, pv: Literal["fp16", "fp8"] = "fp16",
    granularity: Literal["token", "block"] = "token", padded: bool = False,
) -> Call:  # fmt: skip
    """Attention over int8 scores, its keys quantised in the call."""

    def make(small: bool) -> Callable[[], Results]:
        batch = 1 if small else 2
        tokens, context = (min(queries, 200), min(keys, 600)) if small else (queries, keys)
        q, k, v = numbers((batch, 8, tokens, head_dim), *((batch, 8, context, head_dim),) * 2)
        mask = torch.rand(batch, context, device="cuda") < 0.7 if padded else None

        def call() -> Results:
            found = int8_attention(q, k, v, key_padding_mask=mask, pv=pv, granularity=granularity, return_lse=True)
            return tuple(found)

        return call

    return Call(make)


def linear_in_int8(inputs: int, outputs: int) -> Call:
    def make(small: bool) -> Callable[[], Results]:
        x, weight = numbers((2, 100 if small else 2000, inputs), (outputs, inputs))
        bias, gamma, beta = numbers((outputs,), (inputs,), (inputs,))
        quantized = Int8Weight.quantize(weight)
        return lambda: [int8_linear(x, quantized, bias, norm=(gamma, beta, 1e-5))]

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
    "projections inside, one kernel": with_projections("one_kernel", 320, 8),
    "projections inside, one kernel, 640 columns, padded": with_projections("one_kernel", 640, 10, padded=True),
    "projections inside, a program per head": with_projections("heads", 640, 8),
    "projections absorbed": absorbed(320, 8, 77),
    "projections absorbed, columns split": absorbed(1280, 20, 77),
    "features joined": joined("features"),
    "sequences normed, projected and joined": joined("sequences"),
    "tokens joined": joined("tokens"),
    "int8": in_int8(1000, 1023, 64),
    "int8, a scale per block, padded": in_int8(1000, 1023, 128, granularity="block", padded=True),
    "int8, head dim 40, one tile of keys": in_int8(4000, 77, 40),
    "int8, split": in_int8(64, 8190, 64, padded=True),
    "int8, values of 8 bits": in_int8(1000, 1023, 128, pv="fp8"),
    "int8, values of 8 bits, split": in_int8(64, 8190, 64, pv="fp8", padded=True),
    "int8 linear after a norm": linear_in_int8(640, 1000),
    "int8 linear, rows in pieces": linear_in_int8(9000, 320),
}

# What the sanitizer watches, each in a process of its own: one of each kind.
SANITIZED = (
    "streaming, two-pass backward",
    "resident, keys in one program backward",
    "split, queries in one program backward",
    "both ways, one-pass backward",
    "both ways, backward by side",
    "projections inside, one kernel",
    "projections absorbed",
    "int8",
    "int8, values of 8 bits",
)
