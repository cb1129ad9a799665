"""Fused cross-attention: softmax(QKᵀ·scale + bias)V over the keys that take part, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, reference
from .attention_launch import backward, choose, empty, empty_gradients, forward
from .dispatch import MAX_HEAD_DIM, Choice, check_variant
from .names import Variant
from .runtime import autocast, operator, settled, uses_triton, without_kernel
from .table import Config


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    kv_lens: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    variant: Variant = "auto",
    splits: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(QKᵀ·scale + bias)V, every query over the keys that take part; differentiable, deterministic.

    q [B, H, Lq, d], k and v [B, Hkv, Lk, d] with H a multiple of Hkv (GQA), any strides, d up to 256; float32, float16,
    bfloat16 (float64 in plain PyTorch). ``key_padding_mask`` [B, Lk] bool, True at keys that take part; ``kv_lens`` [B]
    int, how many leading keys take part; given both, a key must pass both. ``bias`` floating, broadcastable to
    [B, H, Lq, Lk], added to the scaled scores; its gradient takes a buffer of that size. ``scale`` defaults to 1/√d.
    Products of float32 follow ``torch.backends.cuda.matmul.fp32_precision``.

    Returns out [B, H, Lq, d], with ``return_lse`` also the natural log-sum-exp of each row [B, H, Lq] float32
    (float64 for float64), differentiable. A row without keys gives 0, -inf and zero gradients; keys that take no
    part may hold NaN. There is one derivative, in reverse: no double backward, no ``torch.func``.

    An autocast region casts the operands, as it does for SDPA. ``variant`` forces a kernel on a GPU where ``choice``
    would pick another; ``splits`` with "split" the number of splits.
    The first "descriptor" of a process checks that kernel on its GPU, which takes several seconds, and raises
    RuntimeError where it fails.
    On a CPU the same is computed by plain PyTorch. Raises ValueError that names the argument which does not fit.
    """
    q, k, v = autocast(q, k, v)
    _check(q, k, v, key_padding_mask, kv_lens, bias)
    check_variant(variant, splits)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    out, lse = attention_forward(q, k, v, key_padding_mask, kv_lens, bias, scale, variant, splits)
    return (out, lse) if return_lse else out


def choice(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    variant: Variant = "auto",
    splits: int = 0,
) -> Choice:
    """Which kernel ``cross_attention`` runs for these arguments on their device, and why; v is taken to be as k.

    "pytorch" where none does: on a CPU, and in float64.
    """
    _check(q, k, k if v is None else v, key_padding_mask, None, bias)
    check_variant(variant, splits)
    if not uses_triton(q, k):
        return Choice("pytorch", Config({}, 0, 0), reason=without_kernel(q))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return choose(q, k, k if v is None else v, key_padding_mask, bias, scale, variant, splits)


def attention_weights(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    kv_lens: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The probabilities [B, H, Lq, Lk] of a ``cross_attention`` that returned this ``lse``, in plain PyTorch.

    In float32 (float64 for float64). They take Lq·Lk memory, which is what the kernels avoid: to look at, not to
    train through.
    """
    _check(q, k, k, key_padding_mask, kv_lens, bias)
    checks.shaped("lse", lse, *q.shape[:3])
    checks.same_device(q=q, lse=lse)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kind = torch.promote_types(q.dtype, torch.float32)
    wide_k = k.to(kind).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    with settled(q.device):
        scores = (q.to(kind) @ wide_k.transpose(-2, -1)) * scale
    if bias is not None:
        scores = scores + bias.to(kind)
    p = torch.exp(scores - lse.masked_fill(lse == -math.inf, math.inf)[..., None])
    keep = reference.keep_mask(key_padding_mask, kv_lens, k.shape[2], q.device)
    return p if keep is None else p.masked_fill(~keep[:, None, None, :], 0.0)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lens: Tensor | None, bias: Tensor | None) -> None:
    checks.shaped("q", q, None, None, None, None)
    batch, heads, _, head_dim = q.shape
    checks.shaped("k", k, batch, None, None, head_dim)
    checks.shaped("v", v, *k.shape)
    checks.alike(q=q, k=k, v=v)
    checks.head_dim(head_dim, MAX_HEAD_DIM)
    if heads == 0 or k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"q has {heads} heads and k has {k.shape[1]}; the first must be a multiple of the second")
    if mask is not None:
        checks.padding_mask("key_padding_mask", mask, batch, k.shape[2])
        checks.same_device(q=q, key_padding_mask=mask)
    if lens is not None:
        checks.lengths("kv_lens", lens, batch)
        checks.same_device(q=q, kv_lens=lens)
    if bias is not None:
        checks.same_device(q=q, bias=bias)
        full = (batch, heads, q.shape[2], k.shape[2])
        if bias.dtype not in checks.FLOATS:
            raise ValueError(f"bias is {bias.dtype}; it must be floating (for a bool mask use key_padding_mask)")
        if bias.dim() != 4 or any(have not in (1, want) for have, want in zip(bias.shape, full, strict=True)):
            raise ValueError(f"bias has shape {list(bias.shape)}; each size must be 1 or that of {list(full)}")


# --- the operators -------------------------------------------------------------------------------------------------


@operator("attention_forward")
def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    variant: str,
    splits: int,
) -> tuple[Tensor, Tensor]:
    if uses_triton(q, k, v):
        return forward(q, k, v, mask, lens, bias, scale, variant, splits)  # type: ignore[arg-type]
    out, lse = empty(q)
    found = reference.attention(q, k, v, mask, lens, bias, scale)
    return out.copy_(found[0]), lse.copy_(found[1])


@attention_forward.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty(q)


@operator("attention_backward")
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    wants_ds: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if uses_triton(q, k, v):
        return backward(q, k, v, out, lse, dout, dlse, mask, lens, bias, scale, wants_ds)
    found = empty_gradients(q, k, v, wants_ds)
    truth = reference.attention_backward(q, k, v, out, lse, dout, dlse, mask, lens, bias, scale)
    for to, value in zip(found[: 4 if wants_ds else 3], truth, strict=False):
        to.copy_(value)
    return found


@attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(q, k, v, rest[-1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, lens, bias, ctx.scale, *_ = inputs
    ctx.save_for_backward(q, k, v, *output, mask, lens, bias)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, mask, lens, bias = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    wants_ds = bool(ctx.needs_input_grad[5])
    dq, dk, dv, ds = attention_backward(q, k, v, out, lse, dout, dlse, mask, lens, bias, ctx.scale, wants_ds)
    return dq, dk, dv, None, None, ds.to(bias.dtype) if wants_ds else None, None, None, None


attention_forward.register_autograd(_differentiate, setup_context=_setup)


@register_flop_formula(torch.ops.fusionbench_kernels.attention_forward)
def _(q: Any, k: Any, *rest: Any, **kwargs: Any) -> int:
    return int(4 * math.prod(q) * k[2])  # S = QKᵀ and PV


@register_flop_formula(torch.ops.fusionbench_kernels.attention_backward)
def _(q: Any, k: Any, *rest: Any, **kwargs: Any) -> int:
    return int(10 * math.prod(q) * k[2])  # S again, dP, dV, dQ, dK; what two-pass kernels do twice counts once
