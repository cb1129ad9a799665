"""The launches of the attention kernels: which one, with which tiles, over how many programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import descriptor, dispatch
from .dispatch import Choice, Sizes, head_tiles, key_tiles, padded_edge
from .names import Variant
from .runtime import cdiv, dense, launch, of_eights, power_of_two, precision, target
from .table import find, require


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    variant: Variant = "auto",
    splits: int = 0,
) -> tuple[Tensor, Tensor]:
    """The kernels' launch: shapes as in ``cross_attention``, bias expanded to [B, H, Lq, Lk]."""
    picked = choose(q, k, v, mask, bias, scale, variant, splits)
    out, lse = empty(q)
    lens = dense(lens)
    if picked.variant == "descriptor":
        descriptor.descriptor_launch(q, k, v, out, lse, mask, lens, bias, scale, picked.config)
    elif picked.variant == "resident":
        _resident(q, k, v, out, lse, mask, lens, bias, scale, picked)
    elif picked.splits == 1:
        _streaming(q, k, v, out[None], lse, mask, lens, bias, scale, picked)
    else:
        part = q.new_empty((picked.splits, *q.shape), dtype=torch.float32)
        part_lse = q.new_empty((picked.splits, *lse.shape), dtype=torch.float32)
        _streaming(q, k, v, part, part_lse, mask, lens, bias, scale, picked)
        combine_splits(part, part_lse, out, lse)
    return out, lse


def choose(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float, variant: Variant,
    splits: int,
) -> Choice:  # fmt: skip
    usable = descriptor.usable(q, k, v, mask, bias, scale)
    return dispatch.choose(Sizes.of(q, k, bias), target(q.device), variant, splits, usable)


def _streaming(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, picked: Choice,
) -> None:  # fmt: skip
    from .device.attention_forward import streaming_forward

    batch, heads, queries, head_dim = q.shape
    group, keys, block_k = heads // k.shape[1], k.shape[2], picked.config.blocks["BLOCK_K"]
    main, tail = head_tiles(head_dim, picked.config)
    rows = queries * group if picked.packed else queries
    programs = (
        batch * (k.shape[1] if picked.packed else heads) * cdiv(rows, picked.config.blocks["BLOCK_Q"]) * picked.splits
    )
    split_keys = cdiv(cdiv(keys, block_k), picked.splits) * block_k
    launch(
        streaming_forward, programs, q, k, v, out, lse, as_bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *out.stride(), *strides_of(mask, 2), *strides_of(bias, 4),
        scale, batch, heads, group, queries, keys, picked.splits, split_keys,
        config=picked.config, EIGHTS=of_eights(q, k, v, out),
        HEAD_DIM=head_dim, MAIN=main, TAIL=tail, PACKED=picked.packed,
        **_flags(mask, lens, bias, q),
    )  # fmt: skip


def combine_splits(part: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor) -> None:
    from .device.attention_forward import combine

    _, heads, queries, head_dim = out.shape
    width, rows = power_of_two(head_dim), lse.numel()
    config = require("combine", target(out.device).arch, head_dim=head_dim)
    launch(
        combine, cdiv(rows, config.blocks["BLOCK_Q"]), part, part_lse, out, lse, *out.stride(), heads, queries, rows,
        part.shape[0], config=config, HEAD_DIM=head_dim, WIDTH=width,
    )  # fmt: skip


def _resident(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, picked: Choice,
) -> None:  # fmt: skip
    from .device.attention_forward import resident_forward

    batch, heads, queries, head_dim = q.shape
    main, tail = head_tiles(head_dim, picked.config)
    keys_main, keys_tail = key_tiles(k.shape[2], picked.config)
    shares, tiles = shared_out(cdiv(queries, picked.config.blocks["BLOCK_Q"]), batch * heads, q.device)
    launch(
        resident_forward, batch * heads * shares, q, k, v, out, lse, as_bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *out.stride(), *strides_of(mask, 2), *strides_of(bias, 4),
        scale, heads, heads // k.shape[1], queries, k.shape[2], shares, tiles,
        config=picked.config, EIGHTS=of_eights(q, k, v, out),
        HEAD_DIM=head_dim, MAIN=main, TAIL=tail, KEYS_MAIN=keys_main, KEYS_TAIL=keys_tail,
        **_flags(mask, lens, bias, q),
    )  # fmt: skip


def shared_out(tiles: int, groups: int, device: torch.device, per_multiprocessor: int = 4) -> tuple[int, int]:
    """(programs per group, tiles per program): a few programs for every multiprocessor, none without a tile."""
    wanted = max(1, per_multiprocessor * target(device).multiprocessors // max(1, groups))
    each = max(1, cdiv(tiles, min(tiles or 1, wanted)))
    return cdiv(tiles, each), each


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
    mask: Tensor | None,
    lens: Tensor | None,
    bias: Tensor | None,
    scale: float,
    wants_ds: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dS): the kernels' launch, in one pass over the scores where one side fits a program, else in two."""
    gradients = empty_gradients(q, k, v, wants_ds)
    lse, lens = lse.contiguous(), dense(lens)
    delta = delta_of(out, lse, dout, dlse)
    common = (q, k, v, dout, lse, delta, mask, lens, bias, scale)
    sizes = Sizes.of(q, k, bias)
    arch, group = target(q.device).arch, sizes.heads // sizes.kv_heads
    one_pass = not wants_ds and sizes.keys > 0 and sizes.queries > 0
    if one_pass and sizes.keys <= sizes.queries and find("backward_keys_resident", arch, **sizes.row):
        _backward_keys_resident(*common, *gradients[:3])
    elif one_pass and group == 1 and find("backward_queries_resident", arch, **sizes.row):
        _backward_queries_resident(*common, *gradients[:3])
    else:
        gradients_of_keys(*common, *gradients[1:3])
        gradients_of_queries(*common, gradients[0], gradients[3] if wants_ds else None)
    return gradients


def delta_of(out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> Tensor:
    from .device.attention_backward import backward_delta

    _, heads, queries, head_dim = out.shape
    delta = out.new_empty(out.shape[:3], dtype=torch.float32)
    config = require("backward_delta", target(out.device).arch, head_dim=head_dim)
    launch(
        backward_delta, cdiv(delta.numel(), config.blocks["BLOCK_Q"]), out, dout, lse, dense(dlse), delta,
        *out.stride(), *dout.stride(), heads, queries, delta.numel(),
        config=config, EIGHTS=of_eights(out, dout),
        HEAD_DIM=head_dim, WIDTH=power_of_two(head_dim),
    )  # fmt: skip
    return delta


def _flags(mask: Tensor | None, lens: Tensor | None, bias: Tensor | None, q: Tensor) -> dict[str, Any]:
    return {
        "HAS_MASK": mask is not None,
        "HAS_LENS": lens is not None,
        "HAS_BIAS": bias is not None,
        "PRECISION": precision(q.dtype),
    }


def gradients_of_keys(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_keys

    sizes = Sizes.of(q, k, bias)
    config = require("backward_keys", target(q.device).arch, **sizes.row)
    main, tail = head_tiles(sizes.head_dim, config)
    launch(
        backward_keys, sizes.batch * sizes.kv_heads * cdiv(sizes.keys, config.blocks["BLOCK_K"]),
        q, k, v, dout, lse, delta, dk, dv, as_bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dk.stride(), *dv.stride(),
        *strides_of(mask, 2), *strides_of(bias, 4),
        scale, sizes.heads, sizes.heads // sizes.kv_heads, sizes.queries, sizes.keys,
        config=config, EIGHTS=of_eights(q, k, v, dout, dk, dv),
        HEAD_DIM=sizes.head_dim, MAIN=main, TAIL=tail, **_flags(mask, lens, bias, q),
    )  # fmt: skip


def gradients_of_queries(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dq: Tensor, ds: Tensor | None,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_queries

    sizes = Sizes.of(q, k, bias)
    config = require("backward_queries", target(q.device).arch, **sizes.row)
    main, tail = head_tiles(sizes.head_dim, config)
    if ds is not None and (lens is not None or sizes.keys == 0):
        ds.zero_()  # the kernel stops at a sample's last key
    launch(
        backward_queries, sizes.batch * sizes.heads * cdiv(sizes.queries, config.blocks["BLOCK_Q"]),
        q, k, v, dout, lse, delta, dq, ds, as_bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dq.stride(), *strides_of(mask, 2), *strides_of(bias, 4),
        scale, sizes.heads, sizes.heads // sizes.kv_heads, sizes.queries, sizes.keys,
        config=config, EIGHTS=of_eights(q, k, v, dout, dq),
        HEAD_DIM=sizes.head_dim, MAIN=main, TAIL=tail, WRITES_DS=ds is not None,
        **_flags(mask, lens, bias, q),
    )  # fmt: skip


def _backward_keys_resident(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_keys_resident

    sizes = Sizes.of(q, k, bias)
    config = require("backward_keys_resident", target(q.device).arch, **sizes.row)
    group = sizes.heads // sizes.kv_heads
    # One program per multiprocessor: each leaves a partial of [Lk, d] behind.
    shares, tiles = shared_out(cdiv(sizes.queries, config.blocks["BLOCK_Q"]), sizes.batch * sizes.heads, q.device, 1)
    parts = q.new_empty((2, shares, sizes.batch, sizes.heads, sizes.keys, sizes.head_dim), dtype=torch.float32)
    launch(
        backward_keys_resident, sizes.batch * sizes.heads * shares,
        q, k, v, dout, lse, delta, dq, parts[0], parts[1], as_bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dq.stride(), *strides_of(mask, 2), *strides_of(bias, 4),
        scale, sizes.batch, sizes.heads, group, sizes.queries, sizes.keys, shares, tiles,
        config=config, EIGHTS=of_eights(q, k, v, dout, dq),
        HEAD_DIM=sizes.head_dim, MAIN=padded_edge(sizes.head_dim, config),
        KEYS=padded_edge(sizes.keys, config), **_flags(mask, lens, bias, q),
    )  # fmt: skip
    sums = parts.view(2, shares, sizes.batch, sizes.kv_heads, group, sizes.keys, sizes.head_dim).sum((1, 4))
    dk.copy_(sums[0])
    dv.copy_(sums[1])


def _backward_queries_resident(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None, lens: Tensor | None,
    bias: Tensor | None, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    from .device.attention_backward import backward_queries_resident

    sizes = Sizes.of(q, k, bias)
    config = require("backward_queries_resident", target(q.device).arch, **sizes.row)
    shares, tiles = shared_out(cdiv(sizes.keys, config.blocks["BLOCK_K"]), sizes.batch * sizes.heads, q.device, 2)
    part = q.new_empty((shares, *q.shape), dtype=torch.float32)
    launch(
        backward_queries_resident, sizes.batch * sizes.heads * shares,
        q, k, v, dout, lse, delta, part, dk, dv, as_bytes(mask), lens, bias,
        *q.stride(), *k.stride(), *v.stride(), *dout.stride(), *dk.stride(), *dv.stride(),
        *strides_of(mask, 2), *strides_of(bias, 4),
        scale, sizes.batch, sizes.heads, sizes.queries, sizes.keys, shares, tiles,
        config=config, EIGHTS=of_eights(q, k, v, dout, dk, dv),
        HEAD_DIM=sizes.head_dim, MAIN=padded_edge(sizes.head_dim, config),
        QUERIES=padded_edge(sizes.queries, config), **_flags(mask, lens, bias, q),
    )  # fmt: skip
    dq.copy_(part.sum(0))


def as_bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def strides_of(x: Tensor | None, sizes: int) -> tuple[int, ...]:
    return (0,) * sizes if x is None else x.stride()


def empty(q: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=kind)


def empty_gradients(q: Tensor, k: Tensor, v: Tensor, wants_ds: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (*q.shape[:3], k.shape[2]) if wants_ds else (0,)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), q.new_empty(scores, dtype=kind)
