"""The block sizes of every kernel, read from ``configs.json``: per architecture, by upper bounds on the shape.

A shipped table instead of ``@triton.autotune``: nothing is measured at a user's first call, the choice is the
same on every run, and each shipped configuration can be compiled and checked on a machine without a GPU.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Config:
    """Block sizes (the kernel's constexpr names), warps per program and pipeline stages.

    ``split_heads`` computes head dim 80 as 64 + 16 columns instead of 128, ``split_keys`` 77 resident keys as 64 + 16.
    ``edge`` is the shortest edge a tile of heads or resident keys is padded to. Tiles narrower than 64 in kernels of
    several products have read outside of shared memory on sm_90 (triton #10486, #10573, #11366): the 16-bit rows there
    pad to 64 and split nothing, until narrower ones have passed compute-sanitizer on a GPU.
    ``preferred`` lets dispatch choose a variant that is otherwise only asked for ("descriptor"): a tuner sets it in the
    row, on a GPU, where the variant's check passed and it was faster.
    """

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int
    split_heads: bool = False
    split_keys: bool = False
    edge: int = 16  # the least that a product takes
    preferred: bool = False


# Where an architecture has no rows of its own: the one whose shared memory and instructions it has at least.
_STANDS_FOR = {
    "sm_86": "sm_80", "sm_87": "sm_80", "sm_89": "sm_80", "sm_103": "sm_100", "sm_120": "sm_80", "sm_121": "sm_80",
    "gfx90a": "gfx942", "gfx950": "gfx942",
}  # fmt: skip
SHARED_MEMORY_BYTES = {
    "sm_80": 101_376, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536,
}  # fmt: skip
"""What one program may use. The sm_80 rows also serve sm_86, sm_89 and sm_120, whose limit is 99 KiB."""

_forced: dict[str, Config | None] = {}  # not a ContextVar: backward passes on CUDA run in a thread of their own


def find(kernel: str, arch: str, **sizes: int) -> Config | None:
    """The first row of ``kernel`` whose upper bounds hold all ``sizes``; None where the kernel has no such row.

    ``sizes`` are named as in the file: ``head_dim``, ``bytes`` (of an element), ``ieee`` (0 where products of float32
    may be tf32), ``bias`` (0 or 1), ``queries``, ``keys``, …
    """
    if kernel in _forced:
        return _forced[kernel]
    for bounds, config in _rows(arch).get(kernel, ()):
        if all(size <= bounds.get(name, size) for name, size in sizes.items()):
            return config
    return None


def require(kernel: str, arch: str, **sizes: int) -> Config:
    """As ``find``; raises NotImplementedError that names the sizes where there is no row."""
    config = find(kernel, arch, **sizes)
    if config is None:
        given = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise NotImplementedError(f"no configuration of kernel '{kernel}' for {given} on {arch}")
    return config


@contextmanager
def forced(**configs: Config | None) -> Iterator[None]:
    """Use these configurations (kernel name = Config) in this block, whatever the table says: tuner and tests.

    None stands for a kernel without a row.
    """
    before = dict(_forced)
    _forced.update(configs)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def rows(arch: str) -> dict[str, list[tuple[dict[str, int], Config]]]:
    """Every kernel's rows for an architecture, in order: (upper bounds, config)."""
    return {kernel: list(found) for kernel, found in _rows(arch).items()}


def table_of(arch: str) -> str:
    """The architecture whose rows ``arch`` uses; one newer than this file gets what fits everywhere."""
    if arch in _file()["tables"]:
        return arch
    return _STANDS_FOR.get(arch, "gfx942" if arch.startswith("gfx") else "sm_80")


def architectures() -> tuple[str, ...]:
    """The architectures that have rows of their own."""
    return tuple(name for name in _file()["tables"] if name != "interpreter")


@functools.cache
def _rows(arch: str) -> dict[str, list[tuple[dict[str, int], Config]]]:
    return {
        kernel: [
            (row["where"], Config(**{name: value for name, value in row.items() if name != "where"})) for row in found
        ]
        for kernel, found in _file()["tables"][table_of(arch)].items()
    }


@functools.cache
def _file() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("configs.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
