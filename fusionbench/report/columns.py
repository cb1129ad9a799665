"""Columns of the flat table from lists of values, with NA where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..record import Record

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def text(records: Sequence[Record], read: Callable[[Record], str | None]) -> pd.Series[str]:
    return pd.Series([read(r) for r in records], dtype="str")


def integer(values: Sequence[int | None]) -> Any:
    missing = np.fromiter((v is None for v in values), bool, len(values))
    try:  # pd.array would look at every value again, at three times the cost
        known = np.array([v or 0 for v in values] if missing.any() else values, dtype=np.int64)
    except OverflowError:  # a closed form beyond 2**63 is still a number
        return np.array([np.nan if v is None else float(v) for v in values])
    return pd.arrays.IntegerArray(known, missing)


def number(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def ratio(values: Floats, by: Floats) -> Floats:
    """NA where ``by`` is NA or 0."""
    ratio: Floats = np.divide(values, by, out=np.full(len(by), np.nan), where=by > 0)
    return ratio
