"""W8A8: a linear layer over int8 products, its input quantised per token in one pass that LayerNorm can join."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, int8_reference
from .runtime import aligned, cdiv, dense, launch, operator, power_of_two, target, uses_triton
from .table import require

MAX_INPUTS = 131_072  # 127² times more than that would leave int32


@dataclass(frozen=True)
class Int8Weight:
    """The weight of a linear layer [N, K] as int8 with a scale per output; made once, by ``quantize``."""

    values: Tensor  # [N, K up to a multiple of 16] int8, zeros at the end
    scale: Tensor  # [N] fp32
    inputs: int  # K

    @classmethod
    def quantize(cls, weight: Tensor) -> Int8Weight:
        """weight [N, K], floating: each output's largest magnitude becomes 127, rounding is half to even."""
        checks.shaped("weight", weight, None, None)
        checks.alike(weight=weight)
        if not 1 <= weight.shape[1] <= MAX_INPUTS:
            raise ValueError(f"weight has {weight.shape[1]} inputs; it must have 1 to {MAX_INPUTS} (sums fit int32)")
        values, scale = int8_reference.quantize_rows(weight.detach())
        inputs = weight.shape[1]
        return cls(torch.nn.functional.pad(values, (0, aligned(inputs) - inputs)), scale, inputs)


def int8_linear(
    x: Tensor,
    weight: Int8Weight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    norm: tuple[Tensor | None, Tensor | None, float] | None = None,
) -> Tensor:
    """x Wᵀ + bias + residual, x quantised per token and multiplied in int8. Inference only.

    x [..., K] floating, any strides; bias [N]; residual [..., N]; the result has the dtype of x. ``norm`` = (gamma [K],
    beta [K], eps) applies LayerNorm to x first, in the pass that quantises it, in float32 and unrounded; gamma and
    beta may be None. A row that holds a value that is not finite gives NaN.

    Raises ValueError that names the argument which does not fit, RuntimeError in a backward pass.
    """
    if not isinstance(weight, Int8Weight):
        raise ValueError(f"weight is a {type(weight).__name__}; it must be an Int8Weight (Int8Weight.quantize)")
    gamma, beta, eps = norm if norm is not None else (None, None, 0.0)
    _check(x, weight, bias, residual, gamma, beta)
    count, outputs = math.prod(x.shape[:-1]), weight.values.shape[0]
    rows = x.reshape(count, weight.inputs)
    flat = None if residual is None else residual.reshape(count, outputs)
    out: Tensor = linear(rows, weight.values, weight.scale, bias, flat, norm is not None, gamma, beta, float(eps))
    return out.view(*x.shape[:-1], outputs)


def _check(
    x: Tensor, weight: Int8Weight, bias: Tensor | None, residual: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None,
) -> None:  # fmt: skip
    if x.dtype not in checks.FLOATS:
        raise ValueError(f"x is {str(x.dtype).removeprefix('torch.')}; it must be floating")
    checks.shaped("x", x, *[None] * (max(1, x.dim()) - 1), weight.inputs)
    outputs = weight.values.shape[0]
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "bias": (bias, (outputs,)),
        "residual": (residual, (*x.shape[:-1], outputs)),
        "gamma": (gamma, (weight.inputs,)),
        "beta": (beta, (weight.inputs,)),
    }
    checks.same_device(x=x, weight=weight.values)
    for name, (tensor, shape) in wanted.items():
        if tensor is not None:
            checks.shaped(name, tensor, *shape)
            checks.same_device(**{"x": x, name: tensor})


# --- the operator --------------------------------------------------------------------------------------------------


@operator("int8_linear")
def linear(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: bool,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    others = [y for y in (bias, residual, gamma, beta) if y is not None]
    if uses_triton(x, values, *others):
        return forward(x, values, scale, bias, residual, norm, gamma, beta, eps)
    return int8_reference.linear(x, values, scale, bias, residual, norm, gamma, beta, eps)


@linear.register_fake
def _(x: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], values.shape[0]))


def _refuse(ctx: Any, gradient: Tensor) -> None:
    raise RuntimeError(
        "int8_linear is for inference and has no gradients: train through torch.nn.functional.linear, "
        "or call it under torch.no_grad()"
    )


linear.register_autograd(_refuse)


@register_flop_formula(torch.ops.fusionbench_kernels.int8_linear)
def _(x: Any, values: Any, *rest: Any, **kwargs: Any) -> int:
    return int(2 * math.prod(x) * values[0])


# --- launching -----------------------------------------------------------------------------------------------------


def forward(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, norm: bool,
    gamma: Tensor | None, beta: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """The kernels' launch: x [M, K], values [N, aligned(K)], residual [M, N]."""
    from .device.int8_linear import int8_matmul

    rows, row_scale = quantize_forward(x, norm, gamma, beta, eps)
    count, outputs, columns = x.shape[0], values.shape[0], values.shape[1]
    out = x.new_empty((count, outputs))
    config = require("int8_matmul", target(x.device).arch, rows=count, outputs=outputs)
    launch(
        int8_matmul, cdiv(count, config.blocks["BLOCK_M"]) * cdiv(outputs, config.blocks["BLOCK_N"]),
        rows, values, row_scale, scale, dense(bias), residual, out, rows.stride(0), values.stride(0),
        *((0, 0) if residual is None else residual.stride()), *out.stride(), count, outputs, columns,
        config=config, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
    )  # fmt: skip
    return out


def quantize_forward(
    x: Tensor, norm: bool, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(int8 [M, aligned(K)], scale [M]): the launch of the kernel that reads x once, or per chunk if rows are long."""
    from .device.int8_linear import quantize_rows

    count, inputs = x.shape
    values = x.new_empty((count, aligned(inputs)), dtype=torch.int8)
    scale = x.new_empty(count, dtype=torch.float32)
    config = require("quantize_rows", target(x.device).arch, inputs=inputs)
    launch(
        quantize_rows, cdiv(count, config.blocks["BLOCK_M"]), x, dense(gamma), dense(beta), values, scale,
        *x.stride(), eps, count, inputs, aligned(inputs), config=config, WIDTH=max(16, power_of_two(inputs)), NORM=norm,
        HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None,
    )  # fmt: skip
    return values, scale
