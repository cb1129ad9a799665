"""What a caller may pass: every shape, type and device is looked at before a pointer is handed to a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def shaped(name: str, x: Tensor, *sizes: int | None) -> None:
    """Raises ValueError unless x is a tensor of these sizes; None allows any."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if x.dim() != len(sizes) or any(
        want is not None and have != want for have, want in zip(x.shape, sizes, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} has shape {list(x.shape)}; it must be [{wanted}]")


def alike(**tensors: Tensor) -> None:
    """Raises ValueError unless all are of one floating type on one device."""
    (first, x), *others = tensors.items()
    if x.dtype not in FLOATS:
        raise ValueError(f"{first} is {_short(x.dtype)}; it must be float32, float16, bfloat16 or float64")
    for name, y in others:
        if y.dtype != x.dtype:
            raise ValueError(f"{name} is {_short(y.dtype)} and {first} is {_short(x.dtype)}; they must be the same")
        same_device(**{first: x, name: y})


def same_device(**tensors: Tensor) -> None:
    (first, x), *others = tensors.items()
    for name, y in others:
        if y.device != x.device:
            raise ValueError(f"{name} is on {y.device} and {first} is on {x.device}; they must be on one device")


def padding_mask(name: str, mask: Tensor, batch: int, tokens: int) -> None:
    """A key-padding mask: [B, L] bool, True at tokens that take part."""
    shaped(name, mask, batch, tokens)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} is {_short(mask.dtype)}; it must be bool, True at tokens that take part")


def lengths(name: str, lens: Tensor, batch: int) -> None:
    """How many leading tokens of each sample take part: [B] int. Values are not read: that would wait for the GPU."""
    shaped(name, lens, batch)
    if lens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} is {_short(lens.dtype)}; it must be int32 or int64")


def head_dim(size: int, largest: int) -> None:
    if not 1 <= size <= largest:
        raise ValueError(f"head dim {size} is not supported; it must be 1 to {largest}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
