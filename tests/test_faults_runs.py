"""Runs whose jobs fail, whose suite or machine changes, whose folder is lost: nothing finished is lost or mixed up."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fusionbench import environment, launch, shard, store, suite
from fusionbench.record import Record
from fusionbench.rounds import rounds_of
from tests.command import call
from tests.test_cli import PLUGIN

SUITE = """
title = "Faulty"
[budget]
measure_s = 0.01
warmup_s = 0.0
min_samples = 6
max_samples = 10
rounds = 2
[[sweep]]
strategies = ["fine"]
backends = ["eager", "triton"]
projectors = ["identity"]
image = [3]
text = [TEXTS]
image_width = [8]
text_width = [8]
width = [8]
heads = [1]
"""
FATES = {"fine": "ok", "raises": "error", "segfaults": "crash", "leaves": "crash", "killed": "crash"}
ALL = ", ".join(f'"{name}"' for name in FATES)


def written(folder: Path, texts: int, strategies: str = '"fine"') -> None:
    lengths = ", ".join(map(str, range(1, texts + 1)))
    (folder / "faulty.toml").write_text(SUITE.replace("TEXTS", lengths).replace('["fine"]', f"[{strategies}]"))


@pytest.fixture
def fusionbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    written(tmp_path, 2)
    return lambda *arguments: call(*arguments, "--plugin", PLUGIN, capsys=capsys, monkeypatch=monkeypatch)


def measured(run: Path) -> list[Record]:
    return [record for record in store.read(run).records if record.status != "skipped"]


def only_run(tmp_path: Path) -> Path:
    (run,) = (tmp_path / "results" / "runs").iterdir()
    return run


def rounds_stored(run: Path) -> Counter[tuple[str, int]]:
    """How often the shards hold each round of each job."""
    contents = shard.Contents()
    items = (item for _, item, *_ in store.items(run, contents))
    return Counter((item.job.key, rounds_of(item)) for item in items if isinstance(item, Record))


def test_jobs_that_kill_their_worker_cost_themselves_alone_and_are_not_tried_again(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    written(tmp_path, 1, ALL)
    assert fusionbench("run", "faulty.toml", "-q")[0] == 3
    run = only_run(tmp_path)
    assert {record.job.strategy: record.status for record in measured(run)} == FATES
    before = rounds_stored(run)
    assert fusionbench("resume", str(run), "-q")[0] == 3
    assert rounds_stored(run) == before
    assert fusionbench("resume", str(run), "-q", "--retry-failed")[0] == 3
    again = rounds_stored(run) - before
    assert {key.partition("/")[0] for key, _ in again} == set(FATES) - {"fine"}


# Changed in between


def unfinished(fusionbench, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A run whose last record is missing."""
    fusionbench("run", "faulty.toml", "-q")
    run = only_run(tmp_path)
    (path,) = (run / "shards").iterdir()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return run


def test_an_edited_suite_begins_a_new_run_and_the_old_one_goes_on_with_the_old_suite(  # type: ignore[no-untyped-def]
    fusionbench, tmp_path: Path
) -> None:
    run = unfinished(fusionbench, tmp_path)
    written(tmp_path, 3)
    code, _, err = fusionbench("run", "faulty.toml", "-q")
    assert code == 0
    assert "a new run begins: suite 'faulty' was edited; its unfinished run goes on with: fusionbench resume" in err
    new = next(path for path in run.parent.iterdir() if path != run)
    assert (len(measured(run)), len(measured(new))) == (2, 3)
    assert not store.complete(store.read(run))
    assert fusionbench("resume", str(run), "-q")[0] == 0
    assert (len(measured(run)), store.complete(store.read(run))) == (2, True)


def test_another_environment_is_not_mixed_into_a_run_unless_asked(  # type: ignore[no-untyped-def]
    fusionbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = unfinished(fusionbench, tmp_path)
    version = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: "9.9.9" if name == "torch" else version(name))
    code, _, err = fusionbench("resume", str(run), "-q")
    assert code == 2
    assert "was measured in another environment (torch " in err
    assert "→ 9.9.9)" in err
    assert len(store.read(run).environments) == 1

    code, _, err = fusionbench("run", "faulty.toml", "-q")
    assert code == 0
    assert f"a new run begins: the environment is not that of '{run.name}': torch " in err
    assert len(list(run.parent.iterdir())) == 2

    assert fusionbench("resume", str(run), "-q", "--allow-env-change")[0] == 0
    found = measured(run)
    assert Counter(record.environment for record in found) == dict.fromkeys(store.read(run).environments, 2)
    monkeypatch.undo()  # back at the first one: what is missing there is measured there
    monkeypatch.chdir(tmp_path)
    assert fusionbench("resume", str(run), "-q")[0] == 0
    assert len(measured(run)) == 4


def test_a_clock_that_is_set_back_confuses_no_order_and_no_duration(  # type: ignore[no-untyped-def]
    fusionbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fusionbench("run", "faulty.toml", "-q")
    old = only_run(tmp_path)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(hours=1)

    monkeypatch.setattr(store, "datetime", Earlier)
    fusionbench("run", "faulty.toml", "-q")
    (new,) = set(old.parent.iterdir()) - {old}
    made = {path: manifest.created_at for path, manifest in store.runs(old.parent).items()}
    assert made[new] < made[old]
    assert list(made) == [new, old]
    path = next((new / "shards").iterdir())
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    fusionbench("run", "faulty.toml", "-q")  # goes on with the newest one, which is unfinished
    assert len(list(old.parent.iterdir())) == 2


def test_no_duration_is_taken_from_a_clock_that_can_be_set() -> None:
    package = Path(store.__file__).parent
    texts = {path.name: path.read_text() for path in package.rglob("*.py")}
    assert [name for name, text in texts.items() if "time.time(" in text or "from time import time" in text] == []


# No place to write


@pytest.mark.parametrize("trouble", ["removed", "full"])
def test_what_the_run_cannot_take_is_saved_elsewhere(  # type: ignore[no-untyped-def]
    fusionbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    stored, real = [0], shard.write_all

    def write_all(file: int, data: bytes) -> None:
        stored[0] += b'"status":"ok"' in data
        if stored[0] == 3 and trouble == "full":
            patch.undo()  # there is space elsewhere
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, data)
        if stored[0] == 3:
            patch.undo()
            shutil.rmtree(only_run(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(shard, "write_all", write_all)
        code, _, err = fusionbench("run", "faulty.toml", "-q")
    assert (code, "Traceback" in err) == (6, False)
    assert ("no space left on device" if trouble == "full" else "was the folder removed?") in err
    (saved,) = elsewhere.glob("fusionbench-*/*/")
    assert f"everything measured in this session is in '{saved}'" in err
    assert sum(record.status == "ok" for record in store.read(saved).records) == 2
    assert fusionbench("resume", str(saved), "-q")[0] == 0
    assert [rounds_of(record) for record in measured(saved)] == [2, 2]


def test_what_can_be_saved_nowhere_is_told(  # type: ignore[no-untyped-def]
    fusionbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int, data: bytes) -> None:
        if b'"status":"ok"' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.write(file, data)

    monkeypatch.setattr(shard, "write_all", fail)
    code, _, err = fusionbench("run", "faulty.toml", "-q")
    assert (code, "Traceback" in err) == (6, False)
    assert "nor could the results be saved elsewhere: " in err


def test_another_order_seed_is_another_run_and_none_goes_on_with_the_first(tmp_path: Path) -> None:
    written(tmp_path, 1)
    chosen, warned = suite.read(str(tmp_path / "faulty.toml")), list[str]()

    def begin(order_seed: int | None) -> launch.Launch:
        return launch.new(
            chosen, tmp_path / "runs", budget=chosen.budget, only={}, plugins=[PLUGIN], order_seed=order_seed,
            warn=warned.append,
        )  # fmt: skip

    first = begin(5)
    assert first.order_seed == 5
    assert begin(5).folder == begin(None).folder == first.folder
    assert warned == []
    other = begin(6)
    assert (other.folder == first.folder, other.order_seed) == (False, 6)
    assert warned == [f"a new run begins: the order seed of '{first.folder.name}' is 5, not 6"]
