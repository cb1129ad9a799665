"""What the page's views beside the charts are drawn from: samples, two runs compared, systems, history, kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pandas as pd

from .. import environment, notices
from ..delta import Comparison
from ..errors import printable
from ..history import History
from ..inspection import Inspection
from ..record import Environment, Record
from . import difference, kernels, samples, systems, trends
from .packing import LONGEST


@dataclass(frozen=True)
class Views:
    """Beside the table: the records that its rows were made of, in that order, and what else was found."""

    records: Sequence[Record] = ()
    comparison: Comparison | None = None  # of two runs
    history: History | None = None  # of three or more
    inspection: Inspection | None = None


def payload(views: Views, shown: pd.DataFrame, environments: Mapping[str, Environment]) -> dict[str, Any]:
    """An entry for each view, empty where it has nothing to show; ``shown`` are the rows that the page keeps."""
    records = [views.records[place] for place in shown.index] if views.records else []
    rows = {key: row for row, key in enumerate(shown["key"])}
    return {
        "samples": samples.payload([record.time for record in records], shown["median_ms"].to_numpy(float) * 1e6),
        "systems": systems.payload(records),
        "kernels": kernels.payload(views.inspection, records, environments),
        "difference": difference.payload(views.comparison, rows) if views.comparison else {},
        "trends": trends.payload(views.history, rows) if views.history else {},
        "notices": msgspec.to_builtins(notices.KINDS),
        "moves": _moves(list(environments.values())),
    }


def _moves(known: Sequence[Environment]) -> list[list[str]]:
    """In what each environment differs from the first one, so that their timings are not compared."""
    return [[printable(text, LONGEST) for text in environment.differences(known[0], each)] for each in known]
