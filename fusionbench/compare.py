"""Two timings of the same job against each other: by how much they differ, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from .record import Timing
from .stats import median, median_interval

Verdict = Literal["faster", "slower", "same", "unclear"]

# Less than this is no finding, however sure: the share of the base, and on the clock (a call of 20 µs jumps by more than
# 3 % when an address changes).
TOLERANCE = 0.03
FLOOR_NS = {"wall": 5_000.0}
FLOOR_GPU_NS = 2_000.0


class Delta(Struct, frozen=True, kw_only=True, gc=False):
    """``ratio`` of head over base with the widest interval that both sides' 95 % intervals allow."""

    ratio: float
    low: float
    high: float
    verdict: Verdict


def compare(base: Timing, head: Timing) -> Delta:
    """Judge ``head`` by ``base``. Faster or slower is said only where three things agree.

    The intervals of the two medians have no value in common; the difference is above the tolerance; and both still
    hold when each round is divided by what a fixed piece of work took beside it, so that a machine that was slow for a
    while is not taken for slow code. Same: the whole interval lies within the tolerance. All else is unclear.
    """
    plain = _delta(base, head, [1.0], [1.0])
    controls = base.control_ns, head.control_ns
    if plain.verdict not in ("faster", "slower") or not _usable(base) or not _usable(head):
        return plain
    level = median(sorted(controls[0]))
    steady = _delta(base, head, [c / level for c in controls[0]], [c / level for c in controls[1]])
    return plain if steady.verdict == plain.verdict else Delta(
        ratio=plain.ratio, low=plain.low, high=plain.high, verdict="unclear"
    )  # fmt: skip


def _usable(timing: Timing) -> bool:
    return len(timing.control_ns) == max(1, len(timing.rounds)) and all(timing.control_ns)


def _delta(base: Timing, head: Timing, base_pace: Sequence[float], head_pace: Sequence[float]) -> Delta:
    b, b_low, b_high = _interval(base, base_pace)
    h, h_low, h_high = _interval(head, head_pace)
    if not b or not h or not b_low:
        return Delta(ratio=1.0, low=0.0, high=float(2**31), verdict="unclear")
    tolerated = max(TOLERANCE * b, FLOOR_NS.get(base.timer, FLOOR_GPU_NS))
    low, high = h_low / b_high, h_high / b_low
    verdict: Verdict = "unclear"
    if abs(h - b) > tolerated and (h_low > b_high or h_high < b_low):
        verdict = "slower" if h > b else "faster"
    elif h_high - b_low <= tolerated and b_high - h_low <= tolerated:
        verdict = "same"
    return Delta(ratio=h / b, low=low, high=high, verdict=verdict)


def _interval(timing: Timing, pace: Sequence[float]) -> tuple[float, float, float]:
    """Median, low and high of one call in ns, each round's samples divided by its pace."""
    rounds = timing.rounds or (len(timing.samples_ns),)
    values: list[float] = []
    for number, count in enumerate(rounds):
        here = timing.samples_ns[len(values) : len(values) + count]
        values += [sample / timing.loops / pace[min(number, len(pace) - 1)] for sample in here]
    return median_interval(values)
