"""Runs that are measured for an object store, which can neither append nor sync: here, and then there.

    <cache>/staging/<hash of the URL>/<run>/    what is measured goes here first, as into any run folder
    <URL>/<run>/                                and here every half minute, and at the end

The folder here stays the truth: an upload that fails loses nothing, and the next attempt finds it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import mirror, remote, store
from .disk import explained
from .errors import FusionbenchError, StoreError, UnstoredError, printable
from .places import cache_folder
from .remote import Place, Url
from .store import MANIFEST, SHARDS, SUITE

EVERY_S = 30.0  # what a machine that vanishes takes with it
COMPARED = 1 << 20  # bytes of a shard that was there before
SHARE = 0.1  # of the time may be spent on uploads, where one takes long: each sends the whole shard again

Note = Callable[[str], object]


def folder_of(results: Place) -> Path:
    """The folder of runs to measure into: ``results`` itself, or for a URL the one that stages its runs, with their
    manifests. Raises StoreError."""
    if not isinstance(results, Url):
        return results
    folder = _folder(results)
    mirror.fetch_manifests(results, folder)
    return folder


def run_of(run: Place) -> Path:
    """The run folder to go on with; of a URL's what other machines have measured is fetched. Raises StoreError."""
    if not isinstance(run, Url):
        return run
    if not remote.is_safe(run.name):
        raise FusionbenchError(f"'{printable(str(run))}' is no run; give the URL of a run folder")
    folder = _folder(run.parent) / run.name
    if remote.entries(run) is not None or not (folder / MANIFEST).exists():
        mirror.fetch_run(run, folder)
    return folder


def read(run: Path) -> store.Run:
    """As ``store.read``, after what the run has more in its object store was fetched, if it is staged for one."""
    url = remote.url_of(run)
    if url is not None and remote.entries(url) is not None:
        mirror.fetch_run(url, run)
    return store.read(run)


@contextmanager
def uploading(run: Path, note: Note) -> Iterator[None]:
    """Upload a run that is staged while the block measures it, and at its end; other runs are left alone.

    Raises StoreError where not even its suite and manifest can be written, and UnstoredError where the last upload
    fails. What fails in between is told to ``note`` and tried again.
    """
    url = remote.url_of(run)
    if url is None:
        yield
        return
    upload = Upload(run, url)
    upload.turn()
    stop = threading.Event()
    thread = threading.Thread(target=_repeat, args=(upload, stop, note), name="uploads", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        if failed := _finish(upload, thread, stop, note):
            note(failed)
        raise
    if failed := _finish(upload, thread, stop, note):
        raise UnstoredError(failed)


def target_of(run: Place) -> Path:
    """Where to write a run that ``send`` uploads: what its URL holds already is there. Raises StoreError."""
    if not isinstance(run, Url):
        return run
    folder = mirror.own_folder(run) / "written" / (run.name if remote.is_safe(run.name) else "run")
    remote.stands_for(folder, run)
    if remote.entries(run):
        mirror.fetch_run(run, folder)
    return folder


def send(run: Path) -> None:
    """Upload a run that is whole, if it stands for one behind a URL. Raises StoreError."""
    url = remote.url_of(run)
    if url is not None:
        Upload(run, url).turn()


class Upload:
    """What of a run folder its object store has already."""

    def __init__(self, run: Path, url: Url) -> None:
        self.run, self.url = run, url
        self._sent: dict[Path, tuple[int, int]] = {}  # size and time of change
        self._theirs = {each.name: each.size for each in remote.entries(url / SHARDS) or ()}
        self._papers = {each.name for each in remote.entries(url) or ()} & {SUITE, MANIFEST}

    def turn(self) -> None:
        """Send what has changed; the manifest last, so that a folder with one is whole. Raises StoreError."""
        for path in self._files():
            status = path.stat()
            state = status.st_size, status.st_mtime_ns
            if self._sent.get(path) != state:
                if not self._is_there(path, status.st_size):
                    remote.upload(path, self.url / path.relative_to(self.run).as_posix())
                self._sent[path] = state

    def _files(self) -> list[Path]:
        with explained(f"cannot read '{printable(str(self.run))}'"):
            shards = sorted((self.run / SHARDS).glob("*.jsonl"))
            beside = sorted(path for path in self.run.iterdir() if path.is_file() and path.name[0] != ".")
        last = [path for path in beside if path.name == MANIFEST]
        others = [path for path in beside if path.name != MANIFEST and path.suffix != ".tmp"]
        return [path for path in (*shards, *others, *last) if not path.is_symlink()]

    def _is_there(self, path: Path, size: int) -> bool:
        """Whether the store has all of the file; raises StoreError where it has another one of this name.

        Of a shard of another machine, which goes on there, it may have more than was fetched.
        """
        if path.parent == self.run:
            return path.name in self._papers
        theirs = self._theirs.get(path.name)
        if theirs is None:  # or sent by this object
            return False
        url = self.url / SHARDS / path.name
        if not _begin_alike(path, url, min(size, theirs)):
            raise StoreError(f"'{printable(str(url))}' is another shard of this name; nothing is overwritten")
        if theirs < size:
            del self._theirs[path.name]
        return theirs >= size


def _begin_alike(path: Path, url: Url, size: int) -> bool:
    """Whether both have the same in the first and in the last megabyte of as many bytes as the shorter has."""
    with path.open("rb") as here, remote.opened(url) as there:
        for at in sorted({0, max(0, size - COMPARED)}):
            here.seek(at)
            there.seek(at)
            if here.read(min(COMPARED, size)) != there.read(min(COMPARED, size)):
                return False
    return True


def _repeat(upload: Upload, stop: threading.Event, note: Note) -> None:
    """Upload every half minute until ``stop``; a failure is told once, until the next upload that succeeds."""
    pause, failed = EVERY_S, False
    while not stop.wait(pause):
        begun = time.monotonic()
        try:
            upload.turn()
        except (StoreError, OSError) as error:
            if not failed:
                note(f"upload failed and will be tried again, nothing is lost: {error}")
            failed = True
        else:
            if failed:
                note(f"uploaded again to '{upload.url}'")
            failed = False
        pause = max(EVERY_S, (time.monotonic() - begun) / SHARE)


def _finish(upload: Upload, thread: threading.Thread, stop: threading.Event, note: Note) -> str:
    """The last upload; what to say where it fails: from then on the run is shown as the folder that it is here."""
    again = f"everything is in '{upload.run}', and goes up with: fusionbench resume {upload.url}"
    try:
        stop.set()
        thread.join()
        upload.turn()
    except (StoreError, OSError) as error:
        remote.forget(upload.run)
        return f"not all was uploaded: {error}; {again}"
    except KeyboardInterrupt:
        remote.forget(upload.run)
        note(f"interrupted before all was uploaded; {again}")
        raise
    return ""


def _folder(results: Url) -> Path:
    with explained("cannot make a folder for runs on their way to an object store"):
        digest = hashlib.blake2b(results.text.encode(), digest_size=8).hexdigest()
        folder = cache_folder().absolute() / "staging" / digest
        folder.mkdir(parents=True, exist_ok=True)
    remote.stands_for(folder, results)
    return folder
