"""Runs in an object store that speaks Google's JSON API over HTTP: an emulator, on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import pytest

from tests import away
from tests.away import Machine

pytest.importorskip("gcp_storage_emulator", reason="the object store is gcp-storage-emulator's")
with pytest.MonkeyPatch.context() as patch:  # read at import: else it asks over gRPC, which the emulator does not speak
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs", reason="gs:// needs gcsfs (pip install fusionbench[gcs])")

# A client keeps its connection open, and the emulator by itself serves one after the other.
SERVER = """
from http import server
server.HTTPServer = server.ThreadingHTTPServer
from gcp_storage_emulator.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.kill()


@pytest.fixture
def gs(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The store with an empty bucket, which every process finds by the environment."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    monkeypatch.setenv(
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
    )  # asks over gRPC, which the emulator does not speak
    # As FSSPEC_GS_TOKEN=anon in a new process: else the client looks for Google's cloud around it, for seconds each time.
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    gcsfs.GCSFileSystem.clear_instance_cache()
    fs = gcsfs.GCSFileSystem(token="anon", project="tests", use_listings_cache=False)  # noqa: S106 - no password
    fs.mkdir("bench")
    yield fs
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def machine(
    gs: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Machine]:
    return away.machines(tmp_path, capsys, monkeypatch)


def test_every_verb_reads_from_the_bucket_and_merges_into_it(gs: Any, machine: Callable[[str], Machine]) -> None:
    away.read_by_every_verb("gs://bench/runs", gs, machine, "no secret is set")
