"""The forward kernel of attention for big balanced shapes: tensor descriptors (TMA), warps specialised."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LN2, LOG2E, finite


# Specialised on LK = 1 the loop has one turn known in advance, becomes straight code and loses its specialised warps.
@triton.jit(do_not_specialize=["HEADS", "GROUP", "LQ", "LK"])
def descriptor_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, lens_ptr,
    sqb, sqh, sqm, skb, skh, skn, svb, svh, svn, sob, soh, som,
    scale, HEADS, GROUP, LQ, LK,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, HAS_LENS: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """One tile of queries against all keys by online softmax.

    q [B, HEADS, LQ, d], k and v [B, HEADS / GROUP, LK, d], columns contiguous. EVEN: BLOCK_K divides LK and there are
    no lengths, so no key needs masking. WARP_SPECIALIZE engages on sm_90 only with 4 warps and this very loop.
    """
    tiles = tl.cdiv(LQ, BLOCK_Q)
    program = tl.program_id(0)
    tile = program % tiles
    head = program // tiles % HEADS
    b, h, g = (program // tiles // HEADS).to(tl.int64), head.to(tl.int64), (head // GROUP).to(tl.int64)
    end = LK
    if HAS_LENS:
        end = tl.minimum(tl.load(lens_ptr + b), LK).to(tl.int32)
    # One descriptor per (batch, head), as long as its keys that take part: what lies beyond reads as zero instead of
    # the next head's rows, or a padded key's NaN. A size of 0 is not a valid descriptor, nor is one then read.
    rows = tl.maximum(end, 1)
    q_tile = tl.make_tensor_descriptor(q_ptr + b * sqb + h * sqh, [LQ, HEAD_DIM], [sqm, 1], [BLOCK_Q, WIDTH])
    k_tiles = tl.make_tensor_descriptor(k_ptr + b * skb + g * skh, [rows, HEAD_DIM], [skn, 1], [BLOCK_K, WIDTH])
    v_tiles = tl.make_tensor_descriptor(v_ptr + b * svb + g * svh, [rows, HEAD_DIM], [svn, 1], [BLOCK_K, WIDTH])

    first = tile * BLOCK_Q
    q = q_tile.load([first, 0])
    acc = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    factor = scale * LOG2E
    for start in tl.range(0, end, BLOCK_K, warp_specialize=WARP_SPECIALIZE):
        k = k_tiles.load([start, 0])
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if not EVEN:
            s = tl.where((start + tl.arange(0, BLOCK_K) < end)[None, :], s, float("-inf"))
        # A positive scale keeps the order of scores, so one multiplication per row finds the scaled maximum and the
        # one per score becomes part of the subtraction.
        larger = tl.maximum(m, tl.max(s, 1) * factor)
        safe = finite(larger)
        p = tl.exp2(s * factor - safe[:, None])
        shrink = tl.exp2(m - safe)
        total = total * shrink + tl.sum(p, 1)
        v = v_tiles.load([start, 0])
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        m = larger

    divisor = tl.where(total == 0.0, 1.0, total)
    out_tile = tl.make_tensor_descriptor(out_ptr + b * sob + h * soh, [LQ, HEAD_DIM], [som, 1], [BLOCK_Q, WIDTH])
    out_tile.store([first, 0], (acc / divisor[:, None]).to(out_ptr.dtype.element_ty))
    lse = tl.where(total == 0.0, float("-inf"), (finite(m) + tl.log2(divisor)) * LN2)
    row = first + tl.arange(0, BLOCK_Q)
    tl.store(lse_ptr + (b * HEADS + h) * LQ + row, lse, mask=row < LQ)
