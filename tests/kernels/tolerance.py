"""When a kernel's result is as right as its dtype allows: no worse than eager PyTorch, by the same fp64 truth.

The golden result is fp64. The yardstick is eager PyTorch in the kernel's own dtype, its scale applied to k, so that
its error includes what another order of the same operations does (FlashAttention's ``reorder_ops``). A result passes
when its largest error is at most 2x the yardstick's (gradients 3x: they chain twice as many products) and its mean
error at most 1.5x (gradients 2x): a maximum alone hides a bias. FlashAttention tests by the same factors.

Beside that factor stands a floor, which only the operation and its inputs decide: what the order of summation may
change. ``sensitivity`` is the standard deviation of a number, in roundings, when every operation before it rounds once
and on its own. A sum of n numbers of random sign and size σ rounds partial sums of size σ√k, together σn/√2 or 0.9 times
the sum of absolute values, which stands for it. In fp32 (2⁻²⁴, the kernels' accumulators) one standard deviation is
the floor of the mean error, four of them that of the largest of some ten thousand numbers.

A tensor of fewer than 100 numbers gives the yardstick few draws, all of which may be near zero by luck: one rounding to
the result's own dtype per operation is never held against it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
TF32_ROUNDING = 2**-11
FEW = 100


def compare(
    name: str,
    result: Tensor,
    truth: Tensor,
    yardstick: Tensor,
    *,
    sensitivity: Tensor,
    gradient: bool = False,
    tf32: bool = False,
) -> None:
    """Raises AssertionError that shows the worst number unless ``result`` is as near ``truth`` as ``yardstick``.

    ``truth`` is fp64; all four have one shape.
    """
    assert result.shape == truth.shape, f"{name} has shape {list(result.shape)}, not {list(truth.shape)}"
    assert truth.dtype == torch.float64, f"the truth of {name} is {truth.dtype}"
    result64, yardstick64 = result.detach().double(), yardstick.detach().double()
    for kind, found, wanted in (
        ("NaN", result64.isnan(), truth.isnan()),
        ("+inf", result64 == math.inf, truth == math.inf),
        ("-inf", result64 == -math.inf, truth == -math.inf),
    ):
        wrong = (found != wanted).nonzero()
        assert not len(wrong), (
            f"{name}: {kind} in one of result and truth at {len(wrong)} places, as {wrong[0].tolist()}"
        )
    at = truth.isfinite()
    if not bool(at.any()):
        return
    error, own, size = (result64 - truth).abs()[at], (yardstick64 - truth).abs()[at], sensitivity.double()[at]
    assert bool(own.isfinite().all()), f"{name}: eager PyTorch is not finite here, so nothing can be compared"
    unit = TF32_ROUNDING if tf32 else ROUNDING[result.dtype]
    order, luck = min(unit, ROUNDING[torch.float32]), unit if error.numel() < FEW else 0.0
    worst, mean = (3, 2) if gradient else (2, 1.5)
    for which, found, eager, factor, floor in (
        ("largest", float(error.max()), float(own.max()), worst, (4 * order + luck) * float(size.max())),
        ("mean", float(error.mean()), float(own.mean()), mean, (order + luck) * float(size.mean())),
    ):
        if found > factor * eager + floor:
            place = (result64 - truth).abs().masked_fill(~at, 0).argmax()
            index = tuple(int(i) for i in torch.unravel_index(place, truth.shape))
            raise AssertionError(
                f"{name}: {which} error {found:.3g} is above {factor:g}x eager's {eager:.3g} + {floor:.3g}; "
                f"worst at {list(index)}: {float(result64[index]):.8g} instead of {float(truth[index]):.8g}"
            )
