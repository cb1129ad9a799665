"""Results as tables: CSV, JSON and Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pandas as pd

from ..record import Record
from ..report.files import replacing
from ..report.frame import frame
from ..store import Run

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins so (OWASP, CSV injection)


def frame_of(run: Run) -> pd.DataFrame:
    """The flat table of a run, derived numbers included."""
    return frame(run.records, run.environments, run.rooflines)


def to_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write ``frame`` as CSV. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    guarded = frame.copy()
    for name in guarded.columns:
        if not pd.api.types.is_numeric_dtype(guarded[name]):
            risky = guarded[name].str.startswith(_FORMULA, na=False)
            guarded[name] = guarded[name].mask(risky, "'" + guarded[name])
    with replacing(path) as temporary:
        guarded.to_csv(temporary, index=False)
    return path


def to_json(records: Sequence[Record], path: Path) -> Path:
    """Write the records as one JSON list, as they are on the wire; a number that is not finite is null."""
    with replacing(path) as temporary:
        temporary.write_bytes(msgspec.json.encode(list(records)))
    return path


def to_parquet(frame: pd.DataFrame, path: Path) -> Path:
    """Write the flat frame, derived numbers included, for pandas and DuckDB."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")
    return path
