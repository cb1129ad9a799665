"""The rounds of one job, each a process of its own, joined into one timing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import msgspec

from .record import Stop, Timing

# From best to worst: a job stopped for the worst reason of its rounds.
_STOPS: tuple[Stop, ...] = ("precise", "samples", "budget", "interrupted")
_ALIKE = ("timer", "cache", "loops", "threads")


def merge(timings: Sequence[Timing]) -> Timing:
    """One timing of all samples, in the order given; first call and warm-up are those of the first.

    Raises ValueError for none at all, and where timer, cache, loops or threads differ: such samples have no median.
    """
    if not timings:
        raise ValueError("no round to join; give at least one timing")
    for name in _ALIKE:
        if len(found := {getattr(timing, name) for timing in timings}) > 1:
            raise ValueError(f"rounds of one job differ in {name} ({', '.join(map(str, sorted(found)))}); time it anew")
    delayed = all(timing.run_delay_ns for timing in timings)
    return msgspec.structs.replace(
        timings[0],
        samples_ns=tuple(chain.from_iterable(t.samples_ns for t in timings)),
        run_delay_ns=tuple(chain.from_iterable(t.run_delay_ns for t in timings)) if delayed else (),
        stop=max((t.stop for t in timings), key=_STOPS.index),
        rounds=tuple(chain.from_iterable(t.rounds or (len(t.samples_ns),) for t in timings)),
        seeds=tuple(chain.from_iterable(t.seeds for t in timings)),
        control_ns=tuple(chain.from_iterable(t.control_ns for t in timings)),
        discarded=sum(t.discarded for t in timings),
    )
