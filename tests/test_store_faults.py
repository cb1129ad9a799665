"""The store under faults: whatever breaks, nothing wrong is accepted and nothing reported as stored is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fusionbench import shard, store
from fusionbench.errors import StoreError
from fusionbench.record import Environment, Record
from fusionbench.spec import Case, Job, Shape
from fusionbench.store import Writer

ENVIRONMENT = Environment(
    id="e1", machine="m", system="s", python="3", torch="2", triton="3", cpu="c", cores=2, memory_bytes=1
)
CASE = Case(shape=Shape(batch=1, image=8, text=4, image_width=16, text_width=16, width=16, heads=2))
ROOT = Path(__file__).parents[1]


def record(batch: int = 1, **changes: Any) -> Record:
    case = replace(CASE, shape=replace(CASE.shape, batch=batch))
    plain = Record(job=Job(strategy="concat", backend="eager", case=case), status="ok", source="s1", environment="e1")
    return replace(plain, **changes)


RECORDS = [record(batch) for batch in (1, 2, 3)]


def create(results: Path) -> Path:
    return store.create(results, store.new_manifest(suite_name="quick", suite_hash="h"), "text")


def write(run: Path, *records: Record) -> Path:
    with Writer(run, ENVIRONMENT) as writer:
        for item in records:
            writer.append(item)
    return writer.path


def sealed(body: bytes) -> bytes:
    return body + b"\t%08x\n" % zlib.crc32(body)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return create(tmp_path / "results")


# Damaged files


def test_a_shard_cut_anywhere_in_its_last_record_loses_only_that_record(run: Path) -> None:
    path = write(run, *RECORDS)
    data = path.read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(data)):
        path.write_bytes(data[:end])
        found = store.read(run)
        assert found.records == RECORDS[:2]
        assert not found.damaged
        assert len(found.torn) == (end > start), end


def test_a_torn_tail_does_not_hinder_the_next_writer(run: Path) -> None:
    path = write(run, *RECORDS)
    os.truncate(path, path.stat().st_size - 7)
    write(run, RECORDS[2])
    found = store.read(run)
    assert found.records == RECORDS
    assert found.problems == [f"{path.name}:4: torn, the last write never ended"]


def test_zeros_of_a_power_cut_are_a_torn_tail(run: Path) -> None:
    path = write(run, *RECORDS)
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert store.read(run).records == RECORDS
    assert not store.read(run).damaged


def test_a_flipped_bit_is_never_accepted_and_costs_no_other_line(run: Path) -> None:
    path = write(run, *RECORDS)
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        found = store.read(run)
        assert all(item in RECORDS for item in found.records), position
        assert found.problems, position
        lines_hit = 2 if data[position : position + 1] == b"\n" else 1  # without its end a line takes the next along
        assert len(found.records) + len(found.environments) >= 4 - lines_hit, position


def test_a_damaged_line_in_the_middle_is_told_with_its_place(run: Path) -> None:
    path = write(run, *RECORDS)
    path.write_bytes(path.read_bytes().replace(b'"batch":2', b'"batch":7'))
    found = store.read(run)
    assert found.records == [RECORDS[0], RECORDS[2]]
    assert found.damaged
    assert found.problems == [f"{path.name}:3: damaged, its checksum does not match"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (
            random.Random(0).randbytes(10_000),
            "checksum does not match",
        ),
        (bytes(100_000), "torn"),
        ('{"kind":"record"}\n{}\n'.encode("utf-16"), "UTF-16"),
        (b"\xef\xbb\xbf" + sealed(b'{"kind":"record","v":1}'), "checksum does not match"),
        (b"x" * (shard.MAX_LINE + 10), "longer than 4,194,304 bytes"),
        (sealed(b"[" * 100_000), "not a record"),
        (sealed(b'{"kind":"record","v":1,"x":' + b"[" * 100_000), "not a record"),
        (sealed(b'{"kind":"record","v":1,"record":{"job":' + b'{"case":' * 50_000), "not a record"),
        (sealed(b'{"kind":"record","v":1e999}'), "not a record"),
        (sealed(b'{"kind":"other","v":1}'), "not a record: Invalid value 'other'"),
        (sealed(b"null"), "not a record"),
        (sealed(b""), "not a record"),
        (b"\n", "checksum does not match"),
        (b"\t00000000\n", "not a record"),
    ],
)
def test_junk_is_told_and_the_other_shards_are_read(run: Path, content: bytes, problem: str) -> None:
    write(run, *RECORDS)
    (run / "shards" / "junk-1-1.jsonl").write_bytes(content)
    found = store.read(run)
    assert found.records == RECORDS
    assert problem in found.problems[0]
    assert all(text.isprintable() and len(text) < 500 for text in found.problems)
    assert store.read(run / "shards" / "junk-1-1.jsonl").records == []


def test_a_line_that_is_too_long_does_not_hide_the_next(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "MAX_LINE", 1000)
    path = write(run, RECORDS[0])
    path.write_bytes(path.read_bytes() + b"x" * 5500 + b"\n" + shard._line(RECORDS[1]))
    found = store.read(run)
    assert found.records == RECORDS[:2]
    assert found.problems == [f"{path.name}:3: damaged, longer than 1,000 bytes"]


def test_a_shard_that_is_too_large_is_not_read(run: Path) -> None:
    path = write(run, *RECORDS)
    os.truncate(path, shard.MAX_SHARD + 1)  # sparse: takes no space
    (problem,) = store.read(run).problems
    assert "more than the limit" in problem
    with pytest.raises(StoreError, match="more than the limit"):
        store.read(path)


def test_a_million_bad_lines_make_few_problems(run: Path) -> None:
    path = write(run, *RECORDS)
    path.write_bytes(path.read_bytes() + b"\n" * 1_000_000 + shard._line(record(4)))
    found = store.read(run)
    assert len(found.records) == 4
    assert len(found.problems) == shard.MAX_PROBLEMS + 1
    assert found.problems[-1] == f"{path.name}: 999,900 more damaged lines"


@pytest.mark.parametrize(
    "body",
    [
        shard.encode_line(record(9)).replace(b'"v":2', b'"v":3'),
        b'{"kind":"record","v":3,"record":{"looks":"different"}}',
        b'{"kind":"a new kind","v":4}',
    ],
)
def test_a_newer_schema_is_refused_with_its_version(run: Path, body: bytes) -> None:
    path = write(run, *RECORDS)
    path.write_bytes(path.read_bytes() + sealed(body))
    with pytest.raises(store.NewerSchemaError, match=r":5: schema [34] is newer than this fusionbench \(2\); upgrade"):
        store.read(run)


def test_a_newer_manifest_is_refused_with_its_version(run: Path) -> None:
    (run / "manifest.json").write_text(json.dumps({"v": 3, "anything": "else"}))
    with pytest.raises(store.NewerSchemaError, match=r"manifest.json: schema 3 is newer than this fusionbench \(2\)"):
        store.read(run)


@pytest.mark.parametrize("name", ["../../x", "/etc", "a\n", "x" * 200, "", "\x1b]0;x\x07", "</script>"])
def test_a_hostile_name_in_a_manifest_is_damage(run: Path, name: str) -> None:
    write(run, *RECORDS)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"id": name}))
    found = store.read(run)
    assert found.manifest is None
    assert found.damaged
    assert found.records == RECORDS
    assert found.problems[0].isprintable()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"[" * 100_000, b" " * (store.MAX_MANIFEST + 1)])
def test_a_broken_manifest_does_not_hide_the_records(run: Path, content: bytes) -> None:
    write(run, *RECORDS)
    (run / "manifest.json").write_bytes(content)
    found = store.read(run)
    assert (found.manifest, found.records, len(found.damage)) == (None, RECORDS, 1)


# What leads out of the folder


def test_links_pipes_and_folders_are_not_read(run: Path, tmp_path: Path) -> None:
    outside = write(create(tmp_path / "other"), *RECORDS)
    (run / "shards" / "link-1-1.jsonl").symlink_to(outside)
    (run / "shards" / "dangling-1-1.jsonl").symlink_to("nowhere")
    (run / "shards" / "folder-1-1.jsonl").mkdir()
    (run / "shards" / "other.txt").write_text("not a shard")
    os.mkfifo(run / "shards" / "pipe-1-1.jsonl")
    found = store.read(run)
    assert found.records == []
    assert found.problems == [
        "dangling-1-1.jsonl: not read, a symbolic link",
        "link-1-1.jsonl: not read, a symbolic link",
        "folder-1-1.jsonl: cannot be read, is a directory",
        "pipe-1-1.jsonl: cannot be read, not a regular file",
    ]


def test_a_linked_manifest_is_not_read(run: Path, tmp_path: Path) -> None:
    (run / "manifest.json").rename(tmp_path / "manifest.json")
    (run / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert store.read(run).manifest is None


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b" " * (store.MAX_SUITE + 1)])
def test_a_suite_that_is_a_link_no_text_or_too_large_is_not_read(
    run: Path, tmp_path: Path, content: bytes | None
) -> None:
    assert store.read_suite(run) == "text"
    (run / "suite.toml").rename(tmp_path / "suite.toml")
    if content is None:
        (run / "suite.toml").symlink_to(tmp_path / "suite.toml")
    else:
        (run / "suite.toml").write_bytes(content)
    with pytest.raises(StoreError, match=r"suite\.toml'.*; "):
        store.read_suite(run)


def test_a_linked_folder_of_shards_is_neither_read_nor_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (run / "shards").rmdir()
    (run / "shards").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="is not a run"):
        store.read(run)
    with pytest.raises(StoreError, match="is not a run"):
        Writer(run, ENVIRONMENT)
    assert list((tmp_path / "outside").iterdir()) == []


# Failing calls


def fail(
    monkeypatch: pytest.MonkeyPatch, name: str, nth: int, failure: Callable[..., Any], last: int = 10**9
) -> list[int]:
    """Send the ``nth`` to ``last`` call of ``os.<name>`` to ``failure``; returns the growing count of calls."""
    real, calls = getattr(os, name), [0]

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        return failure(real, *arguments) if nth <= calls[0] <= last else real(*arguments, **keywords)

    monkeypatch.setattr(os, name, call)
    return calls


def eio(real: Callable[..., Any], *arguments: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def full_disk() -> Callable[..., int]:
    """The first write fits in half, the next ones not at all."""
    fits = iter([True])

    def write_some(real: Callable[..., int], file: int, data: bytes) -> int:
        if next(fits, False):
            return real(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write_some


def test_a_full_disk_takes_the_record_back_and_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(run, ENVIRONMENT) as writer:
        writer.append(RECORDS[0])
        size = writer.path.stat().st_size
        with monkeypatch.context() as patch:
            fail(patch, "write", 1, full_disk())
            with pytest.raises(StoreError, match="no space left on device; free some space and run again"):
                writer.append(RECORDS[1])
        assert writer.path.stat().st_size == size
        with pytest.raises(StoreError, match="is closed"):
            writer.append(RECORDS[2])
    write(run, RECORDS[2])
    assert store.read(run).records == [RECORDS[0], RECORDS[2]]
    assert store.read(run).problems == []


def test_every_record_is_synced_before_append_returns(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(run, ENVIRONMENT) as writer, monkeypatch.context() as patch:
        size_at_sync: list[int] = []
        fail(patch, "fsync", 1, lambda real, file: size_at_sync.append(os.fstat(file).st_size))
        for item in RECORDS:
            writer.append(item)
            assert size_at_sync[-1] == writer.path.stat().st_size
        assert len(size_at_sync) == len(RECORDS)


def test_a_write_of_nothing_is_an_error_and_no_endless_loop(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(run, ENVIRONMENT) as writer, monkeypatch.context() as patch:
        fail(patch, "write", 1, lambda *_: 0)
        with pytest.raises(StoreError, match="nothing was written"):
            writer.append(RECORDS[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 kB; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount program")
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk_keeps_every_stored_record(small_disk: Path) -> None:
    run = create(small_disk)
    stored: list[Record] = []
    with pytest.raises(StoreError, match="no space left on device"):
        fill(run, stored)
    found = store.read(run)
    assert len(stored) > 100
    assert found.records == stored
    assert found.problems == []
    with pytest.raises(StoreError, match="no space left on device"):
        store.create(small_disk, store.new_manifest(suite_name="quick", suite_hash="h"), "x" * 300_000)
    assert list(store.runs(small_disk)) == [run]


def fill(run: Path, stored: list[Record]) -> None:
    with Writer(run, ENVIRONMENT) as writer:
        for batch in range(1, 10_000):
            writer.append(record(batch))
            stored.append(record(batch))


def attempt(results: Path) -> tuple[Path | None, list[Record]]:
    """Make a run and store records until something fails; returns what was reported as done."""
    stored: list[Record] = []
    run = None
    try:
        run = create(results)
        with Writer(run, ENVIRONMENT) as writer:
            for item in RECORDS:
                writer.append(item)
                stored.append(item)
    except StoreError:
        pass
    return run, stored


FAILURES = {"write": full_disk, "fsync": lambda: eio, "replace": lambda: eio, "open": lambda: eio} | {
    name: lambda: eio for name in ("close", "fstat", "mkdir", "scandir")
}


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("calls_that_fail", [1, 10**9])
@pytest.mark.parametrize("name", FAILURES)
def test_a_call_that_fails_at_any_moment_never_leaves_an_accepted_wrong_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls_that_fail: int, truncates: bool
) -> None:
    for nth in range(1, 40):
        results = tmp_path / str(nth)
        results.mkdir()
        with monkeypatch.context() as patch:
            calls = fail(patch, name, nth, FAILURES[name](), last=nth + calls_that_fail - 1)
            if not truncates:
                fail(patch, "ftruncate", 1, eio)
            run, stored = attempt(results)
        check_state(results, run, stored)
        if calls[0] < nth:
            assert stored == RECORDS  # no call failed any more
            return
    pytest.fail(f"os.{name} is called more than 40 times")


def check_state(results: Path, run: Path | None, stored: list[Record]) -> None:
    whole = store.runs(results)
    assert run is None or run in whole
    for path in whole:
        found = store.read(path)
        assert not found.damaged
        assert found.records[: len(stored)] == stored
        assert found.records == RECORDS[: len(found.records)]
        write(path, *RECORDS)  # and the run can be resumed
        assert store.read(path).records == RECORDS


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"^cannot create run '.*': .*; choose a folder that you may write to$"):
        create(tmp_path / "results")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_really_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permission denied; choose a folder that you may write to"):
        create(tmp_path / "results")


def test_a_crash_before_the_manifest_is_in_place_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = create(tmp_path)

    def crash(real: Callable[..., Any], source: Any, target: Any) -> Any:
        if str(target).endswith("manifest.json"):
            raise SystemExit
        return real(source, target)

    with monkeypatch.context() as patch:
        fail(patch, "replace", 1, crash)
        with pytest.raises(SystemExit):
            create(tmp_path)
    reasons: list[str] = []
    assert list(store.runs(tmp_path, ignored=reasons.append)) == [whole]
    assert len(reasons) == 1


def test_the_manifest_is_synced_before_it_is_in_place_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    with monkeypatch.context() as patch:
        fail(patch, "fsync", 1, lambda real, file: steps.append(Path(f"/proc/self/fd/{file}").readlink().name))
        replaced = fail(patch, "replace", 1, lambda real, *names: (real(*names), steps.append("replace")))
        run = create(tmp_path)
    once = ["{}.tmp", "replace", run.name]
    assert steps == [
        *(step.format(store.SUITE) for step in once),
        *(step.format(store.MANIFEST) for step in once),
        tmp_path.name,
    ]
    assert replaced == [2]


def test_a_run_folder_that_disappears_is_told(run: Path, tmp_path: Path) -> None:
    run.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is not a run"):
        Writer(run, ENVIRONMENT)


# Killed writers

WRITING = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_store_faults import ENVIRONMENT, Path, Writer, record
with Writer(Path(sys.argv[1]), ENVIRONMENT) as writer:
    for batch in range(1, 10**6):
        writer.append(record(batch, reason="x" * (batch * 997 % 20_000)))
        os.write(1, b"%d\\n" % batch)
"""


@pytest.mark.parametrize("seed", range(10))
def test_what_was_reported_before_a_kill_is_read_back(run: Path, seed: int) -> None:
    code = WRITING.format(root=str(ROOT), tests=str(ROOT / "tests"))
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reported = process.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.read()
    last = int(reported.split()[-1])
    found = store.read(run)
    assert not found.damaged
    assert [item.job.case.shape.batch for item in found.records] in (
        list(range(1, last + 1)),
        list(range(1, last + 2)),  # stored, and killed before it was reported
    )
