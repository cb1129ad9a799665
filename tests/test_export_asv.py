"""asv's folder: every file as asv writes it, and asv itself publishes and compares what is in it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fusionbench.errors import FusionbenchError, StoreError
from fusionbench.export import asv
from fusionbench.export.asv_results import COLUMNS, interval
from fusionbench.export.measured import Exported
from fusionbench.record import Environment, Record
from fusionbench.store import Run
from tests.exporting import COMMIT, failed, run_of, timing, untimed
from tests.hostile import TEXTS, hostile_records
from tests.synthetic import ENVIRONMENTS, records, smoke

needs_asv = pytest.mark.skipif(
    importlib.util.find_spec("asv") is None, reason="asv is not installed: pip install -c constraints.txt asv"
)


def measured_at(commit: str = COMMIT, **changes: Any) -> dict[str, Environment]:
    return {key: replace(value, commit=commit, **changes) for key, value in ENVIRONMENTS.items()}


def export(folder: Path, items: list[Record], commit: str = COMMIT, **changes: Any) -> Exported:
    return asv.write(run_of(items, measured_at(commit, **changes)), folder)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def results(folder: Path) -> list[Path]:
    return sorted((folder / "results").glob("*/*-*.json"))


def by_name(folder: Path) -> dict[str, dict[str, Any]]:
    """The columns of each benchmark of the only file of results."""
    (path,) = results(folder)
    found = read(path)
    return {name: dict(zip(found["result_columns"], row, strict=False)) for name, row in found["results"].items()}


def check(folder: Path) -> int:
    """asv's formats: keys, columns, and lists as long as the product of the parameters. Returns how many numbers."""
    assert read(folder / "asv.conf.json")["version"] == 1
    listed = read(folder / "results" / "benchmarks.json")
    assert listed.pop("version") == 2
    for name, benchmark in listed.items():
        assert {"name", "code", "params", "param_names", "version", "type", "unit"} <= set(benchmark)
        assert benchmark["name"] == name
        assert len(benchmark["params"]) == len(benchmark["param_names"])
    count = 0
    for path in results(folder):
        machine, found = read(path.parent / "machine.json"), read(path)
        assert machine["version"] == 1
        assert machine["machine"] == found["params"]["machine"] == path.parent.name
        assert all(isinstance(value, str) for value in found["params"].values())
        assert path.name == f"{found['commit_hash'][:8]}-{found['env_name']}.json"
        keys = {"version", "commit_hash", "env_name", "date", "params", "python", "requirements", "env_vars"}
        assert keys | {"result_columns", "results", "durations"} == set(found)
        assert found["result_columns"] == list(COLUMNS)
        for name, row in found["results"].items():
            assert row[-1] is not None
            cells = dict(zip(COLUMNS, row, strict=False))
            size = math.prod(map(len, cells["params"]))
            lists = [
                cells[column]
                for column in COLUMNS
                if column.startswith(("result", "stats_", "sam")) and cells.get(column)
            ]
            assert all(len(values) == size for values in lists)
            assert all(
                set(ours) <= set(all_) for ours, all_ in zip(cells["params"], listed[name]["params"], strict=True)
            )
            assert all(value == f"'{value[1:-1]}'" for values in cells["params"] for value in values)
            count += size
    return count


def test_any_records_make_valid_files(tmp_path: Path) -> None:
    export(tmp_path, [*records(300), *failed(), *hostile_records()])
    assert check(tmp_path) > 500


def test_numbers_stand_in_the_order_of_the_product_of_the_parameters(tmp_path: Path) -> None:
    export(tmp_path, smoke())
    check(tmp_path)
    measured = {record.job.key: record for record in smoke() if record.status == "ok"}
    seen = 0
    for name, columns in by_name(tmp_path).items():
        measure, _, strategy = name.partition(".")
        for (backend, case), value in zip(itertools.product(*columns["params"]), columns["result"], strict=True):
            record = measured.get(f"{strategy.replace('~3a', ':')}/{backend[1:-1]}/{case[1:-1]}")
            if record is None:
                assert math.isnan(value)  # skipped: concat has but one backend
            elif measure == "peakmem":
                assert value == record.memory.peak_bytes  # type: ignore[union-attr]
                seen += 1
            else:
                calls = sorted(record.time.calls_ns)  # type: ignore[union-attr]
                assert calls[0] <= value * 1e9 <= calls[-1]
                seen += 1
    assert seen == 2 * len(measured)


def test_a_failure_is_null_a_skip_and_what_was_not_timed_nan(tmp_path: Path) -> None:
    good = [record for record in smoke() if record.status == "ok" and record.job.strategy == "gated"]
    items = [
        good[0],
        replace(good[1], status="oom", time=None, memory=None),
        replace(good[2], status="skipped", time=None, memory=None),
        replace(good[3], time=None),
    ]
    export(tmp_path, items)
    columns = by_name(tmp_path)["time.gated"]
    found = dict(zip(itertools.product(*columns["params"]), columns["result"], strict=True))
    cells = [found[f"'{record.job.backend}'", f"'{record.job.case.key}'"] for record in items]
    assert cells[0] > 0
    assert cells[1] is None
    assert math.isnan(cells[2])
    assert math.isnan(cells[3])
    assert len(found) == 6  # two of which no job asked for
    assert sum(value is not None and math.isnan(value) for value in found.values()) == 4


@pytest.mark.parametrize(
    ("count", "low", "high"), [(6, 1, 6), (7, 1, 7), (8, 1, 8), (10, 1, 10), (12, 2, 11), (20, 4, 17)]
)
def test_the_interval_is_as_wide_as_so_few_medians_allow(count: int, low: int, high: int) -> None:
    assert interval(range(1, count + 1)) == (low, high)


def test_statistics_are_those_of_the_medians_of_rounds(tmp_path: Path) -> None:
    medians = (10, 20, 30, 40, 50, 60, 70, 80)
    rounds = [value for value in medians for _ in range(3)]
    few = replace(smoke()[4], time=timing([10, 20, 30], loops=5))
    export(tmp_path, [replace(smoke()[3], time=timing(rounds, (3,) * 8, loops=2)), few])
    cells = by_name(tmp_path)["time.concat_attention"]
    params = list(itertools.product(*cells["params"]))
    first, second = params.index(("'eager'", params[0][1])), params.index(("'sdpa'", params[0][1]))
    assert "samples" not in cells
    assert (cells["stats_number"][first], cells["stats_repeat"][first]) == (2, 8)
    assert (cells["stats_ci_99_a"][first], cells["stats_ci_99_b"][first]) == (5e-9, 4e-8)
    assert (cells["stats_q_25"][first], cells["stats_q_75"][first]) == (1.375e-8, 3.125e-8)
    assert (cells["stats_ci_99_a"][second], cells["stats_ci_99_b"][second]) == (-math.inf, math.inf)


def test_what_is_exported_later_is_added(tmp_path: Path) -> None:
    good = [record for record in smoke() if record.status == "ok"]
    export(tmp_path, good[:10])
    (tmp_path / "asv.conf.json").write_text('{"version": 1, "repo": "mine"}')
    listed = read(tmp_path / "results" / "benchmarks.json") | {"other.bench": {"name": "other.bench"}}
    (tmp_path / "results" / "benchmarks.json").write_text(json.dumps(listed))
    export(tmp_path, good[10:], commit="a" * 40)
    assert len(results(tmp_path)) == 2
    assert read(tmp_path / "asv.conf.json")["repo"] == "mine"
    now = read(tmp_path / "results" / "benchmarks.json")
    assert "other.bench" in now
    for record in good:
        params = now[f"time.{record.job.strategy.replace(':', '~3a')}"]["params"]
        assert f"'{record.job.backend}'" in params[0]
        assert f"'{record.job.case.key}'" in params[1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', '{"version": "2"}', "\x00", "[" * 100_000])
def test_a_folder_of_something_else_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "benchmarks.json").write_text(content)
    with pytest.raises(StoreError, match="choose another folder"):
        export(tmp_path, smoke())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["benchmarks.json"]
    assert (tmp_path / "results" / "benchmarks.json").read_text() == content


@pytest.mark.parametrize("params", [None, [], [["'a'"]], "x", [[1], [2]], [["'a'"], "b"]])
def test_odd_parameters_in_the_folder_do_no_harm(params: Any, tmp_path: Path) -> None:
    odd = {"version": 2, "time.gated": {"param_names": ["backend", "case"], "params": params}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "benchmarks.json").write_text(json.dumps(odd))
    export(tmp_path, smoke())
    check(tmp_path)


def test_names_cannot_leave_the_folder_nor_become_markup(tmp_path: Path) -> None:
    for number, name in enumerate(("..", "../../etc", "/root", ".hidden", "", "\x00", *TEXTS)):
        folder = tmp_path / str(number) / "deep" / "er"
        environments = measured_at(machine=name, cpu=name, gpu=name, system=name, torch=name, id=name)
        asv.write(run_of(smoke(), environments), folder)
        check(folder)
        assert {path.relative_to(folder).parts[0] for path in folder.rglob("*")} == {"asv.conf.json", "results"}
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["deep"]
        text = "".join(path.read_text() for path in folder.rglob("*.json"))
        assert not set("<>&`") & set(text)


@pytest.mark.parametrize("commit", ["", "HEAD", "--all", "zzzzzzzz", "abc", "../../../../etc", "a" * 65])
def test_a_run_that_does_not_know_its_commit_is_refused(commit: str, tmp_path: Path) -> None:
    with pytest.raises(FusionbenchError, match=r"does not say which commit it measured.*export as pytest-benchmark"):
        export(tmp_path, smoke(), commit=commit)
    assert not list(tmp_path.iterdir())


def test_environments_without_a_commit_are_counted(tmp_path: Path) -> None:
    environments = measured_at() | {"other": ENVIRONMENTS["h100-a"]}
    items = [*smoke()[:9], *(replace(record, environment="lost") for record in smoke()[9:12])]
    found = asv.write(run_of(items, environments), tmp_path)
    assert found.jobs == 9
    assert "3 results are left out: their environment does not say which commit was measured" in found.notes


def test_doubts_about_the_commit_are_told(tmp_path: Path) -> None:
    found = export(tmp_path, untimed(), dirty=True)
    assert found.notes == (
        "the code that was measured is not quite commit 9964717d2c: it had uncommitted changes",
        "no repository here has commit 9964717d2c; name one that has as 'repo' in asv.conf.json",
    )
    assert read(tmp_path / "asv.conf.json")["repo"] == "."


GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z"}
NAMED = ("-c", "user.name=n", "-c", "user.email=e@x.invalid", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *NAMED, *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | GIT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A repository with three commits, which is where the export is made."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    commits = []
    for number in range(3):
        git(folder, "commit", "-q", "--allow-empty", "-m", f"{number}")
        commits.append(git(folder, "rev-parse", "HEAD"))
    monkeypatch.chdir(folder)
    return folder, commits


def test_the_commit_and_its_day_are_those_of_the_repository_here(
    repository: tuple[Path, list[str]], tmp_path: Path
) -> None:
    _, commits = repository
    found = export(tmp_path / "asv", smoke(), commit=commits[1][:10])
    assert found.notes == ()
    (path,) = results(tmp_path / "asv")
    assert read(path)["commit_hash"] == commits[1]
    assert read(path)["date"] == 1767323045000
    assert read(tmp_path / "asv" / "asv.conf.json")["repo"] == "../repository"


def run_asv(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "asv", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | GIT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def history(repository: tuple[Path, list[str]], folder: Path) -> list[Run]:
    """The same suite at three commits, the last one half as fast."""
    runs = []
    good = [record for record in smoke() if record.status == "ok"]
    for number, commit in enumerate(repository[1]):
        factor = 2 if number == 2 else 1
        items = [
            replace(record, time=timing([factor * ns for ns in record.time.samples_ns[:18]], (3,) * 6))  # type: ignore[union-attr]
            for record in good
        ]
        items[0] = replace(items[0], status="timeout", time=None, memory=None)
        runs.append(run_of(items, measured_at(commit)))
        asv.write(runs[-1], folder)
    return runs


@needs_asv
def test_asv_publishes_every_number(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    runs = history(repository, tmp_path / "asv")
    text = run_asv(tmp_path / "asv", "publish")
    assert "Couldn't find" not in text
    assert "Skipping" not in text
    index = read(tmp_path / "asv" / "html" / "index.json")
    assert sorted(index["revision_to_hash"].values()) == sorted(repository[1])
    assert index["params"]["machine"] == ["gpu-node-07"]
    for path in (tmp_path / "asv/html").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # a browser reads no NaN
    graphs = [path for path in (tmp_path / "asv/html/graphs").rglob("*.json") if path.parent.name != "summary"]
    names = {f"{kind}.{r.job.strategy.replace(':', '~3a')}" for r in runs[0].records for kind in ("time", "peakmem")}
    assert {path.stem for path in graphs} - {"summary"} == names
    points = read(next(path for path in graphs if path.stem == "time.gated"))
    assert len(points) == 3
    assert [values[1] / values[0] for values in zip(points[0][1], points[2][1], strict=True)] == pytest.approx(
        [2.0] * 6
    )


@needs_asv
def test_asv_compares_two_commits(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    history(repository, tmp_path / "asv")
    text = run_asv(tmp_path / "asv", "compare", repository[1][0], repository[1][2])
    lines = [line for line in text.splitlines() if "time.gated(" in line]
    assert len(lines) == 6
    assert all(line.startswith("| +") and "| 2.00" in line for line in lines), lines
    same = run_asv(tmp_path / "asv", "compare", repository[1][0], repository[1][1])
    assert not [line for line in same.splitlines() if line.startswith(("| +", "| -"))]


@needs_asv
def test_asv_publishes_what_is_hostile(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    texts = {"machine": TEXTS[0], "cpu": TEXTS[-1], "gpu": TEXTS[8], "torch": TEXTS[2]}
    asv.write(run_of([*hostile_records(), *records(200)], measured_at(repository[1][0], **texts)), tmp_path / "asv")
    run_asv(tmp_path / "asv", "publish")
    assert "<script" not in (tmp_path / "asv/html/index.json").read_text()
