"""Can results be kept here: space, the cost of making a record durable, and folders for compiled code."""

from __future__ import annotations

import getpass
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter_ns

from .check import Check, Status, graded, ok
from .machine import ROOT, read

MIB = 1 << 20
SPACE = (1 << 30, 100 * MIB)  # a record is about 4 KiB: 1 GiB holds 250,000 of them before sealing
SLOW_MS = (50.0, 1000.0)
FLEETING = {
    "tmpfs": "memory, gone when the machine restarts",
    "ramfs": "memory, gone when the machine restarts",
    "overlay": "a container's own layer, gone with the container",
}


def results(folder: Path, *, root: Path = ROOT, free: int | None = None) -> Iterator[Check]:
    """Space, durability and kind of the disk on which ``folder`` is, or would be made."""
    place = existing(folder)
    try:
        milliseconds = sync_ms(place)
    except OSError as error:
        yield Check(
            name="results",
            status="fail",
            found=f"'{folder}' cannot be written: {(error.strerror or str(error)).lower()}",
            remedy="choose a folder that you may write to",
            command="fusionbench run SUITE --results DIR",
        )
        return
    left = shutil.disk_usage(place).free if free is None else free
    yield _space(folder, left)
    yield graded(
        "fsync", f"a record is durable after {milliseconds:.1f} ms", milliseconds, "ms", SLOW_MS,
        "each record waits that long, outside the timings; a local disk is faster",
        "fusionbench run SUITE --results DIR",
    )  # fmt: skip
    kind = filesystem(place, root)
    if kind in FLEETING:
        yield Check(
            name="filesystem", status="warn", found=f"{kind}: {FLEETING[kind]}",
            remedy="copy results away, or choose another folder", command="fusionbench run SUITE --results DIR",
        )  # fmt: skip


def _space(folder: Path, left: int) -> Check:
    status: Status = "ok" if left >= SPACE[0] else "warn" if left >= SPACE[1] else "fail"
    remedy, command = ("", "") if status == "ok" else ("free some space", f"df -h {existing(folder)}")
    return Check(
        name="disk", status=status, found=f"{left / 2**30:,.1f} GiB free in '{folder}'", value=left / 2**30, unit="GiB",
        remedy=remedy, command=command,
    )  # fmt: skip


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def sync_ms(folder: Path, times: int = 9) -> float:
    """Milliseconds until a line of 4 KiB is durable, the median of a few; leaves nothing behind. Raises OSError."""
    taken = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(times):
            start = perf_counter_ns()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            taken.append(perf_counter_ns() - start)
    return statistics.median(taken) / 1e6


def filesystem(folder: Path, root: Path = ROOT) -> str:
    """The kind of file system ``folder`` is on, from /proc/self/mountinfo; "" where unknown."""
    best, kind = "", ""
    for line in read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 4 and after and folder.is_relative_to(fields[4]) and len(fields[4]) >= len(best):
            best, kind = fields[4], after.split()[0]
    return kind


def caches(environ: Mapping[str, str] | None = None, home: Path | None = None) -> Iterator[Check]:
    """Whether Triton and Inductor can keep what they compile; without that every job compiles again."""
    for variable, folder in cache_folders(environ, home).items():
        place = existing(folder)
        if os.access(place, os.W_OK | os.X_OK) and place.is_dir():
            yield ok("cache", f"{variable}: '{folder}' can be written")
        else:
            yield Check(
                name="cache",
                status="warn",
                found=f"{variable}: '{folder}' cannot be written",
                remedy="compiled code is not kept, or not made at all",
                command=f"export {variable}=/tmp/{folder.name}",
            )


def cache_folders(environ: Mapping[str, str] | None = None, home: Path | None = None) -> dict[str, Path]:
    """By the variable that changes it; defaults as in triton.knobs and torch._inductor.runtime.cache_dir_utils."""
    surroundings = os.environ if environ is None else environ
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user that is nowhere registered, as in containers
        user = str(os.getuid())
    base = Path(surroundings.get("TRITON_HOME") or home or Path.home())
    return {
        "TRITON_CACHE_DIR": Path(surroundings.get("TRITON_CACHE_DIR") or base / ".triton" / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": Path(
            surroundings.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir()) / f"torchinductor_{user}"
        ),
    }
