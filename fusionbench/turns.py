"""What two processes that sample by turns are told, and what they answer."""

from __future__ import annotations

from msgspec import Struct


class Turns(Struct, frozen=True, kw_only=True, gc=False):
    """How one of two processes is measured: for how long at a time, and on which cores (none: on any). Both descend
    from the process ``root`` (0: nobody says), and whoever does is no stranger on a GPU."""

    slice_s: float
    cores: tuple[int, ...] = ()
    root: int = 0


class Turn(Struct, frozen=True, kw_only=True, gc=False, tag="turn"):
    """What a turn brought: (ns, ns waited for a core) of ``loops`` calls each. The first message of all brings none:
    everything is built and warm. ``throttled``: the device was held down meanwhile."""

    loops: int
    samples: tuple[tuple[int, int | None], ...] = ()
    throttled: bool = False
