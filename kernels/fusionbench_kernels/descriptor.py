"""The launch of the "descriptor" variant: what it takes, and the workspace its descriptors are made in."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor

from .runtime import cdiv, launch, power_of_two, precision, recording, target
from .table import Config

TMA_BYTES = 16  # what base addresses and strides of a tensor descriptor must be multiples of


def descriptor_launch(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, config: Config,
) -> None:  # fmt: skip
    """Attention of q [B, H, Lq, d] over k, v [B, Hkv, Lk, d] into out (laid out as q) and lse [B, H, Lq].

    On a GPU the first call of a process for each device, configuration, head dim and type runs
    ``descriptor_check.faults_on``: several seconds, most of them compiling.

    Raises ValueError where the tensors do not suit the TMA unit, or a mask or a bias is given; RuntimeError where the
    check failed, or would have to run while a CUDA graph is being captured.
    """
    reason = unfit(q, k, v, mask, bias, scale)
    if reason:
        raise ValueError(f"variant 'descriptor' {reason}")
    if _checkable(q):
        from .descriptor_check import faults_on

        faults = faults_on(q.device, config, q.shape[-1], q.dtype)
        if faults:
            raise RuntimeError(
                f"variant 'descriptor' failed its check on this {target(q.device).arch} device and is not used: "
                f"{'; '.join(faults)} (use variant 'streaming')"
            )
    run(q, k, v, out, lse, lens, scale, config)


def usable(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float
) -> Callable[[Config], bool]:
    """Whether a configuration takes these tensors and passed its check; ``dispatch`` asks before it prefers one."""

    def answer(config: Config) -> bool:
        if unfit(q, k, v, mask, bias, scale):
            return False
        if not _checkable(q):
            return True
        from .descriptor_check import faults_on, known

        capturing = torch.cuda.is_current_stream_capturing()
        if capturing and not known(q.device, config, q.shape[-1], q.dtype):
            return False
        return not faults_on(q.device, config, q.shape[-1], q.dtype)

    return answer


def unfit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float) -> str:
    """What keeps the variant from running these tensors, with the remedy; empty where nothing does."""
    if bias is not None:
        return "takes no bias; use variant 'streaming'"
    if mask is not None:
        # V at padded keys may hold NaN and goes from memory to the tensor cores without passing a register.
        return "takes no key_padding_mask; use kv_lens, or variant 'streaming'"
    if not scale > 0:
        return f"takes positive scales, not {scale:g}; use variant 'streaming'"
    # Out is laid out as q, or densely in the order of q's sizes: what holds for q holds for it.
    return next(filter(None, (_unreadable(name, x) for name, x in (("q", q), ("k", k), ("v", v)))), "")


def _unreadable(name: str, x: Tensor) -> str:
    """Why the TMA unit cannot read ``x`` [B, H, L, d] one (batch, head) at a time."""
    if x.numel() == 0:
        return ""
    remedy = "use variant 'streaming'"
    size = x.element_size()
    if x.shape[3] * size % TMA_BYTES:
        return f"reads rows of a multiple of {TMA_BYTES} bytes, and {name} has {x.shape[3] * size}; {remedy}"
    if x.stride(3) != 1:
        return f"reads contiguous rows, and {name} has last stride {x.stride(3)}; {remedy}, or make it contiguous"
    for axis, label in enumerate(("batch", "head", "row")):
        step = x.stride(axis) * size
        if x.shape[axis] > 1 and (step % TMA_BYTES or (axis == 2 and step == 0)):
            return f"needs strides of a multiple of {TMA_BYTES} bytes, and {name}'s {label} stride is {step}; {remedy}"
    if x.data_ptr() % TMA_BYTES:
        return (
            f"needs addresses aligned to {TMA_BYTES} bytes, and {name} begins {x.data_ptr() % TMA_BYTES} past one; "
            f"{remedy}, or clone it"
        )
    return ""


def run(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lens: Tensor | None, scale: float, config: Config
) -> None:
    """The launch alone, of tensors that fit."""
    from .device.descriptor import descriptor_forward

    batch, heads, queries, head_dim = q.shape
    keys = k.shape[2]
    if keys == 0:
        out.zero_()
        lse.fill_(float("-inf"))
        return
    _with_workspace(
        lambda: launch(
            descriptor_forward, batch * heads * cdiv(queries, config.blocks["BLOCK_Q"]), q, k, v, out, lse, lens,
            *_strides(q), *_strides(k), *_strides(v), *_strides(out), scale, heads, heads // k.shape[1], queries, keys,
            config=config, HEAD_DIM=head_dim, WIDTH=width(head_dim), HAS_LENS=lens is not None,
            EVEN=lens is None and keys % config.blocks["BLOCK_K"] == 0, PRECISION=precision(q.dtype),
        )
    )  # fmt: skip


def width(head_dim: int) -> int:
    """The columns of a tile; those beyond the head dim are filled with zeros.

    At least 64: narrower tiles in kernels of two products have read outside of shared memory on sm_90 (triton #10486).
    """
    return max(64, power_of_two(head_dim))


def _strides(x: Tensor) -> tuple[int, int, int]:
    """(batch, head, row); PyTorch lets the stride of a single row be anything, a descriptor does not."""
    return x.stride(0), x.stride(1), x.stride(2) if x.shape[2] > 1 else x.shape[3]


def _checkable(x: Tensor) -> bool:
    """Whether there is a GPU to check: not in the interpreter, nor while compiling ahead of time."""
    return x.device.type == "cuda" and not recording()


# --- the workspace -------------------------------------------------------------------------------------------------


def _with_workspace(start: Callable[[], None]) -> None:
    """Start kernels that make descriptors: Triton asks its allocator for 128 bytes each, and has none by default.

    The allocator is a context variable, so in a copy of the context a caller's own stays as it is.
    """
    copy_context().run(_started, start)


def _started(start: Callable[[], None]) -> None:
    import triton

    triton.set_allocator(_workspace)
    start()


def _workspace(size: int, alignment: int, stream: int | None) -> Any:
    # ``launch`` made the tensors' device the current one, and Triton launches on PyTorch's current stream, which the
    # caching allocator orders this memory's reuse by. It aligns to 512 bytes.
    return torch.empty(size, dtype=torch.int8, device="cuda")
