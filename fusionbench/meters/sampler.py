"""What a timer is to the loop that samples with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..record import Cache, Clock

Call = Callable[[], object]
Sample = tuple[int, int | None]  # ns, and how long threads waited for a core meanwhile, where that is known


class TimerError(RuntimeError):
    """A timer cannot time this call here; the message says why and what to do."""


@dataclass(frozen=True)
class Sampler:
    """A timer, ready: ``take(n)`` makes n samples of ``loops`` calls each, ``settle()`` one untimed call to its end."""

    timer: Clock
    cache: Cache
    loops: int
    batch: int  # how many samples are best taken at once
    take: Callable[[int], list[Sample]]
    settle: Call
