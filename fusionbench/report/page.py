"""One HTML file that answers which fusion is fastest, works offline and keeps text from results inert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import printable
from ..ledger import Ledger
from ..record import Environment
from . import claims, details, document, views
from .document import LONGEST
from .rank import latest
from .views import Views

# What must agree, besides the lengths, for two timings to be compared.
_CONDITION = (
    *("dtype", "device", "mode", "batch", "width", "heads", "image_width", "text_width", "depth"),
    *("feed_forward", "projector", "type_embedding", "padding", "preset", "scale", "match", "design", "environment"),
)
_OF_SYSTEMS = (
    *("width", "heads", "image_width", "text_width", "depth", "feed_forward", "projector", "type_embedding"),
    *("preset", "design"),
)
_TIMER = ("timer", "cache", "threads")
_CODED = (
    *("strategy", "backend", "image", "text", *_CONDITION, *_TIMER, "status", "reason", "phase", "case", "stop"),
    *("name", "treatment", "kernels", "notes", "started_at", "machine", "hardware", "source", "bound_by", "no_bound"),
)
_MEASURED = (
    *("median_ms", "low_ms", "high_ms", "samples", "contention", "first_call_ms"),
    *("peak_mib", "cache_mib", "tflops", "flops", "bound_ms", "of_bound", "gb_per_s"),
    *("rel_l2", "yardstick_rel_l2", "cosine", "max_abs", "grad_rel_l2", "grad_yardstick_rel_l2", "joules_per_call"),
)
_SCRIPTS = (
    *(
        "data.js",
        "rank.js",
        "charts.js",
        "table.js",
        "drawer.js",
        "difference.js",
        "systems.js",
        "notices.js",
        "machines.js",
    ),
    *("history_chart.js", "history_list.js", "trends.js", "claims.js", "page.js"),
)


def write(
    path: Path,
    frame: pd.DataFrame,
    environments: Mapping[str, Environment],
    problems: Sequence[str] = (),
    *,
    ledgers: Sequence[Ledger] = (),
    beside: Views | None = None,
    title: str = "fusionbench",
    command: str = "fusionbench run SUITE",
) -> Path:
    """Write the page for ``frame`` to ``path``; ``command`` is what runs its suite again, ``beside`` is what more views
    are drawn from."""
    shown, checked = latest(frame), claims.payload(ledgers)
    shown = _as_asked(shown)
    payload = {
        "command": printable(command, LONGEST),
        "superseded": len(frame) - len(shown),
        "rows": len(shown),
        "columns": _columns(shown),
        "environments": [document.environment(e) for e in environments.values()],
        "ledgers": checked,
        "problems": [printable(p, LONGEST) for p in problems],
        **views.payload(beside or Views(), shown, environments),
    }
    return document.write(
        path,
        "page.html",
        ("page.css", "history.css", "views.css"),
        _SCRIPTS,
        payload,
        title=title,
        claims=bool(checked),
    )


def _as_asked(shown: pd.DataFrame) -> pd.DataFrame:
    """The rows as the page compares them: systems are candidates, whose own sizes are no conditions of theirs."""
    system = shown["preset"] != ""
    own = {name: shown[name].astype(object).mask(system, None) for name in _OF_SYSTEMS} if system.any() else {}
    return shown.assign(name=shown["strategy"], strategy=shown["candidate"], **own)


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Texts and sizes as dictionary codes (-1: none), measurements as numbers with six digits (null: none)."""
    columns: dict[str, Any] = {name: _coded(frame[name]) for name in (*_CODED, *details.known(frame, details.CODED))}
    for name in (*_MEASURED, *details.known(frame, details.MEASURED)):
        values = frame[name].to_numpy(np.float64, na_value=np.nan)
        if not np.isnan(values).all():
            columns[name] = {"numbers": document.rounded(values).tolist()}
    condition = _conditions(frame)
    columns["condition"] = {"codes": condition.tolist()}
    cells = pd.DataFrame({"condition": condition, "image": frame["image"].array, "text": frame["text"].array})
    columns["cell"] = {"codes": cells.groupby(list(cells.columns), sort=False).ngroup().tolist()}
    return columns


def _coded(column: pd.Series) -> dict[str, Any]:
    codes, values = pd.factorize(column)
    plain = [printable(v, LONGEST) if isinstance(v, str) else v for v in values.tolist()]
    return {"values": plain, "codes": codes.tolist()}


def _conditions(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """A job that failed has no timer; it belongs to the condition that its neighbours were timed in."""
    base = frame.groupby(list(_CONDITION), sort=False, dropna=False).ngroup()
    timers = frame[list(_TIMER)]
    timers = timers.where(timers.notna(), timers.groupby(base, sort=False).transform("first"))
    keys = timers.assign(base=base)
    return keys.groupby(["base", *_TIMER], sort=False, dropna=False).ngroup().to_numpy().astype(np.int64)
