"""Standard streams that may be closed, or whose reader may leave (``| head``), without stopping who writes."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def open_streams() -> None:
    """Let stdout and stderr be written to whatever becomes of them, and show × as ? where they cannot show it.

    typer and rich leave with 1 where a pipe breaks, which would be a regression for whoever reads the exit code, and
    before the verb's files are written.
    """
    sys.stdout = _opened(sys.stdout, sys.__stdout__)
    sys.stderr = _opened(sys.stderr, sys.__stderr__)


class _Patient(io.FileIO):
    """A file that leads nowhere once its reader has left; any other error (a full disk) is raised once."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise
            return memoryview(data).nbytes


def _opened(stream: TextIO | None, own: TextIO | None) -> TextIO:
    """The stream itself where somebody has put another in the place of the process's ``own``, as tests do."""
    if stream is None:  # closed before Python began
        return Path(os.devnull).open("w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="replace")
    if stream is not own:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
