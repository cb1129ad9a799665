"""The kernel of attention whose projections are absorbed into its keys and values."""

from __future__ import annotations

import triton
import triton.language as tl

from .linear import accumulate, load_near
from .tiles import LOG2E, finite


@triton.jit
def absorbed_forward(
    x_ptr, a_ptr, c_ptr, v_ptr, bo_ptr, out_ptr,
    sxb, sxm, sxk, sab, sah, san, sak, scb, sch, scn, svb, svh, svn, svo, sob, som, son,
    HEADS, LQ, LK, WIDTH, OUTPUTS,
    KEYS: tl.constexpr, HAS_BO: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Σ_h softmax(x·A_hᵀ + c_h)·V'_h + bo for a tile of x [B, LQ, WIDTH] and PIECES · BLOCK_N columns of out.

    A [B, HEADS, LK, WIDTH], c [B, HEADS, LK] (-inf at keys that take no part), V' [B, HEADS, LK, OUTPUTS]. A head's
    softmax is complete before its product, so heads only add up: nothing is ever rescaled.
    """
    element = x_ptr.dtype.element_ty
    splits, tiles = tl.cdiv(OUTPUTS, PIECES * BLOCK_N), tl.cdiv(LQ, BLOCK_Q)
    program = tl.program_id(0)
    first = (program % splits) * PIECES * BLOCK_N
    program = program // splits
    b = (program // tiles).to(tl.int64)
    first_row = (program % tiles) * BLOCK_Q
    near_rows = tl.arange(0, BLOCK_Q)
    rows = first_row + near_rows
    x_base = x_ptr + b * sxb + first_row.to(tl.int64) * sxm
    row_ok = rows < LQ
    keys = tl.arange(0, KEYS)
    key_ok = keys < LK
    accs = ()
    for _ in tl.static_range(PIECES):
        accs = accs + (tl.zeros([BLOCK_Q, BLOCK_N], tl.float32),)  # noqa: RUF005
    for head in range(0, HEADS):
        h = tl.cast(head, tl.int64)
        s = tl.zeros([BLOCK_Q, KEYS], tl.float32)
        a_head = a_ptr + b * sab + h * sah
        s = accumulate(
            s, x_base, near_rows, row_ok, sxm, sxk, a_head, keys, key_ok, san, sak, WIDTH, BLOCK_X, PRECISION
        )
        c = tl.load(c_ptr + b * scb + h * sch + keys.to(tl.int64) * scn, mask=key_ok, other=float("-inf"))
        s = (s + c[None, :]) * LOG2E
        p = tl.exp2(s - finite(tl.max(s, 1))[:, None])
        total = tl.sum(p, 1)
        # Heads share the accumulators, so p is divided here and not the sum at the end.
        p = (p / tl.where(total == 0.0, 1.0, total)[:, None]).to(element)
        added = ()
        for i in tl.static_range(PIECES):
            outs = first + i * BLOCK_N
            v_piece = v_ptr + b * svb + h * svh + tl.cast(outs, tl.int64) * svo
            columns = tl.arange(0, BLOCK_N)
            ok = key_ok[:, None] & (outs + columns < OUTPUTS)[None, :]
            v = load_near(v_piece, keys, columns, ok, svn, svo)
            added = added + (tl.dot(p, v, accs[i], input_precision=PRECISION),)  # noqa: RUF005
        accs = added
    for i in tl.static_range(PIECES):
        outs = first + i * BLOCK_N + tl.arange(0, BLOCK_N)
        out = accs[i]
        if HAS_BO:
            out += tl.load(bo_ptr + outs, mask=outs < OUTPUTS, other=0.0).to(tl.float32)[None, :]
        pointers = out_ptr + b * sob + rows.to(tl.int64)[:, None] * som + outs.to(tl.int64)[None, :] * son
        tl.store(pointers, out.to(element), mask=row_ok[:, None] & (outs < OUTPUTS)[None, :])
