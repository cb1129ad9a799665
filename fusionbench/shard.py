"""One shard of a run: lines that are added by one writer, never changed, and checked when they are read.

A line is JSON, a tab, its crc32 as 8 hex digits and a line end. A shard is called ``<host>-<pid>-<n>.jsonl``, where
``n`` counts the shards of its run: that puts them in order without a clock.
"""

from __future__ import annotations

import errno
import itertools
import os
import platform
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Self

import msgspec

from .disk import NewerSchemaError, explained, opened, refuse_newer, sync_folder, write_all
from .errors import StoreError, printable
from .record import VERSION, Environment, Record, Roofline, decode_line, encode_line

# What a hostile or broken file may cost: a record with 100,000 samples is 2.6 MB.
MAX_LINE = 4 << 20
MAX_SHARD = 8 << 30
MAX_PROBLEMS = 100  # damaged lines told one by one; the rest is counted
BATCH = 1 << 20  # bytes that one sync may cover

SEAL = 10  # bytes of a line after its JSON
TORN_BEGINS = b"{\0"  # JSON, or the zeros that a power cut leaves; anything else was not begun by a writer
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

Identity = tuple[str, str, str]
Item = Record | Environment | Roofline


@dataclass
class Contents:
    """What reading shards has brought to light so far; every text in ``torn`` and ``damage`` is one line."""

    records: dict[Identity, Record] = field(default_factory=dict)
    environments: dict[str, Environment] = field(default_factory=dict)
    rooflines: list[Roofline] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    duplicates: int = 0

    def add(self, item: Item) -> None:
        """The last record of an identity counts, in the place of the first."""
        if isinstance(item, Environment):
            self.environments[item.id] = item
            return
        if isinstance(item, Roofline):
            self.rooflines.append(item)
            return
        identity = item.identity
        self.duplicates += identity in self.records
        self.records[identity] = item


class ShardWriter:
    """The one writer of one new shard in ``folder``; a record is on disk when ``append`` returns.

    Raises StoreError. After a failed write nothing more is written: the shard is cut back to its last whole line.
    Whoever wants to go on opens a new one; ``unsaved`` is what the failed write should have stored.
    """

    def __init__(self, folder: Path, environment: Environment) -> None:
        first_line = _line(environment)
        self.environment = environment
        self.unsaved: list[Item] = []
        self._size = 0  # bytes that are on disk
        with explained(f"cannot write to '{printable(str(folder))}'"):
            self.path, self._file = _new_file(folder)
            try:
                self._append(first_line)
            except OSError:
                os.close(self._file)
                raise

    def append(self, item: Item) -> None:
        """Add a record, or the environment of records that were made elsewhere."""
        self._store([item], _line(item))

    def append_all(self, items: Iterable[Item]) -> int:
        """Add many and sync once per megabyte of them; returns how many.

        10,000 records take 0.3 s so; with a call of ``append`` each 3 s, and 40 s where others keep the disk busy. When
        it raises, whole megabytes that were written before the failing one stay.
        """
        batch: list[Item] = []
        lines, stored = bytearray(), 0
        for item in items:
            line = _line(item)
            if lines and len(lines) + len(line) > BATCH:
                self._store(batch, lines)
                batch, lines, stored = [], bytearray(), stored + len(batch)
            batch.append(item)
            lines += line
        if batch:
            self._store(batch, lines)
        return stored + len(batch)

    def stored(self) -> Iterator[Item]:
        """What is on disk and whole, even if the file has lost its name since; raises OSError."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for line in iter(lambda: file.readline(MAX_LINE + 1), b""):
                if file.tell() <= self._size and line[-SEAL:] == _seal(line[:-SEAL]):
                    yield decode_line(line[:-SEAL])

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with explained(f"cannot close '{printable(str(self.path))}'"):
                os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _store(self, items: list[Item], lines: bytes | bytearray) -> None:
        if self._file < 0 or self.unsaved:
            raise StoreError(f"shard '{printable(str(self.path))}' is closed; open a new writer on its run")
        try:
            with explained(f"cannot write to '{printable(str(self.path))}'"):
                self._append(lines)
        except StoreError:
            self.unsaved = items
            raise

    def _append(self, lines: bytes | bytearray) -> None:
        try:
            if not os.fstat(self._file).st_nlink:  # a file without a name can be written, and is gone when closed
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            write_all(self._file, lines)
            os.fsync(self._file)  # not tried again: after a failure the kernel may have dropped the pages
        except OSError:
            with suppress(OSError):  # what stays behind is a torn tail, which readers skip
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(lines)


def read_shard(path: Path, contents: Contents) -> Iterator[tuple[Item, int, int]]:
    """What the shard holds, each with the place and the length of its line; what is wrong is told to ``contents``.

    Raises OSError, and NewerSchemaError for a newer version's line.
    """
    name = printable(path.name)
    number = faults = start = 0
    with opened(path, MAX_SHARD) as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            sealed = line[-SEAL:] == _seal(line[:-SEAL])
            item = _parse(line[:-SEAL], f"{name}:{number}") if sealed else _broken(line)
            if not isinstance(item, str):
                yield item, start, len(line)
            elif _is_torn(sealed, line, file):
                contents.torn.append(f"{name}:{number}: torn, the last write never ended")
            else:
                faults += 1
                if faults <= MAX_PROBLEMS:
                    contents.damage.append(f"{name}:{number}: damaged, {item}")
            start = start + len(line) if len(line) <= MAX_LINE else file.tell()
    if not number:
        contents.torn.append(f"{name}: empty, its writer stopped before the first line")
    if faults > MAX_PROBLEMS:
        contents.damage.append(f"{name}: {faults - MAX_PROBLEMS:,} more damaged lines")


def shard_number(name: str) -> int:
    """The ``n`` of a shard's name; 0 for a name that has none."""
    match = re.fullmatch(r"(?s).*-([0-9]{1,9})\.jsonl", name)
    return int(match[1]) if match else 0


def _line(item: Item) -> bytes:
    """A whole line of a shard; raises StoreError for what would not read back, such as a NaN."""
    try:
        body = encode_line(item)
        decode_line(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        name = item.job.key if isinstance(item, Record) else type(item).__name__.lower()
        raise StoreError(f"'{printable(name)}' cannot be stored: {printable(str(error))}") from error
    if len(body) > MAX_LINE - SEAL:
        raise StoreError(f"a record of {len(body):,} bytes cannot be stored (limit {MAX_LINE:,}); lower 'max_samples'")
    return body + _seal(body)


def _seal(body: bytes) -> bytes:
    return b"\t%08x\n" % zlib.crc32(body)


def _new_file(folder: Path) -> tuple[Path, int]:
    host = re.sub(r"[^A-Za-z0-9_]", "_", platform.node())[:40] or "host"
    first = 1 + max((shard_number(path.name) for path in folder.iterdir()), default=0)
    for n in itertools.count(first):
        path = folder / f"{host}-{os.getpid()}-{n:04d}.jsonl"
        with suppress(FileExistsError):  # another thread of this process was faster
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            break
    try:
        sync_folder(folder)
    except OSError:
        os.close(file)
        raise
    return path, file


def _parse(body: bytes, where: str) -> Item | str:
    """What a line holds, or in words what is wrong with it."""
    try:
        return decode_line(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        refuse_newer(body, VERSION, where)  # a newer version may well not look like a record to this one
        return f"not a record: {printable(str(error))}"
    except ValueError as error:  # a newer version that does
        raise NewerSchemaError(f"{where}: {error}") from error


def _broken(line: bytes) -> str:
    if line.startswith(UTF16_MARKS):
        return "it is UTF-16 and not as it was written; restore the file"
    if len(line) > MAX_LINE:
        return f"longer than {MAX_LINE:,} bytes"
    return "its checksum does not match"


def _is_torn(sealed: bool, line: bytes, file: BufferedReader[FileIO]) -> bool:
    """Whether a bad line is what a crash leaves: the last one, cut off. Leaves the file at the next line."""
    if len(line) > MAX_LINE:
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        return False
    return not sealed and line[0] in TORN_BEGINS and not file.peek(1)
