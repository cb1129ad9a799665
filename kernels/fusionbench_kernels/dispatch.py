"""Which attention kernel a call gets: the heuristic, written down, and the choice it made, to be shown.

1. ``resident`` where the table has a row that holds all keys (at most 256) of this head size in one program: no
   online softmax, K and V loaded once per program.
2. ``split`` where a tile of queries per program would leave multiprocessors idle (fewer than 0.8 programs each)
   and there are more than four tiles of keys, each split keeping two or more. The number of splits is the smallest
   whose waves of programs are at least 85 % as full as the best one's (FlashAttention-3's rule, hopper/heuristics.h).
3. ``streaming`` everywhere else. Where heads share keys (GQA) and a head's queries fill less than half of a tile, the
   heads of a group are packed into one tile.

``descriptor`` is only asked for, until a row of its own says ``preferred``: a tuner sets that on a GPU on which the
row passed ``descriptor_check`` and was faster than ``streaming``. Then it takes what would be ``streaming``'s with a
tile of queries or more and four tiles of keys or more, of tensors that ``descriptor.unfit`` has nothing against. The
table's bound ``plain`` tells its two forms apart: 0 asks for warp specialisation too, 1 only for the form without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch

from .names import Ran, Variant
from .runtime import Target, cdiv, power_of_two, precision
from .table import Config, find, require

MAX_HEAD_DIM = 256
RESIDENT_KEYS = 256


@dataclass(frozen=True)
class Choice:
    """The kernel of a call: its variant, the block sizes, how many programs share a row's keys, and why."""

    variant: Ran
    config: Config
    splits: int = 1
    packed: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Sizes:
    """What the choice depends on."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    bytes: int  # of an element
    ieee: int = 0  # 1 where products of float32 are exact: tensor cores have tf32 only

    bias: int = 0  # 1 with a bias, whose tile takes registers

    @classmethod
    def of(cls, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None = None) -> Sizes:
        batch, heads, queries, head_dim = q.shape
        exact = q.dtype == torch.float32 and precision(q.dtype) == "ieee"
        return cls(
            batch, heads, k.shape[1], queries, k.shape[2], head_dim, q.element_size(), int(exact), int(bias is not None)
        )

    @property
    def row(self) -> dict[str, int]:
        """The names that the table's rows bound."""
        return {name: getattr(self, name) for name in ("head_dim", "bytes", "ieee", "bias", "queries", "keys")}


def choose(
    sizes: Sizes,
    target: Target,
    variant: Variant = "auto",
    splits: int = 0,
    descriptor_usable: Callable[[Config], bool] = lambda config: False,
) -> Choice:
    """The kernel for these sizes; ``variant`` forces one, ``splits`` (with ``split``) their number.

    ``descriptor_usable`` is asked, where a row of ``descriptor`` is preferred, whether the tensors fit it.

    Raises ValueError where the forced variant cannot run these sizes.
    """
    check_variant(variant, splits)
    if variant in ("auto", "resident"):
        config = find("resident_forward", target.arch, **sizes.row) if 0 < sizes.keys <= RESIDENT_KEYS else None
        if config is not None:
            return Choice("resident", config, reason=f"{sizes.keys} keys stay in one program")
        if variant == "resident":
            raise ValueError(
                f"variant 'resident' holds 1 to {RESIDENT_KEYS} keys in one program and has no room for "
                f"{sizes.keys} keys of head dim {sizes.head_dim} (use 'auto')"
            )
    if variant == "descriptor":
        config = find("descriptor_forward", target.arch, **sizes.row, plain=0)
        if config is None:
            raise ValueError(
                f"variant 'descriptor' has no configuration for head dim {sizes.head_dim} of {sizes.bytes} bytes an "
                f"element on {target.arch}; it needs a TMA unit (sm_90, sm_100) and 2 bytes (use variant 'streaming')"
            )
        return Choice("descriptor", config, reason="asked for")
    config = require("streaming_forward", target.arch, **sizes.row)
    block_q, block_k = config.blocks["BLOCK_Q"], config.blocks["BLOCK_K"]
    group = sizes.heads // sizes.kv_heads
    packed = group > 1 and sizes.queries * 2 <= block_q
    rows, heads = (sizes.queries * group, sizes.kv_heads) if packed else (sizes.queries, sizes.heads)
    programs = sizes.batch * heads * cdiv(rows, block_q)
    wanted = splits or split_count(programs, cdiv(sizes.keys, block_k), target.multiprocessors)
    if variant == "split" or (variant == "auto" and wanted > 1):
        wanted = max(1, min(wanted, cdiv(sizes.keys, block_k)))
        why = f"{programs} programs for {target.multiprocessors} multiprocessors"
        return Choice("split", config, wanted, packed, why if splits == 0 else "asked for")
    if variant == "auto":
        preferred = _preferred(sizes, target, descriptor_usable)
        if preferred is not None:
            return Choice("descriptor", preferred, reason="its row is preferred")
    return Choice("streaming", config, 1, packed, "as many programs as the device holds, or too few keys to split")


def _preferred(sizes: Sizes, target: Target, usable: Callable[[Config], bool]) -> Config | None:
    """The row of ``descriptor`` that a tuner preferred for sizes like these, if the call is big and its tensors fit."""
    for plain in (0, 1):
        config = find("descriptor_forward", target.arch, **sizes.row, plain=plain)
        if config is not None and config.preferred:
            big = sizes.queries >= config.blocks["BLOCK_Q"] and sizes.keys >= 4 * config.blocks["BLOCK_K"]
            if big and usable(config):
                return config
    return None


def check_variant(variant: str, splits: int) -> None:
    """Raises ValueError unless there is such a variant, and splits are asked of ``split`` only."""
    if variant not in get_args(Variant):
        raise ValueError(f"no attention kernel '{variant}' (has: {', '.join(get_args(Variant))})")
    if splits < 0 or (splits and variant != "split"):
        raise ValueError(f"splits is {splits} with variant '{variant}'; it must be 0, or at least 1 with 'split'")


def split_count(programs: int, key_tiles: int, multiprocessors: int) -> int:
    """Over how many programs to spread a row's keys; 1 where it would not pay."""
    if programs == 0 or programs >= 0.8 * multiprocessors or key_tiles <= 4:
        return 1
    most = max(1, min(128, key_tiles // 2, multiprocessors))
    # Two counts that cut the keys into pieces of equal size do the same work: keep the smaller.
    pieces = {cdiv(key_tiles, n): n for n in range(most, 0, -1)}
    full = {n: _fullness(programs * n / multiprocessors) for n in pieces.values()}
    best = max(full.values())
    return min(n for n, value in full.items() if value >= 0.85 * best)


def _fullness(waves: float) -> float:
    """Which share of the last wave's places is taken."""
    return waves / -(-waves // 1)


def head_tiles(head_dim: int, config: Config) -> tuple[int, int]:
    """(main, tail) columns of a head: 80 is 64 + 16 where the configuration splits heads, else 128 + 0.

    A product needs at least 16 columns (some chips more: ``Config.edge``), and Triton's tiles are powers of two.
    """
    padded = padded_edge(head_dim, config)
    main = padded // 2
    tail = padded_edge(head_dim - main, config) if head_dim < padded else 0
    if config.split_heads and tail and head_dim > 32 and main + tail <= 0.8 * padded:
        return main, tail
    return padded, 0


def key_tiles(keys: int, config: Config) -> tuple[int, int]:
    """(main, tail) keys of the resident kernel: 77 is 64 + 16 where the configuration splits keys, else 128 + 0."""
    padded = padded_edge(keys, config)
    main = padded // 2
    tail = padded_edge(keys - main, config) if keys < padded else 0
    if config.split_keys and tail and main >= config.edge and main + tail <= 0.8 * padded:
        return main, tail
    return padded, 0


def padded_edge(size: int, config: Config) -> int:
    """The edge of the one tile that holds ``size`` rows or columns."""
    return max(config.edge, power_of_two(size))
