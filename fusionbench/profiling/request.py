"""What is asked of a profile and what comes back, and where its files go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..errors import FusionbenchError, printable
from ..record import Parts
from ..remote import refuse_url

FOLDER = Path("results/profiles")


class Request(Struct, frozen=True, kw_only=True):
    """What to profile, and where the files go."""

    suite: str
    only: dict[str, list[str]] = {}
    plugins: tuple[str, ...] = ()
    job: str | None = None
    calls: int = 20
    shapes: bool = False
    output: str | None = None
    proton: str | None = None
    meter: Literal["torch", "proton"] = "torch"


class Row(Struct, frozen=True, kw_only=True):
    """One op or kernel over all calls: its own time without that of the ops it called."""

    name: str
    place: Literal["host", "device"]
    calls: int
    self_ns: int
    memory_bytes: int = 0  # allocated less freed, by itself
    shapes: str = ""


class Profile(Struct, frozen=True, kw_only=True):
    """Where the time of one job went. ``plain_ns`` and ``profiled_ns`` are per call, without and with the profiler."""

    job: str
    device: str
    calls: int
    plain_ns: int
    profiled_ns: int
    rows: tuple[Row, ...]
    trace: str
    events: int
    proton: str = ""
    parts: Parts | None = None  # of one call, as a sweep records them

    def of(self, place: str) -> list[Row]:
        """The rows of the host or of the device, largest first."""
        return sorted((row for row in self.rows if row.place == place), key=lambda row: -row.self_ns)


class Failure(Struct, frozen=True, kw_only=True):
    """Why there is no profile; ``usage``: what was asked for cannot be had."""

    reason: str
    usage: bool
    keys: tuple[str, ...] = ()  # of the jobs to choose from


class JobFailedError(FusionbenchError):
    """The job was skipped, wrong or failed, so that there is nothing to profile."""

    exit_code = 3


class SeveralJobsError(FusionbenchError):
    """More than one job could be meant; ``keys`` are the first of them."""

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class Answer(Struct, frozen=True, kw_only=True):
    """What the process sends back: one of the two."""

    profile: Profile | None = None
    failure: Failure | None = None


def folder_of(request: Request) -> Path:
    return Path(request.output).parent if request.output else FOLDER


def unfinished(folder: Path, process: int) -> Path:
    """The trace while it is written, which only that process and its parent know of."""
    return folder / f".{process}.unfinished.json.gz"


def safe_name(key: str) -> str:
    """A job's key as the name of a file, at most 150 characters."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", key).strip("_.")[:150]


def refuse_existing(path: Path) -> None:
    refuse_url(path)
    if path.exists():
        raise FusionbenchError(f"'{printable(str(path))}' is there already; name another file with -o FILE")
