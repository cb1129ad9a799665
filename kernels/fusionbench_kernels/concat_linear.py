"""Projections that never materialise a concatenation: of two inputs' features, or of two sequences."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from . import checks
from .projected_reference import normed
from .runtime import autocast, cdiv, dense, launch, near, operator, precision, target, uses_triton
from .table import require

Norm = tuple[Tensor, Tensor, float]
"""A LayerNorm: gamma, beta, eps."""


def concat_linear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """linear(cat([a, b], -1)) as a·W_aᵀ + b·W_bᵀ + bias in one kernel with one accumulator; differentiable.

    a [..., Ka], b [..., Kb], weight [N, Ka + Kb], bias [N] -> [..., N], all of one type. The backward pass is PyTorch's
    matmuls, which concatenate no activation either: da = dy·W_a, db = dy·W_b, dW = [dyᵀ·a, dyᵀ·b] (a copy of the
    weight's size). On a CPU the same is computed by plain PyTorch. Raises ValueError that names the argument.
    """
    a, b, weight, bias = autocast(a, b, weight, bias)
    if a.dim() == 0 or a.dim() != b.dim() or a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"a has shape {list(a.shape)} and b {list(b.shape)}; all sizes but the last must be the same")
    checks.shaped("weight", weight, None, a.shape[-1] + b.shape[-1])
    given = {"a": a, "b": b, "weight": weight}
    if bias is not None:
        checks.shaped("bias", bias, weight.shape[0])
        given["bias"] = bias
    checks.alike(**given)
    out: Tensor = concat_linear_forward(a, b, weight, bias)
    return out


def project_into(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, offset: int, norm: Norm | None = None
) -> None:
    """Write linear(LayerNorm(x)) into out[:, offset : offset + L], in one kernel.

    out [B, L', D], x [B, L, K], weight [D, K], bias [D], norm (gamma [K], beta [K], eps). Mean and variance are taken
    in two passes, so that a mean of 100 standard deviations costs no digits. x and out must not overlap.
    For inference: raises RuntimeError where a gradient would be needed (``concat_projected`` has one). Raises
    ValueError that names the argument.
    """
    x, weight, bias = autocast(x, weight, bias)
    norm = _settled_norm("norm", norm)
    checks.shaped("x", x, None, None, None)
    checks.shaped("out", out, x.shape[0], None, weight.shape[0])
    if not 0 <= offset <= out.shape[1] - x.shape[1]:
        raise ValueError(f"offset {offset} is not possible; {x.shape[1]} tokens must end within out's {out.shape[1]}")
    _check_projection("", x, weight, bias, norm, out=out)
    tensors = {"out": out, "x": x, "weight": weight, "bias": bias, "gamma": norm and norm[0], "beta": norm and norm[1]}
    asking = [name for name, y in tensors.items() if y is not None and y.requires_grad]
    if asking and torch.is_grad_enabled():
        raise RuntimeError(f"{asking[0]} requires a gradient; project_into has none (use concat_projected)")
    gamma, beta, eps = norm or (None, None, 0.0)
    project_into_op(out, x, weight, bias, offset, gamma, beta, eps)


def concat_projected(
    a: Tensor, b: Tensor, weight_a: Tensor, weight_b: Tensor, bias_a: Tensor | None = None,
    bias_b: Tensor | None = None, norm_a: Norm | None = None, norm_b: Norm | None = None,
) -> Tensor:  # fmt: skip
    """cat([linear(LayerNorm(a)), linear(LayerNorm(b))], 1): one allocation, two kernels; differentiable.

    a [B, La, Ka], b [B, Lb, Kb], weights [D, Ka] and [D, Kb], biases [D], norms (gamma [K], beta [K], eps) ->
    [B, La + Lb, D]. The backward pass is PyTorch's: it computes the LayerNorms again and reads dy in place.
    Raises ValueError that names the argument.
    """
    a, b, weight_a, weight_b, bias_a, bias_b = autocast(a, b, weight_a, weight_b, bias_a, bias_b)
    norm_a, norm_b = (_settled_norm(name, norm) for name, norm in (("norm_a", norm_a), ("norm_b", norm_b)))
    checks.shaped("a", a, None, None, None)
    checks.shaped("b", b, a.shape[0], None, None)
    _check_projection("_a", a, weight_a, bias_a, norm_a)
    _check_projection("_b", b, weight_b, bias_b, norm_b, weight_a=weight_a)
    checks.shaped("weight_b", weight_b, weight_a.shape[0], None)
    (gamma_a, beta_a, eps_a), (gamma_b, beta_b, eps_b) = norm_a or (None, None, 0.0), norm_b or (None, None, 0.0)
    out: Tensor = concat_projected_forward(
        a, b, weight_a, weight_b, bias_a, bias_b, gamma_a, beta_a, gamma_b, beta_b, eps_a, eps_b
    )
    return out


def _settled_norm(name: str, norm: Norm | None) -> Norm | None:
    if norm is None:
        return None
    if not isinstance(norm, tuple) or len(norm) != 3:
        raise ValueError(f"{name} is a {type(norm).__name__}; it must be a tuple (gamma, beta, eps)")
    return (*autocast(*norm[:2]), norm[2])


def _check_projection(
    side: str, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, **others: Tensor
) -> None:
    width = x.shape[2]
    checks.shaped(f"weight{side}", weight, None, width)
    given = {"x" if not side else side[1:]: x, f"weight{side}": weight, **others}
    if bias is not None:
        checks.shaped(f"bias{side}", bias, weight.shape[0])
        given[f"bias{side}"] = bias
    if norm is not None:
        for name, y in (("gamma", norm[0]), ("beta", norm[1])):
            checks.shaped(f"norm{side}'s {name}", y, width)
            given[f"norm{side}'s {name}"] = y
    checks.alike(**given)


# --- features ------------------------------------------------------------------------------------------------------


@operator("concat_linear")
def concat_linear_forward(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if uses_triton(a, b, weight):
        return forward(a, b, weight, bias)
    first, second = weight[:, : a.shape[-1]], weight[:, a.shape[-1] :]
    return _empty_linear(a, weight).copy_(F.linear(a, first, bias) + F.linear(b, second))


@concat_linear_forward.register_fake
def _(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _empty_linear(a, weight)


def _empty_linear(a: Tensor, weight: Tensor) -> Tensor:
    return a.new_empty((*a.shape[:-1], weight.shape[0]))


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, weight, _ = inputs
    ctx.save_for_backward(a, b, weight)


def _differentiate_linear(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    a, b, weight = ctx.saved_tensors
    need = ctx.needs_input_grad
    first, second = weight[:, : a.shape[-1]], weight[:, a.shape[-1] :]
    rows = dy.reshape(-1, dy.shape[-1])
    d_weight = None
    if need[2]:
        d_weight = torch.cat([rows.T @ x.reshape(rows.shape[0], x.shape[-1]) for x in (a, b)], dim=1)
    return (
        dy @ first if need[0] else None, dy @ second if need[1] else None, d_weight, rows.sum(0) if need[3] else None
    )  # fmt: skip


concat_linear_forward.register_autograd(_differentiate_linear, setup_context=_setup_linear)


@register_flop_formula(torch.ops.fusionbench_kernels.concat_linear)
def _(a: Any, b: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    return int(2 * math.prod(a[:-1]) * math.prod(weight))


def forward(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The launch of ``concat_linear``: shapes as there."""
    from .device import linear as device

    count = math.prod(a.shape[:-1])
    weight = near(weight)
    rows_a, rows_b = (near(x.reshape(count, x.shape[-1])) for x in (a, b))  # a copy where leading strides do not merge
    outputs, out = weight.shape[0], _empty_linear(a, weight)
    flat = out.view(count, outputs)
    config = require("concat_linear_forward", target(a.device).arch, bytes=a.element_size(), rows=count)
    launch(
        device.concat_linear_forward, cdiv(count, config.blocks["BLOCK_M"]) * cdiv(outputs, config.blocks["BLOCK_N"]),
        rows_a, rows_b, weight, dense(bias), flat,
        *rows_a.stride(), *rows_b.stride(), *weight.stride(), *flat.stride(),
        count, outputs, rows_a.shape[1], rows_b.shape[1],
        config=config, HAS_BIAS=bias is not None, PRECISION=precision(a.dtype),
    )  # fmt: skip
    return out


# --- sequences -----------------------------------------------------------------------------------------------------


@operator("project_into", mutates_args=("out",))
def project_into_op(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, offset: int, gamma: Tensor | None,
    beta: Tensor | None, eps: float,
) -> None:  # fmt: skip
    write(out.narrow(1, offset, x.shape[1]), x, weight, bias, gamma, beta, eps)


@project_into_op.register_fake
def _(out: Tensor, *rest: Any) -> None:
    return None


@operator("concat_projected")
def concat_projected_forward(
    a: Tensor, b: Tensor, weight_a: Tensor, weight_b: Tensor, bias_a: Tensor | None, bias_b: Tensor | None,
    gamma_a: Tensor | None, beta_a: Tensor | None, gamma_b: Tensor | None, beta_b: Tensor | None, eps_a: float,
    eps_b: float,
) -> Tensor:  # fmt: skip
    out = _empty_sequence(a, b, weight_a)
    write(out.narrow(1, 0, a.shape[1]), a, weight_a, bias_a, gamma_a, beta_a, eps_a)
    write(out.narrow(1, a.shape[1], b.shape[1]), b, weight_b, bias_b, gamma_b, beta_b, eps_b)
    return out


@concat_projected_forward.register_fake
def _(a: Tensor, b: Tensor, weight_a: Tensor, *rest: Any) -> Tensor:
    return _empty_sequence(a, b, weight_a)


def _empty_sequence(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1] + b.shape[1], weight.shape[0]))


def _setup_sequence(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps_a, ctx.eps_b = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_sequence(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    a, b, weight_a, weight_b, _, _, gamma_a, beta_a, gamma_b, beta_b = ctx.saved_tensors
    need, cut = ctx.needs_input_grad, a.shape[1]
    first = _side(dy[:, :cut], a, weight_a, gamma_a, beta_a, ctx.eps_a, *(need[i] for i in (0, 2, 4, 6, 7)))
    second = _side(dy[:, cut:], b, weight_b, gamma_b, beta_b, ctx.eps_b, *(need[i] for i in (1, 3, 5, 8, 9)))
    pairs = [gradient for pair in zip(first[:3], second[:3], strict=True) for gradient in pair]
    return *pairs, *first[3:], *second[3:], None, None


def _side(
    dy: Tensor, x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float,
    needs_x: bool, needs_weight: bool, needs_bias: bool, needs_gamma: bool, needs_beta: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of linear(LayerNorm(x)): dx, dweight, dbias, dgamma, dbeta; None where not needed."""
    width, rows = x.shape[-1:], dy.flatten(0, 1)
    y = x
    if gamma is not None:
        y, mean, inverse = torch.ops.aten.native_layer_norm(x, width, gamma, beta, eps)
    d_weight = rows.T @ y.flatten(0, 1) if needs_weight else None
    d_bias = rows.sum(0) if needs_bias else None
    if gamma is None:
        return dy @ weight if needs_x else None, d_weight, d_bias, None, None
    if not (needs_x or needs_gamma or needs_beta):
        return None, d_weight, d_bias, None, None
    wanted = [needs_x, needs_gamma, needs_beta]
    gradients = torch.ops.aten.native_layer_norm_backward(
        (dy @ weight).contiguous(), x, width, mean, inverse, gamma, beta, wanted
    )  # fmt: skip
    dx, d_gamma, d_beta = (g if want else None for g, want in zip(gradients, wanted, strict=True))
    return dx, d_weight, d_bias, d_gamma, d_beta


concat_projected_forward.register_autograd(_differentiate_sequence, setup_context=_setup_sequence)


@register_flop_formula(torch.ops.fusionbench_kernels.project_into)
def _(out: Any, x: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    return int(2 * math.prod(x) * weight[0])


@register_flop_formula(torch.ops.fusionbench_kernels.concat_projected)
def _(a: Any, b: Any, weight_a: Any, *rest: Any, **kwargs: Any) -> int:
    return int(2 * (math.prod(a) + math.prod(b)) * weight_a[0])


def write(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> None:
    """out [B, L, D], a slice of a sequence, = linear(LayerNorm(x))."""
    if not uses_triton(out, x, weight):
        out.copy_(F.linear(normed(x, gamma, beta, eps), weight, bias))
        return
    from .device import linear as device

    (batch, length, width), outputs = x.shape, weight.shape[0]
    config = require("project_into_forward", target(x.device).arch, bytes=x.element_size(), rows=batch * length)
    launch(
        device.project_into_forward,
        cdiv(batch * length, config.blocks["BLOCK_M"]) * cdiv(outputs, config.blocks["BLOCK_N"]),
        x, weight, dense(bias), dense(gamma), dense(beta), out,
        *x.stride(), *weight.stride(), *out.stride(), eps, batch, length, width, outputs,
        config=config, HAS_NORM=gamma is not None, HAS_BIAS=bias is not None, PRECISION=precision(x.dtype),
    )  # fmt: skip
