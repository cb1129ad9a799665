"""What the tuner gives each kernel: a call that launches it at the sizes of a row, and what must come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from . import co_attention_reference, int8_reference, projected_reference, reference
from .absorbed import forward as absorbed
from .attention_launch import backward, combine_splits, forward
from .co_attention import Output, Side
from .concat_linear import forward as concat_linear
from .concat_linear import write as project_into
from .int8_attention import PART_KEYS, _statistics, attend_forward, quantize_forward
from .int8_linear import Int8Weight
from .int8_linear import forward as int8_linear
from .int8_linear import quantize_forward as quantize_rows
from .names import Variant
from .projected import ProjectedVariant
from .projected import forward as projected
from .runtime import aligned

BATCH, HEADS = 2, 8
LONG = {2: 4096, 4: 1024}  # tokens where a row sets no bound, by bytes of an element

# Their names in the package are those of the functions.
co_attention = import_module(f"{__package__}.co_attention")
concat_tokens = import_module(f"{__package__}.concat_tokens")

Where = Mapping[str, int]


@dataclass(frozen=True)
class Work:
    """A call that launches a kernel, what it must return, and how far off that may be (0: as ``ERROR`` says)."""

    call: Callable[[], Sequence[Tensor]]
    truth: Callable[[], Sequence[Tensor]]
    error: float = 0.0


def _random(*shape: int, like: Where, device: str) -> Tensor:
    kind = torch.float16 if like.get("bytes", 4) == 2 else torch.float32
    return torch.randn(shape, device=device, dtype=torch.float32).to(kind)


def _qkv(where: Where, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v at the row's upper bounds, in the widest type it allows; scores of deviation 3."""
    long = LONG[where.get("bytes", 4)]
    queries, keys, d = where.get("queries", long), where.get("keys", long), where.get("head_dim", 256)
    q = 3 * _random(BATCH, HEADS, queries, d, like=where, device=device)
    k, v = (_random(BATCH, HEADS, keys, d, like=where, device=device) for _ in range(2))
    return q, k, v


def _forward(variant: Variant) -> Callable[[Where, str], Work]:
    def work(where: Where, device: str) -> Work:
        q, k, v = _qkv(where, device)
        rest = (None, None, None, q.shape[-1] ** -0.5)
        return Work(lambda: forward(q, k, v, *rest, variant), lambda: reference.attention(q, k, v, *rest))

    return work


def _backward(where: Where, device: str) -> Work:
    q, k, v = _qkv(where, device)
    rest = (None, None, None, q.shape[-1] ** -0.5)
    out, lse = reference.attention(q, k, v, *rest)
    dout = torch.randn_like(out)
    given = (q, k, v, out, lse, dout, None, *rest)
    return Work(lambda: backward(*given)[:3], lambda: reference.attention_backward(*given)[:3])


def _combined(where: Where, device: str) -> Work:
    d, splits, queries = where.get("head_dim", 256), 8, 64
    part = torch.randn(splits, BATCH, HEADS, queries, d, device=device)
    part_lse = torch.randn(splits, BATCH, HEADS, queries, device=device)

    def call() -> Sequence[Tensor]:
        out, lse = torch.empty_like(part[0], dtype=torch.float16), torch.empty_like(part_lse[0])
        combine_splits(part, part_lse, out, lse)
        return out, lse

    def truth() -> Sequence[Tensor]:
        return (part_lse.softmax(0)[..., None] * part).sum(0), part_lse.logsumexp(0)

    return Work(call, truth)


def _co_sides(where: Where, device: str) -> tuple[Side, Side]:
    short, d = where.get("short", LONG[where.get("bytes", 4)] // 4), where.get("head_dim", 128)
    tokens = (short, short, LONG[where.get("bytes", 4)], LONG[where.get("bytes", 4)])
    xs = [_random(BATCH, HEADS, length, d, like=where, device=device) for length in tokens]
    return Side(3 * xs[0], xs[1], None), Side(xs[2], xs[3], None)


def _co_forward(where: Where, device: str) -> Work:
    text, image = _co_sides(where, device)
    scale = text.x.shape[-1] ** -0.5
    given = (text.x, image.x, text.v, image.v, None, None, scale)
    return Work(
        lambda: co_attention.forward(text, image, scale, "fused"), lambda: co_attention_reference.co_attention(*given)
    )


def _co_backward(where: Where, device: str) -> Work:
    text, image = _co_sides(where, device)
    scale = text.x.shape[-1] ** -0.5
    given = (text.x, image.x, text.v, image.v, None, None)
    out_text, lse_text, out_image, lse_image = co_attention_reference.co_attention(*given, scale)
    of_text = Output(out_text, lse_text, torch.randn_like(out_text), None)
    of_image = Output(out_image, lse_image, torch.randn_like(out_image), None)
    results = (x for of in (of_text, of_image) for x in (of.out, of.lse))
    gradients = (of_text.dout, None, of_image.dout, None)
    both = (*given, *results, *gradients, scale)
    return Work(
        lambda: co_attention.backward(text, image, of_text, of_image, scale, "fused"),
        lambda: co_attention_reference.co_attention_backward(*both),
    )


def _concatenated(where: Where, device: str) -> Work:
    lengths = (LONG[2] // 8, LONG[2] // 32)
    a, b = (_random(32, tokens, 768, like={"bytes": 2}, device=device) for tokens in lengths)
    return Work(lambda: [concat_tokens.forward(a, b)], lambda: [torch.cat([a, b], dim=1)])


def _weight(outputs: int, inputs: int, where: Where, device: str) -> Tensor:
    """[outputs, inputs], scaled so that a product of standard normal inputs is standard normal."""
    return torch.mul(_random(outputs, inputs, like=where, device=device), inputs**-0.5)


def _projected(variant: ProjectedVariant) -> Callable[[Where, str], Work]:
    def work(where: Where, device: str) -> Work:
        d, keys = where.get("head_dim", 256), where.get("keys", 256)
        width = where.get("outputs", HEADS * d)
        heads = max(1, width // d)
        x = _random(BATCH, LONG[2], width, like=where, device=device)
        k, v = (_random(BATCH, heads, keys, d, like=where, device=device) for _ in range(2))
        q_weight, out_weight = (_weight(*size, where, device) for size in ((heads * d, width), (width, heads * d)))
        q_bias, out_bias = (_random(size, like=where, device=device) for size in (heads * d, width))
        k = 3 * k  # scores of deviation 3 and more

        def truth() -> Sequence[Tensor]:
            inputs, weights = (x.float(), k.float(), v.float()), (q_weight.float(), q_bias.float(), out_weight.float())
            return [projected_reference.projected(*inputs, None, *weights, out_bias.float(), d**-0.5)]

        return Work(lambda: [projected(x, k, v, None, q_weight, q_bias, out_weight, out_bias, d**-0.5, variant)], truth)

    return work


def _absorbed(where: Where, device: str) -> Work:
    keys, width = where.get("keys", 256), where.get("outputs", HEADS * 160)
    x = _random(BATCH, LONG[2], width, like=where, device=device)
    a = 3 * width**-0.5 * _random(BATCH, HEADS, keys, width, like=where, device=device)
    values = _random(BATCH, HEADS, keys, width, like=where, device=device)
    bias, out_bias = torch.randn(BATCH, HEADS, keys, device=device), _random(width, like=where, device=device)
    given = (x, a, bias, values, out_bias)
    return Work(lambda: [absorbed(*given)], lambda: [projected_reference.absorbed(*(y.float() for y in given))])


def _joined_features(where: Where, device: str) -> Work:
    rows, width = where.get("rows", 4 * LONG[where.get("bytes", 4)]), HEADS * 80
    a, b = (_random(rows, width, like=where, device=device) for _ in range(2))
    weight, bias = _weight(width, 2 * width, where, device), _random(width, like=where, device=device)
    return Work(
        lambda: [concat_linear(a, b, weight, bias)],
        lambda: [F.linear(torch.cat([a, b], 1).float(), weight.float(), bias.float())],
    )


def _projected_into(where: Where, device: str) -> Work:
    rows, width = where.get("rows", 4 * LONG[where.get("bytes", 4)]), HEADS * 80
    x, sequence = (_random(1, tokens, width, like=where, device=device) for tokens in (rows, 77 + rows))
    weight = _weight(width, width, where, device)
    bias, gamma, beta = (_random(width, like=where, device=device) for _ in range(3))

    def call() -> Sequence[Tensor]:
        sequence.fill_(math.nan)  # so that what one candidate wrote is not taken for another's
        project_into(sequence[:, 77:], x, weight, bias, gamma, beta, 1e-5)
        return [sequence[:, 77:]]

    def truth() -> Sequence[Tensor]:
        normed = projected_reference.normed(x.float(), gamma.float(), beta.float(), 1e-5)
        return [F.linear(normed, weight.float(), bias.float())]

    return Work(call, truth)


def _keys_and_values(where: Where, device: str) -> tuple[Tensor, Tensor]:
    """k, v of 16 bits, k far enough from zero that its mean matters."""
    _, k, v = _qkv({"bytes": 2, **where}, device)
    return k + 2, v


def _key_statistics(where: Where, device: str) -> Work:
    k, v = _keys_and_values(where, device)

    def truth() -> Sequence[Tensor]:
        parts = torch.split(k.float(), PART_KEYS, dim=2)
        counts = torch.tensor([part.shape[2] for part in parts], device=device).expand(*k.shape[:2], -1)
        return torch.stack([part.sum(2) for part in parts], 2), counts

    return Work(lambda: _statistics(k, v, None, None, True, False)[:2], truth)


def _quantized_keys(where: Where, device: str) -> Work:
    k, v = _keys_and_values(where, device)
    rest = (None, None, True, where.get("grain", 1))

    def call() -> Sequence[Tensor]:
        keys, scale, mean, _, _ = quantize_forward(k, v, *rest, False)
        return keys[..., : k.shape[3]], scale, mean

    return Work(call, lambda: int8_reference.quantize_keys(k, *rest))


def _int8_forward(where: Where, device: str) -> Work:
    q, k, v = _qkv({**where, "bytes": max(2, where.get("bytes", 4))}, device)
    grain, scale, d = where.get("grain", 1), q.shape[-1] ** -0.5, q.shape[-1]
    keys, key_scale, mean = int8_reference.quantize_keys(k, None, None, True, grain)
    keys = F.pad(keys, (0, aligned(d) - d))
    values, value_scale, wide, error = v, None, v, 0.0
    if where.get("bytes") == 1:
        value_scale = v.float().abs().amax(2) / 448  # [B, H, d]
        values = (v.float() / value_scale[:, :, None]).to(torch.float8_e4m3fn).transpose(2, 3).contiguous()
        wide = values.float().transpose(2, 3) * value_scale[:, :, None]
        error = 2**-4  # P keeps 3 bits, and is rounded against a maximum that depends on the tiles
    given = (q, keys, key_scale, mean)
    return Work(
        lambda: attend_forward(*given, values, value_scale, None, None, scale, grain),
        lambda: int8_reference.attention(*given, wide, None, None, scale, grain),
        error,
    )


def _quantized_rows(where: Where, device: str) -> Work:
    inputs = where.get("inputs", 4 * LONG[2])
    x, gamma, beta = (_random(*size, inputs, like={"bytes": 2}, device=device) for size in ((LONG[2],), (), ()))

    def call() -> Sequence[Tensor]:
        values, scale = quantize_rows(x, True, gamma, beta, 1e-5)
        return values[:, :inputs], scale

    def truth() -> Sequence[Tensor]:
        return int8_reference.quantize_rows(projected_reference.normed(x.float(), gamma.float(), beta.float(), 1e-5))

    return Work(call, truth)


def _int8_matmul(where: Where, device: str) -> Work:
    rows, outputs, inputs = where.get("rows", LONG[2]), where.get("outputs", LONG[2]), LONG[2]
    x, bias = (_random(*size, like={"bytes": 2}, device=device) for size in ((rows, inputs), (outputs,)))
    weight = Int8Weight.quantize(_weight(outputs, inputs, {"bytes": 2}, device))
    given = (x, weight.values, weight.scale, bias, None, False, None, None, 0.0)
    return Work(lambda: [int8_linear(*given)], lambda: [int8_reference.linear(*given)])


# One line per kernel: (bounds of a row, device) -> Work. On device meta it is only compiled.
WORK: dict[str, Callable[[Where, str], Work]] = {
    "streaming_forward": _forward("streaming"),
    "resident_forward": _forward("resident"),
    "descriptor_forward": _forward("descriptor"),
    "combine": _combined,
    "co_forward": _co_forward,
    "co_backward": _co_backward,
    # More text than the one-pass backward holds, where a row of it would be found first.
    "co_backward_side": lambda where, device: _co_backward(
        {"short": 256 if where.get("head_dim", 0) <= 64 else 64, **where}, device
    ),
    "concat_tokens": _concatenated,
    "backward_delta": lambda where, device: _backward({"bytes": 2, **where}, device),
    "backward_keys": _backward,
    "backward_queries": _backward,
    "backward_keys_resident": _backward,
    "backward_queries_resident": _backward,
    "projected_forward": _projected("one_kernel"),
    "projected_heads": _projected("heads"),
    "absorbed_forward": _absorbed,
    "concat_linear_forward": _joined_features,
    "project_into_forward": _projected_into,
    "key_statistics": _key_statistics,
    "quantize_keys": _quantized_keys,
    "int8_forward": _int8_forward,
    "quantize_rows": _quantized_rows,
    "int8_matmul": _int8_matmul,
}
