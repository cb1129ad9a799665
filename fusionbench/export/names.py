"""Names that survive a trip through other tools: what a job is called there, one name for each key."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

from ..errors import printable
from ..store import Run

LIMIT = 1024  # bytes, Bencher's; a key from a suite has 880 at most


def node_id(suite: str, key: str) -> str:
    """What pytest calls a job when it collects the suite in the file ``suite``."""
    return f"{suite}::{key}"


def suite_path(run: Run) -> str:
    """The suite's file as it was named when the run began; of one that was given by name, its place in a checkout."""
    name = suite_name(run)
    for argument in run.manifest.command if run.manifest else ():
        path = PurePosixPath(argument)
        if path.suffix == ".toml" and path.stem == name:
            return plain(str(_from_here(path)))
    return f"suites/{name}.toml"


def suite_name(run: Run) -> str:
    """The suite that was measured; of a file without a manifest, as a sealed run is, the file's own name."""
    return plain(run.manifest.suite_name if run.manifest else run.path.stem, 64)


def _from_here(path: PurePosixPath) -> PurePosixPath:
    """The path as pytest has it in this folder, without the folders above."""
    here = PurePosixPath(Path.cwd())
    if path.is_relative_to(here):
        return path.relative_to(here)
    return PurePosixPath(path.name) if path.is_absolute() else path


def plain(text: str, limit: int = LIMIT) -> str:
    """``text`` where it is printable and has at most ``limit`` bytes, as every key from a suite is; else what is left
    of it and ``~`` with a hash of it, so that no two names become one."""
    if text.isprintable() and len(text.encode()) <= limit:
        return text
    mark = "~" + hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return printable(text, limit).encode()[: limit - len(mark)].decode(errors="ignore") + mark


def encoded(text: str, keep: str = "") -> str:
    """``text`` in letters, digits, ``_``, ``.`` and those to ``keep``; other characters, and a dot in front, are
    written as in a URL with ``~`` for ``%``: ``late:vote`` as ``late~3avote``. No two texts become one."""
    return re.sub(rf"^\.|[^A-Za-z0-9_.{re.escape(keep)}]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"~{byte:02x}" for byte in found[0].encode(errors="surrogatepass"))
