"""The kernels of attention with its projections inside: x to out in one program, or x to every head's output."""

from __future__ import annotations

import triton
import triton.language as tl

from .linear import accumulate, load_near
from .tiles import LOG2E, eights, finite, keys_taking_part, store_rows


@triton.jit
def _attended(
    x_base, row_ok, sxm, sxk, wq_ptr, bq_ptr, swqn, swqk, k_base, v_base, skn, skd, svn, svd, keys, key_ok,
    head, scale, WIDTH,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, HAS_BQ: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """softmax(q·Kᵀ·scale)V [BLOCK_Q, D] of one head with q = x·Wqᵀ + bq; k_base and v_base are that head's.

    q and the result are rounded to the inputs' type where the unfused composition stores them.
    """
    element = x_base.dtype.element_ty
    # A loop of one, unknown to the compiler: products that feed products would each get all warps along their rows,
    # and 8 warps on 64 rows compute everything twice (48 HGMMA instead of 36, 64 registers of scores instead of 32).
    once = tl.minimum(tl.num_programs(0), 1)
    columns = tl.arange(0, D)
    column_ok = columns < HEAD_DIM
    first = tl.cast(head, tl.int64) * HEAD_DIM
    q = tl.zeros([BLOCK_Q, D], tl.float32)
    q = accumulate(
        q, x_base, tl.arange(0, BLOCK_Q), row_ok, sxm, sxk, wq_ptr + first * swqn, columns, column_ok, swqn, swqk,
        WIDTH, BLOCK_X, PRECISION,
    )  # fmt: skip
    if HAS_BQ:
        q += tl.load(bq_ptr + first + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    tile_ok = key_ok[:, None] & column_ok[None, :] if D > HEAD_DIM else key_ok[:, None]
    k = load_near(k_base, keys, columns, tile_ok, skn, skd)
    q = q.to(element)
    s = tl.zeros([BLOCK_Q, k.shape[0]], tl.float32)
    for _ in tl.range(0, once, num_stages=1):
        s = tl.dot(q, tl.trans(k), s, input_precision=PRECISION)
    s = s * (scale * LOG2E)
    s = tl.where(key_ok[None, :], s, float("-inf"))
    p = tl.exp2(s - finite(tl.max(s, 1))[:, None])
    total = tl.sum(p, 1)
    v = load_near(v_base, keys, columns, tile_ok, svn, svd)
    p = p.to(element)
    o = tl.zeros([BLOCK_Q, D], tl.float32)
    for _ in tl.range(0, once, num_stages=1):
        o = tl.dot(p, v, o, input_precision=PRECISION)
    return (o / tl.where(total == 0.0, 1.0, total)[:, None]).to(element)


@triton.jit
def projected_forward(
    x_ptr, k_ptr, v_ptr, mask_ptr, wq_ptr, bq_ptr, wo_ptr, bo_ptr, out_ptr,
    sxb, sxm, sxk, skb, skh, skn, skd, svb, svh, svn, svd, smb, smn, swqn, swqk, swon, swok, sob, som, son,
    scale, HEADS, LQ, LK, WIDTH, OUTPUTS,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, PIECES: tl.constexpr,
    EIGHTS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BQ: tl.constexpr, HAS_BO: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out [B, LQ, OUTPUTS] of a tile of x [B, LQ, WIDTH]: all heads in turn, each added through its part of Wo.

    PIECES accumulators of BLOCK_N columns hold the whole row of out: 320 columns are 5 · 64, where a power of two
    would be 512, and only one piece of Wo is on its way through registers at a time.
    """
    tiles = tl.cdiv(LQ, BLOCK_Q)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    if EIGHTS:
        sxm, skb, skh, skn = eights(sxm), eights(skb), eights(skh), eights(skn)
        svb, svh, svn, swqn, swon = eights(svb), eights(svh), eights(svn), eights(swqn), eights(swon)
    first = (tl.program_id(0) % tiles) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)
    row_ok = rows < LQ
    keys = tl.arange(0, KEYS)
    key_ok = keys_taking_part(mask_ptr, b, keys, LK, smb, smn, HAS_MASK)
    near, columns = tl.arange(0, BLOCK_N), tl.arange(0, D)
    accs = ()
    for _ in tl.static_range(PIECES):
        accs = accs + (tl.zeros([BLOCK_Q, BLOCK_N], tl.float32),)  # noqa: RUF005
    for head in range(0, HEADS):
        h = tl.cast(head, tl.int64)
        o = _attended(
            x_ptr + b * sxb + first.to(tl.int64) * sxm, row_ok, sxm, sxk, wq_ptr, bq_ptr, swqn, swqk,
            k_ptr + b * skb + h * skh, v_ptr + b * svb + h * svh, skn, skd, svn, svd, keys, key_ok, head, scale, WIDTH,
            HEAD_DIM, D, HAS_BQ, PRECISION, BLOCK_Q, BLOCK_X,
        )  # fmt: skip
        added = ()
        for i in tl.static_range(PIECES):
            wo_base = wo_ptr + h * HEAD_DIM * swok + tl.cast(i * BLOCK_N, tl.int64) * swon
            ok = (i * BLOCK_N + near < OUTPUTS)[:, None]
            if D > HEAD_DIM:
                ok = ok & (columns < HEAD_DIM)[None, :]
            wo = load_near(wo_base, near, columns, ok, swon, swok)
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
    EIGHTS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BQ: tl.constexpr, PRECISION: tl.constexpr,
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
    if EIGHTS:
        sxm, skb, skh, skn = eights(sxm), eights(skb), eights(skh), eights(skn)
        svb, svh, svn, swqn = eights(svb), eights(svh), eights(svn), eights(swqn)
    first = (program % tiles) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)
    row_ok = rows < LQ
    keys = tl.arange(0, KEYS)
    key_ok = keys_taking_part(mask_ptr, b, keys, LK, smb, smn, HAS_MASK)
    o = _attended(
        x_ptr + b * sxb + first.to(tl.int64) * sxm, row_ok, sxm, sxk, wq_ptr, bq_ptr, swqn, swqk,
        k_ptr + b * skb + h * skh, v_ptr + b * svb + h * svh, skn, skd, svn, svd, keys, key_ok, head, scale, WIDTH,
        HEAD_DIM, D, HAS_BQ, PRECISION, BLOCK_Q, BLOCK_X,
    )  # fmt: skip
    store_rows(out_ptr + b * sob + h * soh, o, rows, row_ok, som, sod, 0, D, HEAD_DIM)
