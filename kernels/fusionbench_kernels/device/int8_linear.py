"""The two kernels of a W8A8 linear layer: rows to int8 (after LayerNorm, if asked), and products of int8 matrices."""

from __future__ import annotations

import triton
import triton.language as tl

from .int8 import magnitudes, scale_of, to_int8


@triton.jit
def _load(x_ptr, rows, row_ok, columns, sxm, sxk, COLUMNS):
    pointers = x_ptr + rows[:, None] * sxm + columns.to(tl.int64)[None, :] * sxk
    return tl.load(pointers, mask=row_ok[:, None] & (columns < COLUMNS)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _normalized(
    x, mean, rstd, gamma_ptr, beta_ptr, columns, COLUMNS,
    NORM: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr,
):  # fmt: skip
    if NORM:
        x = (x - mean[:, None]) * rstd[:, None]
        if HAS_GAMMA:
            x *= tl.load(gamma_ptr + columns, mask=columns < COLUMNS, other=0.0).to(tl.float32)[None, :]
        if HAS_BETA:
            x += tl.load(beta_ptr + columns, mask=columns < COLUMNS, other=0.0).to(tl.float32)[None, :]
        x = tl.where((columns < COLUMNS)[None, :], x, 0.0)
    return x


@triton.jit
def quantize_rows(
    x_ptr, gamma_ptr, beta_ptr, values_ptr, scale_ptr, sxm, sxk, eps, ROWS, COLUMNS, STORED,
    WIDTH: tl.constexpr, NORM: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """x [ROWS, COLUMNS] as int8 [ROWS, STORED] with a scale per row, normalised before that with NORM.

    A row of up to CHUNK columns (WIDTH ≤ CHUNK) is read once; a longer one in chunks, once for each of its statistics.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = rows < ROWS
    mean = tl.zeros([BLOCK_M], tl.float32)
    rstd = mean
    if WIDTH <= CHUNK:
        columns = tl.arange(0, WIDTH)
        x = _load(x_ptr, rows, row_ok, columns, sxm, sxk, COLUMNS)
        if NORM:
            # The variance of what is left after the mean is gone: E[x²] - mean² would cancel.
            mean = tl.sum(x, 1) / COLUMNS
            centred = tl.where((columns < COLUMNS)[None, :], x - mean[:, None], 0.0)
            rstd = tl.rsqrt(tl.sum(centred * centred, 1) / COLUMNS + eps)
        x = _normalized(x, mean, rstd, gamma_ptr, beta_ptr, columns, COLUMNS, NORM, HAS_GAMMA, HAS_BETA)
        scale, inverse = scale_of(magnitudes(x, BLOCK_M, 1), 127.0)
        pointers = values_ptr + rows[:, None] * STORED + columns[None, :]
        ok = row_ok[:, None] & (columns < STORED)[None, :]
        tl.store(pointers, to_int8(x * inverse[:, None]), mask=ok)
    else:
        if NORM:
            for start in range(0, COLUMNS, CHUNK):
                columns = start + tl.arange(0, CHUNK)
                mean += tl.sum(_load(x_ptr, rows, row_ok, columns, sxm, sxk, COLUMNS), 1)
            mean = mean / COLUMNS
            square = tl.zeros([BLOCK_M], tl.float32)
            for start in range(0, COLUMNS, CHUNK):
                columns = start + tl.arange(0, CHUNK)
                x = _load(x_ptr, rows, row_ok, columns, sxm, sxk, COLUMNS)
                centred = tl.where((columns < COLUMNS)[None, :], x - mean[:, None], 0.0)
                square += tl.sum(centred * centred, 1)
            rstd = tl.rsqrt(square / COLUMNS + eps)
        bits = tl.zeros([BLOCK_M], tl.int32)
        for start in range(0, COLUMNS, CHUNK):
            columns = start + tl.arange(0, CHUNK)
            x = _load(x_ptr, rows, row_ok, columns, sxm, sxk, COLUMNS)
            x = _normalized(x, mean, rstd, gamma_ptr, beta_ptr, columns, COLUMNS, NORM, HAS_GAMMA, HAS_BETA)
            bits = tl.maximum(bits, magnitudes(x, BLOCK_M, 1).to(tl.int32, bitcast=True))
        scale, inverse = scale_of(bits.to(tl.float32, bitcast=True), 127.0)
        for start in range(0, STORED, CHUNK):
            columns = start + tl.arange(0, CHUNK)
            x = _load(x_ptr, rows, row_ok, columns, sxm, sxk, COLUMNS)
            x = _normalized(x, mean, rstd, gamma_ptr, beta_ptr, columns, COLUMNS, NORM, HAS_GAMMA, HAS_BETA)
            pointers = values_ptr + rows[:, None] * STORED + columns[None, :]
            ok = row_ok[:, None] & (columns < STORED)[None, :]
            tl.store(pointers, to_int8(x * inverse[:, None]), mask=ok)
    tl.store(scale_ptr + rows, scale, mask=row_ok)


@triton.jit
def int8_matmul(
    a_ptr, w_ptr, a_scale_ptr, w_scale_ptr, bias_ptr, residual_ptr, out_ptr, sam, swn, srm, srn, som, son, M, N, K,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out [M, N] = (a [M, K] · wᵀ [K, N])·a_scale[m]·w_scale[n] + bias[n] + residual[m, n], summed in int32."""
    program = tl.program_id(0)
    down, across = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    # GROUP_M tiles of rows share the columns they walk along while those are in L2.
    group = program // (GROUP_M * across)
    height = tl.minimum(down - group * GROUP_M, GROUP_M)
    inside = program % (GROUP_M * across)
    rows = ((group * GROUP_M + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = ((inside // height) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    row_ok, column_ok = rows < M, columns < N
    depth = tl.arange(0, BLOCK_K)
    a_rows = a_ptr + rows[:, None] * sam
    w_rows = w_ptr + columns[:, None] * swn
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, K, BLOCK_K):
        at = start + depth
        a = tl.load(a_rows + at[None, :], mask=row_ok[:, None] & (at < K)[None, :], other=0)
        w = tl.load(w_rows + at[None, :], mask=column_ok[:, None] & (at < K)[None, :], other=0)
        acc = tl.dot(a, tl.trans(w), acc, out_dtype=tl.int32)
    a_scale = tl.load(a_scale_ptr + rows, mask=row_ok, other=0.0)
    w_scale = tl.load(w_scale_ptr + columns, mask=column_ok, other=0.0)
    out = acc.to(tl.float32) * a_scale[:, None] * w_scale[None, :]
    if HAS_BIAS:
        out += tl.load(bias_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    ok = row_ok[:, None] & column_ok[None, :]
    if HAS_RESIDUAL:
        out += tl.load(residual_ptr + rows[:, None] * srm + columns[None, :] * srn, mask=ok, other=0.0).to(tl.float32)
    pointers = out_ptr + rows[:, None] * som + columns[None, :] * son
    tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=ok)
