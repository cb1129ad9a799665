"""A folder of reports in the browser: to this machine alone, one page per listed file, nothing else."""

from __future__ import annotations

import os
import re
import shutil
import socketserver
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from html import escape, unescape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .errors import FusionbenchError, printable

HOST = "127.0.0.1"  # and no option for another: a report may be nobody else's business
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"  # as base.html
)

_INDEX_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HEAD_BYTES = 64 * 2**10  # in which a report has its title
_TITLE = re.compile(rb"<title>(.*?)</title>", re.S)
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
ul { list-style: none; padding: 0; margin: 0; }
li { padding: .7rem 0; border-top: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
a { overflow-wrap: anywhere; }
a, a:visited { color: light-dark(#00589c, #6cb8ee); }
p { margin: 0; font-size: .875rem; color: light-dark(#5b6068, #a5aab2); overflow-wrap: anywhere; }
"""


class Report(NamedTuple):
    name: str  # relative to the folder, the parts joined by /
    title: str
    changed: datetime
    size: int


class Server(ThreadingHTTPServer):
    """Serves the reports of ``folder``. Raises FusionbenchError where the port is taken."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        if not folder.is_dir():
            raise FusionbenchError(f"no folder '{printable(str(folder))}' to serve reports from")
        self.folder = folder
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            remedy = "choose another with --port, or any free one with --port 0"
            raise FusionbenchError(f"cannot listen on {HOST}:{port}: {error.strerror}; {remedy}") from None

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would ask the network for this machine's name
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a browser may leave before the end
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser that was sent here by its own user calls this server."""
        return tuple(f"{name}:{self.server_port}" for name in (HOST, "localhost"))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """Answers for the index and for what it lists."""

    server: Server
    timeout = 30  # seconds that a client may leave its request unfinished
    server_version, sys_version = "fusionbench", ""

    def do_GET(self) -> None:
        # A name of the attacker's that leads here (DNS rebinding) would make these pages readable for their script.
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            self._page(HTTPStatus.FORBIDDEN, f"ask for {self.server.url}")
            return
        asked = os.fsdecode(unquote_to_bytes(self.path.partition("?")[0])).removeprefix("/")
        if not asked:
            self._send(HTTPStatus.OK, _index(self.server.folder), _INDEX_POLICY)
            return
        try:
            with _opened(self.server.folder, asked) as file:
                self._head(HTTPStatus.OK, os.fstat(file.fileno()).st_size, POLICY)
                if self.command != "HEAD":
                    shutil.copyfileobj(file, self.wfile)
        except FileNotFoundError:
            self._page(HTTPStatus.NOT_FOUND, "no such report")

    do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

    def _page(self, status: HTTPStatus, text: str) -> None:
        self._send(status, _html(status.phrase, f"<p>{escape(text)}</p>"), _INDEX_POLICY)

    def _send(self, status: HTTPStatus, page: bytes, policy: str) -> None:
        self._head(status, len(page), policy)
        if self.command != "HEAD":
            self.wfile.write(page)

    def _head(self, status: HTTPStatus, size: int, policy: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(size),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what a stranger asks for is no text for the terminal."""


def reports(folder: Path) -> list[Report]:
    """The pages in the folder and in the run folders in it, the newest first; links are none of it."""
    found = []
    for name in _names(folder):
        with suppress(OSError), _opened(folder, name) as file:
            state = os.fstat(file.fileno())
            changed = datetime.fromtimestamp(state.st_mtime, UTC)
            found.append(Report(name, _title(file.read(_HEAD_BYTES)) or name, changed, state.st_size))
    return sorted(found, key=lambda report: (-report.changed.timestamp(), report.name))


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if _is_page(path.name):
            yield path.name
        elif path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                yield from (f"{path.name}/{each.name}" for each in sorted(path.iterdir()) if _is_page(each.name))


def _is_page(name: str) -> bool:
    return name.endswith(".html") and not name.startswith(".")


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[BinaryIO]:
    """The report of that name: a page in the folder or one folder below it, and no link on the way.

    Raises FileNotFoundError for everything else.
    """
    parts = name.split("/")
    if len(parts) > 2 or not _is_page(parts[-1]) or parts[0] in ("", ".", "..") or "\0" in name:
        raise FileNotFoundError(name)
    try:
        found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts:
            outer, flags = found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is not waited for
            try:
                found = os.open(part, flags | (0 if part is parts[-1] else os.O_DIRECTORY), dir_fd=outer)
            finally:
                os.close(outer)
    except OSError:
        raise FileNotFoundError(name) from None
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise FileNotFoundError(name)
    with os.fdopen(found, "rb") as file:
        yield file


def _title(head: bytes) -> str:
    found = _TITLE.search(head)
    return printable(unescape(found[1].decode("utf-8", "replace")), 200).strip() if found else ""


def _index(folder: Path) -> bytes:
    found = reports(folder)
    lines = [
        f'<li><a href="{quote(os.fsencode(each.name))}">{escape(each.title)}</a>'
        f"<p>{escape(printable(each.name))} · {each.changed:%Y-%m-%d %H:%M} UTC · {each.size / 1e6:.1f} MB</p></li>"
        for each in found
    ]
    empty = "<p>No report here yet: fusionbench report RUN writes one, and this page lists it when it is reloaded.</p>"
    return _html(f"Reports in {printable(folder.resolve().name)}", f"<ul>{''.join(lines)}</ul>" if found else empty)


def _html(title: str, body: str) -> bytes:
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · fusionbench</title><style>{_STYLE}</style></head>"
    )
    page = f"{head}<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    return page.encode("utf-8", "replace")
