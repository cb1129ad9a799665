"""Attention over int8 keys: their statistics, their quantisation, and the forward pass, which quantises queries."""

from __future__ import annotations

import triton
import triton.language as tl

from .int8 import magnitudes, scale_of, to_int8
from .tiles import LN2, LOG2E, finite, keys_taking_part, load_rows

# P in e4m3 as 2⁸·P: its smallest steps then reach down to 2⁻¹⁷ of the row's maximum, and 256 + rounding stays < 448.
_FP8_SHIFT: tl.constexpr = tl.constexpr(8.0)
_FP8_MAX: tl.constexpr = tl.constexpr(448.0)


@triton.jit
def _column_bits(x):
    """The largest |x| of each column as its bits."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)


@triton.jit
def key_statistics(
    k_ptr, v_ptr, sums_ptr, counts_ptr, largest_ptr, mask_ptr, lens_ptr,
    skb, skh, skn, skd, svb, svh, svn, svd, smb, smn,
    KV_HEADS, LK, PARTS, PART_KEYS,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SMOOTH: tl.constexpr, FP8: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of each range of PART_KEYS keys that take part: their sum, their number, the largest |v| of each channel.

    sums and largest [B, KV_HEADS, PARTS, d], counts [B, KV_HEADS, PARTS], fp32. Their readers add the parts in order,
    so the mean has the same bits on every run.
    """
    program = tl.program_id(0)
    part = program % PARTS
    head = program // PARTS
    b, g = (head // KV_HEADS).to(tl.int64), (head % KV_HEADS).to(tl.int64)
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    first = part * PART_KEYS
    last = tl.minimum(first + PART_KEYS, end)
    sums = tl.zeros([WIDTH], tl.float32)
    count = tl.zeros([BLOCK_K], tl.float32)
    largest = tl.zeros([WIDTH], tl.int32)
    for start in range(first, last, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        ok = keys_taking_part(mask_ptr, b, keys, last, smb, smn, HAS_MASK)
        if SMOOTH:
            k = load_rows(k_ptr + b * skb + g * skh, keys, ok, skn, skd, 0, WIDTH, HEAD_DIM)
            sums += tl.sum(k.to(tl.float32), 0)
            count += ok.to(tl.float32)
        if FP8:
            v = load_rows(v_ptr + b * svb + g * svh, keys, ok, svn, svd, 0, WIDTH, HEAD_DIM)
            largest = tl.maximum(largest, _column_bits(v.to(tl.float32)))
    columns = tl.arange(0, WIDTH)
    at = program.to(tl.int64) * HEAD_DIM + columns
    if SMOOTH:
        tl.store(sums_ptr + at, sums, mask=columns < HEAD_DIM)
        tl.store(counts_ptr + program, tl.sum(count, 0))
    if FP8:
        tl.store(largest_ptr + at, largest.to(tl.float32, bitcast=True), mask=columns < HEAD_DIM)


@triton.jit
def quantize_keys(
    k_ptr, v_ptr, sums_ptr, counts_ptr, largest_ptr, mask_ptr, lens_ptr,
    k8_ptr, scale_ptr, mean_ptr, v8_ptr, v_scale_ptr,
    skb, skh, skn, skd, svb, svh, svn, svd, smb, smn,
    KV_HEADS, LK, LK_STORED, PARTS, TILES,
    HEAD_DIM: tl.constexpr, STORED: tl.constexpr, WIDTH: tl.constexpr, GRAIN: tl.constexpr, ONE_TILE: tl.constexpr,
    SMOOTH: tl.constexpr, FP8: tl.constexpr, HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """k less its mean as int8 [B, KV_HEADS, LK, STORED], a scale for every GRAIN keys; v as e4m3, transposed.

    v8 [B, KV_HEADS, d, LK_STORED] has a scale per channel. Keys that take no part are stored as zeros. ONE_TILE: all
    keys are in this program, which then needs no ``key_statistics``.
    """
    tl.static_assert(BLOCK_K % GRAIN == 0, "a tile must hold whole blocks of keys that share a scale")
    program = tl.program_id(0)
    tile = program % TILES
    wide = (program // TILES).to(tl.int64)
    b, g = wide // KV_HEADS, wide % KV_HEADS
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    keys = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    ok = keys_taking_part(mask_ptr, b, keys, end, smb, smn, HAS_MASK)
    columns = tl.arange(0, WIDTH)
    x = load_rows(k_ptr + b * skb + g * skh, keys, ok, skn, skd, 0, WIDTH, HEAD_DIM).to(tl.float32)
    if SMOOTH:
        if ONE_TILE:
            sums = tl.sum(x, 0)
            count = tl.sum(ok.to(tl.float32), 0)
        else:
            sums = tl.zeros([WIDTH], tl.float32)
            count = 0.0
            for part in range(0, PARTS):
                at = wide * PARTS + part
                sums += tl.load(sums_ptr + at * HEAD_DIM + columns, mask=columns < HEAD_DIM, other=0.0)
                count += tl.load(counts_ptr + at)
        mean = sums / tl.maximum(count, 1.0)
        x = tl.where(ok[:, None], x - mean[None, :], 0.0)
        if tile == 0:
            tl.store(mean_ptr + wide * HEAD_DIM + columns, mean, mask=columns < HEAD_DIM)
    scale, inverse = scale_of(magnitudes(x, BLOCK_K, GRAIN), 127.0)
    rows = wide * LK + keys
    stored = (keys < LK)[:, None] & (columns < STORED)[None, :]
    tl.store(k8_ptr + rows[:, None] * STORED + columns[None, :], to_int8(x * inverse[:, None]), mask=stored)
    scales = tl.cdiv(LK, GRAIN)
    tl.store(scale_ptr + wide * scales + keys // GRAIN, scale, mask=(keys < LK) & (keys % GRAIN == 0))
    if FP8:
        v = load_rows(v_ptr + b * svb + g * svh, keys, ok, svn, svd, 0, WIDTH, HEAD_DIM).to(tl.float32)
        if ONE_TILE:
            largest = _column_bits(v).to(tl.float32, bitcast=True)
        else:
            bits = tl.zeros([WIDTH], tl.int32)
            for part in range(0, PARTS):
                at = (wide * PARTS + part) * HEAD_DIM + columns
                found = tl.load(largest_ptr + at, mask=columns < HEAD_DIM, other=0.0)
                bits = tl.maximum(bits, found.to(tl.int32, bitcast=True))
            largest = bits.to(tl.float32, bitcast=True)
        v_scale, v_inverse = scale_of(largest, _FP8_MAX)
        v8 = tl.trans((v * v_inverse[None, :]).to(tl.float8e4nv))  # [WIDTH, BLOCK_K]
        at = (wide * HEAD_DIM + columns)[:, None] * LK_STORED + keys[None, :]
        tl.store(v8_ptr + at, v8, mask=(columns < HEAD_DIM)[:, None] & (keys < LK_STORED)[None, :])
        if tile == 0:
            tl.store(v_scale_ptr + wide * HEAD_DIM + columns, v_scale, mask=columns < HEAD_DIM)


@triton.jit
def int8_forward(
    q_ptr, k8_ptr, k_scale_ptr, mean_ptr, v_ptr, v_scale_ptr, out_ptr, lse_ptr, mask_ptr, lens_ptr,
    sqb, sqh, sqm, sqd, svb, svh, svn, svd, sos, sob, soh, som, sod, smb, smn,
    scale, B, HEADS, GROUP, LQ, LK, LK_STORED, SPLITS, SPLIT_KEYS,
    HEAD_DIM: tl.constexpr, STORED: tl.constexpr, WIDTH: tl.constexpr, GRAIN: tl.constexpr, SMOOTH: tl.constexpr,
    FP8: tl.constexpr, HAS_MASK: tl.constexpr, HAS_LENS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of queries, quantised here, against one range of int8 keys by online softmax.

    q [B, HEADS, LQ, d]; k8 [B, HEADS / GROUP, LK, STORED]; v [B, HEADS / GROUP, LK, d], or with FP8
    [B, HEADS / GROUP, d, LK_STORED]. With SPLITS > 1 out is fp32 [SPLITS, B, HEADS, LQ, d] and lse
    [SPLITS, B, HEADS, LQ], to be merged by ``combine``.
    """
    tl.static_assert(BLOCK_Q % GRAIN == 0, "a tile must hold whole blocks of queries that share a scale")
    tiles = tl.cdiv(LQ, BLOCK_Q)
    program = tl.program_id(0)
    tile = program % tiles
    program = program // tiles
    split = program % SPLITS
    program = program // SPLITS
    head = program % HEADS
    b, h, g = (program // HEADS).to(tl.int64), head.to(tl.int64), (head // GROUP).to(tl.int64)
    kv = b * (HEADS // GROUP) + g

    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_ok = rows < LQ
    columns = tl.arange(0, WIDTH)
    q = load_rows(q_ptr + b * sqb + h * sqh, rows, row_ok, sqm, sqd, 0, WIDTH, HEAD_DIM).to(tl.float32)
    q_scale, inverse = scale_of(magnitudes(q, BLOCK_Q, GRAIN), 127.0)
    q8 = to_int8(q * inverse[:, None])
    q_scale = q_scale * (scale * LOG2E)
    if SMOOTH:
        mean = tl.load(mean_ptr + kv * HEAD_DIM + columns, mask=columns < HEAD_DIM, other=0.0)
        shift = tl.sum(q * mean[None, :], 1) * scale  # what smoothing took from each score of the row

    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK)
    first = split * SPLIT_KEYS
    last = tl.minimum(first + SPLIT_KEYS, end)
    scales = k_scale_ptr + kv * tl.cdiv(LK, GRAIN)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
    for start in range(first, last, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        ok = keys_taking_part(mask_ptr, b, keys, last, smb, smn, HAS_MASK)
        k8 = load_rows(k8_ptr + kv * LK * STORED, keys, ok, STORED, 1, 0, WIDTH, STORED)
        s = tl.dot(q8, tl.trans(k8)).to(tl.float32)  # |s| ≤ 127²·256 < 2²⁴: exact
        if GRAIN % BLOCK_K == 0:
            s = s * (q_scale * tl.load(scales + start // GRAIN))[:, None]
        else:
            s = s * q_scale[:, None] * tl.load(scales + keys // GRAIN, mask=ok, other=0.0)[None, :]
        s = tl.where(ok[None, :], s, float("-inf"))
        larger = tl.maximum(m, tl.max(s, 1))
        safe = finite(larger)
        shrink = tl.exp2(m - safe)
        if FP8:
            p = tl.exp2(s - (safe - _FP8_SHIFT)[:, None])
            inside = (columns < HEAD_DIM)[:, None] & (keys < LK_STORED)[None, :]
            at = (kv * HEAD_DIM + columns)[:, None] * LK_STORED + keys[None, :]
            v8 = tl.trans(tl.load(v_ptr + at, mask=inside, other=0.0))
            # Hopper sums fp8 products to about 22 bits: added up in fp32 tile by tile, not in the tensor core.
            acc = acc * shrink[:, None] + tl.dot(p.to(tl.float8e4nv), v8)
        else:
            p = tl.exp2(s - safe[:, None])
            v = load_rows(v_ptr + b * svb + g * svh, keys, ok, svn, svd, 0, WIDTH, HEAD_DIM)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        total = total * shrink + tl.sum(p, 1)
        m = larger

    divisor = tl.where(total == 0.0, 1.0, total)
    out = acc / divisor[:, None]
    lse = finite(m) + tl.log2(divisor)
    if FP8:
        out *= tl.load(v_scale_ptr + kv * HEAD_DIM + columns, mask=columns < HEAD_DIM, other=0.0)[None, :]
        lse -= _FP8_SHIFT
    lse *= LN2
    if SMOOTH:
        lse += shift
    out_rows = out_ptr + split.to(tl.int64) * sos + b * sob + h * soh + rows.to(tl.int64) * som
    pointers = out_rows[:, None] + columns.to(tl.int64)[None, :] * sod
    tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=row_ok[:, None] & (columns < HEAD_DIM)[None, :])
    lse = tl.where(total == 0.0, float("-inf"), lse)
    tl.store(lse_ptr + ((split.to(tl.int64) * B + b) * HEADS + h) * LQ + rows, lse, mask=row_ok)
