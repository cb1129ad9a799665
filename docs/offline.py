"""The site comes with everything it needs: a page that would ask another host for something fails the build."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

# Attributes whose address a browser fetches by itself; those of <a> it follows only when told to.
FETCHED = {"src", "srcset", "data", "poster"}
LOADING = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class _Fetches(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = tag == "link" and LOADING & set((given.get("rel") or "").split())
        for name, value in attrs:
            if (name in FETCHED or (loads and name == "href")) and (value or "").startswith(("http:", "https:", "//")):
                self.found.append(f"<{tag} {name}={value}>")


def fetches(html: str) -> list[str]:
    """What a page would ask another host for."""
    parser = _Fetches()
    parser.feed(html)
    return parser.found


def _asked(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.html")):
        if path.parent.name != "reports":  # these carry their own policy, and megabytes of plotly
            yield from (f"{path.relative_to(folder)}: {each}" for each in fetches(path.read_text("utf-8")))
    for path in sorted(folder.rglob("*.css")):
        text = path.read_text("utf-8")
        if "@import" in text or "url(http" in text or "url(//" in text:
            yield f"{path.relative_to(folder)}: fetches from another host"


def _check(app: Sphinx, failed: Exception | None) -> None:
    asked = [] if failed else list(_asked(Path(app.outdir)))
    if asked:
        raise SphinxError("a page would ask another host: " + "; ".join(asked[:10]))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True}
