"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..disk import explained
from ..errors import StoreError, printable
from ..remote import refuse_url

STDOUT = Path("-")


def put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; ``-`` is the standard output. Raises StoreError."""
    if path != STDOUT:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def refuse_unwritable(*paths: Path | None) -> None:
    """Before an hour of measuring whose result could then not be written. Raises StoreError."""
    named = [path for path in paths if path is not None]
    if named.count(STDOUT) > 1:
        raise StoreError("only one of the outputs can be '-', the standard output")
    for path in named:
        refuse_url(path)
        with explained(f"cannot write '{printable(str(path))}'"):
            _try(Path(os.path.realpath(path)))


def _try(path: Path) -> None:
    """Raises OSError for what ``replacing`` would fail at, as far as that can be told without writing."""
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(folder, os.W_OK | os.X_OK) and not (path.exists() and not path.is_file()):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and is removed when not.

    A link is followed, and what is no regular file (a device, a pipe) is written as it is. Raises StoreError.
    """
    refuse_url(path)
    with explained(f"cannot write '{printable(str(path))}'"):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
        else:
            yield from _replacing(target)


def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
