"""One HTML file that answers which fusion is fastest, works offline and keeps text from results inert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import printable
from ..ledger import Ledger
from ..record import PARTS, Environment, Roofline
from . import claims, document, packing, roofs
from .packing import LONGEST, Column
from .rank import latest

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
    *("name", "treatment", "kernels", "notes", "machine", "hardware", "source", "bound_by", "no_bound"),
)
_MEASURED = (
    *("median_ms", "low_ms", "high_ms", "samples", "contention", "first_call_ms"),
    *("peak_mib", "cache_mib", "tflops", "flops", "bound_ms", "of_bound", "gb_per_s"),
    *(f"share_{part}" for part in (*PARTS, "gaps")),
    *("params", "min_bytes", "launch_share"),
    *("rel_l2", "yardstick_rel_l2", "cosine", "max_abs", "grad_rel_l2", "grad_yardstick_rel_l2", "joules_per_call"),
)
# What is carried as a share of the median, or times it: its noise is the median's.
_OF_MEDIAN = {"low_ms": 1, "high_ms": 1, "tflops": -1, "of_bound": -1, "gb_per_s": -1}
# In the order in which they are drawn.
_VIEWS = (
    *("latency.js", "ranking.js", "parts.js", "winners.js", "crossover.js", "pareto.js", "roofline.js", "errors.js"),
)
_SCRIPTS = (
    *("data.js", "rank.js", "charts.js", "curves.js", "fits.js", *_VIEWS, "table.js", "claims.js", "pictures.js"),
    "page.js",
)


def write(
    path: Path,
    frame: pd.DataFrame,
    environments: Mapping[str, Environment],
    problems: Sequence[str] = (),
    *,
    ledgers: Sequence[Ledger] = (),
    rooflines: Sequence[Roofline] = (),
    title: str = "fusionbench",
    command: str = "fusionbench run SUITE",
) -> Path:
    """Write the page for ``frame`` to ``path``; ``command`` is what runs its suite again."""
    shown, checked = latest(frame), claims.payload(ledgers)
    shown = _by_cell(_as_asked(shown))
    payload = {
        "command": printable(command, LONGEST),
        "superseded": len(frame) - len(shown),
        "rows": len(shown),
        "columns": _columns(shown),
        "environments": [document.environment(e) for e in environments.values()],
        "ledgers": checked,
        "rooflines": roofs.payload(rooflines, shown),
        "problems": [printable(p, LONGEST) for p in problems],
    }
    return document.write(path, "page.html", ("page.css",), _SCRIPTS, payload, title=title, claims=bool(checked))


def _as_asked(shown: pd.DataFrame) -> pd.DataFrame:
    """The rows as the page compares them: systems are candidates, whose own sizes are no conditions of theirs."""
    system = shown["preset"] != ""
    own = {name: shown[name].astype(object).mask(system, None) for name in _OF_SYSTEMS} if system.any() else {}
    return shown.assign(name=shown["strategy"], strategy=shown["candidate"], **own)


def _columns(frame: pd.DataFrame) -> dict[str, Column]:
    """What the page reads of each row, by column; a measurement that no row has is left out."""
    columns = {name: packing.texts(frame[name]) for name in _CODED}
    columns["started_at"] = packing.moments(frame["started_at"])
    columns |= {name: packing.codes(frame[name].to_numpy()) for name in ("condition", "cell")}
    median = _floats(frame, "median_ms")
    for name in _MEASURED:
        values, power = _floats(frame, name), _OF_MEDIAN.get(name)
        if np.isnan(values).all():
            continue
        if power is None:
            columns[name] = packing.numbers(values)
        else:
            columns[name] = packing.numbers(values, median**power, of="median_ms", power=power)
    return columns


def _floats(frame: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    return frame[name].to_numpy(np.float64, na_value=np.nan)


def _by_cell(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a cell (one condition, one image × text length) behind each other, its candidates in one order."""
    condition = _conditions(frame)
    cells = pd.DataFrame({"condition": condition, "image": frame["image"].array, "text": frame["text"].array})
    numbered = frame.assign(condition=condition, cell=cells.groupby(list(cells.columns)).ngroup().to_numpy())
    candidates = [pd.factorize(frame[name])[0] for name in ("backend", "strategy")]
    return numbered.iloc[np.lexsort((*candidates, numbered["cell"].to_numpy()))]


def _conditions(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """A job that failed has no timer; it belongs to the condition that its neighbours were timed in."""
    base = frame.groupby(list(_CONDITION), sort=False, dropna=False).ngroup()
    timers = frame[list(_TIMER)]
    timers = timers.where(timers.notna(), timers.groupby(base, sort=False).transform("first"))
    keys = timers.assign(base=base)
    return keys.groupby(["base", *_TIMER], sort=False, dropna=False).ngroup().to_numpy().astype(np.int64)
