"""Files that survive crashes and hostile content: the few operations that everything stored goes through."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from .errors import StoreError, printable

REMEDIES = {
    errno.ENOSPC: "free some space and run again, finished jobs are kept",
    errno.EDQUOT: "free some space and run again, finished jobs are kept",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "choose a folder, not a file",
    errno.EEXIST: "nothing is overwritten, choose another folder",
    errno.ENOENT: "was the folder removed?",
    errno.EISDIR: "name a file in it",
    errno.EINVAL: "is it the right file?",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EOVERFLOW: "is it the right file?",
    errno.ELOOP: "give the file itself, no link to it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class NewerSchemaError(StoreError):
    """The file was written by a newer fusionbench."""


class _Versioned(Struct):
    v: int


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError: one line with what was done, what went wrong and what to do about it."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check the disk")
        raise StoreError(f"{doing}: {reason(error)}; {remedy}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process, until the block or the process ends; raises StoreError if another has it."""
    with explained(f"cannot lock '{printable(str(folder))}'"):
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            shown = printable(str(folder))
            raise StoreError(f"run '{shown}' is being measured by another process; wait, or use --fresh") from None
        yield
    finally:
        os.close(file)


def reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def write_all(file: int, data: bytes | bytearray) -> None:
    """One write, as a rule: on a full disk the second one says what is wrong with the first. Raises OSError."""
    rest = memoryview(data)
    while rest:
        written = os.write(file, rest)
        if written <= 0:
            raise OSError(errno.EIO, "nothing was written")
        rest = rest[written:]


def write_atomically(path: Path, data: bytes) -> None:
    """The file is there with all its bytes or not at all, even after a power cut. Raises OSError."""
    unfinished = path.with_name(path.name + ".tmp")
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync does with bytes. Raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def opened(path: Path, limit: int) -> Iterator[io.BufferedReader[io.FileIO]]:
    """The file, if it is a regular one, no link and of bearable size; raises OSError. A pipe is not waited for."""
    with io.BufferedReader(io.FileIO(path, opener=_open_no_link), 1 << 18) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > limit:
            raise OSError(errno.EOVERFLOW, f"{status.st_size:,} bytes, more than the limit of {limit:,}")
        yield file


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def refuse_newer(data: bytes, version: int, where: str) -> None:
    """Raise NewerSchemaError if ``data`` is JSON that says so; whatever else may be wrong with it is not told."""
    try:
        found = msgspec.json.decode(data, type=_Versioned).v
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return
    if found > version:
        raise NewerSchemaError(
            f"{where}: schema {found} is newer than this fusionbench ({version}); upgrade to read it"
        )
