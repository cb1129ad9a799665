"""A folder of reports over a real socket: what is listed is served, and nothing else to nobody else."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from importlib.resources import files
from pathlib import Path

import pytest

from fusionbench.errors import FusionbenchError
from fusionbench.report import page
from fusionbench.report.frame import frame
from fusionbench.serving import HOST, POLICY, Server, reports
from tests.browser import browser, chromium
from tests.synthetic import ENVIRONMENTS, smoke

PAGE = "<!doctype html><title>{title}</title><p>{text}</p>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "reports"
    (inner / "run-1").mkdir(parents=True)
    (inner / "a b.html").write_text(PAGE.format(title="First &amp; best", text="one"))
    (inner / "run-1" / "report.html").write_text(PAGE.format(title="Second", text="two"))
    (inner / "notes.txt").write_text("private")
    (inner / ".hidden.html").write_text("private")
    (tmp_path / "secret.html").write_text("private")
    (inner / "link.html").symlink_to(tmp_path / "secret.html")
    (inner / "outside").symlink_to(tmp_path)
    os.mkfifo(inner / "pipe.html")
    return inner


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    with Server(folder, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with served(folder) as running:
        yield running


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection(HOST, server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{server.server_port}"} | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_the_index_lists_the_reports_with_title_date_and_size(server: Server) -> None:
    answer, text = ask(server, "/")
    assert answer.status == 200
    assert sorted(re.findall(r'href="([^"]+)">([^<]+)<', text.partition("<ul>")[2])) == [
        ("a%20b.html", "First &amp; best"),
        ("run-1/report.html", "Second"),
    ]
    assert re.search(r"a b\.html · \d{4}-\d\d-\d\d \d\d:\d\d UTC · 0\.0 MB", text)
    assert "private" not in text


@pytest.mark.parametrize(("path", "text"), [("/a%20b.html", "one"), ("/run-1/report.html?x=1", "two")])
def test_a_report_is_served_under_its_own_policy(server: Server, path: str, text: str) -> None:
    answer, page = ask(server, path)
    assert (answer.status, text in page) == (200, True)
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert f'content="{POLICY}"' in files("fusionbench.report").joinpath("base.html").read_text("utf-8")
    head, nothing = ask(server, path, "HEAD")
    assert (head.headers["Content-Length"], nothing) == (str(len(page)), "")


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.html", "/%2e%2e/secret.html", "/run-1/../../secret.html", "/..%2fsecret.html", "//secret.html"),
        *("/link.html", "/outside/secret.html", "/pipe.html", "/run-1", "/run-1/", "/notes.txt", "/.hidden.html"),
        *("/a b.html%00", "/%00.html", "/none.html", "/%ff.html", "/./a%20b.html", "/run-1//report.html"),
    ],
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    answer, text = ask(server, path.replace(" ", "%20"))
    assert answer.status == 404
    assert "private" not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "127.0.0.1:{port}.x"]
)
def test_a_request_that_calls_this_machine_by_another_name_is_refused(server: Server, host: str) -> None:
    answer, text = ask(server, "/a%20b.html", Host=host.format(port=server.server_port))
    assert (answer.status, "<p>one" in text) == (403, False)


def test_a_request_without_a_host_is_refused(server: Server) -> None:
    with socket.create_connection((HOST, server.server_port), timeout=10) as line:
        line.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 403 " in line.makefile("rb").readline()


def test_localhost_is_this_machine_too(server: Server) -> None:
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_done_but_reading(server: Server, method: str) -> None:
    assert ask(server, "/", method)[0].status == 501


def test_it_listens_on_this_machine_only(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_titles_and_names_stay_text(server: Server, folder: Path) -> None:
    name = "<b>\"'&\u202e.html"
    (folder / name).write_text(PAGE.format(title="&lt;script&gt;alert(1)&lt;/script&gt;\x1b[2J", text="x"))
    _, text = ask(server, "/")
    assert "&lt;script&gt;alert(1)" in text
    assert not any(piece in text for piece in ("<script", "<b>", "\x1b", "\u202e"))
    (link,) = re.findall(r'href="(%3Cb[^"]+)"', text)
    assert ask(server, f"/{link}")[0].status == 200


def test_a_page_without_a_title_goes_by_its_name(folder: Path) -> None:
    (folder / "plain.html").write_text("x")
    assert {each.name: each.title for each in reports(folder)}["plain.html"] == "plain.html"


def test_a_taken_port_and_a_missing_folder_are_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FusionbenchError, match=rf"cannot listen on 127.0.0.1:{server.server_port}: .*--port 0"):
        Server(tmp_path, server.server_port)
    with pytest.raises(FusionbenchError, match=r"no folder '.*none' to serve reports from"):
        Server(tmp_path / "none", 0)


def test_the_verb_prints_its_address_and_ends_with_ctrl_c(folder: Path) -> None:
    command = [sys.executable, "-m", "fusionbench", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"reports in .*reports: http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends this\)\n", line)
        assert found, line
        connection = HTTPConnection(HOST, int(found[1]), timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no chromium on the path (set FUSIONBENCH_CHROMIUM)")
def test_a_browser_goes_from_the_index_to_a_report_that_draws_and_asks_for_nothing(folder: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install fusionbench[dev]")
    page.write(folder / "run-1" / "report.html", frame(smoke(), ENVIRONMENTS), ENVIRONMENTS, title="a run")
    with served(folder) as server, browser() as started:
        context = started.new_context()
        shown, asked, trouble = context.new_page(), [], []
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("console", lambda message: trouble.append(message.text))
        shown.on("pageerror", lambda error: trouble.append(str(error)))
        shown.goto(server.url)
        assert axe.Axe().run(shown).response["violations"] == []
        shown.get_by_role("link", name="a run").click()
        shown.wait_for_selector(".chart .main-svg", timeout=60_000)
        assert "fusionbench report" in shown.inner_text(".eyebrow")
        assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [
            server.url,
            f"{server.url}run-1/report.html",
        ]
        assert trouble == []
        context.close()
