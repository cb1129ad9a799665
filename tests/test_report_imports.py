"""Judging and publishing work on a machine without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["report.frame", "report.table", "report.page", "export.formats", "export.tables"])
def test_reports_and_exports_never_import_torch(module: str) -> None:
    code = f"import sys, fusionbench.{module}; sys.exit(bool({{'torch', 'triton'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
