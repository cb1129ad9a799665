"""How far a result is from the truth, and whether that is as near as its dtype allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..record import Deviation

# The compute dtype's rounding unit: half the distance from 1 to the next number.
_ROUNDING = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
TF32_ROUNDING = 2**-11

FEW = 100  # numbers below which the error of a tensor is a matter of luck


def deviation(results: Sequence[Tensor], truths: Sequence[Tensor]) -> Deviation:
    """The error of ``results`` against ``truths`` (fp64 or fp32, same shapes), over all of them together.

    Every field is None when a result holds a NaN or an infinity that the truth does not.
    """
    largest = total = product = 0.0
    error_norm, result_norm, norm, count = 0.0, 0.0, 0.0, 0
    # Tensor by tensor: joined and in fp64, the gradients of a model and their errors take more memory than the model.
    for result, truth in zip(results, truths, strict=True):
        r, t = result.detach().to(truth.dtype).flatten(), truth.detach().flatten()
        error = (r - t).abs_()
        if not bool(error.isfinite().all()):
            return Deviation(max_abs=None, mean_abs=None, rel_l2=None, cosine=None)
        largest = max(largest, float(error.max()) if len(error) else 0.0)
        total, count, product = total + float(error.sum()), count + len(error), product + float(torch.dot(r, t))
        error_norm = math.hypot(error_norm, float(error.norm()))
        result_norm, norm = math.hypot(result_norm, float(r.norm())), math.hypot(norm, float(t.norm()))
    both = norm * result_norm
    return Deviation(
        max_abs=largest,
        mean_abs=total / count if count else 0.0,
        rel_l2=error_norm / norm if norm else error_norm,
        cosine=product / both if both else 1.0,
    )


@dataclass(frozen=True)
class Allowance:
    """Relative errors, times the largest (for the mean: the average) true value, that are never held against a result.

    ``order``: what the order of summation may change, beside ``factor`` times eager's error. ``rounding``: what one
    rounding into the dtype may change, where eager happens to be exact.
    """

    order: float
    rounding: float


def allowance(dtype: torch.dtype, terms: int, *, tf32: bool = False) -> Allowance:
    """The allowance of sums of ``terms`` numbers in an fp32 accumulator.

    Adding numbers of random sign one after another is off by about √(terms/2) roundings of the sum's usual size
    (partial sum k has size √k and is rounded once). Eager adds in blocks and is often far better than that.
    """
    return Allowance(math.sqrt(terms) * _ROUNDING[torch.float32], rounding(dtype, tf32=tf32))


def verdict(
    results: Sequence[Tensor], yardsticks: Sequence[Tensor], truths: Sequence[Tensor], allowed: Allowance, factor: float
) -> str | None:
    """None when every tensor's error is at most ``factor`` times the yardstick's (max and mean), else the reason.

    The yardstick is eager PyTorch in the same dtype. The average that an allowance refers to is that of the tensor
    or of all tensors, whichever is more: gradients that are zero in exact arithmetic, as those of key biases, leave
    nothing but rounding to compare. A tensor of few numbers (a gate's gradient is one) has a yardstick that is a
    single draw, near zero by luck: it is held against eager's largest error in any tensor.
    """
    largest = max((float(t.detach().abs().max()) for t in truths if t.numel()), default=0.0)
    usual = sum(float(t.detach().abs().sum()) for t in truths) / max(1, sum(t.numel() for t in truths))
    worst = deviation(yardsticks, truths).max_abs or 0.0
    for number, (result, yardstick, truth) in enumerate(zip(results, yardsticks, truths, strict=True), 1):
        found, own = deviation([result], [truth]), deviation([yardstick], [truth])
        if found.max_abs is None or found.mean_abs is None:
            return "not finite where the reference is"
        average = float(truth.detach().abs().mean()) if truth.numel() else 0.0
        for what, error, eager, scale in (
            ("max", found.max_abs, own.max_abs or 0.0, largest),
            ("mean", found.mean_abs, own.mean_abs or 0.0, max(average, usual)),
        ):
            eager = max(eager, worst) if truth.numel() < FEW else eager
            limit = max(factor * eager + allowed.order * scale, allowed.rounding * scale)
            if error > limit:
                which = f"tensor {number} of {len(truths)}: " if len(truths) > 1 else ""
                bound = f"{limit:.3g}, {factor:g}x the error of eager ({eager:.3g})"
                return f"{which}{what} error {error:.3g} is above {bound}"
    return None


def rounding(dtype: torch.dtype, *, tf32: bool = False) -> float:
    """Half a unit in the last place of 1 in ``dtype``."""
    return TF32_ROUNDING if tf32 else _ROUNDING[dtype]


def int8_verdict(result: Deviation, rel_l2: float, cosine: float) -> str | None:
    """None when a quantised result is near enough by the suite's thresholds, else the reason."""
    if result.rel_l2 is None or result.cosine is None:
        return "not finite where the reference is"
    if result.rel_l2 > rel_l2:
        return f"relative L2 error {result.rel_l2:.3g} is above the suite's int8_rel_l2 {rel_l2:g}"
    if result.cosine < cosine:
        return f"cosine {result.cosine:.6g} is below the suite's int8_cosine {cosine:g}"
    return None
