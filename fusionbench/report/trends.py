"""The history of the page's jobs over three or more runs: the series that changed most, as history.py writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..history import History
from . import history as page

MOST = 2000  # jobs: a page of its own has room for all (fusionbench history --report)


def payload(found: History, rows: Mapping[str, int]) -> dict[str, Any]:
    """Of the jobs that were in more than one run, those that changed most; ``rows`` as in difference.py."""
    series = [each for each in found.series if len({point.run for point in each.points}) > 1]
    if not series:
        return {}
    kept = series[:MOST]
    return page.payload(found, kept) | {"row": [rows.get(each.key, -1) for each in kept], "all": len(series)}
