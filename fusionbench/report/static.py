"""The charts of a written page as SVG and PNG files: drawn by the page's own script in a browser without a window."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from ..errors import FusionbenchError
from .files import put

FORMATS = ("svg", "png")
_LIMIT_S = 180.0
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_EXTRA = "pip install 'fusionbench[static]'"


def refuse_missing() -> None:
    """Before a page is written in vain. Raises FusionbenchError without the extra, or without a browser."""
    try:
        from choreographer.browsers.chromium import Chromium
        from choreographer.utils import get_browser_path
    except ModuleNotFoundError:
        raise FusionbenchError(f"--static needs the package 'choreographer': {_EXTRA}") from None
    path = get_browser_path(executable_names=[]) or Chromium.find_browser(skip_local=False)
    if not path or not Path(path).exists():
        named = f"'{path}' is none" if path else "none was found"
        raise FusionbenchError(
            f"--static needs Chromium or Chrome, and {named}: install one or name it in BROWSER_PATH"
        )


def write(page: Path, folder: Path) -> list[Path]:
    """Write each chart that ``page`` shows when it is opened into ``folder``, by the name of its section.

    Raises FusionbenchError where the browser does not answer.
    """
    try:
        pictures = asyncio.run(asyncio.wait_for(_pictures(page.resolve().as_uri()), _LIMIT_S))
    except TimeoutError:
        raise FusionbenchError(f"the browser did not draw the charts within {_LIMIT_S:.0f} s") from None
    return list(_put(pictures, folder))


def _put(pictures: dict[str, list[tuple[str, str]]], folder: Path) -> Iterator[Path]:
    for kind, found in pictures.items():
        for name, url in found:
            if not _NAME.fullmatch(name):
                raise FusionbenchError(f"a chart has the name '{name[:40]!a}', which is no name of a file")
            path = folder / f"{name}.{kind}"
            put(path, _content(url))
            yield path


def _content(url: str) -> bytes:
    head, _, body = url.partition(",")
    return base64.b64decode(body) if head.endswith(";base64") else unquote_to_bytes(body)


async def _pictures(url: str) -> dict[str, list[tuple[str, str]]]:
    from choreographer import Browser

    async with Browser(headless=True) as browser:
        tab = await browser.create_tab("about:blank")
        size = {"width": 1280, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        await tab.send_command("Emulation.setDeviceMetricsOverride", size)
        light = [{"name": "prefers-color-scheme", "value": "light"}]
        await tab.send_command("Emulation.setEmulatedMedia", {"features": light})
        await tab.send_command("Page.navigate", {"url": url})
        while not await _value(tab, "Boolean(window.fusionbenchReady && window.fusionbenchDrawn)"):
            await asyncio.sleep(0.1)
        return {kind: await _value(tab, f"window.fusionbenchPictures('{kind}')") for kind in FORMATS}


async def _value(tab: Any, expression: str) -> Any:
    asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
    answer = (await tab.send_command("Runtime.evaluate", asked))["result"]
    if "exceptionDetails" in answer:
        raise FusionbenchError(f"the page could not draw its charts: {answer['exceptionDetails'].get('text', '')}")
    return answer["result"].get("value")
