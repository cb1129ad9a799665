"""A built wheel works on its own: it carries the suites, the report's files and nothing that is not ours."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fusionbench import suite

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(target.glob("*.whl"))


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fusionbench", "fusionbench_kernels"}
    assert "fusionbench/suites/smoke.toml" in names
    assert "fusionbench/report/page.html" in names
    assert {"fusionbench/py.typed", "fusionbench_kernels/py.typed", "fusionbench_kernels/configs.json"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert b"[pytest11]\nfusionbench = fusionbench.pytest_plugin" in zipfile.ZipFile(wheel).read(entry_points)


def test_the_installed_wheel_finds_its_suites(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True, timeout=300, capture_output=True)
    code = (
        "import fusionbench, sys; from fusionbench.cli import main; print(fusionbench.__file__, flush=True);"
        "sys.argv[1:] = ['list', 'suites']; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    where, *lines = done.stdout.splitlines()
    assert where.startswith(str(site))
    assert {line.split()[0] for line in lines} == set(suite.shipped())


def test_the_checkout_finds_the_same_suites() -> None:
    assert suite.folder() == ROOT / "suites"
