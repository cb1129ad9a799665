"""The rounds of one job, each a process of its own: how many there should be, and how they become one record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import msgspec

from .record import DeviceState, Record, Stop, Timing
from .spec import Budget

# From best to worst: a job stopped for the worst reason of its rounds.
_STOPS: tuple[Stop, ...] = ("precise", "samples", "budget", "interrupted")
# A job whose module takes longer than this to be there (compilation, 3.6 s with warm caches) has one round.
MAX_SETUP_S = 2.0
_ALIKE = ("timer", "cache", "loops", "threads")


def rounds_of(record: Record) -> int:
    """How many rounds a record holds the samples of."""
    return 0 if record.time is None else len(record.time.round_sizes)


def wanted(record: Record, budget: Budget) -> int:
    """How many rounds a record should hold: what has failed, or takes long to begin, is not visited again."""
    if record.status != "ok" or record.time is None:
        return rounds_of(record)
    return 1 if setup_s(record.phases_s) > MAX_SETUP_S else budget.rounds


def setup_s(phases_s: Mapping[str, float]) -> float:
    """Seconds until a job's module was there and had run once."""
    return sum(phases_s.get(phase, 0.0) for phase in ("build", "first call"))


def share(budget: Budget, phases_s: Mapping[str, float], number: int = 0) -> Budget:
    """What round ``number`` may take of the budget: its part of the samples, and of the precision that all reach.

    Whether there is but one round is settled in the first: a later one that was slow to begin is one of several.
    """
    rounds = 1 if number == 0 and setup_s(phases_s) > MAX_SETUP_S else budget.rounds
    return msgspec.structs.replace(
        budget,
        measure_s=budget.measure_s / rounds,
        min_samples=max(3, -(-budget.min_samples // rounds)),
        max_samples=max(3, -(-budget.max_samples // rounds)),
        ci=min(0.5, budget.ci * math.sqrt(rounds)),
    )


def done(record: Record, budget: Budget) -> bool:
    """Whether the job needs no further visit."""
    return rounds_of(record) >= wanted(record, budget)


def joined(earlier: Record | None, later: Record, number: int) -> Record:
    """What is known of a job after round ``number``: all of its samples, or how it failed this time."""
    if earlier is None:
        return later
    if later.source != earlier.source and later.status == "ok":  # a plugin was edited: each process reads it anew
        reason = "its code changed between two rounds; measure it again with: fusionbench resume"
        return msgspec.structs.replace(
            earlier, status="error", reason=f"in round {number + 1}: {reason}", phase="build", time=None, timers=()
        )
    if later.status != "ok" or later.time is None or earlier.time is None:
        reason = f"in round {number + 1}, after {number} good ones: {later.reason}"
        return msgspec.structs.replace(
            later, reason=reason, accuracy=later.accuracy or earlier.accuracy, costs=earlier.costs
        )
    return msgspec.structs.replace(
        earlier,
        time=merge((earlier.time, later.time)),
        device=_both(earlier.device, later.device, number),
        notes=tuple(dict.fromkeys(earlier.notes + later.notes)),
        wall_s=earlier.wall_s + later.wall_s,
    )


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
        rounds=tuple(chain.from_iterable(t.round_sizes for t in timings)),
        seeds=tuple(chain.from_iterable(t.seeds for t in timings)),
        control_ns=tuple(chain.from_iterable(t.control_ns for t in timings)),
        discarded=sum(t.discarded for t in timings),
    )


def _both(earlier: DeviceState | None, later: DeviceState | None, number: int) -> DeviceState | None:
    """What ``number`` rounds saw, and one more: means weigh every round alike."""
    if earlier is None or later is None:
        return earlier or later
    degrees = [state.temperature_c for state in (earlier, later) if state.temperature_c is not None]
    return DeviceState(
        sm_mhz=_range(earlier.sm_mhz, later.sm_mhz, number),
        memory_mhz=_range(earlier.memory_mhz, later.memory_mhz, number),
        power_watts=_mean(earlier.power_watts, later.power_watts, number),
        temperature_c=max(degrees, default=None),
        throttle=tuple(dict.fromkeys(earlier.throttle + later.throttle)),
        foreign=max(earlier.foreign, later.foreign),
    )


def _mean(earlier: float | None, later: float | None, number: int) -> float | None:
    if earlier is None or later is None:
        return later if earlier is None else earlier
    return earlier + (later - earlier) / (number + 1)


_Range = tuple[int, int, int]


def _range(earlier: _Range | None, later: _Range | None, number: int) -> _Range | None:
    """Lowest, middle and highest of all rounds; the middle is the mean of their medians."""
    if earlier is None or later is None:
        return earlier or later
    middle = earlier[1] + (later[1] - earlier[1]) / (number + 1)
    return min(earlier[0], later[0]), round(middle), max(earlier[2], later[2])
