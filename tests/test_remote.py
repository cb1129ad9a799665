"""Runs behind URLs: what is one, what is fetched of it, what goes there, and what a hostile store can do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from msgspec.structs import replace

from fusionbench import archive, mirror, remote, sealed, staging, store, timeline
from fusionbench.errors import FusionbenchError, StoreError, UnstoredError
from fusionbench.record import Record
from fusionbench.remote import Url, place
from tests import away, storing, synthetic
from tests.away import Machine

RUNS = Url("memory://runs")


@pytest.fixture(autouse=True)
def memory() -> Iterator[dict[str, Any]]:
    """The objects of an empty store, by their path."""
    objects: dict[str, Any] = MemoryFileSystem.store
    objects.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    away.forget()
    yield objects
    objects.clear()


@pytest.fixture
def machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Machine]:
    return away.machines(tmp_path, capsys, monkeypatch)


def put(path: Path, url: Url) -> None:
    for each in path.rglob("*"):
        if each.is_file():
            remote.upload(each, url / each.relative_to(path).as_posix())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three records here; ``put`` sends it away."""
    path = storing.create(tmp_path / "here")
    storing.write(path, *storing.RECORDS)
    return path


# --- what a URL is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("results/runs", Path("results/runs")),
        ("s3://bucket/runs/", Url("s3://bucket/runs")),
        ("S3://bucket/a:b", Url("s3://bucket/a:b")),
        ("file:///tmp/runs", Path("/tmp/runs")),  # noqa: S108
        ("abfs://container@account/runs", Url("abfs://container@account/runs")),
        ("c:/runs", Path("c:/runs")),
    ],
)
def test_a_url_is_told_from_a_path_and_keeps_its_slashes(text: str, expected: object) -> None:
    assert place(text) == expected


@pytest.mark.parametrize("text", ["s3://", "s3:///", "s3://b/../c", "s3://b/./c", "zip://a::s3://b"])  # fmt: skip
def test_a_url_that_leads_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(FusionbenchError, match="names no folder; give PROTOCOL://BUCKET/FOLDER"):
        place(text)


@pytest.mark.parametrize("text", ["s3://key:geheim@bucket/runs", "s3://key:ge/heim@bucket/runs", "s3://:geheim@bucket"])
def test_a_secret_in_a_url_is_refused_and_never_shown(text: str, machine: Callable[[str], Machine]) -> None:
    code, out, err = machine("a")("show", text)
    assert (code, out) == (2, "")
    assert "heim" not in err
    assert "key:" not in err
    assert "AWS_ACCESS_KEY_ID" in err
    assert err.count("\n") == 1


def test_what_follows_a_question_mark_is_not_shown() -> None:
    assert str(Url("https://a.org/run.parquet?X-Amz-Signature=geheim")) == "https://a.org/run.parquet?…"


@pytest.mark.parametrize("url", ["memory://none/run", "memory://none/run.parquet", "memory://none/x.jsonl", "nope://x/y"])  # fmt: skip
def test_what_is_not_there_is_told_in_one_line_with_the_url(url: str, machine: Callable[[str], Machine]) -> None:
    code, out, err = machine("a")("show", url)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert url in err


def test_a_filesystem_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: Url) -> tuple[Any, str]:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "_filesystem", missing)
    with pytest.raises(StoreError, match=r"cannot list 's3://b/runs': .*; pip install fusionbench\[s3\]"):
        remote.entries(Url("s3://b/runs"))


def test_an_option_that_writes_files_here_refuses_a_url(run: Path, machine: Callable[[str], Machine]) -> None:
    for arguments in (["show", run, "--csv"], ["claims", "C1", "-o"], ["profile", "smoke", "-o"], ["compare", run, run, "--json"]):  # fmt: skip
        code, _, err = machine("a")(*arguments, "memory://runs/file")
        assert code == 2
        assert "cannot write 'memory://runs/file': this is a URL, and files are written here" in err
    assert not Path("memory:").exists()


# --- reading -------------------------------------------------------------------------------------------------------


def test_a_run_behind_a_url_is_the_run_that_was_put_there(run: Path) -> None:
    put(run, RUNS / run.name)
    found, here = mirror.read(RUNS / run.name), store.read(run)
    assert (found.records, found.manifest, found.environments) == (here.records, here.manifest, here.environments)
    assert not found.problems


def test_of_a_folder_of_runs_only_the_newest_is_fetched(
    run: Path, tmp_path: Path, memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = store.create(tmp_path / "here", store.new_manifest(suite_name="quick", suite_hash="h", number=7), "text")
    for each in (run, newer):
        put(each, RUNS / each.name)
    fetched: list[str] = []
    cat_ranges = MemoryFileSystem.cat_ranges
    monkeypatch.setattr(
        MemoryFileSystem, "cat_ranges", lambda self, paths, *a, **k: fetched.extend(paths) or cat_ranges(self, paths, *a, **k)
    )  # fmt: skip
    assert mirror.newest(RUNS) == RUNS / newer.name
    assert sorted(fetched) == sorted(f"/runs/{each.name}/manifest.json" for each in (run, newer))


HOSTILE = ["../../outside.jsonl", "..", "/etc/outside.jsonl", "a/b.jsonl", ".hidden.jsonl", "x\n.jsonl", "x\x1b[2J.jsonl",
           "é.jsonl", "-rf.jsonl", "a" * 300 + ".jsonl", "harmless.txt"]  # fmt: skip


def test_names_in_a_hostile_store_lead_nowhere(
    run: Path, tmp_path: Path, memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(run, RUNS / run.name)
    ls = MemoryFileSystem.ls

    def hostile(self: MemoryFileSystem, path: str, detail: bool = True, **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ls(self, path, detail=True, **options)
        if path.endswith("/shards"):
            found += [{"name": f"{path}/{name}", "size": 3, "type": "file"} for name in HOSTILE]
            found += [{"name": "/elsewhere/shards/x.jsonl", "size": 3, "type": "file"}]
        return found

    monkeypatch.setattr(MemoryFileSystem, "ls", hostile)
    before = set(tmp_path.rglob("*"))
    found = mirror.read(RUNS / run.name)
    assert len(found.records) == 3
    assert len(found.damage) == len(HOSTILE)
    assert all("not fetched" in text and text.isprintable() for text in found.damage)
    assert set(tmp_path.rglob("*")) == before
    fetched = [path.relative_to(found.path).as_posix() for path in found.path.parent.rglob("*") if path.is_file()]
    shards = [f"shards/{path.name}" for path in (run / "shards").iterdir()]
    assert sorted(fetched) == sorted(["manifest.json", "suite.toml", *shards])


def test_an_object_may_be_larger_than_its_store_says_but_no_more_than_the_limit_is_fetched(
    memory: dict[str, Any], tmp_path: Path
) -> None:
    MemoryFileSystem().pipe_file("/runs/big", bytes(1000))
    with pytest.raises(StoreError, match="'memory://runs/big' has more than the limit of 999 bytes"):
        remote.download(RUNS / "big", tmp_path / "big", 999)
    assert not list(tmp_path.glob("*big*"))
    assert remote.read_all([RUNS / "big", RUNS / "none"], 999) == [None, None]


def test_a_manifest_beyond_its_limit_is_no_run(run: Path, memory: dict[str, Any]) -> None:
    put(run, RUNS / run.name)
    MemoryFileSystem().pipe_file(f"/runs/{run.name}/manifest.json", b" " * (store.MAX_MANIFEST + 1))
    assert mirror.newest(RUNS) is None
    with pytest.raises(StoreError, match="more than the limit"):
        mirror.read(RUNS / run.name)


# --- sealed runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the ranges that are fetched."""
    lengths: list[int] = []
    cat_file = MemoryFileSystem.cat_file

    def counted(self: MemoryFileSystem, path: str, start: int | None = None, end: int | None = None) -> bytes:
        data: bytes = cat_file(self, path, start=start, end=end)
        lengths.append(len(data))
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return lengths


def sealed_away(tmp_path: Path, records: list[Record]) -> int:
    path = sealed.seal(records, synthetic.ENVIRONMENTS, tmp_path / "run.parquet")
    remote.upload(path, RUNS / "run.parquet")
    return path.stat().st_size


def with_timers(record: Record) -> Record:
    """As on CUDA, where every timer takes samples."""
    return replace(record, timers=(record.time,) * 4) if record.time else record


def test_of_a_sealed_run_only_the_columns_that_are_asked_for_are_fetched(tmp_path: Path, fetched: list[int]) -> None:
    """2,000 records: the columns of jobs and outcomes are 1 % of the file, those of `history` 30 %."""
    records = [with_timers(each) for each in synthetic.records(2000)]
    size = sealed_away(tmp_path, records)
    found = sealed.unseal(RUNS / "run.parquet", ("job", "status", "memory"))
    assert len(found.records) == 2000
    assert sum(fetched) < 0.2 * size, sum(fetched) / size
    fetched.clear()
    found = sealed.unseal(RUNS / "run.parquet", timeline.FIELDS)
    assert [each.time for each in found.records] == [each.time for each in records]
    assert sum(fetched) < 0.5 * size, sum(fetched) / size


def test_of_row_groups_without_a_wanted_job_only_the_jobs_are_fetched(
    tmp_path: Path, fetched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "_BATCH", 500)
    monkeypatch.setattr(sealed, "_ROW_GROUP", 500)
    records = synthetic.records(4000)
    size = sealed_away(tmp_path, records)
    key = records[700].job.key
    whole = sealed.unseal(RUNS / "run.parquet")
    assert whole.records == records
    assert sum(fetched) == pytest.approx(size, rel=0.3)
    fetched.clear()
    found = sealed.unseal(RUNS / "run.parquet", wanted=lambda job: job.key == key)
    assert found.records == [each for each in records if each.job.key == key]
    assert sum(fetched) < 0.4 * size, sum(fetched) / size


def test_a_sealed_run_that_cannot_be_fetched_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed_away(tmp_path, synthetic.records(10))

    def cut(self: MemoryFileSystem, path: str, **options: object) -> bytes:
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cut)
    with pytest.raises(StoreError, match="connection reset by peer; check the network") as caught:
        sealed.unseal(RUNS / "run.parquet")
    assert caught.value.exit_code == 2


def test_a_folder_behind_a_url_is_read_as_one_here(run: Path, tmp_path: Path) -> None:
    put(run, RUNS / run.name)
    put(run, RUNS / "inner" / "older")
    sealed_away(tmp_path, synthetic.records(10))
    problems: list[str] = []
    found = list(archive.runs(RUNS, left_out=lambda text, damaged: problems.append(text)))
    assert [len(each.records) for each in found] == [3, 10, 3]
    assert not problems


# --- writing -------------------------------------------------------------------------------------------------------


def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with one record on its way to ``RUNS``."""
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    path = storing.create(staging.folder_of(RUNS))
    storing.write(path, storing.RECORDS[0])
    return path


def test_a_run_goes_up_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "EVERY_S", 0.02)
    path, notes = staged(tmp_path, monkeypatch), []
    with staging.uploading(path, notes.append):
        assert len(mirror.read(RUNS / path.name).records) == 1
        with store.Writer(path, storing.ENVIRONMENT) as writer:
            for count, each in enumerate(storing.RECORDS, 1):
                writer.append(each)
                assert eventually(lambda count=count: records_away(path.name) == count)
    assert not notes
    assert threading.active_count() == 1 or not any(each.name == "uploads" for each in threading.enumerate())


def records_away(name: str) -> int:
    away.mirror._fetched.cache_clear()
    return len(mirror.read(RUNS / name).records)


def eventually(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_an_upload_that_fails_is_told_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "EVERY_S", 0.01)
    path, notes, upload, tries = staged(tmp_path, monkeypatch), [], remote.upload, []

    def failing(path: Path, url: Url) -> None:
        tries.append(url)
        if len(tries) < 4:
            raise StoreError("no network")
        upload(path, url)

    with staging.uploading(path, notes.append):
        monkeypatch.setattr(remote, "upload", failing)
        storing.write(path, *storing.RECORDS)
        assert eventually(lambda: len(notes) == 2)
    assert notes == [
        "upload failed and will be tried again, nothing is lost: no network",
        f"uploaded again to 'memory://runs/{path.name}'",
    ]
    assert records_away(path.name) == 3


def test_where_the_last_upload_fails_the_folder_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, upload = staged(tmp_path, monkeypatch), remote.upload

    def failing(path: Path, url: Url) -> None:
        raise StoreError("no network")

    def measured() -> None:
        with staging.uploading(path, print):
            monkeypatch.setattr(remote, "upload", failing)
            storing.write(path, *storing.RECORDS)

    with pytest.raises(UnstoredError) as caught:
        measured()
    assert caught.value.exit_code == 6
    assert f"no network; everything is in '{path}'" in remote.told(str(caught.value))
    assert f"fusionbench resume memory://runs/{path.name}" in str(caught.value)
    monkeypatch.setattr(remote, "upload", upload)
    again = staging.run_of(RUNS / path.name)  # the next attempt finds it
    assert again == path
    with staging.uploading(again, print):
        pass
    assert records_away(path.name) == 3


def test_another_shard_of_the_same_name_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = staged(tmp_path, monkeypatch)
    (shard,) = (path / "shards").iterdir()
    name, whole = f"/runs/{path.name}/shards/{shard.name}", shard.read_bytes()
    MemoryFileSystem().pipe_file(name, b"of another machine")
    with pytest.raises(StoreError, match="is another shard of this name"):
        staging.Upload(path, RUNS / path.name).turn()
    assert MemoryFileSystem().cat_file(name) == b"of another machine"
    MemoryFileSystem().pipe_file(name, whole + b"more")  # of a machine that goes on, unless this shard grows, too
    upload = staging.Upload(path, RUNS / path.name)
    upload.turn()
    shard.write_bytes(whole + b"else")
    with pytest.raises(StoreError, match="is another shard of this name"):
        upload.turn()
    assert MemoryFileSystem().cat_file(name) == whole + b"more"
    shard.write_bytes(whole)
    MemoryFileSystem().pipe_file(f"/runs/{path.name}/shards/{shard.name}", shard.read_bytes()[:100])  # cut off: ours
    staging.Upload(path, RUNS / path.name).turn()
    assert records_away(path.name) == 1


def test_a_run_here_is_not_uploaded(run: Path, memory: dict[str, Any]) -> None:
    with staging.uploading(run, print):
        storing.write(run, *storing.RECORDS)
    assert not memory


def test_a_run_goes_on_from_another_machine_and_the_verbs_read_it(
    machine: Callable[[str], Machine], memory: dict[str, Any]
) -> None:
    """One session of many verbs, since a run takes seconds."""
    a, b = machine("a"), machine("b")
    code, _, err = a("run", "away.toml", "--results", "memory://runs", "--quiet")
    assert code == 0, err
    (name,) = {path.split("/")[2] for path in memory}
    url = f"memory://runs/{name}"
    assert {path.rsplit("/", 1)[1] for path in memory} >= {"suite.toml", "manifest.json", "records.parquet"}
    (shard,) = (path for path in memory if path.endswith(".jsonl"))
    lines = memory[shard].getvalue().splitlines(keepends=True)
    MemoryFileSystem().pipe_file(shard, b"".join(lines[:-1]))  # as of a machine that vanished before its last upload
    code, out, err = b("resume", url, "--quiet", "--report")
    assert code == 0, err
    assert len(mirror.read(Url(url)).records) == 2
    assert f"report: {url}/report.html" in out
    assert f"/runs/{name}/report.html" in memory
    assert len(list((b.cache / "staging").glob("*/*/shards/*.jsonl"))) == 2  # one of a's, one of its own
    for arguments in (["show", url], ["show", "--results", "memory://runs"], ["show", f"{url}/records.parquet"]):
        code, out, err = b(*arguments)
        assert code == 0, err
        assert "cross_attention" in out
        assert str(b.cache) not in out + err
    code, out, err = b("report", url, "-o", "memory://pages/page.html")
    assert (code, out) == (0, "memory://pages/page.html\n"), err
    assert "/pages/page.html" in memory
    code, out, err = b("export", url, "-f", "csv", "-o", "memory://pages/table.csv")
    assert (code, out) == (0, "memory://pages/table.csv\n"), err
    code, out, err = b("history", "memory://runs", "--job", "cross")
    assert code == 0, err
    code, out, err = b("compare", url, f"{url}/records.parquet")
    assert code == 0, err
    code, out, err = b("baseline", "update", url, "--reason", "first", "-o", "memory://pages/base.json")
    assert code == 0, err
    code, out, err = a("check", url, "--baseline", "memory://pages/base.json", "--gate", "deterministic")
    assert code == 0, err
    here = ("--suite", "away.toml", "--results", "memory://checks", "--gate", "deterministic", "--quiet")
    code, out, err = a("check", "--baseline", "memory://pages/base.json", *here)
    assert code == 0, err
    assert [path for path in memory if path.startswith("/checks/") and path.endswith(".jsonl")]
    code, out, err = a("merge", url, "-o", "memory://runs/merged")
    assert (code, out) == (0, "memory://runs/merged\n"), err
    assert a("merge", url, "memory://runs/merged", "-o", "memory://runs/merged")[0] == 0
    assert b("show", "memory://runs/merged")[0] == 0
    sizes = ("--image", "7", "--text", "4", "--width", "8", "--heads", "1")
    code, out, err = a("advise", *sizes, "--results", "memory://runs", "--measure", "--quiet")
    assert code == 0, err
    assert [path for path in memory if "-advise-" in path and path.endswith(".jsonl")]


def test_a_suite_behind_a_url_is_run_as_one_here(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    remote.upload(tmp_path / "away.toml", Url("memory://suites/away.toml"))
    code, out, err = machine("a")("plan", "memory://suites/away.toml", "--count")
    assert (code, out) == (0, "2\n"), err


def test_a_store_that_takes_nothing_is_told_before_anything_is_measured(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: MemoryFileSystem, *arguments: object, **options: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuses)
    code, out, err = machine("a")("run", "away.toml", "--results", "memory://runs", "--quiet")
    assert (code, out) == (2, ""), err
    assert "cannot write 'memory://runs/" in err
    assert "Access Denied; do these credentials allow it?" in err


def test_a_file_url_is_a_folder_here(run: Path, machine: Callable[[str], Machine]) -> None:
    code, out, err = machine("a")("show", f"file://{run}")
    assert code == 0, err
    assert "torch 2, triton 3" in out
    code, out, err = machine("a")("run", "away.toml", "--limit", "1", "--results", f"file://{run.parent}", "--quiet")
    assert code == 0, err
    assert len(list(run.parent.iterdir())) == 2


def test_a_tab_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from fusionbench.cli import app, completing

    def asked(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(remote, "_filesystem", asked)
    command = typer.main.get_command(app).commands["show"]  # type: ignore[attr-defined]
    context = command.make_context("show", ["--results", "s3://bucket/runs"], resilient_parsing=True)
    assert completing.runs(context, "") == []
    assert completing.runs(context, "s3://bucket/") == []
