"""Symmetric int8 quantisation inside a kernel: the largest magnitude of rows, its scale, rounding to nearest even."""

from __future__ import annotations

import triton
import triton.language as tl

TINY: tl.constexpr = tl.constexpr(1e-30)  # rows below it get its scale: 127 / TINY is finite, 127 / 0 is not
_ROUND: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 · 2²³: adding it leaves no bits for a fraction


@triton.jit
def magnitudes(x, ROWS: tl.constexpr, GRAIN: tl.constexpr):
    """The largest |x| of each row [ROWS, columns] fp32, shared by GRAIN rows; NaN where one of them is."""
    # Without a sign, floats order as their bits do, with NaN on top; a maximum of floats would drop it.
    bits = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    if GRAIN > 1:
        most = tl.max(tl.reshape(bits, [ROWS // GRAIN, GRAIN]), 1)
        bits = tl.reshape(tl.broadcast_to(most[:, None], [ROWS // GRAIN, GRAIN]), [ROWS])
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def scale_of(largest, TOP: tl.constexpr):
    """(scale, 1 / scale) that bring ``largest`` to TOP; NaN where it is not finite."""
    safe = tl.where(largest < TINY, TINY, largest)
    safe = tl.where(safe < float("inf"), safe, float("nan"))
    # Rounded divisions, the same on every device; one each per row, so their cost does not show.
    return tl.div_rn(safe, TOP), tl.div_rn(TOP, safe)


@triton.jit
def to_int8(x):
    """x rounded half to even and saturated at ±127; NaN gives -127 (its scale is NaN already)."""
    x = (x + _ROUND) - _ROUND
    x = tl.where(x > -127.0, x, -127.0)  # selects, since minimum and maximum differ in what they do to NaN
    x = tl.where(x < 127.0, x, 127.0)
    return x.to(tl.int8)
