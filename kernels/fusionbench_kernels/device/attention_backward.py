"""The backward kernels of attention: over tiles of keys, of queries, or both at once where one side is short.

With P = exp(S - lse): dV = PᵀdO, dS = P∘(dO Vᵀ - delta), dQ = scale·dS K, dK = scale·dSᵀQ;
delta = rowsum(dO∘O) - dlse carries the gradient of the log-sum-exp. Every sum has one owner: no atomics,
the same bits on every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LOG2E, eights, keys_taking_part, load_rows, store_rows


@triton.jit
def backward_delta(
    out_ptr, dout_ptr, lse_ptr, dlse_ptr, delta_ptr, sob, soh, som, sod, sgb, sgh, sgm, sgd, HEADS, LQ, ROWS,
    EIGHTS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO∘O) - dlse, per row of B·HEADS·LQ; dlse may be None, and is ignored where lse is -inf."""
    if EIGHTS:
        sob, soh, som = eights(sob), eights(soh), eights(som)
        sgb, sgh, sgm = eights(sgb), eights(sgh), eights(sgm)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q).to(tl.int64)
    row_ok = rows < ROWS
    b, h, row = rows // LQ // HEADS, rows // LQ % HEADS, rows % LQ
    columns = tl.arange(0, WIDTH).to(tl.int64)
    ok = row_ok[:, None] & (columns < HEAD_DIM)[None, :]
    out = tl.load(out_ptr + (b * sob + h * soh + row * som)[:, None] + columns[None, :] * sod, mask=ok, other=0.0)
    dout = tl.load(dout_ptr + (b * sgb + h * sgh + row * sgm)[:, None] + columns[None, :] * sgd, mask=ok, other=0.0)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    if dlse_ptr is not None:
        # The gradient of a logaddexp of two rows without keys is NaN, and 0 · NaN would reach dQ and dK.
        any_key = row_ok & (tl.load(lse_ptr + rows, mask=row_ok, other=0.0) != float("-inf"))
        delta -= tl.load(dlse_ptr + rows, mask=any_key, other=0.0)
    tl.store(delta_ptr + rows, delta, mask=row_ok)


@triton.jit
def _probabilities(
    q0, q1, k0, k1, scale, lse, bias_ptr, rows, row_ok, keys, key_ok, stride_row, stride_key,
    TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P [queries, keys] recomputed from the log-sum-exp (+inf for rows that take no part)."""
    s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if TAIL > 0:
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
    s = s * (scale * LOG2E)
    ok = row_ok[:, None] & key_ok[None, :]
    if HAS_BIAS:
        pointers = bias_ptr + rows.to(tl.int64)[:, None] * stride_row + keys.to(tl.int64)[None, :] * stride_key
        s += tl.load(pointers, mask=ok, other=0.0).to(tl.float32) * LOG2E
    return tl.where(ok, tl.exp2(s - lse[:, None] * LOG2E), 0.0)


@triton.jit
def _lse(lse_ptr, rows, row_ok):
    """Rows without a key have lse -inf, which would make exp(S - lse) NaN; +inf makes it 0."""
    lse = tl.load(lse_ptr + rows, mask=row_ok, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse)


@triton.jit
def backward_keys(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, mask_ptr, lens_ptr, bias_ptr,
    sqb, sqh, sqm, sqd, skb, skh, skn, skd, svb, svh, svn, svd, sgb, sgh, sgm, sgd,
    sxb, sxh, sxn, sxd, syb, syh, syn, syd, smb, smn, sbb, sbh, sbm, sbn,
    scale, HEADS, GROUP, LQ, LK,
    EIGHTS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys, summed over the queries of all GROUP heads that share it."""
    if EIGHTS:
        sqb, sqh, sqm = eights(sqb), eights(sqh), eights(sqm)
        skb, skh, skn = eights(skb), eights(skh), eights(skn)
        svb, svh, svn = eights(svb), eights(svh), eights(svn)
        sgb, sgh, sgm = eights(sgb), eights(sgh), eights(sgm)
        sxb, sxh, sxn = eights(sxb), eights(sxh), eights(sxn)
        syb, syh, syn = eights(syb), eights(syh), eights(syn)
    tiles = tl.cdiv(LK, BLOCK_K)
    program = tl.program_id(0)
    tile = program % tiles
    kv_heads = HEADS // GROUP
    kv_head = program // tiles % kv_heads
    b = (program // tiles // kv_heads).to(tl.int64)
    g = kv_head.to(tl.int64)
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    keys = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    key_ok = keys_taking_part(mask_ptr, b, keys, end, smb, smn, HAS_MASK)
    k_base, v_base = k_ptr + b * skb + g * skh, v_ptr + b * svb + g * svh
    k0 = load_rows(k_base, keys, key_ok, skn, skd, 0, MAIN, HEAD_DIM)
    v0 = load_rows(v_base, keys, key_ok, svn, svd, 0, MAIN, HEAD_DIM)
    dk0 = tl.zeros([BLOCK_K, MAIN], tl.float32)
    dv0 = tl.zeros([BLOCK_K, MAIN], tl.float32)
    k1 = k0
    if TAIL > 0:
        k1 = load_rows(k_base, keys, key_ok, skn, skd, MAIN, TAIL, HEAD_DIM)
        v1 = load_rows(v_base, keys, key_ok, svn, svd, MAIN, TAIL, HEAD_DIM)
        dk1 = tl.zeros([BLOCK_K, TAIL], tl.float32)
        dv1 = tl.zeros([BLOCK_K, TAIL], tl.float32)
    q_tiles = tl.cdiv(LQ, BLOCK_Q)
    for step in range(0, GROUP * q_tiles):
        h = g * GROUP + step // q_tiles
        rows = step % q_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
        row_ok = rows < LQ
        stats = (b * HEADS + h) * LQ
        lse = _lse(lse_ptr + stats, rows, row_ok)
        delta = tl.load(delta_ptr + stats + rows, mask=row_ok, other=0.0)
        q_base, g_base = q_ptr + b * sqb + h * sqh, dout_ptr + b * sgb + h * sgh
        q0 = load_rows(q_base, rows, row_ok, sqm, sqd, 0, MAIN, HEAD_DIM)
        do0 = load_rows(g_base, rows, row_ok, sgm, sgd, 0, MAIN, HEAD_DIM)
        q1 = q0
        if TAIL > 0:
            q1 = load_rows(q_base, rows, row_ok, sqm, sqd, MAIN, TAIL, HEAD_DIM)
            do1 = load_rows(g_base, rows, row_ok, sgm, sgd, MAIN, TAIL, HEAD_DIM)
        bias_base = bias_ptr
        if HAS_BIAS:
            bias_base = bias_ptr + b * sbb + h * sbh
        p = _probabilities(q0, q1, k0, k1, scale, lse, bias_base, rows, row_ok, keys, key_ok, sbm, sbn,
                           TAIL, HAS_BIAS, PRECISION)  # fmt: skip
        narrow = tl.trans(p.to(do0.dtype))
        dv0 = tl.dot(narrow, do0, dv0, input_precision=PRECISION)
        dp = tl.dot(do0, tl.trans(v0), input_precision=PRECISION)
        if TAIL > 0:
            dv1 = tl.dot(narrow, do1, dv1, input_precision=PRECISION)
            dp = tl.dot(do1, tl.trans(v1), dp, input_precision=PRECISION)
        ds = tl.trans((p * (dp - delta[:, None])).to(q0.dtype))
        dk0 = tl.dot(ds, q0, dk0, input_precision=PRECISION)
        if TAIL > 0:
            dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
    inside = keys < LK
    dk_base, dv_base = dk_ptr + b * sxb + g * sxh, dv_ptr + b * syb + g * syh
    store_rows(dk_base, dk0 * scale, keys, inside, sxn, sxd, 0, MAIN, HEAD_DIM)
    store_rows(dv_base, dv0, keys, inside, syn, syd, 0, MAIN, HEAD_DIM)
    if TAIL > 0:
        store_rows(dk_base, dk1 * scale, keys, inside, sxn, sxd, MAIN, TAIL, HEAD_DIM)
        store_rows(dv_base, dv1, keys, inside, syn, syd, MAIN, TAIL, HEAD_DIM)


@triton.jit
def backward_queries(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr, ds_ptr, mask_ptr, lens_ptr, bias_ptr,
    sqb, sqh, sqm, sqd, skb, skh, skn, skd, svb, svh, svn, svd, sgb, sgh, sgm, sgd,
    szb, szh, szm, szd, smb, smn, sbb, sbh, sbm, sbn,
    scale, HEADS, GROUP, LQ, LK,
    EIGHTS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LENS: tl.constexpr, HAS_BIAS: tl.constexpr, WRITES_DS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries; with WRITES_DS also dS [B, HEADS, LQ, LK] fp32, which is the bias's gradient."""
    if EIGHTS:
        sqb, sqh, sqm = eights(sqb), eights(sqh), eights(sqm)
        skb, skh, skn = eights(skb), eights(skh), eights(skn)
        svb, svh, svn = eights(svb), eights(svh), eights(svn)
        sgb, sgh, sgm = eights(sgb), eights(sgh), eights(sgm)
        szb, szh, szm = eights(szb), eights(szh), eights(szm)
    tiles = tl.cdiv(LQ, BLOCK_Q)
    program = tl.program_id(0)
    tile = program % tiles
    head = program // tiles % HEADS
    b = (program // tiles // HEADS).to(tl.int64)
    h, g = head.to(tl.int64), (head // GROUP).to(tl.int64)
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_ok = rows < LQ
    stats = (b * HEADS + h) * LQ
    lse = _lse(lse_ptr + stats, rows, row_ok)
    delta = tl.load(delta_ptr + stats + rows, mask=row_ok, other=0.0)
    q_base, g_base = q_ptr + b * sqb + h * sqh, dout_ptr + b * sgb + h * sgh
    q0 = load_rows(q_base, rows, row_ok, sqm, sqd, 0, MAIN, HEAD_DIM)
    do0 = load_rows(g_base, rows, row_ok, sgm, sgd, 0, MAIN, HEAD_DIM)
    dq0 = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    q1 = q0
    if TAIL > 0:
        q1 = load_rows(q_base, rows, row_ok, sqm, sqd, MAIN, TAIL, HEAD_DIM)
        do1 = load_rows(g_base, rows, row_ok, sgm, sgd, MAIN, TAIL, HEAD_DIM)
        dq1 = tl.zeros([BLOCK_Q, TAIL], tl.float32)
    k_base, v_base = k_ptr + b * skb + g * skh, v_ptr + b * svb + g * svh
    bias_base = bias_ptr
    if HAS_BIAS:
        bias_base = bias_ptr + b * sbb + h * sbh
    for start in range(0, end, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        key_ok = keys_taking_part(mask_ptr, b, keys, end, smb, smn, HAS_MASK)
        k0 = load_rows(k_base, keys, key_ok, skn, skd, 0, MAIN, HEAD_DIM)
        v0 = load_rows(v_base, keys, key_ok, svn, svd, 0, MAIN, HEAD_DIM)
        k1 = k0
        dp = tl.dot(do0, tl.trans(v0), input_precision=PRECISION)
        if TAIL > 0:
            k1 = load_rows(k_base, keys, key_ok, skn, skd, MAIN, TAIL, HEAD_DIM)
            v1 = load_rows(v_base, keys, key_ok, svn, svd, MAIN, TAIL, HEAD_DIM)
            dp = tl.dot(do1, tl.trans(v1), dp, input_precision=PRECISION)
        p = _probabilities(q0, q1, k0, k1, scale, lse, bias_base, rows, row_ok, keys, key_ok, sbm, sbn,
                           TAIL, HAS_BIAS, PRECISION)  # fmt: skip
        ds = p * (dp - delta[:, None])
        if WRITES_DS:
            pointers = ds_ptr + (stats + rows.to(tl.int64))[:, None] * LK + keys[None, :]
            tl.store(pointers, ds, mask=row_ok[:, None] & (keys < LK)[None, :])
        narrow = ds.to(k0.dtype)
        dq0 = tl.dot(narrow, k0, dq0, input_precision=PRECISION)
        if TAIL > 0:
            dq1 = tl.dot(narrow, k1, dq1, input_precision=PRECISION)
    dq_base = dq_ptr + b * szb + h * szh
    store_rows(dq_base, dq0 * scale, rows, row_ok, szm, szd, 0, MAIN, HEAD_DIM)
    if TAIL > 0:
        store_rows(dq_base, dq1 * scale, rows, row_ok, szm, szd, MAIN, TAIL, HEAD_DIM)


@triton.jit
def backward_keys_resident(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, mask_ptr, lens_ptr, bias_ptr,
    sqb, sqh, sqm, sqd, skb, skh, skn, skd, svb, svh, svn, svd, sgb, sgh, sgm, sgd,
    szb, szh, szm, szd, smb, smn, sbb, sbh, sbm, sbn,
    scale, B, HEADS, GROUP, LQ, LK, SHARES, TILES,
    EIGHTS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, KEYS: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Short keys: S once per tile of queries (5 products instead of 7), dQ final, dK and dV one partial per program.

    dk and dv are fp32 [SHARES, B, HEADS, LK, d]; their sum over shares (and over the heads of a group) is the gradient.
    """
    if EIGHTS:
        sqb, sqh, sqm = eights(sqb), eights(sqh), eights(sqm)
        skb, skh, skn = eights(skb), eights(skh), eights(skn)
        svb, svh, svn = eights(svb), eights(svh), eights(svn)
        sgb, sgh, sgm = eights(sgb), eights(sgh), eights(sgm)
        szb, szh, szm = eights(szb), eights(szh), eights(szm)
    program = tl.program_id(0)
    share = program % SHARES
    head = program // SHARES % HEADS
    b = (program // SHARES // HEADS).to(tl.int64)
    h, g = head.to(tl.int64), (head // GROUP).to(tl.int64)
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    keys = tl.arange(0, KEYS)
    key_ok = keys_taking_part(mask_ptr, b, keys, end, smb, smn, HAS_MASK)
    k = load_rows(k_ptr + b * skb + g * skh, keys, key_ok, skn, skd, 0, MAIN, HEAD_DIM)
    v = load_rows(v_ptr + b * svb + g * svh, keys, key_ok, svn, svd, 0, MAIN, HEAD_DIM)
    dk = tl.zeros([KEYS, MAIN], tl.float32)
    dv = tl.zeros([KEYS, MAIN], tl.float32)
    stats = (b * HEADS + h) * LQ
    bias_base = bias_ptr
    if HAS_BIAS:
        bias_base = bias_ptr + b * sbb + h * sbh
    first = share * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(LQ, BLOCK_Q))):
        rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
        row_ok = rows < LQ
        lse = _lse(lse_ptr + stats, rows, row_ok)
        delta = tl.load(delta_ptr + stats + rows, mask=row_ok, other=0.0)
        q = load_rows(q_ptr + b * sqb + h * sqh, rows, row_ok, sqm, sqd, 0, MAIN, HEAD_DIM)
        do = load_rows(dout_ptr + b * sgb + h * sgh, rows, row_ok, sgm, sgd, 0, MAIN, HEAD_DIM)
        p = _probabilities(
            q, q, k, k, scale, lse, bias_base, rows, row_ok, keys, key_ok, sbm, sbn, 0, HAS_BIAS, PRECISION
        )
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = (p * (dp - delta[:, None])).to(q.dtype)
        dk = tl.dot(tl.trans(ds), q, dk, input_precision=PRECISION)
        dq = tl.dot(ds, k, input_precision=PRECISION)
        store_rows(dq_ptr + b * szb + h * szh, dq * scale, rows, row_ok, szm, szd, 0, MAIN, HEAD_DIM)
    part = ((share.to(tl.int64) * B + b) * HEADS + h) * LK * HEAD_DIM
    inside = keys < LK
    store_rows(dk_ptr + part, dk * scale, keys, inside, HEAD_DIM, 1, 0, MAIN, HEAD_DIM)
    store_rows(dv_ptr + part, dv, keys, inside, HEAD_DIM, 1, 0, MAIN, HEAD_DIM)


@triton.jit
def backward_queries_resident(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, mask_ptr, lens_ptr, bias_ptr,
    sqb, sqh, sqm, sqd, skb, skh, skn, skd, svb, svh, svn, svd, sgb, sgh, sgm, sgd,
    sxb, sxh, sxn, sxd, syb, syh, syn, syd, smb, smn, sbb, sbh, sbm, sbn,
    scale, B, HEADS, LQ, LK, SHARES, TILES,
    EIGHTS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, QUERIES: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Short queries: the mirror image, dK and dV final, dQ one fp32 partial [SHARES, B, HEADS, LQ, d] per program."""
    if EIGHTS:
        sqb, sqh, sqm = eights(sqb), eights(sqh), eights(sqm)
        skb, skh, skn = eights(skb), eights(skh), eights(skn)
        svb, svh, svn = eights(svb), eights(svh), eights(svn)
        sgb, sgh, sgm = eights(sgb), eights(sgh), eights(sgm)
        sxb, sxh, sxn = eights(sxb), eights(sxh), eights(sxn)
        syb, syh, syn = eights(syb), eights(syh), eights(syn)
    program = tl.program_id(0)
    share = program % SHARES
    h = (program // SHARES % HEADS).to(tl.int64)
    b = (program // SHARES // HEADS).to(tl.int64)
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    rows = tl.arange(0, QUERIES)
    row_ok = rows < LQ
    stats = (b * HEADS + h) * LQ
    lse = _lse(lse_ptr + stats, rows, row_ok)
    delta = tl.load(delta_ptr + stats + rows, mask=row_ok, other=0.0)
    q = load_rows(q_ptr + b * sqb + h * sqh, rows, row_ok, sqm, sqd, 0, MAIN, HEAD_DIM)
    do = load_rows(dout_ptr + b * sgb + h * sgh, rows, row_ok, sgm, sgd, 0, MAIN, HEAD_DIM)
    dq = tl.zeros([QUERIES, MAIN], tl.float32)
    bias_base = bias_ptr
    if HAS_BIAS:
        bias_base = bias_ptr + b * sbb + h * sbh
    first = share * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(LK, BLOCK_K))):
        keys = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        key_ok = keys_taking_part(mask_ptr, b, keys, end, smb, smn, HAS_MASK)
        k = load_rows(k_ptr + b * skb + h * skh, keys, key_ok, skn, skd, 0, MAIN, HEAD_DIM)
        v = load_rows(v_ptr + b * svb + h * svh, keys, key_ok, svn, svd, 0, MAIN, HEAD_DIM)
        p = _probabilities(
            q, q, k, k, scale, lse, bias_base, rows, row_ok, keys, key_ok, sbm, sbn, 0, HAS_BIAS, PRECISION
        )
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = (p * (dp - delta[:, None])).to(q.dtype)
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        dq = tl.dot(ds, k, dq, input_precision=PRECISION)
        inside = keys < LK
        store_rows(dk_ptr + b * sxb + h * sxh, dk * scale, keys, inside, sxn, sxd, 0, MAIN, HEAD_DIM)
        store_rows(dv_ptr + b * syb + h * syh, dv, keys, inside, syn, syd, 0, MAIN, HEAD_DIM)
    part = ((share.to(tl.int64) * B + b) * HEADS + h) * LQ * HEAD_DIM
    store_rows(dq_ptr + part, dq * scale, rows, row_ok, HEAD_DIM, 1, 0, MAIN, HEAD_DIM)
