"""pytest-benchmark reads what is exported for it, and finds in it the numbers that it would have computed itself."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pytest_benchmark.stats import Stats
from pytest_benchmark.utils import get_machine_id

from fusionbench.export import pytest_benchmark
from fusionbench.record import Record, Timing
from tests.exporting import run_of, timing
from tests.synthetic import smoke


def exported(path: Path, records: list[Record], command: tuple[str, ...] = ()) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest_benchmark.write(run_of(records, command=command), path)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def good() -> list[Record]:
    return [record for record in smoke() if record.status == "ok"]


def slower(records: list[Record], factor: int) -> list[Record]:
    return [replace(record, time=_slower(record.time, factor)) for record in records if record.time]


def _slower(time: Timing, factor: int) -> Timing:
    return replace(time, samples_ns=tuple(factor * ns for ns in time.samples_ns), run_delay_ns=())


def compare(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "pytest_benchmark", "compare", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("count", [*range(1, 14), 50, 51, 400])
def test_statistics_are_those_of_pytest_benchmark(count: int) -> None:
    rng = random.Random(count)
    data = [rng.lognormvariate(-9, 0.3) for _ in range(count)]
    theirs = Stats()
    for value in data:
        theirs.update(value)
    assert pytest_benchmark.stats(data) == theirs.as_dict()


@pytest.mark.parametrize("data", [[1e-6] * 9, [0.0, 0.0], [1e-6, 1e-6, 5.0]])
def test_statistics_of_odd_data_are_those_of_pytest_benchmark(data: list[float]) -> None:
    theirs = Stats()
    theirs.data = data
    assert pytest_benchmark.stats(data) == theirs.as_dict()


def test_a_sample_is_seconds_of_one_call_on_the_core(tmp_path: Path) -> None:
    waited = replace(timing((4_000_000, 6_000_000), loops=2), run_delay_ns=(1_000_000, 0))
    found = exported(tmp_path / "a.json", [replace(good()[0], time=waited)])["benchmarks"][0]
    assert found["stats"]["data"] == [0.0015, 0.003]
    assert found["stats"]["iterations"] == 2
    assert found["stats"]["rounds"] == 2
    assert found["extra_info"]["ci95_s"] == [0.0015, 0.003]


def test_a_job_is_called_as_pytest_calls_it_and_grouped_by_its_question(tmp_path: Path) -> None:
    records = good()
    found = exported(tmp_path / "a.json", records, ("fusionbench", "run", "suites/smoke.toml"))["benchmarks"]
    for record, benchmark in zip(records, found, strict=True):
        assert benchmark["fullname"] == f"suites/smoke.toml::{record.job.key}"
        assert benchmark["name"] == record.job.key
        assert benchmark["group"] == record.job.case.key
        assert benchmark["params"]["strategy"] == record.job.strategy
        assert benchmark["extra_info"]["environment"] == "h100-a"
        assert benchmark["extra_info"]["peak_bytes"] == record.memory.peak_bytes  # type: ignore[union-attr]


def test_machine_and_commit_are_those_that_measured(tmp_path: Path) -> None:
    found = exported(tmp_path / "a.json", good())
    assert found["machine_info"]["node"] == "gpu-node-07"
    assert (found["machine_info"]["system"], found["machine_info"]["release"]) == ("Linux", "6.8.0")
    assert found["machine_info"]["cpu"]["brand_raw"] == "Intel Xeon Platinum 8481C"
    assert found["commit_info"]["id"] == "9964717d2c"
    assert found["datetime"] == "2026-03-02T10:00:00Z"


def test_pytest_benchmark_compares_two_exports(tmp_path: Path) -> None:
    exported(tmp_path / "base.json", slower(good(), 1))
    exported(tmp_path / "head.json", slower(good(), 2))
    text = compare("base.json", "head.json", "--columns=median", "--group-by=fullname", cwd=tmp_path)
    for record in good():
        assert {f"{record.job.key} ({name})" in text for name in ("base", "head")} == {True}, record.job.key
    assert text.count("(2.00)") == len(good())


def test_pytest_benchmark_finds_a_change_between_two_exports(tmp_path: Path) -> None:
    exported(tmp_path / "base.json", slower(good(), 1))
    exported(tmp_path / "head.json", slower(good(), 3))
    text = compare("base.json", "head.json", "--between=median", cwd=tmp_path)
    assert text.count("+200.0%") == len(good())


def test_pytest_benchmark_finds_an_export_in_its_storage(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "head"), 1):
        exported(tmp_path / ".benchmarks" / get_machine_id() / f"{number:04}_{name}.json", good())
    text = compare("0001", "--group-by=param:strategy", cwd=tmp_path)
    for strategy in {record.job.strategy for record in good()}:
        assert f"benchmark 'strategy={strategy}'" in text
    assert "0001_base" not in compare("0002", cwd=tmp_path)


# What the plugin of fusionbench does with a suite, but for the measuring: items whose ids are path::key.
CONFTEST = """
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".toml" and file_path.parent.name == "suites":
        return Suite.from_parent(parent, path=file_path)

class Suite(pytest.File):
    def collect(self):
        for key in KEYS:
            yield Job.from_parent(self, name=key)

class Job(pytest.Item):
    fixturenames = ("benchmark",)

    def runtest(self):
        session = self.config._benchmarksession
        fixture = BenchmarkFixture(self, add_stats=session.benchmarks.append, logger=session.logger, warner=self.warn,
                                   disabled=session.disabled, **session.options)
        fixture.pedantic(sum, args=([1, 2],), rounds=3)
"""


def test_a_pytest_run_is_compared_with_an_export_by_full_name(tmp_path: Path) -> None:
    records = good()[:3]
    exported(tmp_path / "base.json", records, ("fusionbench", "run", "smoke"))
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "smoke.toml").write_text("")
    (tmp_path / "conftest.py").write_text(CONFTEST.replace("KEYS", repr([record.job.key for record in records])))
    options = ["--benchmark-compare=base.json", "-c", "none.ini", "--rootdir=."]
    options += ["-p", "no:cacheprovider", "-p", "no:fusionbench"]  # the items are made up, not measured
    (tmp_path / "none.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "suites/smoke.toml", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for record in records:
        assert f"{record.job.key} (NOW)" in done.stdout
        assert f"{record.job.key} (base)" in done.stdout
