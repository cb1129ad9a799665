"""The store under faults: whatever breaks, nothing wrong is accepted and nothing reported as stored is lost."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusionbench import shard, store
from fusionbench.errors import StoreError
from fusionbench.record import Record
from fusionbench.store import Writer
from tests.storing import ENVIRONMENT, RECORDS, ROOFLINE, create, record, write

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return create(tmp_path / "results")


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


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Really short writes, as root or not: the kernel takes what fits, and the next write fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("first", [0, 2], ids=["append_all", "append"])
def test_a_write_cut_short_by_the_system_at_any_byte_is_taken_back(run: Path, first: int) -> None:
    empty, size = write(run).stat().st_size, write(run, *RECORDS).stat().st_size
    lines = (size - empty) // len(RECORDS)
    for limit in range(empty + first * lines, size, 13):
        with Writer(run, ENVIRONMENT) as writer:
            for item in RECORDS[:first]:
                writer.append(item)
            with file_size_limit(limit), pytest.raises(StoreError, match="file too large; check the disk"):
                writer.append_all(RECORDS[first:])
        found = store.read(writer.path)
        assert (found.records, found.problems, writer.unsaved) == (RECORDS[:first], [], RECORDS[first:]), limit
        writer.path.unlink()


def test_a_file_too_large_for_the_system_leaves_no_run(tmp_path: Path) -> None:
    with file_size_limit(100), pytest.raises(StoreError, match=r"cannot create run .* file too large"):
        create(tmp_path)
    assert store.runs(tmp_path) == {}


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNTED = """
mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"
"""
FILLING = """
import subprocess, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from fusionbench import shard, store
from fusionbench.errors import StoreError
from tests.storing import ENVIRONMENT, create, record
disk = Path(sys.argv[1])
run = create(disk)
stored = []
try:
    with store.Writer(run, ENVIRONMENT) as writer:
        for batch in range(1, 10_000):
            writer.append(record(batch))
            stored.append(record(batch))
except StoreError as error:
    print(error)
found = store.read(run)
assert len(stored) > 100
assert found.records == stored
assert found.problems == []
try:
    store.create(disk, store.new_manifest(suite_name="quick", suite_hash="h"), "x" * 300_000)
except StoreError as error:
    print(error)
assert list(store.runs(disk)) == [run]
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
for act in (lambda: create(disk), lambda: store.Writer(run, ENVIRONMENT)):
    try:
        act()
    except StoreError as error:
        print(error)
assert store.read(run).records == stored
"""


def test_a_really_full_and_then_read_only_disk_keeps_every_stored_record(tmp_path: Path) -> None:
    try:
        subprocess.run([*NAMESPACE, 'mount -t tmpfs tmpfs "$1"', "sh", tmp_path], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted in a namespace of one's own: {error}")
    code = FILLING.format(root=str(ROOT))
    arguments = ["sh", str(tmp_path), sys.executable, code]
    done = subprocess.run([*NAMESPACE, MOUNTED, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    full, created, *read_only = done.stdout.splitlines()
    assert re.fullmatch("cannot write to '.*': no space left on device; free some space and run again, .*", full)
    assert re.fullmatch("cannot create run '.*': no space left on device; free some space.*", created)
    assert len(read_only) == 2
    assert all(line.endswith("read-only file system; choose a folder that you may write to") for line in read_only)


def attempt(results: Path) -> tuple[Path | None, list[Record]]:
    """Make a run and store records until something fails; returns what was reported as done."""
    stored: list[Record] = []
    run = None
    try:
        run = create(results)
        with Writer(run, ENVIRONMENT) as writer:
            writer.append_all(RECORDS[:2])
            stored += RECORDS[:2]
            writer.append(ROOFLINE)
            writer.append(RECORDS[2])
            stored.append(RECORDS[2])
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
        assert found.rooflines in ([], [ROOFLINE])
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


# What is saved from a run that cannot be written any more


def test_a_folder_removed_while_it_is_written_is_told_and_everything_is_saved_elsewhere(
    run: Path, tmp_path: Path
) -> None:
    with Writer(run, ENVIRONMENT) as writer:
        writer.append_all([RECORDS[0], ROOFLINE])
        shutil.rmtree(run)
        with pytest.raises(StoreError, match="no such file or directory; was the folder removed"):
            writer.append(RECORDS[1])
        saved = store.rescue(writer, tmp_path)
    found = store.read(saved)
    assert (found.records, found.rooflines, found.problems) == (RECORDS[:2], [ROOFLINE], [])
    assert saved.name == run.name
    assert found.manifest is not None
    assert found.manifest.id == run.name
    assert store.read_suite(saved) == "text"
    write(saved, RECORDS[2])
    assert store.read(saved).records == RECORDS


def test_what_a_full_disk_did_not_take_is_saved_elsewhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Writer(run, ENVIRONMENT) as writer:
        writer.append(RECORDS[0])
        with monkeypatch.context() as patch:
            fail(patch, "write", 1, full_disk())
            fail(patch, "ftruncate", 1, eio)
            with pytest.raises(StoreError, match="no space left on device"):
                writer.append_all(RECORDS[1:])
        saved = store.rescue(writer)
    assert saved.is_relative_to(tmp_path)
    assert (store.read(saved).records, store.read(saved).problems) == (RECORDS, [])
    assert not store.read(run).damaged


def test_a_second_folder_that_cannot_be_written_is_told(run: Path, tmp_path: Path) -> None:
    with Writer(run, ENVIRONMENT) as writer, pytest.raises(StoreError, match=r"cannot save to '.*': no such file"):
        store.rescue(writer, tmp_path / "nowhere")


# Batches


def test_a_batch_is_synced_once_per_megabyte(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "BATCH", 2_000)
    many = [record(batch) for batch in range(1, 8)]  # of 800 bytes: two fit
    with Writer(run, ENVIRONMENT) as writer, monkeypatch.context() as patch:
        syncs = fail(patch, "fsync", 1, lambda real, file: real(file))
        assert writer.append_all(iter(many)) == 7
        assert writer.append_all([]) == 0
    assert syncs == [4]
    assert store.read(run).records == many


def test_a_batch_that_fails_keeps_the_ones_before_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "BATCH", 2_000)
    many = [record(batch) for batch in range(1, 8)]
    with Writer(run, ENVIRONMENT) as writer, monkeypatch.context() as patch:
        fail(patch, "fsync", 3, eio)
        with pytest.raises(StoreError, match="input/output error; check the disk"):
            writer.append_all(many)
        assert writer.unsaved == many[4:6]
    assert (store.read(run).records, store.read(run).problems) == (many[:4], [])


def test_an_item_that_cannot_be_stored_leaves_the_writer_usable(run: Path) -> None:
    with Writer(run, ENVIRONMENT) as writer:
        with pytest.raises(StoreError, match="cannot be stored"):
            writer.append_all([RECORDS[0], record(9, reason="\udce9")])
        writer.append_all(RECORDS)
    assert store.read(run).records == RECORDS


# Killed writers

WRITING = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from fusionbench.store import Writer
from tests.storing import ENVIRONMENT, record
with Writer(Path(sys.argv[1]), ENVIRONMENT) as writer:
    for batch in range(1, 10**6):
        writer.append(record(batch, reason="x" * (batch * 997 % 20_000)))
        os.write(1, b"%d\\n" % batch)
"""


@pytest.mark.parametrize("seed", range(10))
def test_what_was_reported_before_a_kill_is_read_back(run: Path, seed: int) -> None:
    code = WRITING.format(root=str(ROOT))
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
