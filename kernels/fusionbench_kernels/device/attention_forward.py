"""The forward kernels of attention: streaming over the keys (split over programs or not), and keys resident."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LN2, LOG2E, eights, finite, keys_taking_part, load_rows, store_rows


@triton.jit
def _scores(q0, q1, k0, k1, TAIL: tl.constexpr, PRECISION: tl.constexpr):
    s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if TAIL > 0:
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
    return s


@triton.jit
def _biased(s, scale, bias_ptr, row_offsets, row_ok, keys, key_ok, stride_key, HAS_BIAS: tl.constexpr):
    """Scores in units of log2, -inf at keys that do not take part."""
    s = s * (scale * LOG2E)
    if HAS_BIAS:
        pointers = bias_ptr + row_offsets[:, None] + keys.to(tl.int64)[None, :] * stride_key
        bias = tl.load(pointers, mask=row_ok[:, None] & key_ok[None, :], other=0.0)
        s += bias.to(tl.float32) * LOG2E
    return tl.where(key_ok[None, :], s, float("-inf"))


@triton.jit
def streaming_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, mask_ptr, lens_ptr, bias_ptr,
    sqb, sqh, sqm, sqd, skb, skh, skn, skd, svb, svh, svn, svd,
    sos, sob, soh, som, sod, smb, smn, sbb, sbh, sbm, sbn,
    scale, B, HEADS, GROUP, LQ, LK, SPLITS, SPLIT_KEYS,
    EIGHTS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, PACKED: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of queries against one range of keys by online softmax.

    q [B, HEADS, LQ, d], k and v [B, HEADS / GROUP, LK, d]. With SPLITS > 1 out is fp32 [SPLITS, B, HEADS, LQ, d] and
    lse [SPLITS, B, HEADS, LQ], to be merged by ``combine``. PACKED puts the GROUP heads that share keys into
    the rows of one tile: with few queries a tile would be mostly padding otherwise.
    """
    if EIGHTS:
        sqb, sqh, sqm = eights(sqb), eights(sqh), eights(sqm)
        skb, skh, skn = eights(skb), eights(skh), eights(skn)
        svb, svh, svn = eights(svb), eights(svh), eights(svn)
        sob, soh, som = eights(sob), eights(soh), eights(som)
    ROWS = LQ * GROUP if PACKED else LQ
    tiles = tl.cdiv(ROWS, BLOCK_Q)
    program = tl.program_id(0)
    tile = program % tiles
    program = program // tiles
    split = program % SPLITS
    program = program // SPLITS
    if PACKED:
        kv_head = program % (HEADS // GROUP)
        batch = program // (HEADS // GROUP)
        head = kv_head * GROUP
    else:
        head = program % HEADS
        batch = program // HEADS
        kv_head = head // GROUP
    b, h, g = batch.to(tl.int64), head.to(tl.int64), kv_head.to(tl.int64)

    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_ok = rows < ROWS
    wide = rows.to(tl.int64)
    if PACKED:
        q_rows = q_ptr + b * sqb + h * sqh + (wide // LQ) * sqh + (wide % LQ) * sqm
        out_rows = out_ptr + split.to(tl.int64) * sos + b * sob + h * soh + (wide // LQ) * soh + (wide % LQ) * som
        bias_rows = b * sbb + h * sbh + (wide // LQ) * sbh + (wide % LQ) * sbm
    else:
        q_rows = q_ptr + b * sqb + h * sqh + wide * sqm
        out_rows = out_ptr + split.to(tl.int64) * sos + b * sob + h * soh + wide * som
        bias_rows = b * sbb + h * sbh + wide * sbm
    main = tl.arange(0, MAIN)
    main_ok = row_ok[:, None] & (main < HEAD_DIM)[None, :] if MAIN > HEAD_DIM else row_ok[:, None]
    q0 = tl.load(q_rows[:, None] + main.to(tl.int64)[None, :] * sqd, mask=main_ok, other=0.0)
    acc0 = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    if TAIL > 0:
        tail = MAIN + tl.arange(0, TAIL)
        tail_ok = row_ok[:, None] & (tail < HEAD_DIM)[None, :]
        q1 = tl.load(q_rows[:, None] + tail.to(tl.int64)[None, :] * sqd, mask=tail_ok, other=0.0)
        acc1 = tl.zeros([BLOCK_Q, TAIL], tl.float32)
    else:
        q1 = q0
    k_base = k_ptr + b * skb + g * skh
    v_base = v_ptr + b * svb + g * svh

    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    first = split * SPLIT_KEYS
    last = tl.minimum(first + SPLIT_KEYS, end)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(first, last, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        ok = keys_taking_part(mask_ptr, b, keys, last, smb, smn, HAS_MASK)
        k0 = load_rows(k_base, keys, ok, skn, skd, 0, MAIN, HEAD_DIM)
        k1 = k0
        if TAIL > 0:
            k1 = load_rows(k_base, keys, ok, skn, skd, MAIN, TAIL, HEAD_DIM)
        s = _scores(q0, q1, k0, k1, TAIL, PRECISION)
        s = _biased(s, scale, bias_ptr, bias_rows, row_ok, keys, ok, sbn, HAS_BIAS)
        larger = tl.maximum(m, tl.max(s, 1))
        safe = finite(larger)
        p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(m - safe)
        total = total * shrink + tl.sum(p, 1)
        v0 = load_rows(v_base, keys, ok, svn, svd, 0, MAIN, HEAD_DIM)
        acc0 = tl.dot(p.to(v0.dtype), v0, acc0 * shrink[:, None], input_precision=PRECISION)
        if TAIL > 0:
            v1 = load_rows(v_base, keys, ok, svn, svd, MAIN, TAIL, HEAD_DIM)
            acc1 = tl.dot(p.to(v1.dtype), v1, acc1 * shrink[:, None], input_precision=PRECISION)
        m = larger

    divisor = tl.where(total == 0.0, 1.0, total)
    element = out_ptr.dtype.element_ty
    out0 = (acc0 / divisor[:, None]).to(element)
    tl.store(out_rows[:, None] + main.to(tl.int64)[None, :] * sod, out0, mask=main_ok)
    if TAIL > 0:
        out1 = (acc1 / divisor[:, None]).to(element)
        tl.store(out_rows[:, None] + tail.to(tl.int64)[None, :] * sod, out1, mask=tail_ok)
    lse = tl.where(total == 0.0, float("-inf"), (finite(m) + tl.log2(divisor)) * LN2)
    # The heads of a packed tile follow each other, so one row index serves both layouts of lse.
    tl.store(lse_ptr + ((split.to(tl.int64) * B + b) * HEADS + h) * LQ + wide, lse, mask=row_ok)


@triton.jit
def combine(
    part_ptr, part_lse_ptr, out_ptr, lse_ptr, sob, soh, som, sod, HEADS, LQ, ROWS, SPLITS,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Merge partial results [SPLITS, ROWS, d] with their lse [SPLITS, ROWS], ROWS = B·HEADS·LQ, by log-sum-exp."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q).to(tl.int64)
    row_ok = rows < ROWS
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    at = rows
    for _ in range(0, SPLITS):
        m = tl.maximum(m, tl.load(part_lse_ptr + at, mask=row_ok, other=float("-inf")))
        at += ROWS
    safe = finite(m)
    acc = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    columns = tl.arange(0, WIDTH)
    ok = row_ok[:, None] & (columns < HEAD_DIM)[None, :]
    at = rows
    for _ in range(0, SPLITS):
        weight = tl.exp2((tl.load(part_lse_ptr + at, mask=row_ok, other=float("-inf")) - safe) * LOG2E)
        total += weight
        acc += weight[:, None] * tl.load(part_ptr + at[:, None] * HEAD_DIM + columns[None, :], mask=ok, other=0.0)
        at += ROWS
    divisor = tl.where(total == 0.0, 1.0, total)
    b, h, row = rows // LQ // HEADS, rows // LQ % HEADS, rows % LQ
    pointers = out_ptr + (b * sob + h * soh + row * som)[:, None] + columns.to(tl.int64)[None, :] * sod
    tl.store(pointers, (acc / divisor[:, None]).to(out_ptr.dtype.element_ty), mask=ok)
    tl.store(lse_ptr + rows, tl.where(total == 0.0, float("-inf"), safe + tl.log2(divisor) * LN2), mask=row_ok)


@triton.jit
def resident_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, mask_ptr, lens_ptr, bias_ptr,
    sqb, sqh, sqm, sqd, skb, skh, skn, skd, svb, svh, svn, svd,
    sob, soh, som, sod, smb, smn, sbb, sbh, sbm, sbn,
    scale, HEADS, GROUP, LQ, LK, SHARES, TILES,
    EIGHTS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    KEYS_MAIN: tl.constexpr, KEYS_TAIL: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """All keys stay in the program while TILES tiles of queries pass: one maximum, one exp, one sum, no rescaling.

    Shapes as in ``streaming_forward``. SHARES programs serve one (batch, head). Keys beyond KEYS_MAIN are a second,
    smaller tile (KEYS_TAIL): 77 keys as 64 + 16 compute 4 % too much, as 128 66 %.
    """
    if EIGHTS:
        sqb, sqh, sqm = eights(sqb), eights(sqh), eights(sqm)
        skb, skh, skn = eights(skb), eights(skh), eights(skn)
        svb, svh, svn = eights(svb), eights(svh), eights(svn)
        sob, soh, som = eights(sob), eights(soh), eights(som)
    program = tl.program_id(0)
    share = program % SHARES
    head = program // SHARES % HEADS
    b = (program // SHARES // HEADS).to(tl.int64)
    h, g = head.to(tl.int64), (head // GROUP).to(tl.int64)
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    k_base = k_ptr + b * skb + g * skh
    v_base = v_ptr + b * svb + g * svh
    keys0 = tl.arange(0, KEYS_MAIN)
    ok0 = keys_taking_part(mask_ptr, b, keys0, end, smb, smn, HAS_MASK)
    k00 = load_rows(k_base, keys0, ok0, skn, skd, 0, MAIN, HEAD_DIM)
    v00 = load_rows(v_base, keys0, ok0, svn, svd, 0, MAIN, HEAD_DIM)
    k01 = k00
    v01 = v00
    if TAIL > 0:
        k01 = load_rows(k_base, keys0, ok0, skn, skd, MAIN, TAIL, HEAD_DIM)
        v01 = load_rows(v_base, keys0, ok0, svn, svd, MAIN, TAIL, HEAD_DIM)
    if KEYS_TAIL > 0:
        keys1 = KEYS_MAIN + tl.arange(0, KEYS_TAIL)
        ok1 = keys_taking_part(mask_ptr, b, keys1, end, smb, smn, HAS_MASK)
        k10 = load_rows(k_base, keys1, ok1, skn, skd, 0, MAIN, HEAD_DIM)
        v10 = load_rows(v_base, keys1, ok1, svn, svd, 0, MAIN, HEAD_DIM)
        k11 = k10
        v11 = v10
        if TAIL > 0:
            k11 = load_rows(k_base, keys1, ok1, skn, skd, MAIN, TAIL, HEAD_DIM)
            v11 = load_rows(v_base, keys1, ok1, svn, svd, MAIN, TAIL, HEAD_DIM)

    q_base = q_ptr + b * sqb + h * sqh
    out_base = out_ptr + b * sob + h * soh
    first = share * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(LQ, BLOCK_Q))):
        rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
        row_ok = rows < LQ
        bias_rows = b * sbb + h * sbh + rows.to(tl.int64) * sbm
        q0 = load_rows(q_base, rows, row_ok, sqm, sqd, 0, MAIN, HEAD_DIM)
        q1 = q0
        if TAIL > 0:
            q1 = load_rows(q_base, rows, row_ok, sqm, sqd, MAIN, TAIL, HEAD_DIM)
        s0 = _scores(q0, q1, k00, k01, TAIL, PRECISION)
        s0 = _biased(s0, scale, bias_ptr, bias_rows, row_ok, keys0, ok0, sbn, HAS_BIAS)
        m = tl.max(s0, 1)
        if KEYS_TAIL > 0:
            s1 = _scores(q0, q1, k10, k11, TAIL, PRECISION)
            s1 = _biased(s1, scale, bias_ptr, bias_rows, row_ok, keys1, ok1, sbn, HAS_BIAS)
            m = tl.maximum(m, tl.max(s1, 1))
        safe = finite(m)
        p0 = tl.exp2(s0 - safe[:, None])
        total = tl.sum(p0, 1)
        out0 = tl.dot(p0.to(v00.dtype), v00, input_precision=PRECISION)
        if TAIL > 0:
            out1 = tl.dot(p0.to(v01.dtype), v01, input_precision=PRECISION)
        if KEYS_TAIL > 0:
            p1 = tl.exp2(s1 - safe[:, None])
            total += tl.sum(p1, 1)
            out0 = tl.dot(p1.to(v10.dtype), v10, out0, input_precision=PRECISION)
            if TAIL > 0:
                out1 = tl.dot(p1.to(v11.dtype), v11, out1, input_precision=PRECISION)
        divisor = tl.where(total == 0.0, 1.0, total)
        store_rows(out_base, out0 / divisor[:, None], rows, row_ok, som, sod, 0, MAIN, HEAD_DIM)
        if TAIL > 0:
            store_rows(out_base, out1 / divisor[:, None], rows, row_ok, som, sod, MAIN, TAIL, HEAD_DIM)
        lse = tl.where(total == 0.0, float("-inf"), (safe + tl.log2(divisor)) * LN2)
        tl.store(lse_ptr + (b * HEADS + h) * LQ + rows, lse, mask=row_ok)
