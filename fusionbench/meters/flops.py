"""FLOPs as counted from the ops that ran: torch's FlopCounterMode with its blind spots corrected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import fusionbench_kernels  # noqa: F401 - registers its operators and their formulas

aten = torch.ops.aten
kernels = torch.ops.fusionbench_kernels


@dataclass(frozen=True)
class Counted:
    """FLOPs of matrix products (2 per multiply-add), and which attention and int8 kernels they ran in."""

    flops: int
    ops: tuple[str, ...]


def count_flops(call: Callable[[], object]) -> Counted:
    """Run ``call`` once and count what it dispatched; compiled regions and custom kernels are not seen.

    Raises TypeError for compiled flex attention, which torch 2.13 cannot run while ops are being watched.
    """
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        call()
    by_op = counter.get_flop_counts().get("Global", {})
    names = {op.__name__ for op in by_op}
    return Counted(sum(by_op.values()), tuple(sorted(n for n in names if "attention" in n or n == "_int_mm")))


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    b, h, queries, d = q
    return 2 * b * h * queries * k[2] * (d + v[3])


def _attention_backward(
    grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * _attention(q, k, v)


def _fused_backward(q: Sequence[int], k: Sequence[int], *_: Any, **__: Any) -> int:
    return 8 * q[0] * q[1] * q[2] * k[2] * q[3]


def _shared_backward(text: Sequence[int], image: Sequence[int], *_: Any, **__: Any) -> int:
    return 12 * text[0] * text[1] * text[2] * image[2] * text[3]


def _int_mm(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


# torch 2.13 has no formula for the CPU's flash attention and _int_mm, which then count as 0 (pytorch#195460).
# It does count the scores that a flash backward pass recomputes, a fifth product: the closed forms count work
# that the mathematics needs, four products, so that every impl of one attention has the same FLOPs.
_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
    aten._int_mm: _int_mm,
    kernels.attention_backward: _fused_backward,
    kernels.co_attention_backward: _shared_backward,
}
