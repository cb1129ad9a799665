"""Two sequences as one, in a single launch: what LLaVA-style fusion begins with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .runtime import autocast, cdiv, launch, operator, target, uses_triton
from .table import require


def concat_tokens(a: Tensor, b: Tensor) -> Tensor:
    """``torch.cat((a, b), dim=1)`` of a [B, La, D] and b [B, Lb, D], any strides: [B, La + Lb, D]; differentiable.

    Every element is read and written once, as by ``torch.cat``: there is nothing to gain but the launch. Raises
    ValueError that names the argument which does not fit.
    """
    a, b = autocast(a, b)
    checks.shaped("a", a, None, None, None)
    checks.shaped("b", b, a.shape[0], None, a.shape[2])
    checks.alike(a=a, b=b)
    joined: Tensor = concat_tokens_forward(a, b)
    return joined


@operator("concat_tokens_forward")
def concat_tokens_forward(a: Tensor, b: Tensor) -> Tensor:
    return forward(a, b) if uses_triton(a, b) else torch.cat((a, b), dim=1)


@concat_tokens_forward.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1] + b.shape[1], a.shape[2])


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.first = inputs[0].shape[1]


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
    return dout[:, : ctx.first], dout[:, ctx.first :]


concat_tokens_forward.register_autograd(_differentiate, setup_context=_setup)


def forward(a: Tensor, b: Tensor) -> Tensor:
    """The kernel's launch."""
    from .device.concat_tokens import concat_tokens as kernel

    batch, length, width = a.shape[0], a.shape[1] + b.shape[1], a.shape[2]
    out = a.new_empty(batch, length, width)
    config = require("concat_tokens", target(a.device).arch)
    programs = cdiv(batch * length, config.blocks["BLOCK_R"]) * cdiv(width, config.blocks["BLOCK_D"])
    launch(
        kernel,
        programs,
        a,
        b,
        out,
        *a.stride(),
        *b.stride(),
        a.shape[1],
        length,
        batch * length,
        config=config,
        WIDTH=width,
    )
    return out
