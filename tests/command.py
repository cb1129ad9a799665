"""The command line as tests call it."""

from __future__ import annotations

import sys

import pytest

from fusionbench.cli import main


def call(
    *arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line run in this process."""
    monkeypatch.setattr(sys, "argv", ["fusionbench", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    out, err = capsys.readouterr()
    return code, out, err
