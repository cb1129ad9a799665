"""Two timings of the same job against each other: by how much they differ, and whether that is more than chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from .record import Timing
from .stats import median, median_interval

Verdict = Literal["faster", "slower", "same", "unclear"]

# Less than this is no finding, however sure: a share of the base, and a time on the clock (a call of 20 µs jumps by
# more than 3 % when an address changes).
TOLERANCE = 0.03
# Two processes of the same code differ by more than the samples within either (by 13 to 32 %, shared research). That
# the lowest of five rounds lies above the highest of five others happens to equals once in 126 times.
MIN_ROUNDS = 5
FLOOR_NS = {"wall": 5_000.0}
FLOOR_GPU_NS = 2_000.0
_ALIKE = ("timer", "cache")


class Ratio(Struct, frozen=True, kw_only=True, gc=False):
    """``ratio`` of head over base with the widest interval that both sides' 95 % intervals allow."""

    ratio: float
    low: float
    high: float
    verdict: Verdict


def compare(base: Timing, head: Timing) -> Ratio:
    """Judge ``head`` by ``base``, by their times on the core. Faster or slower is said only where three things agree.

    The intervals of the two medians, over at least MIN_ROUNDS rounds each, have no value in common; the difference is
    above the tolerance; and both still hold when each round is divided by what a fixed piece of work took beside it, so
    that a machine that was slow for a while is not taken for slow code. Same: over as many rounds, the whole interval
    lies within the tolerance. All else is unclear. Raises ValueError where timer or cache differ.
    """
    for name in _ALIKE:
        if (one := getattr(base, name)) != (other := getattr(head, name)):
            raise ValueError(f"times of unlike {name} ('{one}' and '{other}') are not compared; measure both alike")
    plain = _ratio(base, head, [1.0] * len(base.round_sizes), [1.0] * len(head.round_sizes))
    controls = base.control_ns, head.control_ns
    if plain.verdict not in ("faster", "slower") or not _usable(base) or not _usable(head):
        return plain
    level = median(sorted(controls[0]))
    steady = _ratio(base, head, [c / level for c in controls[0]], [c / level for c in controls[1]])
    return plain if steady.verdict == plain.verdict else Ratio(
        ratio=plain.ratio, low=plain.low, high=plain.high, verdict="unclear"
    )  # fmt: skip


def _usable(timing: Timing) -> bool:
    return len(timing.control_ns) == len(timing.round_sizes) and all(timing.control_ns)


def _ratio(base: Timing, head: Timing, base_pace: Sequence[float], head_pace: Sequence[float]) -> Ratio:
    b, b_low, b_high = _interval(base, base_pace)
    h, h_low, h_high = _interval(head, head_pace)
    if not b or not h or not b_low:
        return Ratio(ratio=1.0, low=0.0, high=float(2**31), verdict="unclear")
    tolerated = max(TOLERANCE * b, FLOOR_NS.get(base.timer, FLOOR_GPU_NS))
    low, high = h_low / b_high, h_high / b_low
    verdict: Verdict = "unclear"
    enough = min(len(base.round_sizes), len(head.round_sizes)) >= MIN_ROUNDS
    if enough and abs(h - b) > tolerated and (h_low > b_high or h_high < b_low):
        verdict = "slower" if h > b else "faster"
    elif enough and h_high - b_low <= tolerated and b_high - h_low <= tolerated:
        verdict = "same"
    return Ratio(ratio=h / b, low=low, high=high, verdict=verdict)


def _interval(timing: Timing, pace: Sequence[float]) -> tuple[float, float, float]:
    """Median, low and high of one call in ns, each round's samples divided by its pace."""
    rounds = timing.round_sizes
    paces = itertools.chain.from_iterable(
        itertools.repeat(each, count) for each, count in zip(pace, rounds, strict=True)
    )
    return median_interval([ns / each for ns, each in zip(timing.calls_ns, paces, strict=True)], rounds)
