"""Runs behind URLs as folders here: fetched when they are read, and no more of them than is needed.

Names and sizes come from the store, and are not trusted: what is fetched are the files that a run has, each below the
limit that it has here, under names that lead nowhere else.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from . import ledger, remote, store
from .disk import explained
from .errors import StoreError, printable
from .remote import Entry, Place, Url
from .shard import MAX_SHARD
from .store import MANIFEST, MAX_MANIFEST, MAX_SUITE, SHARDS, SUITE

PAPERS = {SUITE: MAX_SUITE, MANIFEST: MAX_MANIFEST, ledger.FILE: ledger.MAX_BYTES}
OBJECTS = {".jsonl": MAX_SHARD, ".json": 64 << 20, ".toml": MAX_SUITE}  # single files that a verb may be given
SEALED = ".parquet"  # never fetched whole


def read(run: Place) -> store.Run:
    """As ``store.read``, of a URL, too; raises StoreError. Objects that were not fetched are told as damage."""
    if not isinstance(run, Url):
        return store.read(run)
    path, left = _fetched(run)
    found = store.read(path)
    damage = [*map(remote.told, found.damage), *left]
    return replace(found, damage=damage, torn=[remote.told(text) for text in found.torn])


def here(place: Place) -> Path:
    """A path as it is; of a URL the run folder or the single file behind it, fetched. Raises StoreError."""
    return _fetched(place)[0] if isinstance(place, Url) else place


def newest(results: Place) -> Place | None:
    """The newest run in a folder of runs; of those behind a URL only the manifests are fetched."""
    if not isinstance(results, Url):
        return next(iter(store.runs(results)), None)
    folder = own_folder(results) / "runs"
    fetch_manifests(results, folder)
    found = next(iter(store.runs(folder)), None)
    return None if found is None else results / found.name


def fetch_manifests(results: Url, folder: Path) -> list[str]:
    """Put the manifest of every run in ``results`` into a folder of its own in ``folder``, beside what is there;
    returns the names of the runs. Raises StoreError."""
    names = [each.name for each in remote.entries(results) or [] if each.is_folder and remote.is_safe(each.name)]
    found = remote.read_all([results / name / MANIFEST for name in names], MAX_MANIFEST)
    runs = []
    with explained(f"cannot write to '{printable(str(folder))}'"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in zip(names, found, strict=True):
            if data is not None:
                runs.append(name)
                path = folder / name / MANIFEST
                path.parent.mkdir(exist_ok=True)
                if not path.exists():
                    path.write_bytes(data)
    return runs


def fetch_run(run: Url, folder: Path) -> list[str]:
    """Put into ``folder`` what the run has more than that: missing files, and shards that have grown. Returns what was
    left out and why. Raises StoreError, also where there is no run at all."""
    top = {entry.name: entry for entry in remote.entries(run) or ()}
    if MANIFEST not in top and SHARDS not in top:
        shown = printable(str(run))
        raise StoreError(f"no run at '{shown}'; give a run folder, a shard (.jsonl) or a sealed run (.parquet)")
    left = []
    with explained(f"cannot write to '{printable(str(folder))}'"):
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        for name in PAPERS.keys() & top.keys():
            if not (folder / name).exists():
                remote.download(run / name, folder / name, PAPERS[name])
        for entry in remote.entries(run / SHARDS) or () if SHARDS in top else ():
            if reason := _refused(entry):
                left.append(f"{printable(entry.name)}: not fetched, {reason}")
            elif _size(folder / SHARDS / entry.name) < entry.size:  # shards only grow
                remote.download(run / SHARDS / entry.name, folder / SHARDS / entry.name, MAX_SHARD)
    return left


@contextmanager
def landing(place: Place, *, fetch: bool = False) -> Iterator[Path]:
    """Where to write a file: what the block has put there goes to ``place`` at its end; with ``fetch`` what is there
    now is found there. Raises StoreError."""
    if not isinstance(place, Url):
        yield place
        return
    path = own_folder(place) / "written" / place.name
    with explained("cannot write to the folder for temporary files"):
        path.parent.mkdir(exist_ok=True)
    remote.stands_for(path, place)
    if fetch and any(each.name == place.name for each in remote.entries(place.parent) or ()):
        remote.download(place, path, OBJECTS.get(place.suffix, MAX_SHARD))
    yield path
    remote.upload(path, place)


def own_folder(url: Url) -> Path:
    """A folder for what is fetched from a URL, until this process ends."""
    path = _scratch() / hashlib.blake2b(url.text.encode(), digest_size=8).hexdigest()
    path.mkdir(exist_ok=True)
    return path


def _refused(entry: Entry) -> str:
    if entry.is_folder or not entry.name.endswith(".jsonl"):
        return "it is no shard"
    if not remote.is_safe(entry.name):
        return "no shard has such a name"
    return f"it has more than {MAX_SHARD:,} bytes" if entry.size > MAX_SHARD else ""


def _size(path: Path) -> int:
    """-1 where there is no such file."""
    return path.stat().st_size if path.exists() else -1


@functools.cache
def _fetched(url: Url) -> tuple[Path, list[str]]:
    """What is behind a URL here, and what of it was left out; once in the life of this process."""
    path = own_folder(url) / (url.name if remote.is_safe(url.name) else f"run{url.suffix}")
    remote.stands_for(path, url)
    if url.suffix in OBJECTS:
        remote.download(url, path, OBJECTS[url.suffix])
        return path, []
    if url.suffix == SEALED:
        raise StoreError(f"'{printable(str(url))}' is a sealed run, which has no place here; give a run folder")
    return path, fetch_run(url, path)


@functools.cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fusionbench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
