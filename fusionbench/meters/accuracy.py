"""How far a result is from the truth, and whether that is as near as its dtype allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..record import Deviation

# The compute dtype's rounding unit: half the distance from 1 to the next number.
_ROUNDING = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
TF32_ROUNDING = 2**-11


def deviation(results: Sequence[Tensor], truths: Sequence[Tensor]) -> Deviation:
    """The error of ``results`` against ``truths`` (fp64 or fp32, same shapes), over all of them together.

    Every field is None when a result holds a NaN or an infinity that the truth does not.
    """
    result = torch.cat([r.detach().to(t.dtype).flatten() for r, t in zip(results, truths, strict=True)])
    truth = torch.cat([t.detach().flatten() for t in truths])
    error = (result - truth).abs()
    if not bool(error.isfinite().all()):
        return Deviation(max_abs=None, mean_abs=None, rel_l2=None, cosine=None)
    norm, error_norm = float(truth.norm()), float(error.norm())
    both = norm * float(result.norm())
    return Deviation(
        max_abs=float(error.max()) if error.numel() else 0.0,
        mean_abs=float(error.mean()) if error.numel() else 0.0,
        rel_l2=error_norm / norm if norm else error_norm,
        cosine=float(torch.dot(result, truth)) / both if both else 1.0,
    )


def verdict(
    result: Deviation, yardstick: Deviation, truths: Sequence[Tensor], rounding: float, factor: float
) -> str | None:
    """None when the error is at most ``factor`` times the yardstick's (max and mean), else the reason.

    The yardstick is eager PyTorch in the same dtype. Where that happens to be exact, one rounding of the
    largest (for the mean: of the average) true value is allowed: a number that is off by less than the
    rounding of its own dtype is not wrong.
    """
    if result.max_abs is None or result.mean_abs is None:
        return "not finite where the reference is"
    size = torch.cat([t.detach().flatten() for t in truths]).abs()
    largest, average = (float(size.max()), float(size.mean())) if size.numel() else (0.0, 0.0)
    for name, error, own, scale in (
        ("max", result.max_abs, yardstick.max_abs, largest),
        ("mean", result.mean_abs, yardstick.mean_abs, average),
    ):
        limit = factor * (own or 0.0) + rounding * scale
        if error > limit:
            return f"{name} error {error:.3g} is above {limit:.3g}, {factor:g}x the error of eager ({own or 0.0:.3g})"
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
