"""A run too large for memory: where the record of each identity is, and the records again, one by one."""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from . import store
from .collector import paused
from .disk import explained, opened
from .errors import DamagedError, printable
from .record import Record, decode_line
from .shard import MAX_SHARD, SEAL, Contents, Identity


class Survey:
    """What a run holds, in 190 bytes per record: 190 MB where the records themselves take 3 GB.

    As in ``store.read`` the last valid record of an identity counts, in the place of the first.
    """

    def __init__(self) -> None:
        self.contents = Contents()  # all but the records
        self._numbers: dict[bytes, int] = {}  # by digest of the identity
        self._shards: list[Path] = []
        self._places = (array("I"), array("Q"), array("I"))  # shard, start and length of the line, by number

    def add(self, record: Record, shard: Path, start: int, length: int) -> None:
        if not self._shards or self._shards[-1] != shard:
            self._shards.append(shard)
        number = self._numbers.setdefault(_digest(record.identity), len(self._numbers))
        for places, value in zip(self._places, (len(self._shards) - 1, start, length), strict=True):
            if number == len(places):
                places.append(value)
            else:
                places[number] = value

    def records(self) -> Iterator[Record]:
        """Each record, read again; raises StoreError where a shard is no longer what it was."""
        current, file = -1, -1
        try:
            for shard, start, length in zip(*self._places, strict=True):
                if shard != current:
                    if file >= 0:
                        os.close(file)
                    current, file = shard, _open(self._shards[shard])
                yield _record(os.pread(file, length, start), self._shards[shard])
        finally:
            if file >= 0:
                os.close(file)


def survey(run: Path) -> Survey:
    """Read a run folder once, and keep nothing but places; raises StoreError as ``store.read`` does."""
    found = Survey()
    with explained(f"cannot read '{printable(str(run))}'"), paused():
        for shard, item, start, length in store.items(run, found.contents):
            if isinstance(item, Record):
                found.add(item, shard, start, length)
            else:
                found.contents.add(item)
    return found


def _record(line: bytes, shard: Path) -> Record:
    """The record in a line, which was valid when it was surveyed."""
    body = line[:-SEAL]
    if line[-SEAL:] == b"\t%08x\n" % zlib.crc32(body):
        item = decode_line(body)
        if isinstance(item, Record):
            return item
    raise DamagedError(f"shard '{printable(str(shard))}' changed while it was read; is its run going on?")


def _open(shard: Path) -> int:
    with explained(f"cannot read '{printable(str(shard))}'"), opened(shard, MAX_SHARD) as file:
        return os.dup(file.fileno())


def _digest(identity: Identity) -> bytes:
    """16 bytes: among a million identities two are the same by chance once in 10^26 runs."""
    return blake2b("\0".join(identity).encode(), digest_size=16).digest()
