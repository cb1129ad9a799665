"""The store reads what is left: damaged and hostile files are told, bounded, and hide nothing that is whole."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import stat
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusionbench import shard, store
from fusionbench.errors import StoreError
from fusionbench.record import VERSION
from fusionbench.store import Writer
from fusionbench.survey import survey
from tests.storing import ENVIRONMENT, RECORDS, ROOFLINE, create, record, write


def sealed(body: bytes) -> bytes:
    return body + b"\t%08x\n" % zlib.crc32(body)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return create(tmp_path / "results")


# Damaged files


def test_a_shard_cut_at_any_byte_loses_only_what_was_cut(run: Path) -> None:
    path = write(run, RECORDS[0], ROOFLINE)
    data = path.read_bytes()
    for end in reversed(range(len(data))):
        os.truncate(path, end)
        found = store.read(path)
        whole = data[:end].count(b"\n")
        kept = [*found.environments.values(), *found.records, *found.rooflines]
        assert kept == [ENVIRONMENT, RECORDS[0], ROOFLINE][:whole], end
        assert len(found.torn) == (end == 0 or data[end - 1 : end] != b"\n"), end
        assert not found.damaged, end


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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_accepted_and_costs_no_other_line(run: Path, place: float, bit: int) -> None:
    stored: list[Any] = [ENVIRONMENT, *RECORDS, ROOFLINE]
    path = run / "shards" / "a-1-1.jsonl"
    data = bytearray(b"".join(map(shard._line, stored)))
    position = int(place * len(data))
    is_line_end = data[position : position + 1] == b"\n"
    data[position] ^= 1 << bit
    path.write_bytes(data)
    found = store.read(run)
    kept = [*found.environments.values(), *found.records, *found.rooflines]
    assert all(item in stored for item in kept)
    assert found.problems
    assert len(kept) >= len(stored) - (2 if is_line_end else 1)  # without its end a line takes the next along


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


def test_a_line_of_a_gigabyte_takes_neither_memory_nor_long(run: Path) -> None:
    path = write(run, *RECORDS)
    os.truncate(path, 1 << 30)  # sparse: takes no space
    tracemalloc.start()
    started = time.process_time()
    found = store.read(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.records == RECORDS
    assert found.damage == [f"{path.name}:5: damaged, longer than 4,194,304 bytes"]
    assert peak < 32 << 20  # the line is passed over in pieces of 4 MB; measured 13 MB
    assert time.process_time() - started < 30  # measured 0.4 s


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
        shard.encode_line(record(9)).replace(b'"v":%d' % VERSION, b'"v":%d' % (VERSION + 1)),
        b'{"kind":"record","v":%d,"record":{"looks":"different"}}' % (VERSION + 1),
        b'{"kind":"a new kind","v":%d}' % (VERSION + 2),
    ],
)
def test_a_newer_schema_is_refused_with_its_version(run: Path, body: bytes) -> None:
    path = write(run, *RECORDS)
    path.write_bytes(path.read_bytes() + sealed(body))
    newer = rf":5: schema [{VERSION + 1}{VERSION + 2}] is newer than this fusionbench \({VERSION}\); upgrade"
    with pytest.raises(store.NewerSchemaError, match=newer):
        store.read(run)


def test_a_newer_manifest_is_refused_with_its_version(run: Path) -> None:
    (run / "manifest.json").write_text(json.dumps({"v": store.VERSION + 1, "anything": "else"}))
    wanted = rf"manifest.json: schema {store.VERSION + 1} is newer than this fusionbench \({store.VERSION}\)"
    with pytest.raises(store.NewerSchemaError, match=wanted):
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


# Many shards


def test_ten_thousand_shards_need_few_open_files_and_the_last_record_counts(run: Path) -> None:
    for number in range(10_000):
        lines = map(shard._line, (ENVIRONMENT, record(number % 100 + 1, reason=str(number))))
        (run / "shards" / f"h-1-{number}.jsonl").write_bytes(b"".join(lines))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        found, surveyed = store.read(run), survey(run)
        again = list(surveyed.records())
        next_shard = write(run, record(1, reason="one more"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [item.reason for item in found.records] == [str(number) for number in range(9_900, 10_000)]
    assert (found.duplicates, found.problems) == (9_900, [])
    assert again == found.records
    assert next_shard.name.endswith("-10000.jsonl")


def test_a_process_without_a_free_file_descriptor_is_told(run: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(used, held[0]), hard))
        with pytest.raises(StoreError, match="too many open files; raise the limit of open files"):
            Writer(run, ENVIRONMENT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in held:
            os.close(file)
    assert list((run / "shards").iterdir()) == []


# What leads out of the folder


@pytest.mark.parametrize(
    "name", ["..\n-1-2.jsonl", "-rf.jsonl", "…\u202e-1-3.jsonl", "x" * 240 + "-1-4.jsonl", ".jsonl"]
)
def test_an_odd_file_name_is_only_a_name(run: Path, name: str) -> None:
    write(run, *RECORDS)
    (run / "shards" / name).write_bytes(b"junk")
    found = store.read(run)
    assert found.records == RECORDS
    assert all(text.isprintable() for text in found.problems)
    assert store.read(write(run, record(4)).parents[1]).records == [*RECORDS, record(4)]


def test_a_device_is_not_read(run: Path) -> None:
    try:
        os.mknod(run / "shards" / "zero-1-1.jsonl", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root may make a device file")
    (problem,) = store.read(run).problems
    assert re.fullmatch("zero-1-1.jsonl: cannot be read, (not a regular file|permission denied)", problem)


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
