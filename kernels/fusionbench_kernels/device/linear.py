"""The kernels of projections: a product over two inputs' features, and LayerNorm + product into a slice."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def accumulate(
    acc, x_ptr, rows, row_ok, sxm, sxk, w_ptr, features, feature_ok, swn, swk, WIDTH,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + x·Wᵀ for rows of x [., WIDTH] and rows (output features) of W [., WIDTH], BLOCK columns at a time."""
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * sxm
    w_rows = w_ptr + features.to(tl.int64)[:, None] * swn
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        ok = (columns < WIDTH)[None, :]
        x = tl.load(x_rows + columns.to(tl.int64)[None, :] * sxk, mask=row_ok[:, None] & ok, other=0.0)
        w = tl.load(w_rows + columns.to(tl.int64)[None, :] * swk, mask=feature_ok[:, None] & ok, other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _tile(ROWS, OUTPUTS, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The (row, column) tile of a program. Columns run fastest: the programs in flight share few rows and all of W."""
    across = tl.cdiv(OUTPUTS, BLOCK_N)
    program = tl.program_id(0)
    rows = (program // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    outs = (program % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    return rows, outs, rows < ROWS, outs < OUTPUTS


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
    rows, outs, row_ok, out_ok = _tile(ROWS, OUTPUTS, BLOCK_M, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = accumulate(acc, a_ptr, rows, row_ok, sam, sak, w_ptr, outs, out_ok, swn, swk, A_WIDTH, BLOCK_K, PRECISION)
    second = w_ptr + A_WIDTH * swk
    acc = accumulate(acc, b_ptr, rows, row_ok, sbm, sbk, second, outs, out_ok, swn, swk, B_WIDTH, BLOCK_K, PRECISION)
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
    rows, outs, row_ok, out_ok = _tile(BATCH * LENGTH, OUTPUTS, BLOCK_M, BLOCK_N)
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
        w = tl.load(
            w_rows + columns.to(tl.int64)[None, :] * swk, mask=out_ok[:, None] & column_ok[None, :], other=0.0
        )
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    out_rows = out_ptr + batch * sob + token * som
    _finish(acc, bias_ptr, out_rows, outs, row_ok, out_ok, son, HAS_BIAS)
