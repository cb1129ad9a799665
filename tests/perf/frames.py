"""Frames of any length without as many records: one real batch of them, repeated at other batch sizes with other noise."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fusionbench.report.frame import frame
from tests.synthetic import ENVIRONMENTS, records

BATCH = 46_080  # records of tests.synthetic with one batch size: 1,152 cases
_NOISY = {
    "times": ("median_ms", "low_ms", "high_ms", "first_call_ms"),
    "errors": ("rel_l2", "max_abs", "yardstick_rel_l2", "contention"),
}


def tiled(count: int) -> pd.DataFrame:
    """``count`` rows that compress no better than measured ones: each error and each job's times have noise of their own,
    each row its own time of day."""
    one = frame(records(min(count, BATCH)), ENVIRONMENTS)
    tiles = [_tile(one, tile) for tile in range(-(-count // len(one)))]
    table = pd.concat(tiles, ignore_index=True).iloc[:count]
    begun = np.datetime64("2026-03-02T10:00:00.000") + np.cumsum(
        np.random.default_rng(0).integers(200, 3000, count)
    ).astype("timedelta64[ms]")
    return table.assign(started_at=pd.Series(begun.astype(str), dtype="str") + "+00:00")


def _tile(one: pd.DataFrame, tile: int) -> pd.DataFrame:
    rng = np.random.default_rng(tile)
    batch = one["batch"] * (tile + 1)
    found = one.assign(batch=batch)
    for name in ("key", "case", "question"):
        found[name] = one[name].str.replace("b4-", f"b{4 * (tile + 1)}-", regex=False)
    pace = rng.lognormal(0, 0.1, len(one)) * (tile + 1)
    for name in _NOISY["times"]:
        found[name] = one[name] * pace
    for name in ("tflops", "gb_per_s"):
        found[name] = one[name] / pace * (tile + 1)
    for name in _NOISY["errors"]:
        found[name] = one[name] * rng.lognormal(0, 0.1, len(one))
    found["peak_mib"] = one["peak_mib"] * (tile + 1)
    found["flops"] = one["flops"] * (tile + 1)
    return found
