"""A headless Chromium for tests, that reports whatever a page tries to do."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


def chromium() -> str | None:
    """The browser that FUSIONBENCH_CHROMIUM names, or the first one on the path."""
    named = os.environ.get("FUSIONBENCH_CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        yield started
        started.close()


class Visit:
    """One open report; ``trouble`` lists every error, dialog, and request that left the file."""

    def __init__(self, started: Any, path: Path, fragment: str = "", **options: Any) -> None:
        self.context = started.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda m: self.trouble.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.trouble.append(str(e)))
        self.page.on("dialog", lambda d: (self.trouble.append(f"dialog {d.message}"), d.dismiss()))
        self.page.on("popup", lambda _: self.trouble.append("popup"))
        self.page.on("request", lambda r: self._request(r.url))
        self.opening()
        self.page.goto(path.as_uri() + fragment)
        self.wait()

    def opening(self) -> None:
        """For who measures: the page is about to be asked for."""

    def _request(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.trouble.append(f"request {url[:80]}")

    def wait(self, limit_s: float = 30.0) -> None:
        """Until all charts are drawn; the page's own policy forbids playwright's wait_for_function."""
        end = time.monotonic() + limit_s
        while not self.page.evaluate("window.fusionbenchReady && window.fusionbenchDrawn"):
            if time.monotonic() > end:
                raise TimeoutError(f"the page is not ready: {self.page.text_content('#facts')} {self.trouble}")
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        self.page.click(selector)
        self.wait()

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))
