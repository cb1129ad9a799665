"""One representative call of every kernel, by the sizes a row of the table bounds: what is compiled ahead of time.

Tensors are of device ``meta``: the host function runs as always and its launches are recorded (``compiling_for``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .absorbed import forward as absorbed
from .attention_launch import backward, combine_splits, forward, gradients_of_keys, gradients_of_queries
from .co_attention import Output, Side
from .co_attention import backward as co_backward
from .co_attention import forward as co_forward
from .concat_linear import forward as concat_linear
from .concat_linear import write
from .concat_tokens import forward as concat_tokens
from .int8_attention import _empty_quantized, _statistics, attend_forward, quantize_forward
from .int8_linear import forward as linear_forward
from .int8_linear import quantize_forward as quantize_rows_forward
from .names import Variant
from .projected import ProjectedVariant
from .projected import forward as projected
from .runtime import aligned

Where = Mapping[str, int]
LONG, BATCH, HEADS = 1024, 2, 8


def tensor(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def element(where: Where) -> torch.dtype:
    """The type of the widest element a row allows."""
    return torch.float16 if where.get("bytes", 4) <= 2 else torch.float32


def qkv(where: Where) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, Lq, d], k and v [B, H, Lk, d] at the row's upper bounds; without one, long and of head dim 256."""
    queries, keys, d = where.get("queries", LONG), where.get("keys", LONG), where.get("head_dim", 256)
    q, kv = tensor(BATCH, HEADS, queries, d, dtype=element(where)), (BATCH, HEADS, keys, d)
    return q, tensor(*kv, dtype=element(where)), tensor(*kv, dtype=element(where))


def masks(where: Where, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(key padding, bias) at a row's upper bounds: both, since they take registers, where it does not say bias 0."""
    if where.get("bias") == 0:
        return None, None
    padding = tensor(k.shape[0], k.shape[2], dtype=torch.bool)
    return padding, tensor(1, q.shape[1], 1, k.shape[2], dtype=q.dtype).expand(*q.shape[:3], k.shape[2])


def _forward(variant: Variant) -> Callable[[Where], None]:
    def call(where: Where) -> None:
        q, k, v = qkv(where)
        padding, bias = (None, None) if variant == "descriptor" else masks(where, q, k)
        forward(q, k, v, padding, None, bias, q.shape[-1] ** -0.5, variant)

    return call


def _backward(where: Where) -> None:
    q, k, v = qkv(where)
    lse = tensor(*q.shape[:3], dtype=torch.float32)
    padding, bias = masks(where, q, k)
    backward(q, k, v, q, lse, q, None, padding, None, bias, q.shape[-1] ** -0.5)


def _two_pass_backward(where: Where) -> None:
    q, k, v = qkv(where)
    lse = tensor(*q.shape[:3], dtype=torch.float32)
    padding, bias = masks(where, q, k)
    common = (q, k, v, q, lse, lse, padding, None, bias, q.shape[-1] ** -0.5)
    gradients_of_keys(*common, k, v)
    ds = None if bias is None else tensor(*q.shape[:3], k.shape[2], dtype=torch.float32)  # the bias's gradient
    gradients_of_queries(*common, q, ds)


def _projected(variant: ProjectedVariant) -> Callable[[Where], None]:
    def call(where: Where) -> None:
        kind, d, width = element(where), where.get("head_dim", 256), where.get("outputs", 1280)
        heads = max(1, width // d)
        x, kv = tensor(BATCH, LONG, width, dtype=kind), tensor(BATCH, heads, where["keys"], d, dtype=kind)
        q_weight, out_weight = tensor(heads * d, width, dtype=kind), tensor(width, heads * d, dtype=kind)
        q_bias, out_bias = tensor(heads * d, dtype=kind), tensor(width, dtype=kind)
        projected(x, kv, kv, None, q_weight, q_bias, out_weight, out_bias, d**-0.5, variant)

    return call


def _absorbed(where: Where) -> None:
    kind, keys, width = element(where), where.get("keys", 256), where.get("outputs", 1280)
    both, bias = tensor(BATCH, HEADS, keys, width, dtype=kind), tensor(BATCH, HEADS, keys, dtype=torch.float32)
    absorbed(tensor(BATCH, LONG, width, dtype=kind), both, bias, both, tensor(width, dtype=kind))


def _concat_linear(where: Where) -> None:
    kind = element(where)
    x = tensor(where.get("rows", 4 * LONG), 640, dtype=kind)
    concat_linear(x, x, tensor(640, 1280, dtype=kind), tensor(640, dtype=kind))


def _project_into(where: Where) -> None:
    kind, rows = element(where), where.get("rows", 4 * LONG)
    one, sequence = tensor(640, dtype=kind), tensor(1, 77 + rows, 640, dtype=kind)
    write(sequence[:, 77:], tensor(1, rows, 640, dtype=kind), tensor(640, 640, dtype=kind), one, one, one, 1e-5)


def _int8_forward(where: Where) -> None:
    q, k, v = qkv(where)
    fp8 = where.get("bytes") == 1
    keys, scale, mean, v8, v_scale = _empty_quantized(k, True, where.get("grain", 1), fp8)
    values, value_scale = (v8, v_scale) if fp8 else (v, None)
    grain = where.get("grain", 1)
    mask = tensor(k.shape[0], k.shape[2], dtype=torch.bool)  # masks cost registers
    attend_forward(q, keys, scale, mean, values, value_scale, mask, None, q.shape[-1] ** -0.5, grain)


def _key_statistics(where: Where) -> None:
    _, k, v = qkv({"bytes": 2, **where})
    _statistics(k, v, None, None, True, False)


def _quantize_keys(where: Where) -> None:
    _, k, v = qkv({"bytes": 2, **where})
    quantize_forward(k, v, None, None, True, where.get("grain", 1), False)


def _quantize_rows(where: Where) -> None:
    inputs = where.get("inputs", 32 * LONG)
    quantize_rows_forward(tensor(LONG, inputs), True, tensor(inputs), tensor(inputs), 1e-5)


def _int8_matmul(where: Where) -> None:
    rows, outputs, inputs = where.get("rows", LONG), where.get("outputs", LONG), LONG
    weight = tensor(outputs, aligned(inputs), dtype=torch.int8), tensor(outputs, dtype=torch.float32)
    linear_forward(tensor(rows, inputs), *weight, tensor(outputs), tensor(rows, outputs), False, None, None, 0.0)


def _co_sides(where: Where) -> tuple[Side, Side]:
    """Text at the row's upper bound, image long, both masked: masks cost registers."""
    short, d = where.get("short", 64), where.get("head_dim", 128)
    text, image = (tensor(BATCH, HEADS, tokens, d, dtype=element(where)) for tokens in (short, 4 * LONG))
    masks = (tensor(BATCH, tokens, dtype=torch.bool) for tokens in (short, 4 * LONG))
    return Side(text, text, next(masks)), Side(image, image, next(masks))


def _co_forward(where: Where) -> None:
    co_forward(*_co_sides(where), 0.125, "fused")


def _co_backward(where: Where) -> None:
    text, image = _co_sides(where)
    of_text, of_image = (Output(s.x, tensor(*s.x.shape[:3], dtype=torch.float32), s.x, None) for s in (text, image))
    co_backward(text, image, of_text, of_image, 0.125, "fused")


CALLS: dict[str, Callable[[Where], object]] = {
    "streaming_forward": _forward("streaming"),
    "resident_forward": _forward("resident"),
    "descriptor_forward": _forward("descriptor"),
    "combine": lambda where: combine_splits(
        tensor(4, BATCH, HEADS, 64, where.get("head_dim", 256), dtype=torch.float32),
        tensor(4, BATCH, HEADS, 64, dtype=torch.float32),
        tensor(BATCH, HEADS, 64, where.get("head_dim", 256)),
        tensor(BATCH, HEADS, 64, dtype=torch.float32),
    ),
    "co_forward": _co_forward,
    "co_backward": _co_backward,
    # More text than the one-pass backward holds, where a row of it would be found first.
    "co_backward_side": lambda where: _co_backward({"short": 256 if where.get("head_dim", 0) <= 64 else 64, **where}),
    "concat_tokens": lambda where: concat_tokens(tensor(BATCH, LONG, 768), tensor(BATCH, 64, 768)),
    "backward_delta": _backward,
    "backward_keys": _two_pass_backward,
    "backward_queries": _two_pass_backward,
    "backward_keys_resident": _backward,
    "key_statistics": _key_statistics,
    "quantize_keys": _quantize_keys,
    "int8_forward": _int8_forward,
    "quantize_rows": _quantize_rows,
    "int8_matmul": _int8_matmul,
    "backward_queries_resident": lambda where: _backward({"keys": 4 * LONG, **where}),
    "projected_forward": _projected("one_kernel"),
    "projected_heads": _projected("heads"),
    "absorbed_forward": _absorbed,
    "concat_linear_forward": _concat_linear,
    "project_into_forward": _project_into,
}
