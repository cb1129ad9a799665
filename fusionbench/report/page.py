"""One HTML file that answers which fusion is fastest, works offline and keeps text from results inert."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..errors import printable
from ..ledger import Ledger
from ..record import Environment
from . import claims
from .files import replacing
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
    *("name", "treatment", "kernels", "notes", "started_at", "machine", "hardware", "source", "bound_by", "no_bound"),
)
_MEASURED = (
    *("median_ms", "low_ms", "high_ms", "samples", "contention", "first_call_ms"),
    *("peak_mib", "cache_mib", "tflops", "flops", "bound_ms", "of_bound", "gb_per_s"),
    *("rel_l2", "yardstick_rel_l2", "cosine", "max_abs", "grad_rel_l2", "grad_yardstick_rel_l2", "joules_per_call"),
)
_SCRIPTS = ("data.js", "rank.js", "charts.js", "table.js", "claims.js", "page.js")
_LONGEST = 2000  # characters of one text that the page carries


def write(
    path: Path,
    frame: pd.DataFrame,
    environments: Mapping[str, Environment],
    problems: Sequence[str] = (),
    *,
    ledgers: Sequence[Ledger] = (),
    title: str = "fusionbench",
    command: str = "fusionbench run SUITE",
) -> Path:
    """Write the page for ``frame`` to ``path``; ``command`` is what runs its suite again."""
    shown, checked = latest(frame), claims.payload(ledgers)
    shown = _as_asked(shown)
    payload = {
        "command": printable(command, _LONGEST),
        "superseded": len(frame) - len(shown),
        "rows": len(shown),
        "columns": _columns(shown),
        "environments": [_clean(msgspec.to_builtins(e)) for e in environments.values()],
        "ledgers": checked,
        "problems": [printable(p, _LONGEST) for p in problems],
    }
    data = base64.b64encode(gzip.compress(msgspec.json.encode(payload), compresslevel=6, mtime=0)).decode()
    room = files(__package__)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        room.joinpath("page.html").read_text("utf-8")
    )
    scripts = "\n".join(room.joinpath(name).read_text("utf-8") for name in _SCRIPTS)
    html = template.render(
        title=printable(title),
        claims=bool(checked),
        style=Markup(room.joinpath("page.css").read_text("utf-8")),  # noqa: S704 - package data
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - the installed package
        script=Markup(f"(() => {{\n{scripts}\n}})();"),  # noqa: S704 - package data
        data=data,
    )
    with replacing(path) as temporary:
        temporary.write_text(html, "utf-8")
    return path


def _as_asked(shown: pd.DataFrame) -> pd.DataFrame:
    """The rows as the page compares them: systems are candidates, whose own sizes are no conditions of theirs."""
    system = shown["preset"] != ""
    own = {name: shown[name].astype(object).mask(system, None) for name in _OF_SYSTEMS} if system.any() else {}
    return shown.assign(name=shown["strategy"], strategy=shown["candidate"], **own)


def _clean(facts: dict[str, Any]) -> dict[str, Any]:
    shown = {name: ", ".join(value) if isinstance(value, list | tuple) else value for name, value in facts.items()}
    return {name: printable(v, _LONGEST) if isinstance(v, str) else v for name, v in shown.items()}


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Texts and sizes as dictionary codes (-1: none), measurements as numbers with six digits (null: none)."""
    columns: dict[str, Any] = {name: _coded(frame[name]) for name in _CODED}
    for name in _MEASURED:
        values = frame[name].to_numpy(np.float64, na_value=np.nan)
        if not np.isnan(values).all():
            columns[name] = {"numbers": _rounded(values).tolist()}
    condition = _conditions(frame)
    columns["condition"] = {"codes": condition.tolist()}
    cells = pd.DataFrame({"condition": condition, "image": frame["image"].array, "text": frame["text"].array})
    columns["cell"] = {"codes": cells.groupby(list(cells.columns), sort=False).ngroup().tolist()}
    return columns


def _coded(column: pd.Series) -> dict[str, Any]:
    codes, values = pd.factorize(column)
    plain = [printable(v, _LONGEST) if isinstance(v, str) else v for v in values.tolist()]
    return {"values": plain, "codes": codes.tolist()}


def _conditions(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """A job that failed has no timer; it belongs to the condition that its neighbours were timed in."""
    base = frame.groupby(list(_CONDITION), sort=False, dropna=False).ngroup()
    timers = frame[list(_TIMER)]
    timers = timers.where(timers.notna(), timers.groupby(base, sort=False).transform("first"))
    keys = timers.assign(base=base)
    return keys.groupby(["base", *_TIMER], sort=False, dropna=False).ngroup().to_numpy().astype(np.int64)


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Six significant digits: the samples are not known better, and the page is half as large."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (5 - np.floor(np.log10(np.abs(values))))
        rounded: npt.NDArray[np.float64] = np.where(values == 0, 0.0, np.round(values * scale) / scale)
    return rounded
