"""What a worker prints: read from a pipe, so that it fills no disk, and only its end is kept."""

from __future__ import annotations

import contextlib
import os
from multiprocessing.connection import Connection

KEPT_BYTES = 64_000
_CHUNK = 1 << 16  # what a pipe holds
_CHUNKS = 64  # read at one go, so that a worker that never stops printing does not keep us from looking at the clock


class Log:
    """The end of what comes through ``reader``, which must be drained or the worker waits."""

    def __init__(self, reader: Connection) -> None:
        os.set_blocking(reader.fileno(), False)
        self.reader, self._tail = reader, bytearray()

    @property
    def sources(self) -> list[Connection]:
        """What to wait for: the pipe, until nobody can write to it any more."""
        return [] if self.reader.closed else [self.reader]

    def drain(self) -> None:
        """Read what is there."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(0 if self.reader.closed else _CHUNKS):
                data = os.read(self.reader.fileno(), _CHUNK)
                if not data:
                    self.reader.close()
                    return
                self._tail += data
                del self._tail[:-KEPT_BYTES]

    def last_words(self) -> str:
        """The last line, or the one that says how Python died."""
        self.drain()
        lines = self._tail.decode(errors="replace").strip().splitlines()
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines or [""])[-1][:500]

    def close(self) -> None:
        self.reader.close()
