"""A command line whose runs lie behind URLs, and machines that have nothing in common but these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
