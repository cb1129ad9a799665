"""The samples of every timing on the page: evenly thinned, each one byte or two away from its job's median."""

from __future__ import annotations

import base64
import bisect
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..record import Timing
from .columns import Counts, Floats
from .timings import per_call

MOST = 1_000_000  # values on a page: 1.5 MB where they vary by 2 %
LEAST = 6  # of a job: fewer would say nothing of its distribution
STEP = 0.0002  # of the natural logarithm: values are kept to 0.01 %, up to 700 times their job's median
_FURTHEST = (1 << 15) - 1


def payload(times: Sequence[Timing | None], medians_ns: Floats) -> dict[str, Any]:
    """The samples in ns per call of each row's timing, in the order in which they were taken; nothing where there are
    too many jobs for the page to carry any of them.

    ``count`` values belong to each row, of ``rounds[round[row]]`` in each of its rounds. A value is
    exp(``step`` x (``middle[row]`` + d)) ns, the d zigzag encoded (0, -1, 1, -2, …) and split into bytes: ``low``, then
    ``high``, which is nearly all zeros and packs to nothing.
    """
    flat, counts = per_call(times)
    cap = _cap(counts)
    if cap < min(LEAST, int(counts.max(initial=0))) or not len(flat):
        return {}
    kept = np.minimum(counts, cap)
    codes = _codes(flat[_places(counts, kept)])
    middle = _codes(np.where(kept > 0, medians_ns, 1.0))
    apart = np.clip(codes - np.repeat(middle, kept), -_FURTHEST, _FURTHEST).astype(np.int16)
    zigzag = ((apart << 1) ^ (apart >> 15)).astype(np.uint16)
    shapes: dict[tuple[int, ...], int] = {}
    sizes = [_rounds(t.round_sizes, m) if t else () for t, m in zip(times, kept.tolist(), strict=True)]
    return {
        "step": STEP,
        "count": kept.tolist(),
        "middle": middle.tolist(),
        "low": base64.b64encode((zigzag & 0xFF).astype(np.uint8).tobytes()).decode(),
        "high": base64.b64encode((zigzag >> 8).astype(np.uint8).tobytes()).decode(),
        "round": [shapes.setdefault(size, len(shapes)) for size in sizes],
        "rounds": [list(size) for size in shapes],
    }


def _codes(values: Floats) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = np.rint(np.log(np.maximum(values, 1.0)) / STEP).astype(np.int64)
    return found


def _cap(counts: Counts) -> int:
    """The largest number of samples per job with which the page holds no more than MOST."""
    most = range(int(counts.max(initial=0)) + 1)
    return bisect.bisect_right(most, MOST, key=lambda cap: int(np.minimum(counts, cap).sum())) - 1


def _places(counts: Counts, kept: Counts) -> npt.NDArray[np.int64]:
    """Where the values that are kept stand: the k-th of m at k n / m of its job's n."""
    starts, firsts = np.cumsum(counts) - counts, np.cumsum(kept) - kept
    within = np.arange(int(kept.sum())) - np.repeat(firsts, kept)
    places: npt.NDArray[np.int64] = np.repeat(starts, kept) + within * np.repeat(counts, kept) // np.repeat(kept, kept)
    return places


@functools.lru_cache(maxsize=100_000)
def _rounds(sizes: tuple[int, ...], kept: int) -> tuple[int, ...]:
    """How many of the values that are kept each round took."""
    total, end, before, found = sum(sizes), 0, 0, []
    for size in sizes:
        end += size
        upto = -(-end * kept // total)
        found.append(upto - before)
        before = upto
    return tuple(found)
