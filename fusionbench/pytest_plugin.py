"""The pytest plugin: suite files become tests, and ``fusion_job`` measures one job inside a test of one's own.

Every pytest of everyone who has fusionbench installed imports this file: it imports nothing but pytest until a suite or
the fixture is asked for. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing.collect import SuiteFile
    from .testing.fusion_job import FusionJob


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "fusionbench_suites",
        "suite files (TOML) to collect without being named on the command line, as patterns of paths from the root",
        type="args",
        default=[],
    )
    parser.addini(
        "fusionbench_plugins",
        "Python files with strategies of one's own, for suites and for the fixture fusion_job",
        type="paths",
        default=[],
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """A suite is collected where it was asked for: any other TOML file is nobody's test."""
    if file_path.suffix != ".toml" or not (parent.session.isinitpath(file_path) or _named(file_path, parent.config)):
        return None
    from .testing.collect import SuiteFile

    return SuiteFile.from_parent(parent, path=file_path)


def _named(path: Path, config: pytest.Config) -> bool:
    patterns = config.getini("fusionbench_suites")
    root = config.rootpath
    return any(fnmatch(path.relative_to(root).as_posix(), each) for each in patterns if path.is_relative_to(root))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Where a test has ``fusion_job`` and pytest-benchmark's ``benchmark``, the latter takes samples of the former."""
    for item in items if config.pluginmanager.hasplugin("pytest-benchmark") else ():
        if {"fusion_job", "benchmark"} <= set(getattr(item, "fixturenames", ())):
            from .testing.replay import take_samples

            take_samples(item)


@pytest.fixture(scope="session")
def fusion_job(request: pytest.FixtureRequest) -> FusionJob:
    """Measure one job in a worker process: ``record = fusion_job("cross_attention", backend="sdpa", text=77)``."""
    from .testing.fusion_job import FusionJob

    return FusionJob(tuple(request.config.getini("fusionbench_plugins")))
