"""One run per GPU at a time: a lock that the kernel frees the moment its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import nvml
from .disk import reason
from .errors import DeviceLostError, UnfitError, printable

# Not XDG_RUNTIME_DIR: a login has one and cron has none, so that two runs of one user would not meet.
PLACE = Path("/tmp")  # noqa: S108 - the folder in it belongs to the user, and no link to it is followed


@contextlib.contextmanager
def held(devices: Iterable[str]) -> Iterator[None]:
    """Hold the GPUs among ``devices`` for this process; the CPU needs no lock, its waiting is measured.

    Raises UnfitError if another process of this user measures one of them, and where the lock's folder is not the
    user's own. Runs of other users are seen by NVML only (fitness.py).
    """
    names = sorted({_name(device) for device in devices if device.startswith("cuda")})
    with contextlib.ExitStack() as stack:
        if names:
            folder = stack.enter_context(_folder())
            for name in names:
                stack.enter_context(_locked(name, folder))
        yield


def _name(device: str) -> str:
    """The UUID, as two runs may see the GPU under different numbers; without NVML what CUDA calls it."""
    with contextlib.suppress(DeviceLostError):
        found = nvml.uuid(device)
        if found is not None:
            return found
    name = nvml.visible(int(device.partition(":")[2] or 0))
    return name if name.startswith(("GPU-", "MIG-")) else f"cuda:{name}"


@contextlib.contextmanager
def _folder() -> Iterator[int]:
    """The user's own folder, open; in a place where everyone may write, it must be proven to be that."""
    path = PLACE / f"fusionbench-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UnfitError(f"cannot lock gpus in '{path}': {reason(error)}; remove it, or make room for it") from None
    try:
        found = os.fstat(folder)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise UnfitError(f"'{path}' is not yours alone, and gpus are locked in it; remove it, or chmod 700 it")
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _locked(name: str, folder: int) -> Iterator[None]:
    # The file stays: whoever removes it might remove the one that the next run has just locked.
    file = os.open(
        re.sub(r"[^\w.-]", "_", name)[:128], os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode=0o600, dir_fd=folder
    )
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnfitError(
                f"gpu '{printable(name)}' is being measured by {_holder(file)}; wait for it, or choose another device"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def _holder(file: int) -> str:
    written = os.pread(file, 32, 0).decode(errors="replace").strip()
    return f"process {written}" if written.isdecimal() else "another process"
