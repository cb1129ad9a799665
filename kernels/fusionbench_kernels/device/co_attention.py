"""The kernels of co-attention: both softmaxes of one affinity from one product, forward and backward.

One side (r) stays in the program while the other (s) streams past in tiles: S = scale·X_r X_sᵀ, by rows
O_r = softmax(S) V_s, by columns O_s = softmax(Sᵀ) V_r. A mask takes a token out as a key, so the mask of s belongs to
the rows' softmax and the mask of r to the columns'. Every sum has one owner: no atomics, the same bits on every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LN2, LOG2E, finite, keys_taking_part, load_rows, store_rows


@triton.jit
def co_forward(
    xr_ptr, vr_ptr, xs_ptr, vs_ptr, or_ptr, lse_r_ptr, os_ptr, lse_s_ptr, mask_r_ptr, mask_s_ptr,
    sxrb, sxrh, sxrn, sxrd, svrb, svrh, svrn, svrd, sxsb, sxsh, sxsn, sxsd, svsb, svsh, svsn, svsd,
    sorz, sorb, sorh, sorn, sord, sosb, sosh, sosn, sosd, smrb, smrn, smsb, smsn,
    scale, B, HEADS, LR, LS, SHARES, TILES,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, RESIDENT: tl.constexpr,
    HAS_MASK_R: tl.constexpr, HAS_MASK_S: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr, ONE_EXP: tl.constexpr,
):  # fmt: skip
    """All of side r against TILES tiles of side s: O_s is complete per tile, O_r by online softmax.

    x and v of r [B, HEADS, LR, d], of s [B, HEADS, LS, d]. With SHARES > 1 the output of r is fp32
    [SHARES, B, HEADS, LR, d] and its lse [SHARES, B, HEADS, LR], to be merged by ``combine``.
    """
    program = tl.program_id(0)
    share = program % SHARES
    h = (program // SHARES % HEADS).to(tl.int64)
    b = (program // SHARES // HEADS).to(tl.int64)
    rows = tl.arange(0, RESIDENT)
    r_there = rows < LR
    r_ok = keys_taking_part(mask_r_ptr, b, rows, LR, smrb, smrn, HAS_MASK_R)
    x_r = load_rows(xr_ptr + b * sxrb + h * sxrh, rows, r_there, sxrn, sxrd, 0, WIDTH, HEAD_DIM)
    v_r = load_rows(vr_ptr + b * svrb + h * svrh, rows, r_ok, svrn, svrd, 0, WIDTH, HEAD_DIM)
    m = tl.full([RESIDENT], float("-inf"), tl.float32)
    total = tl.zeros([RESIDENT], tl.float32)
    acc = tl.zeros([RESIDENT, WIDTH], tl.float32)
    xs_base, vs_base = xs_ptr + b * sxsb + h * sxsh, vs_ptr + b * svsb + h * svsh
    first = share * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(LS, BLOCK_S))):
        columns = tile * BLOCK_S + tl.arange(0, BLOCK_S)
        s_there = columns < LS
        s_ok = keys_taking_part(mask_s_ptr, b, columns, LS, smsb, smsn, HAS_MASK_S)
        x_s = load_rows(xs_base, columns, s_there, sxsn, sxsd, 0, WIDTH, HEAD_DIM)
        s = tl.dot(x_r, tl.trans(x_s), input_precision=PRECISION) * (scale * LOG2E)
        by_row = tl.where(s_ok[None, :], s, float("-inf"))
        by_column = tl.where(r_ok[:, None], s, float("-inf"))
        larger, n = tl.maximum(m, tl.max(by_row, 1)), tl.max(by_column, 0)
        safe_m, safe_n = finite(larger), finite(n)
        if ONE_EXP:
            p_row, p_column = _one_exp(s, by_row, by_column, larger, n, r_there, s_there, r_ok, s_ok)
        else:
            p_row = tl.exp2(by_row - safe_m[:, None])
            p_column = tl.exp2(by_column - safe_n[None, :])
        weight = tl.sum(p_column, 0)
        divisor = tl.where(weight == 0.0, 1.0, weight)
        out = tl.dot(tl.trans(p_column.to(v_r.dtype)), v_r, input_precision=PRECISION)
        store_rows(
            os_ptr + b * sosb + h * sosh, out / divisor[:, None], columns, s_there, sosn, sosd, 0, WIDTH, HEAD_DIM
        )
        lse = tl.where(weight == 0.0, float("-inf"), (safe_n + tl.log2(divisor)) * LN2)
        tl.store(lse_s_ptr + (b * HEADS + h) * LS + columns, lse, mask=s_there)
        shrink = tl.exp2(m - safe_m)
        total = total * shrink + tl.sum(p_row, 1)
        v_s = load_rows(vs_base, columns, s_ok, svsn, svsd, 0, WIDTH, HEAD_DIM)
        acc = tl.dot(p_row.to(v_s.dtype), v_s, acc * shrink[:, None], input_precision=PRECISION)
        m = larger
    divisor = tl.where(total == 0.0, 1.0, total)
    or_base = or_ptr + share.to(tl.int64) * sorz + b * sorb + h * sorh
    store_rows(or_base, acc / divisor[:, None], rows, r_there, sorn, sord, 0, WIDTH, HEAD_DIM)
    lse = tl.where(total == 0.0, float("-inf"), (finite(m) + tl.log2(divisor)) * LN2)
    tl.store(lse_r_ptr + ((share.to(tl.int64) * B + b) * HEADS + h) * LR + rows, lse, mask=r_there)


@triton.jit
def _one_exp(s, by_row, by_column, m, n, r_there, s_there, r_ok, s_ok):
    """Both probabilities from one exp per score, E = exp2(S - c) with c the tile's maximum, times factors per line.

    E of a line whose own maximum is far below c would be 0 or inaccurate; then each direction takes its own exp.
    """
    # A masked token may hold NaN, which must not reach c and with it the other lines.
    m_clean = tl.where(r_there & (m == m), m, float("-inf"))
    n_clean = tl.where(s_there & (n == n), n, float("-inf"))
    tile_m = tl.max(by_row, 1)
    c = tl.maximum(tl.max(tl.where(r_there & (tile_m == tile_m), tile_m, float("-inf")), 0), tl.max(n_clean, 0))
    c = finite(c)
    lowest_m = tl.min(tl.where(m_clean == float("-inf"), c, m_clean), 0)
    lowest_n = tl.min(tl.where(n_clean == float("-inf"), c, n_clean), 0)
    if c - tl.minimum(lowest_m, lowest_n) <= 64.0:
        e = tl.exp2(tl.minimum(s - c, 0.0))  # above 0 only where neither direction looks
        p_row = tl.where(s_ok[None, :], e * tl.exp2(tl.minimum(c - finite(m), 64.0))[:, None], 0.0)
        p_column = tl.where(r_ok[:, None], e * tl.exp2(tl.minimum(c - finite(n), 64.0))[None, :], 0.0)
    else:
        p_row = tl.exp2(by_row - finite(m)[:, None])
        p_column = tl.exp2(by_column - finite(n)[None, :])
    return p_row, p_column


@triton.jit
def _statistics(lse_ptr, delta_ptr, tokens, there, takes_part, HAS_MASK: tl.constexpr):
    """(lse in units of log2, delta, alive) of tokens as queries.

    A masked token with NaN has lse NaN: as a query it would carry that to every key, so it is not alive.
    """
    lse = tl.load(lse_ptr + tokens, mask=there, other=float("inf"))
    delta = tl.load(delta_ptr + tokens, mask=there, other=0.0)
    alive = there
    none = lse == float("-inf")  # no key: exp(S - lse) would be NaN, with +inf it is 0
    if HAS_MASK:
        alive = takes_part | (tl.abs(lse) < float("inf")) & there
        none = none | (alive == 0)
    return tl.where(none, float("inf"), lse * LOG2E), tl.where(none, 0.0, delta), alive


@triton.jit
def co_backward(
    xr_ptr, vr_ptr, gr_ptr, xs_ptr, vs_ptr, gs_ptr, lse_r_ptr, delta_r_ptr, lse_s_ptr, delta_s_ptr,
    dxr_ptr, dvr_ptr, dxs_ptr, dvs_ptr, mask_r_ptr, mask_s_ptr,
    sxrb, sxrh, sxrn, sxrd, svrb, svrh, svrn, svrd, sgrb, sgrh, sgrn, sgrd,
    sxsb, sxsh, sxsn, sxsd, svsb, svsh, svsn, svsd, sgsb, sgsh, sgsn, sgsd,
    sdxb, sdxh, sdxn, sdxd, sdvb, sdvh, sdvn, sdvd, smrb, smrn, smsb, smsn,
    scale, B, HEADS, LR, LS, SHARES, TILES,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, RESIDENT: tl.constexpr,
    HAS_MASK_R: tl.constexpr, HAS_MASK_S: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One pass, seven products per tile: gradients of s final per tile, of r one fp32 partial per program.

    g is the gradient of a side's output. dxr and dvr are fp32 [SHARES, B, HEADS, LR, d], to be summed over shares.
    """
    program = tl.program_id(0)
    share = program % SHARES
    h = (program // SHARES % HEADS).to(tl.int64)
    b = (program // SHARES // HEADS).to(tl.int64)
    stats_r, stats_s = (b * HEADS + h) * LR, (b * HEADS + h) * LS
    rows = tl.arange(0, RESIDENT)
    r_there = rows < LR
    r_ok = keys_taking_part(mask_r_ptr, b, rows, LR, smrb, smrn, HAS_MASK_R)
    lse_r, delta_r, r_alive = _statistics(lse_r_ptr + stats_r, delta_r_ptr + stats_r, rows, r_there, r_ok, HAS_MASK_R)
    x_r = load_rows(xr_ptr + b * sxrb + h * sxrh, rows, r_alive, sxrn, sxrd, 0, WIDTH, HEAD_DIM)
    v_r = load_rows(vr_ptr + b * svrb + h * svrh, rows, r_ok, svrn, svrd, 0, WIDTH, HEAD_DIM)
    g_r = load_rows(gr_ptr + b * sgrb + h * sgrh, rows, r_alive, sgrn, sgrd, 0, WIDTH, HEAD_DIM)
    dx_r = tl.zeros([RESIDENT, WIDTH], tl.float32)
    dv_r = tl.zeros([RESIDENT, WIDTH], tl.float32)
    first = share * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(LS, BLOCK_S))):
        columns = tile * BLOCK_S + tl.arange(0, BLOCK_S)
        s_there = columns < LS
        s_ok = keys_taking_part(mask_s_ptr, b, columns, LS, smsb, smsn, HAS_MASK_S)
        lse_s, delta_s, s_alive = _statistics(
            lse_s_ptr + stats_s, delta_s_ptr + stats_s, columns, s_there, s_ok, HAS_MASK_S
        )
        x_s = load_rows(xs_ptr + b * sxsb + h * sxsh, columns, s_alive, sxsn, sxsd, 0, WIDTH, HEAD_DIM)
        s = tl.dot(x_r, tl.trans(x_s), input_precision=PRECISION) * (scale * LOG2E)
        p_row = tl.where(s_ok[None, :], tl.exp2(s - lse_r[:, None]), 0.0)
        dv_s = tl.dot(tl.trans(p_row.to(g_r.dtype)), g_r, input_precision=PRECISION)
        store_rows(dvs_ptr + b * sdvb + h * sdvh, dv_s, columns, s_there, sdvn, sdvd, 0, WIDTH, HEAD_DIM)
        v_s = load_rows(vs_ptr + b * svsb + h * svsh, columns, s_ok, svsn, svsd, 0, WIDTH, HEAD_DIM)
        ds = p_row * (tl.dot(g_r, tl.trans(v_s), input_precision=PRECISION) - delta_r[:, None])
        g_s = load_rows(gs_ptr + b * sgsb + h * sgsh, columns, s_alive, sgsn, sgsd, 0, WIDTH, HEAD_DIM)
        p_column = tl.where(r_ok[:, None], tl.exp2(s - lse_s[None, :]), 0.0)
        dv_r = tl.dot(p_column.to(g_s.dtype), g_s, dv_r, input_precision=PRECISION)
        ds += p_column * (tl.dot(v_r, tl.trans(g_s), input_precision=PRECISION) - delta_s[None, :])
        narrow = ds.to(x_s.dtype)
        dx_r = tl.dot(narrow, x_s, dx_r, input_precision=PRECISION)
        dx_s = tl.dot(tl.trans(narrow), x_r, input_precision=PRECISION) * scale
        store_rows(dxs_ptr + b * sdxb + h * sdxh, dx_s, columns, s_there, sdxn, sdxd, 0, WIDTH, HEAD_DIM)
    part = ((share.to(tl.int64) * B + b) * HEADS + h) * LR * HEAD_DIM
    store_rows(dxr_ptr + part, dx_r * scale, rows, r_there, HEAD_DIM, 1, 0, WIDTH, HEAD_DIM)
    store_rows(dvr_ptr + part, dv_r, rows, r_there, HEAD_DIM, 1, 0, WIDTH, HEAD_DIM)


@triton.jit
def co_backward_side(
    xr_ptr, vr_ptr, gr_ptr, xs_ptr, vs_ptr, gs_ptr, lse_r_ptr, delta_r_ptr, lse_s_ptr, delta_s_ptr,
    dx_ptr, dv_ptr, mask_r_ptr, mask_s_ptr,
    sxrb, sxrh, sxrn, sxrd, svrb, svrh, svrn, svrd, sgrb, sgrh, sgrn, sgrd,
    sxsb, sxsh, sxsn, sxsd, svsb, svsh, svsn, svsd, sgsb, sgsh, sgsn, sgsd,
    sdxz, sdxb, sdxh, sdxn, sdxd, sdvz, sdvb, sdvh, sdvn, sdvd, smrb, smrn, smsb, smsn,
    scale, HEADS, LR, LS, SHARES, TILES,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    HAS_MASK_R: tl.constexpr, HAS_MASK_S: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of side r alone, five products per tile of s; called once for each side as r.

    For head dims whose four gradients do not fit the registers. With SHARES > 1 dx and dv are fp32
    [SHARES, B, HEADS, LR, d].
    """
    tiles = tl.cdiv(LR, BLOCK_R)
    program = tl.program_id(0)
    tile = program % tiles
    share = program // tiles % SHARES
    program = program // tiles // SHARES
    h, b = (program % HEADS).to(tl.int64), (program // HEADS).to(tl.int64)
    stats_r, stats_s = (b * HEADS + h) * LR, (b * HEADS + h) * LS
    rows = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    r_there = rows < LR
    r_ok = keys_taking_part(mask_r_ptr, b, rows, LR, smrb, smrn, HAS_MASK_R)
    lse_r, delta_r, r_alive = _statistics(lse_r_ptr + stats_r, delta_r_ptr + stats_r, rows, r_there, r_ok, HAS_MASK_R)
    x_r = load_rows(xr_ptr + b * sxrb + h * sxrh, rows, r_alive, sxrn, sxrd, 0, WIDTH, HEAD_DIM)
    v_r = load_rows(vr_ptr + b * svrb + h * svrh, rows, r_ok, svrn, svrd, 0, WIDTH, HEAD_DIM)
    g_r = load_rows(gr_ptr + b * sgrb + h * sgrh, rows, r_alive, sgrn, sgrd, 0, WIDTH, HEAD_DIM)
    dx = tl.zeros([BLOCK_R, WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_R, WIDTH], tl.float32)
    first = share * TILES
    for step in range(first, tl.minimum(first + TILES, tl.cdiv(LS, BLOCK_S))):
        columns = step * BLOCK_S + tl.arange(0, BLOCK_S)
        s_there = columns < LS
        s_ok = keys_taking_part(mask_s_ptr, b, columns, LS, smsb, smsn, HAS_MASK_S)
        lse_s, delta_s, s_alive = _statistics(
            lse_s_ptr + stats_s, delta_s_ptr + stats_s, columns, s_there, s_ok, HAS_MASK_S
        )
        x_s = load_rows(xs_ptr + b * sxsb + h * sxsh, columns, s_alive, sxsn, sxsd, 0, WIDTH, HEAD_DIM)
        s = tl.dot(x_r, tl.trans(x_s), input_precision=PRECISION) * (scale * LOG2E)
        p_row = tl.where(s_ok[None, :], tl.exp2(s - lse_r[:, None]), 0.0)
        v_s = load_rows(vs_ptr + b * svsb + h * svsh, columns, s_ok, svsn, svsd, 0, WIDTH, HEAD_DIM)
        ds = p_row * (tl.dot(g_r, tl.trans(v_s), input_precision=PRECISION) - delta_r[:, None])
        g_s = load_rows(gs_ptr + b * sgsb + h * sgsh, columns, s_alive, sgsn, sgsd, 0, WIDTH, HEAD_DIM)
        p_column = tl.where(r_ok[:, None], tl.exp2(s - lse_s[None, :]), 0.0)
        dv = tl.dot(p_column.to(g_s.dtype), g_s, dv, input_precision=PRECISION)
        ds += p_column * (tl.dot(v_r, tl.trans(g_s), input_precision=PRECISION) - delta_s[None, :])
        dx = tl.dot(ds.to(x_s.dtype), x_s, dx, input_precision=PRECISION)
    z = share.to(tl.int64)
    store_rows(dx_ptr + z * sdxz + b * sdxb + h * sdxh, dx * scale, rows, r_there, sdxn, sdxd, 0, WIDTH, HEAD_DIM)
    store_rows(dv_ptr + z * sdvz + b * sdvb + h * sdvh, dv, rows, r_there, sdvn, sdvd, 0, WIDTH, HEAD_DIM)
