"""The kernels of projections: a product over two inputs' features, and LayerNorm + product into a slice."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_near(base, rows, columns, ok, stride_row, stride_column):
    """A tile at 32-bit offsets from its own corner ``base``; zero where not ok.

    64-bit offsets of several tiles, which the compiler computes before a loop and keeps, are what makes kernels of
    many tiles spill. The host copies tensors whose strides are too large for it (``runtime.near``).
    """
    return tl.load(base + (rows[:, None] * stride_row + columns[None, :] * stride_column), mask=ok, other=0.0)


@triton.jit
def accumulate(
    acc, x_base, rows, row_ok, sxm, sxk, w_base, features, feature_ok, swn, swk, WIDTH,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + x·Wᵀ for rows of x and rows (output features) of W, both WIDTH wide, BLOCK columns at a time.

    Rows and features count from the tiles' corners ``x_base`` and ``w_base``.
    """
    columns = tl.arange(0, BLOCK)
    for start in range(0, WIDTH, BLOCK):
        ok, wide = (start + columns < WIDTH)[None, :], tl.cast(start, tl.int64)
        x = load_near(x_base + wide * sxk, rows, columns, row_ok[:, None] & ok, sxm, sxk)
        w = load_near(w_base + wide * swk, features, columns, feature_ok[:, None] & ok, swn, swk)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _tile(ROWS, OUTPUTS, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's tile: its corner, rows and columns, and which of them exist.

    Columns run fastest: the programs in flight share few rows and all of W.
    """
    across = tl.cdiv(OUTPUTS, BLOCK_N)
    program = tl.program_id(0)
    first_row, first_out = (program // across) * BLOCK_M, (program % across) * BLOCK_N
    rows, outs = first_row + tl.arange(0, BLOCK_M), first_out + tl.arange(0, BLOCK_N)
    return first_row.to(tl.int64), first_out.to(tl.int64), rows, outs, rows < ROWS, outs < OUTPUTS


@triton.jit
def _finish(acc, bias_ptr, out_rows, outs, row_ok, out_ok, stride, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        acc += tl.load(bias_ptr + outs, mask=out_ok, other=0.0).to(tl.float32)[None, :]
    pointers = out_rows[:, None] + outs.to(tl.int64)[None, :] * stride
    tl.store(pointers, acc.to(out_rows.dtype.element_ty), mask=row_ok[:, None] & out_ok[None, :])


@triton.jit
def concat_linear_forward(
    a_ptr, b_ptr, w_ptr, bias_ptr, out_ptr, sam, sak, sbm, sbk, swn, swk, som, son,
    ROWS, OUTPUTS, A_WIDTH, B_WIDTH,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [ROWS, OUTPUTS] = a·W_aᵀ + b·W_bᵀ + bias, W [OUTPUTS, A_WIDTH + B_WIDTH]: one accumulator, two loops."""
    first_row, first_out, rows, outs, row_ok, out_ok = _tile(ROWS, OUTPUTS, BLOCK_M, BLOCK_N)
    near_rows, near_outs = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    w_base = w_ptr + first_out * swn
    acc = accumulate(
        acc, a_ptr + first_row * sam, near_rows, row_ok, sam, sak, w_base, near_outs, out_ok, swn, swk,
        A_WIDTH, BLOCK_K, PRECISION,
    )  # fmt: skip
    second = w_base + tl.cast(A_WIDTH, tl.int64) * swk
    acc = accumulate(
        acc, b_ptr + first_row * sbm, near_rows, row_ok, sbm, sbk, second, near_outs, out_ok, swn, swk,
        B_WIDTH, BLOCK_K, PRECISION,
    )  # fmt: skip
    _finish(acc, bias_ptr, out_ptr + rows.to(tl.int64) * som, outs, row_ok, out_ok, son, HAS_BIAS)


@triton.jit
def project_into_forward(
    x_ptr, w_ptr, bias_ptr, gamma_ptr, beta_ptr, out_ptr, sxb, sxm, sxk, swn, swk, sob, som, son,
    eps, BATCH, LENGTH, WIDTH, OUTPUTS,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = LayerNorm(x)·Wᵀ + bias for x [BATCH, LENGTH, WIDTH]; ``out_ptr`` points at the slice's first token.

    The statistics take two passes over a tile's rows before the product's own: the mean, then the variance of what is
    centred. The one-pass fold, rstd·(x·W') - rstd·mean·(1·W') with W' = gamma∘W, reads x once, but Σx² - mean² loses
    (mean/σ)² and the product's difference mean/σ of float32's digits: at mean = 100σ four and two of seven. It also
    needs a copy of the weight, rounded once more.
    """
    _, _, rows, outs, row_ok, out_ok = _tile(BATCH * LENGTH, OUTPUTS, BLOCK_M, BLOCK_N)
    batch, token = (rows // LENGTH).to(tl.int64), (rows % LENGTH).to(tl.int64)
    x_rows = x_ptr + batch * sxb + token * sxm
    if HAS_NORM:
        mean = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, WIDTH, BLOCK_K):
            columns = start + tl.arange(0, BLOCK_K)
            ok = row_ok[:, None] & (columns < WIDTH)[None, :]
            x = tl.load(x_rows[:, None] + columns.to(tl.int64)[None, :] * sxk, mask=ok, other=0.0)
            mean += tl.sum(x.to(tl.float32), 1)
        mean = mean / WIDTH
        variance = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, WIDTH, BLOCK_K):
            columns = start + tl.arange(0, BLOCK_K)
            ok = row_ok[:, None] & (columns < WIDTH)[None, :]
            x = tl.load(x_rows[:, None] + columns.to(tl.int64)[None, :] * sxk, mask=ok, other=0.0)
            centred = tl.where(ok, x.to(tl.float32) - mean[:, None], 0.0)
            variance += tl.sum(centred * centred, 1)
        inverse = 1.0 / tl.sqrt(variance / WIDTH + eps)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    w_rows = w_ptr + outs.to(tl.int64)[:, None] * swn
    for start in range(0, WIDTH, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        column_ok = columns < WIDTH
        x = tl.load(
            x_rows[:, None] + columns.to(tl.int64)[None, :] * sxk, mask=row_ok[:, None] & column_ok[None, :], other=0.0
        )
        if HAS_NORM:
            # Zero beyond WIDTH, because gamma and beta are.
            gamma = tl.load(gamma_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)
            beta = tl.load(beta_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)
            normed = (x.to(tl.float32) - mean[:, None]) * inverse[:, None]
            x = (normed * gamma[None, :] + beta[None, :]).to(x_ptr.dtype.element_ty)
        w = tl.load(w_rows + columns.to(tl.int64)[None, :] * swk, mask=out_ok[:, None] & column_ok[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    out_rows = out_ptr + batch * sob + token * som
    _finish(acc, bias_ptr, out_rows, outs, row_ok, out_ok, son, HAS_BIAS)
