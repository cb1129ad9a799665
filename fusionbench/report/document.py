"""One HTML file with everything in it: style, plotly, scripts, and the data in a form that stays data."""

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
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..errors import printable
from ..record import Environment
from .files import replacing

LONGEST = 2000  # characters of one text that a page carries


def write(
    path: Path,
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    payload: Mapping[str, Any],
    *,
    title: str,
    **values: object,
) -> Path:
    """Fill ``template`` of this folder with its ``styles`` and ``scripts`` and with ``payload``, packed.

    The scripts share one scope in the order given and find the payload in ``#data``.
    """
    data = base64.b64encode(gzip.compress(msgspec.json.encode(payload), compresslevel=6, mtime=0)).decode()
    pages = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_read),
        keep_trailing_newline=True,
    )
    script = "\n".join(map(_read, scripts))
    html = pages.get_template(template).render(
        title=printable(title),
        style=Markup("\n".join(map(_read, styles))),  # noqa: S704 - package data
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - the installed package
        script=Markup(f"(() => {{\n{script}\n}})();"),  # noqa: S704 - package data
        data=data,
        **values,
    )
    with replacing(path) as temporary:
        temporary.write_text(html, "utf-8")
    return path


def environment(found: Environment) -> dict[str, Any]:
    """An environment as the page's data: plain texts of bounded length."""
    facts = msgspec.to_builtins(found)
    shown = {name: ", ".join(value) if isinstance(value, list | tuple) else value for name, value in facts.items()}
    return {name: printable(v, LONGEST) if isinstance(v, str) else v for name, v in shown.items()}


def rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Six significant digits: the samples are not known better, and the page is half as large."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (5 - np.floor(np.log10(np.abs(values))))
        result: npt.NDArray[np.float64] = np.where(values == 0, 0.0, np.round(values * scale) / scale)
    return result


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
