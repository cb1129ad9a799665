"""What earlier versions of the store wrote reads for ever: tests/golden/ has a run of each, as they left it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusionbench import launch, record, store
from fusionbench.cli import app
from fusionbench.errors import DamagedError
from fusionbench.sealed import seal_run, unseal
from fusionbench.spec import Budget
from fusionbench.store import SUITE, VERSION, _upgraded

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_name("golden")
RUNS = sorted(GOLDEN.iterdir())
ROUNDS = {1: 0, 2: 2}  # of a job, by version of the manifest: the first one knew no rounds


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "run"))


def written_by(run: Path) -> int:
    """The version that wrote the manifest of a run."""
    return store.read_manifest(run).v


def test_every_version_before_this_one_has_a_run() -> None:
    assert [path.name for path in RUNS] == [f"v{version}" for version in range(1, max(VERSION, record.VERSION))]
    for path in RUNS:
        (line, *_) = (path / "shards").glob("*.jsonl").__next__().read_bytes().splitlines()
        assert json.loads(line.rpartition(b"\t")[0])["v"] == int(path.name[1:])
    assert {store.read_manifest(path).v for path in RUNS} >= set(range(1, VERSION))  # these move more rarely


def test_a_run_is_read_whole_and_without_complaint(run: Path) -> None:
    found = store.read(run)
    assert found.problems == []
    assert found.manifest is not None
    assert len(found.records) == found.manifest.planned == 8
    assert {item.status for item in found.records} == {"ok", "skipped"}
    times = [item.time for item in found.records if item.time]
    assert [10 <= len(time.samples_ns) <= 20 for time in times] == [True, True]
    assert {len(time.rounds) for time in times} == {ROUNDS[written_by(run)]}
    assert all(len(time.control_ns) == len(time.rounds) and time.discarded == 0 for time in times)


def test_its_sealed_file_holds_the_same(run: Path, tmp_path: Path) -> None:
    found, sealed = store.read(run), unseal(run / "records.parquet")
    assert (sealed.records, sealed.environments) == (found.records, found.environments)
    again = unseal(seal_run(run, tmp_path / "again.parquet"))
    assert (again.records, again.environments) == (found.records, found.environments)


@pytest.mark.parametrize("verb", [["show"], ["report", "-o", "page.html"]], ids=["show", "report"])
@pytest.mark.parametrize("file", [".", "records.parquet"])
def test_it_is_shown(run: Path, verb: list[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [verb[0], str(run / file), *verb[1:]])
    assert (done.exit_code, done.exception) == (0, None)
    assert "cross_attention" in done.output or (tmp_path / "page.html").stat().st_size > 10_000


def test_it_is_resumed_under_its_own_budget(run: Path) -> None:
    (shard,) = (run / "shards").iterdir()
    last = store.read(run).records[-1]
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[:-1]) + lines[-1][:100])  # killed while it wrote the last record
    problems: list[str] = []
    resumed = launch.resume(run, warn=problems.append)
    rounds = ROUNDS[written_by(run)] or 1
    assert resumed.budget == Budget(measure_s=0.02, max_samples=20, timers=("graph",), rounds=rounds)
    assert len(list(resumed.plan)) == 8
    assert problems == [f"{shard.name}:{len(lines)}: torn, the last write never ended"]
    assert len(resumed.finished) == 7
    with store.Writer(run, resumed.environment) as writer:
        writer.append(last)
    assert len(store.read(run).records) == 8


def test_the_words_of_the_first_suite_are_todays() -> None:
    assert 'timer = "graph"' in (GOLDEN / "v1" / SUITE).read_text()
    assert '\ntimers = ["graph"]  # version 2 calls it timers\n' in store.read_suite(GOLDEN / "v1")


def test_a_committed_sealed_file_of_version_1_reads() -> None:
    found = unseal(ROOT / "results" / "epyc-2core" / "lengths.parquet")
    assert len(found.records) == 150
    assert found.rooflines == []
    assert {item.time.rounds for item in found.records if item.time} == {()}


@pytest.mark.parametrize(
    ("manifest", "budget"),
    [
        ({"v": 1, "budget": {"timer": "event", "threads": 2}}, {"timers": ["cold"], "rounds": 1, "threads": 2}),
        ({"v": 1, "budget": {"timer": "graph"}}, {"timers": ["graph"], "rounds": 1}),
        ({"v": 1, "budget": {"threads": 2}}, {"timers": ["cold"], "rounds": 1, "threads": 2}),
        ({"v": 2, "budget": {"timers": ["hot"]}}, {"timers": ["hot"]}),
        ({"v": 2, "budget": {"timer": "event"}}, {"timer": "event"}),
        ({"v": 1, "budget": {"timer": ["event"]}}, {"timer": ["event"]}),
    ],
)
def test_a_manifest_of_version_1_is_upgraded(manifest: dict[str, Any], budget: dict[str, Any]) -> None:
    assert _upgraded(manifest) == manifest | {"budget": budget}


@pytest.mark.parametrize("budget", [{"timer": "sundial"}, {"timer": None}, "fast", None, []])
def test_a_manifest_of_version_1_with_a_hostile_budget_is_damaged(run: Path, budget: Any) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"budget": budget}))
    with pytest.raises(DamagedError, match=r"manifest '.*' is damaged: "):
        store.read_manifest(run)
    assert len(store.read(run).records) == 8


@pytest.mark.parametrize("manifest", [None, [], 1, "v", {}, {"v": True}])
def test_what_is_no_manifest_is_damaged(run: Path, manifest: Any) -> None:
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedError):
        store.read_manifest(run)
