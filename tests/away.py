"""A command line whose runs lie behind URLs, and machines that have nothing in common but these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusionbench import mirror, remote
from tests.command import call

SUITE = """
title = "Away"
question = "Does it arrive?"
[budget]
measure_s = 0.01
warmup_s = 0.0
min_samples = 6
max_samples = 10
rounds = 1
[[sweep]]
strategies = ["cross_attention"]
backends = ["eager"]
image = [7]
text = [3, 5]
image_width = [8]
text_width = [8]
width = [8]
heads = [1]
"""

Answer = tuple[int, str, str]


class Machine:
    """A cache of its own; each call is as of a new process, which remembers nothing that was fetched."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> Answer:
        forget()
        self._monkeypatch.setenv("FUSIONBENCH_CACHE", str(self.cache))
        return call(*arguments, capsys=self._capsys, monkeypatch=self._monkeypatch)


def machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Machine]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "away.toml").write_text(SUITE)
    return lambda name: Machine(tmp_path / "caches" / name, capsys, monkeypatch)


def forget() -> None:
    mirror._fetched.cache_clear()
    mirror._scratch.cache_clear()
    remote._SHOWN.clear()


def read_by_every_verb(runs: str, store: Any, machine: Callable[[str], Machine], secret: str) -> None:
    """Two machines each measure a slice below the URL ``runs`` and merge them there; a third look reads all of it."""
    scheme, _, below = runs.partition("://")
    a, b = machine("a"), machine("b")
    for number, each in enumerate((a, b), 1):
        code, _, err = each("run", "away.toml", "--shard", f"{number}/2", "--results", runs, "--quiet")
        assert code == 0, err
    slices = [f"{scheme}://{path.rstrip('/')}" for path in store.ls(below, detail=False)]
    code, out, err = a("merge", *slices, "-o", f"{runs}/whole")
    assert (code, out) == (0, f"{runs}/whole\n"), err
    for arguments in (
        ["show", f"{runs}/whole"],
        ["show", "--results", runs],
        ["show", f"{runs}/whole/records.parquet"],
        ["history", runs],
        ["compare", slices[0], f"{runs}/whole"],
    ):
        code, out, err = b(*arguments)
        assert code == 0, (arguments, err)
        assert "cross_attention" in out
        assert secret not in out + err
    code, out, err = b("report", f"{runs}/whole")
    assert (code, out) == (0, f"{runs}/whole/report.html\n"), err
    assert store.info(f"{below}/whole/report.html")["size"] > 10_000
