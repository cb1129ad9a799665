"""Standard streams that are closed, full, or without a reader: the exit code stays that of the verb, files are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from fusionbench import store
from tests.comparing import kept, record, run


def left(arguments: list[str], cwd: Path, stdout: int | IO[bytes]) -> tuple[int, str]:
    """(exit code, stderr) of the command line whose output goes there; a pipe's reader is gone before it starts."""
    command = [sys.executable, "-m", "fusionbench", *arguments]
    process = subprocess.Popen(command, cwd=cwd, stdout=stdout, stderr=subprocess.PIPE)
    if process.stdout:
        process.stdout.close()
    _, err = process.communicate(timeout=120)
    return process.returncode, err.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = run(tmp_path / "base", record(1), record(2))
    kept(store.read(base.path), tmp_path / "b.json")
    run(tmp_path / "worse", record(1, launches=99), record(2)).path.rename(tmp_path / "head")
    base.path.rename(tmp_path / "same")
    return tmp_path


@pytest.mark.parametrize(("head", "code"), [("head", 1), ("same", 0)])
def test_a_reader_that_leaves_changes_no_judgement_and_costs_no_file(folder: Path, head: str, code: int) -> None:
    arguments = ["check", head, "--baseline", "b.json", "--gate", "deterministic", "--json", "j.json", "--github"]
    assert left(arguments, folder, subprocess.PIPE) == (code, "")
    assert (folder / "j.json").stat().st_size > 0


@pytest.mark.parametrize(
    "arguments",
    [["compare", "same", "head"], ["show", "head"], ["export", "head", "-f", "json", "-o", "-"], ["list", "suites"]],
)
def test_a_reader_that_leaves_is_no_error(folder: Path, arguments: list[str]) -> None:
    assert left(arguments, folder, subprocess.PIPE) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["compare", "same", "head"], ["export", "head", "-f", "json", "-o", "-"]])
def test_a_full_disk_is_told_in_one_line(folder: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        code, err = left(arguments, folder, full)
    assert code == 2
    assert "No space left on device" in err
    assert err.count("\n") == 1


def test_closed_streams_change_no_exit_code(folder: Path) -> None:
    script = "import os, sys; os.closerange(1, 3); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    arguments = ["-m", "fusionbench", "check", "head", "--baseline", "b.json", "--json", "j.json"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=folder, timeout=120)
    assert done.returncode == 1
    assert (folder / "j.json").stat().st_size > 0
