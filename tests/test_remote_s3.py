"""Runs in an object store that speaks S3 over HTTP: moto's server, on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import away
from tests.away import Machine
from tests.test_cli import PLUGIN

pytest.importorskip("moto", reason="the object store is moto's (pip install 'moto[server]')")
s3fs = pytest.importorskip("s3fs", reason="s3:// needs s3fs (pip install fusionbench[s3])")

RUNS = "s3://bench/runs"
RECORD = b'{"kind":"record"'
JOBS = 12
LONG = away.SUITE.replace('"cross_attention"', '"fine"').replace("text = [3, 5]", f"text = {list(range(1, JOBS + 1))}")
LONG = LONG.replace("image_width", 'projectors = ["identity"]\nimage_width', 1)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Where the server listens: a process of its own, as its client's threads are."""
    code = "from moto.server import main; import sys; main(['-H', '127.0.0.1', '-p', '0'])"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r"http://127\.0\.0\.1:[0-9]+", line):
                break
        else:
            raise AssertionError("moto's server did not start")
        yield found[0]
        server.kill()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The store with an empty bucket, which every process finds by the environment."""
    for name in [name for name in os.environ if name.startswith("AWS")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir("bench")
    yield fs
    fs.rm("bench", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def machine(
    s3: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Machine]:
    return away.machines(tmp_path, capsys, monkeypatch)


def started(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fusionbench", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "FUSIONBENCH_CACHE": str(cache)},
    )  # fmt: skip


def measured(cache: Path, least: int) -> None:
    """Wait for records in the folder where a machine stages its runs."""
    end = time.monotonic() + 60
    while sum(path.read_bytes().count(RECORD) for path in cache.glob("staging/*/*/shards/*.jsonl")) < least:
        assert time.monotonic() < end, "nothing was measured"
        time.sleep(0.05)


def records_of(s3: Any, run: str) -> int:
    return sum(s3.cat_file(path).count(RECORD) for path in s3.glob(f"bench/runs/{run}/shards/*.jsonl"))


def test_an_interrupted_run_is_in_the_bucket_and_goes_on_from_another_machine(
    s3: Any, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    (tmp_path / "long.toml").write_text(LONG)
    a, b = machine("a"), machine("b")
    process = started(a.cache, "run", "long.toml", "--plugin", PLUGIN, "--results", RUNS)
    measured(a.cache, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (run,) = (path.rpartition("/")[2] for path in s3.ls("bench/runs"))
    assert f"fusionbench resume {RUNS}/{run}" in err
    assert str(a.cache) not in err
    before = records_of(s3, run)
    assert 2 <= before < JOBS
    code, _, err = b("resume", f"{RUNS}/{run}", "--plugin", PLUGIN, "--quiet")
    assert code == 0, err
    assert records_of(s3, run) == JOBS
    assert len(s3.ls(f"bench/runs/{run}/shards")) == 2
    assert s3.exists(f"bench/runs/{run}/records.parquet")


def test_a_run_that_was_killed_is_uploaded_by_the_next_attempt(
    s3: Any, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    (tmp_path / "long.toml").write_text(LONG)
    a = machine("a")
    process = started(a.cache, "run", "long.toml", "--plugin", PLUGIN, "--results", RUNS, "--quiet")
    measured(a.cache, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (run,) = (path.rpartition("/")[2] for path in s3.ls("bench/runs"))
    assert records_of(s3, run) == 0  # too early for an upload: all is on the machine
    code, _, err = a("run", "long.toml", "--plugin", PLUGIN, "--results", RUNS, "--quiet")
    assert code == 0, err
    assert len(s3.ls("bench/runs")) == 1
    assert records_of(s3, run) == JOBS


def test_every_verb_reads_from_the_bucket_and_merges_into_it(s3: Any, machine: Callable[[str], Machine]) -> None:
    away.read_by_every_verb(RUNS, s3, machine, "geheim")
    assert records_of(s3, "whole") == 2


NOT_THERE = [
    (["show", "s3://none/runs/x"], "cannot list 's3://none/runs/x': The specified bucket does not exist; is there"),
    (["show", "--results", "s3://none"], "The specified bucket does not exist; is there such a bucket"),
    (["show", "s3://bench/runs/x"], "no run at 's3://bench/runs/x'; give a run folder"),
    (["show", "--results", "s3://bench/runs"], "no run in 's3://bench/runs' yet"),
    (["show", "s3://bench/x.parquet"], "cannot read 's3://bench/x.parquet'"),
    (["run", "away.toml", "--results", "s3://none/runs"], "'s3://none/runs': The specified bucket does not exist"),
    (["history", "s3://none/runs"], "The specified bucket does not exist"),
    (["merge", "s3://bench/a", "s3://bench/b", "-o", "x"], "no run at 's3://bench/a'"),
]


def test_what_is_not_there_is_one_line(machine: Callable[[str], Machine]) -> None:
    """Of all in one test: a client takes a second to be made."""
    for arguments, said in NOT_THERE:
        code, out, err = machine("a")(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert said in err


def test_without_credentials_the_variables_are_named(
    s3: Any, machine: Callable[[str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    code, out, err = machine("a")("show", "--results", RUNS)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws" in err


def test_without_a_network_the_endpoint_is_named(
    s3: Any, machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    code, out, err = machine("a")("show", "--results", RUNS)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "check the network, and the endpoint if you set one" in err
