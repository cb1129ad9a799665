"""The kernels of attention with its projections inside: x to out in one program, or x to every head's output."""

from __future__ import annotations

import triton
import triton.language as tl

from .linear import accumulate
from .tiles import LOG2E, finite, keys_taking_part, load_rows, store_rows


@triton.jit
def _attended(
    x_ptr, rows, row_ok, sxm, sxk, wq_ptr, bq_ptr, swqn, swqk, k_ptr, v_ptr, skn, skd, svn, svd, keys, key_ok,
    head, scale, WIDTH,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, HAS_BQ: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """softmax(q·Kᵀ·scale)V [BLOCK_Q, D] of one head with q = x·Wqᵀ + bq; k_ptr and v_ptr are that head's.

    q and the result are rounded to the inputs' type where the unfused composition stores them.
    """
    element = x_ptr.dtype.element_ty
    columns = tl.arange(0, D)
    column_ok = columns < HEAD_DIM
    features = head * HEAD_DIM + columns
    q = tl.zeros([BLOCK_Q, D], tl.float32)
    q = accumulate(
        q, x_ptr, rows, row_ok, sxm, sxk, wq_ptr, features, column_ok, swqn, swqk, WIDTH, BLOCK_X, PRECISION
    )
    if HAS_BQ:
        q += tl.load(bq_ptr + features, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    k = load_rows(k_ptr, keys, key_ok, skn, skd, 0, D, HEAD_DIM)
    s = tl.dot(q.to(element), tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    s = tl.where(key_ok[None, :], s, float("-inf"))
    p = tl.exp2(s - finite(tl.max(s, 1))[:, None])
    total = tl.sum(p, 1)
    v = load_rows(v_ptr, keys, key_ok, svn, svd, 0, D, HEAD_DIM)
    o = tl.dot(p.to(element), v, input_precision=PRECISION)
    return (o / tl.where(total == 0.0, 1.0, total)[:, None]).to(element)


@triton.jit
def projected_forward(
    x_ptr, k_ptr, v_ptr, mask_ptr, wq_ptr, bq_ptr, wo_ptr, bo_ptr, out_ptr,
    sxb, sxm, sxk, skb, skh, skn, skd, svb, svh, svn, svd, smb, smn, swqn, swqk, swon, swok, sob, som, son,
    scale, HEADS, LQ, LK, WIDTH, OUTPUTS,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, PIECES: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BQ: tl.constexpr, HAS_BO: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out [B, LQ, OUTPUTS] of a tile of x [B, LQ, WIDTH]: all heads in turn, each added through its part of Wo.

    PIECES accumulators of BLOCK_N columns hold the whole row of out: 320 columns are 5 · 64, where a power of two
    would be 512, and only one piece of Wo is on its way through registers at a time.
    """
    tiles = tl.cdiv(LQ, BLOCK_Q)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    rows = (tl.program_id(0) % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_ok = rows < LQ
    keys = tl.arange(0, KEYS)
    key_ok = keys_taking_part(mask_ptr, b, keys, LK, smb, smn, HAS_MASK)
    accs = ()
    for _ in tl.static_range(PIECES):
        accs = accs + (tl.zeros([BLOCK_Q, BLOCK_N], tl.float32),)  # noqa: RUF005
    for head in range(0, HEADS):
        h = tl.cast(head, tl.int64)
        o = _attended(
            x_ptr + b * sxb, rows, row_ok, sxm, sxk, wq_ptr, bq_ptr, swqn, swqk,
            k_ptr + b * skb + h * skh, v_ptr + b * svb + h * svh, skn, skd, svn, svd, keys, key_ok, head, scale, WIDTH,
            HEAD_DIM, D, HAS_BQ, PRECISION, BLOCK_Q, BLOCK_X,
        )  # fmt: skip
        added = ()
        for i in tl.static_range(PIECES):
            outs = i * BLOCK_N + tl.arange(0, BLOCK_N)
            wo = load_rows(wo_ptr + h * HEAD_DIM * swok, outs, outs < OUTPUTS, swon, swok, 0, D, HEAD_DIM)
            added = added + (tl.dot(o, tl.trans(wo), accs[i], input_precision=PRECISION),)  # noqa: RUF005
        accs = added
    for i in tl.static_range(PIECES):
        outs = i * BLOCK_N + tl.arange(0, BLOCK_N)
        out = accs[i]
        if HAS_BO:
            out += tl.load(bo_ptr + outs, mask=outs < OUTPUTS, other=0.0).to(tl.float32)[None, :]
        pointers = out_ptr + b * sob + rows.to(tl.int64)[:, None] * som + outs.to(tl.int64)[None, :] * son
        tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=row_ok[:, None] & (outs < OUTPUTS)[None, :])


@triton.jit
def projected_heads(
    x_ptr, k_ptr, v_ptr, mask_ptr, wq_ptr, bq_ptr, out_ptr,
    sxb, sxm, sxk, skb, skh, skn, skd, svb, svh, svn, svd, smb, smn, swqn, swqk, sob, som, soh, sod,
    scale, HEADS, LQ, LK, WIDTH,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BQ: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One head's attention output of a tile of x [B, LQ, WIDTH], stored in out [B, LQ, HEADS, HEAD_DIM].

    Heads run fastest over the programs: those that read the same rows of x run at the same time.
    """
    program = tl.program_id(0)
    head = program % HEADS
    program = program // HEADS
    tiles = tl.cdiv(LQ, BLOCK_Q)
    b, h = (program // tiles).to(tl.int64), head.to(tl.int64)
    rows = (program % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_ok = rows < LQ
    keys = tl.arange(0, KEYS)
    key_ok = keys_taking_part(mask_ptr, b, keys, LK, smb, smn, HAS_MASK)
    o = _attended(
        x_ptr + b * sxb, rows, row_ok, sxm, sxk, wq_ptr, bq_ptr, swqn, swqk,
        k_ptr + b * skb + h * skh, v_ptr + b * svb + h * svh, skn, skd, svn, svd, keys, key_ok, head, scale, WIDTH,
        HEAD_DIM, D, HAS_BQ, PRECISION, BLOCK_Q, BLOCK_X,
    )  # fmt: skip
    store_rows(out_ptr + b * sob + h * soh, o, rows, row_ok, som, sod, 0, D, HEAD_DIM)
