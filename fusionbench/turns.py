"""What two processes that sample by turns are told, and what they answer."""

from __future__ import annotations

from msgspec import Struct


class Turns(Struct, frozen=True, kw_only=True, gc=False):
    """How one of two processes is measured: for how long at a time, and on which cores (none: on any)."""

    slice_s: float
    cores: tuple[int, ...] = ()


class Turn(Struct, frozen=True, kw_only=True, gc=False, tag="turn"):
    """What a turn brought: (ns, ns waited for a core) of ``loops`` calls each. The first message of all brings none:
    everything is built and warm."""

    loops: int
    samples: tuple[tuple[int, int | None], ...] = ()
