"""What the attention kernels share: loading rows of a strided matrix, and the numbers of an online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    ptr, rows, row_ok, stride_row, stride_column, FIRST: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr
):
    """Columns FIRST … FIRST + COLUMNS of the rows that are ok; zero elsewhere and beyond WIDTH."""
    # `other` matters twice: rows that are not ok may hold NaN, and 0 · NaN is NaN.
    columns = FIRST + tl.arange(0, COLUMNS)
    pointers = ptr + rows.to(tl.int64)[:, None] * stride_row + columns.to(tl.int64)[None, :] * stride_column
    ok = row_ok[:, None]
    if FIRST + COLUMNS > WIDTH:
        ok = ok & (columns < WIDTH)[None, :]
    return tl.load(pointers, mask=ok, other=0.0)


@triton.jit
def store_rows(
    ptr, x, rows, row_ok, stride_row, stride_column, FIRST: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr
):
    """The counterpart of ``load_rows``; casts to the element type of ``ptr``."""
    columns = FIRST + tl.arange(0, COLUMNS)
    pointers = ptr + rows.to(tl.int64)[:, None] * stride_row + columns.to(tl.int64)[None, :] * stride_column
    ok = row_ok[:, None]
    if FIRST + COLUMNS > WIDTH:
        ok = ok & (columns < WIDTH)[None, :]
    tl.store(pointers, x.to(ptr.dtype.element_ty), mask=ok)


@triton.jit
def keys_taking_part(mask_ptr, batch, keys, end, stride_batch, stride_key, HAS_MASK: tl.constexpr):
    """True at keys below ``end`` that the key-padding mask [B, Lk] lets through."""
    ok = keys < end
    if HAS_MASK:
        row = mask_ptr + batch.to(tl.int64) * stride_batch
        ok = ok & (tl.load(row + keys.to(tl.int64) * stride_key, mask=ok, other=0) != 0)
    return ok


@triton.jit
def finite(m):
    """A row maximum to subtract: 0 where the row has no key yet, since -inf - -inf is NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def eights(stride):
    """The same stride, shown to the compiler to be a multiple of 8: by itself it asks only for 16.

    Heads of 40 columns would be loaded element by element (2-byte elements, 16-byte loads).
    """
    return stride // 8 * 8
