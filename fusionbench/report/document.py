"""One HTML file with everything in it: style, scripts, plotly, and the data in a form that stays data."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from ..errors import printable
from ..record import Environment
from . import packing
from .files import replacing
from .packing import LONGEST

_PLOTLY = "plotly-cartesian.min.js"  # of npm: all that the charts draw, read in a third of the whole one's time


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

    The scripts share one scope in the order given and find the payload in ``#data``, its ``columns`` as packing.Column.
    """
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
        script=Markup(f"(() => {{\n{script}\n}})();"),  # noqa: S704 - package data
        plotly=_folded(f"/*\n{_read('plotly.LICENSE')}*/\n{_read(_PLOTLY)}".encode(), 9),
        data=_folded(packing.pack(payload), 6),
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


def _folded(data: bytes, level: int) -> str:
    """Letters that no text of a result can leave: base64 of gzip, the same for the same bytes."""
    return base64.b64encode(gzip.compress(data, compresslevel=level, mtime=0)).decode()


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
