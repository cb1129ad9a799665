"""Both sequences copied into one, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def concat_tokens(
    a_ptr, b_ptr, out_ptr, sab, sal, sad, sbb, sbl, sbd, LA, LENGTH, ROWS,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of the ROWS = B·LENGTH rows of out [B, LENGTH, WIDTH]: a sample's first LA from a, the others from b."""
    columns_of = tl.cdiv(WIDTH, BLOCK_D)
    rows = (tl.program_id(0) // columns_of).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = (tl.program_id(0) % columns_of) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    ok = (rows < ROWS)[:, None] & (columns < WIDTH)[None, :]
    batch, token = rows // LENGTH, rows % LENGTH
    from_a = (token < LA)[:, None]
    a = tl.load(a_ptr + (batch * sab + token * sal)[:, None] + columns[None, :] * sad, mask=ok & from_a, other=0.0)
    past = token - LA
    b = tl.load(
        b_ptr + (batch * sbb + past * sbl)[:, None] + columns[None, :] * sbd, mask=ok & (from_a == 0), other=0.0
    )
    tl.store(out_ptr + rows[:, None] * WIDTH + columns[None, :], tl.where(from_a, a, b), mask=ok)
