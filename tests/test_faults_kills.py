"""Runs that are killed or interrupted: nothing finished is lost, nothing unfinished is called done, no process stays."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusionbench import store
from fusionbench.rounds import rounds_of
from tests.test_cli import PLUGIN, records_in, started
from tests.test_faults_runs import ALL, FATES, measured, rounds_stored, written


def session_of(leader: int) -> list[int]:
    """The living processes of a session, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state != "Z" and int(session) == leader:
            found.append(int(stat.parent.name))
    return found


def assert_nobody_is_left(leader: int, seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while session_of(leader) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session_of(leader) == []


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[str]]:
    """Starts command lines, see warm.py."""
    command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def begin(warm: subprocess.Popen[str], folder: Path) -> int:
    """The pid of a command line that begins the run in ``folder`` or goes on with it; ``end`` gives its exit code."""
    runs = [path.parent for path in folder.glob("r/*/manifest.json")]
    what = ["resume", str(runs[0])] if runs else ["run", "faulty.toml", "--results", "r"]
    assert warm.stdin
    assert warm.stdout
    print(json.dumps([str(folder), *what, "-q", "--plugin", PLUGIN]), file=warm.stdin, flush=True)
    return int(warm.stdout.readline())


def end(warm: subprocess.Popen[str]) -> int:
    assert warm.stdout
    return int(warm.stdout.readline())


def test_a_run_killed_at_20_moments_and_resumed_ends_like_one_that_was_left_alone(
    tmp_path: Path, warm: subprocess.Popen[str]
) -> None:
    written(tmp_path, 14, ALL.replace('"segfaults", ', ""))
    chance, finished = random.Random(5), set[str]()
    for attempt in range(20):
        shards = len(list(tmp_path.glob("r/*/shards/*")))
        leader = begin(warm, tmp_path)
        if attempt % 4:
            while len(list(tmp_path.glob("r/*/shards/*"))) == shards:
                time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.4))
        os.kill(leader, signal.SIGKILL)
        assert end(warm) == -signal.SIGKILL
        assert_nobody_is_left(leader)
        for run in tmp_path.glob("r/*/manifest.json"):
            found = store.read(run.parent)
            assert (found.damage, found.manifest is None, len(found.torn) <= attempt + 1) == ([], False, True)
            now = {key for key, *_ in store.finished(found, found.manifest.budget)} if found.manifest else set()
            assert finished <= now
            finished = now

    leader = begin(warm, tmp_path)
    assert end(warm) == 3
    assert_nobody_is_left(leader)
    (run,) = (manifest.parent for manifest in tmp_path.glob("r/*/manifest.json"))  # a kill may leave a folder without
    found = store.read(run)
    assert found.manifest is not None
    assert len(found.records) == found.manifest.planned == 2 * 4 * 14
    for record in found.records:
        assert record.status == ("skipped" if record.job.backend == "triton" else FATES[record.job.strategy])
        assert rounds_of(record) == (2 if record.status == "ok" else 0)
    assert set(rounds_stored(run).values()) == {1}  # nothing was measured twice


def test_a_killed_run_takes_a_hanging_job_and_its_children_along(tmp_path: Path) -> None:
    written(tmp_path, 1, '"breeds_and_hangs"')
    process = started("run", "faulty.toml", "-q", "--plugin", PLUGIN, cwd=tmp_path)
    wait_for_the_child(process.pid)
    process.kill()
    process.communicate(timeout=10)
    assert_nobody_is_left(process.pid)


def test_ctrl_c_twice_ends_a_hanging_job_at_once(tmp_path: Path, warm: subprocess.Popen[str]) -> None:
    written(tmp_path, 1, '"breeds_and_hangs"')
    leader = begin(warm, tmp_path)
    wait_for_the_child(leader)
    begun = time.monotonic()
    os.kill(leader, signal.SIGINT)
    time.sleep(0.1)
    os.kill(leader, signal.SIGINT)
    assert end(warm) == 130
    assert time.monotonic() - begun < 4  # the grace after one Ctrl-C is 5 s
    assert_nobody_is_left(leader)
    (run,) = tmp_path.glob("r/*/")
    assert measured(run) == []


def wait_for_the_child(leader: int) -> None:
    """Until the strategy of that name has started its process."""
    deadline = time.monotonic() + 60
    while not any(b"61.25" in command(process) for process in session_of(leader)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_terminated_run_says_how_to_go_on_and_leaves_nobody(tmp_path: Path) -> None:
    written(tmp_path, 40)
    process = started("run", "faulty.toml", "--results", "r", "--plugin", PLUGIN, cwd=tmp_path)
    run = records_in(tmp_path / "r", 2)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "SIGTERM: finishing the running sample" in err
    assert f"Go on with: fusionbench resume r/{run.name}" in err
    assert 2 <= len(measured(run)) < 40
    assert_nobody_is_left(process.pid)
