"""The results folder: which runs it holds and what each of them set out to do and measured.

    results/runs/<utc>-<suite>-<8 hex>/     never overwritten
        suite.toml                          the suite as it was read
        manifest.json                       written last: a folder that has one is whole
        shards/<host>-<pid>-<n>.jsonl       one writer each; the format is in shard.py

A writer never touches another writer's shard, so a run is resumed by opening a new one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from . import __version__
from .collector import paused
from .disk import NewerSchemaError, explained, opened, reason, refuse_newer, sync_folder, write_atomically
from .errors import DamagedError, StoreError, printable
from .record import FAILED, Environment, Record, Roofline
from .rounds import done
from .shard import Contents, Identity, Item, ShardWriter, read_shard, shard_number
from .slices import Slices
from .spec import Budget, Name, Natural

VERSION = 3  # of the manifest; a reader refuses a newer one
MAX_MANIFEST = MAX_SUITE = 1 << 20
MANIFEST, SUITE, SHARDS = "manifest.json", "suite.toml", "shards"
FIRST_TIMERS = {"event": "cold", "graph": "graph"}  # of version 1, by the names of today

RunId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")]


class Manifest(Struct, frozen=True, kw_only=True):
    """What a run set out to do; ``only``, ``limit`` and ``slices`` are how its suite was narrowed."""

    v: int = VERSION  # that it was written by
    id: RunId
    suite_name: Name
    suite_hash: str
    created_at: str  # UTC, ISO 8601
    command: tuple[str, ...] = ()
    only: dict[str, list[str]] = {}
    limit: int | None = None
    slices: Slices | None = None  # None: all of it
    budget: Budget = Budget()
    plugins: tuple[str, ...] = ()  # paths as the user gave them
    order_seed: int = 0  # of the order in which jobs are visited
    planned: int | None = None  # jobs in the plan, skips included; None where nobody counted
    commit: str = ""  # of the code that is measured: of the plugins' repository, else of fusionbench's
    dirty: bool = False
    number: Natural = 0  # above those of the runs that were in its folder when it began: their order needs no clock
    fusionbench: str = ""


@dataclass(frozen=True)
class Run:
    """What could be read of a run, or of a lone shard; every text in ``torn`` and ``damage`` is one line.

    Of records with the same identity the last valid one counts (by shard number, then line); it keeps
    the place of the first.
    """

    path: Path
    manifest: Manifest | None
    records: list[Record]
    environments: dict[str, Environment]
    torn: list[str]  # writes that never ended; their jobs are simply not done
    damage: list[str]  # anything else: something was there and is lost
    duplicates: int
    rooflines: list[Roofline] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return self.damage + self.torn

    @property
    def damaged(self) -> bool:
        return bool(self.damage)


def new_manifest(
    *,
    suite_name: str,
    suite_hash: str,
    command: Sequence[str] = (),
    only: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    slices: Slices | None = None,
    budget: Budget | None = None,
    plugins: Sequence[str] = (),
    order_seed: int = 0,
    planned: int | None = None,
    number: int = 0,
    commit: tuple[str, bool] = ("", False),
) -> Manifest:
    """The manifest of a run that starts now, under a fresh id."""
    now = datetime.now(UTC)
    suite = re.sub(r"[^A-Za-z0-9_.-]", "_", suite_name)
    return Manifest(
        id=f"{now:%Y%m%dT%H%M%SZ}-{suite}-{secrets.token_hex(4)}",
        suite_name=suite_name,
        suite_hash=suite_hash,
        created_at=now.isoformat(timespec="microseconds"),
        command=tuple(map(_encodable, command)),
        only={key: list(values) for key, values in (only or {}).items()},
        limit=limit,
        slices=slices,
        budget=budget or Budget(),
        plugins=tuple(map(_encodable, plugins)),
        order_seed=order_seed,
        planned=planned,
        number=number,
        commit=commit[0],
        dirty=commit[1],
        fusionbench=__version__,
    )


def create(results: Path, manifest: Manifest, suite_text: str) -> Path:
    """Make the folder of a new run in ``results``, the folder of runs; raises StoreError where that cannot be done."""
    run, data = results / manifest.id, _encoded(manifest)
    with explained(f"cannot create run '{printable(str(run))}'"):
        if results.exists() and not results.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        run.parent.mkdir(parents=True, exist_ok=True)
        run.mkdir()
        (run / SHARDS).mkdir()
        write_atomically(run / SUITE, suite_text.encode())
        write_atomically(run / MANIFEST, data)
        sync_folder(run.parent)
    return run


def write(run: Path, manifest: Manifest, suite_text: str, environment: Environment, items: Iterable[Item]) -> None:
    """Make the folder ``run`` with ``environment`` and ``items`` in one shard: there is all of it or nothing. Raises
    StoreError."""
    data = _encoded(manifest)
    with explained(f"cannot write run '{printable(str(run))}'"):
        run.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{run.name[:40]}-", dir=run.parent))
        try:
            (unfinished / SHARDS).mkdir()
            with ShardWriter(unfinished / SHARDS, environment) as shard:
                shard.append_all(items)
            write_atomically(unfinished / SUITE, suite_text.encode())
            write_atomically(unfinished / MANIFEST, data)
            unfinished.rename(run)
            sync_folder(run.parent)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def _encoded(manifest: Manifest) -> bytes:
    try:
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        msgspec.json.decode(data, type=Manifest)  # what would not read back is not written
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise StoreError(f"the manifest of run '{printable(manifest.id)}' cannot be stored: {error}") from error
    return data


class Writer(ShardWriter):
    """Adds records to a run, in a shard of its own; see ShardWriter."""

    def __init__(self, run: Path, environment: Environment) -> None:
        _check_is_run(run)
        self.run = run
        self.papers: dict[str, bytes] = {}  # kept for ``rescue``: by then the folder may be gone
        for name in (SUITE, MANIFEST):
            with suppress(OSError), opened(run / name, MAX_MANIFEST) as file:
                self.papers[name] = file.read(MAX_MANIFEST)
        super().__init__(run / SHARDS, environment)


def rescue(writer: Writer, results: Path | None = None) -> Path:
    """A new run in ``results`` (None: a folder for temporary files) with all that ``writer`` stored or failed to store.

    For the case that the disk is full or the run's folder was removed: what has been stored is still there as long as
    the writer is open. The run has the id and the papers of the old one, so that it is shown and resumed as that was.
    Raises StoreError.
    """
    results = results or Path(tempfile.gettempdir())
    with explained(f"cannot save to '{printable(str(results))}'"):
        run = Path(tempfile.mkdtemp(prefix="fusionbench-", dir=results)) / writer.run.name
        (run / SHARDS).mkdir(parents=True)
        with ShardWriter(run / SHARDS, writer.environment) as copy:
            copy.append_all(writer.stored())
            copy.append_all(writer.unsaved)
        for name, data in writer.papers.items():
            write_atomically(run / name, data)
    return run


def read(path: Path) -> Run:
    """Everything that can be read of a run folder or of a single shard.

    Torn and damaged lines are skipped and told in the Run. Raises StoreError where there is no run at all, and
    NewerSchemaError rather than judge a part of what a newer fusionbench wrote.
    """
    shown = printable(str(path))
    with explained(f"cannot read '{shown}'"), paused():
        if path.is_dir():
            return _read_folder(path)
        if not path.exists():
            raise StoreError(f"no run at '{shown}'; give a run folder or a .jsonl shard")
        contents = Contents()
        for item, *_ in read_shard(path.resolve(), contents):
            contents.add(item)
        return _run(path, None, contents)


def read_manifest(run: Path) -> Manifest:
    """The manifest alone; raises StoreError when it is missing or damaged, NewerSchemaError when it is newer."""
    path = run / MANIFEST
    shown = printable(str(path))
    with explained(f"cannot read '{shown}'"), opened(path, MAX_MANIFEST) as file:
        data = file.read(MAX_MANIFEST)
    refuse_newer(data, VERSION, shown)
    try:
        return msgspec.convert(_upgraded(msgspec.json.decode(data)), Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise DamagedError(f"manifest '{shown}' is damaged: {printable(str(error))}; restore the file") from error


def _upgraded(manifest: Any) -> Any:
    """A manifest of version 1 in today's words: it had one timer, and measured every job in one round."""
    match manifest:
        case {"v": 1, "budget": {"timer": "event" | "graph" as timer, **budget}}:
            return manifest | {"budget": budget | {"timers": [FIRST_TIMERS[timer]], "rounds": 1}}
        case {"v": 1, "budget": {**budget}} if "timer" not in budget:  # as the first ones were
            return manifest | {"budget": budget | {"timers": [FIRST_TIMERS["event"]], "rounds": 1}}
    return manifest


def read_suite(run: Path) -> str:
    """The suite as it was read when the run began, in today's words; raises StoreError."""
    path = run / SUITE
    shown = printable(str(path))
    with explained(f"cannot read '{shown}'"), opened(path, MAX_SUITE) as file:
        data = file.read(MAX_SUITE)
    try:
        text = data.decode()
    except UnicodeError as error:
        raise DamagedError(f"suite '{shown}' is damaged: {error}; restore the file") from error
    if read_manifest(run).v > 1:
        return text
    return re.sub(r'(?m)^timer *= *"(event|graph)"', lambda line: f'timers = ["{FIRST_TIMERS[line[1]]}"]', text)


def finished(run: Run, budget: Budget, *, retry_failed: bool = False) -> set[Identity]:
    """The identities that a run resumed under ``budget`` need not measure again."""
    kept = (record for record in run.records if not (retry_failed and record.status in FAILED))
    return {record.identity for record in kept if done(record, budget)}


def begun(run: Run, budget: Budget) -> dict[Identity, Record]:
    """The records that lack rounds under ``budget``."""
    return {record.identity: record for record in run.records if not done(record, budget)}


def complete(run: Run, *, retry_failed: bool = False) -> bool:
    """Whether every planned job has all its rounds, of whatever source and environment; False where nobody counted."""
    if run.manifest is None or run.manifest.planned is None:
        return False
    keys = {key for key, _, _ in finished(run, run.manifest.budget, retry_failed=retry_failed)}
    return len(keys) >= run.manifest.planned


def runs(results: Path, *, ignored: Callable[[str], object] = lambda reason: None) -> dict[Path, Manifest]:
    """The run folders in ``results``, newest first; ``ignored`` is told why a folder is left out."""
    found: dict[Path, Manifest] = {}
    with explained(f"cannot list '{printable(str(results))}'"), suppress(FileNotFoundError):
        for path in sorted(results.iterdir()):
            if path.is_dir() and not path.is_symlink():
                try:
                    found[path] = read_manifest(path)
                except StoreError as error:
                    ignored(str(error))
    age = {path: (manifest.number, manifest.created_at, path.name) for path, manifest in found.items()}
    return {path: found[path] for path in sorted(found, key=age.__getitem__, reverse=True)}


def next_number(results: Path) -> int:
    """The number of a run that begins now: a clock that was set back does not make it older than the others."""
    return min(1 + max((manifest.number for manifest in runs(results).values()), default=0), 2**31 - 1)


def latest(
    results: Path,
    suite_hash: str,
    only: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    *,
    slices: Slices | None = None,
    budget: Budget | None = None,
    retry_failed: bool = False,
    read: Callable[[Path], Run] = read,
    ignored: Callable[[str], object] = lambda reason: None,
) -> Path | None:
    """The newest run of the same suite, narrowing, limit, slices (and budget, where given), if it is incomplete.

    None where there is no such run or where the newest one is complete: then a new run begins. A run that cannot
    be read is left out and ``ignored`` is told why; a damaged one is resumed, since what it lost is measured again.
    """
    for path, manifest in runs(results, ignored=ignored).items():
        same = (manifest.suite_hash, manifest.limit, manifest.slices) == (suite_hash, limit, slices)
        if not same or _sets(manifest.only) != _sets(only or {}) or budget not in (None, manifest.budget):
            continue
        try:
            return None if complete(read(path), retry_failed=retry_failed) else path
        except StoreError as error:
            ignored(str(error))
    return None


def items(run: Path, contents: Contents) -> Iterator[tuple[Path, Item, int, int]]:
    """What the shards of a run hold, each with its shard and the place and length of its line, in their order."""
    _check_is_run(run)
    for shard in _shards(run, contents):
        try:
            for item, start, length in read_shard(shard, contents):
                yield shard, item, start, length
        except OSError as error:
            contents.damage.append(f"{printable(shard.name)}: cannot be read, {reason(error)}")


def _read_folder(path: Path) -> Run:
    _check_is_run(path)
    contents = Contents()
    try:
        manifest = read_manifest(path)
    except NewerSchemaError:
        raise
    except StoreError as error:
        manifest = None
        contents.damage.append(str(error))
    for _, item, *_ in items(path, contents):
        contents.add(item)
    return _run(path, manifest, contents)


def _check_is_run(path: Path) -> None:
    """Raise StoreError unless ``path`` holds a folder of shards; a link could lead anywhere."""
    if not (path / SHARDS).is_dir() or (path / SHARDS).is_symlink():
        raise StoreError(f"'{printable(str(path))}' is not a run: it has no folder '{SHARDS}'; give a run folder")


def _shards(run: Path, contents: Contents) -> list[Path]:
    """The shards in the order in which they were opened, without the links among them."""
    shards = [path for path in (run / SHARDS).iterdir() if path.suffix == ".jsonl"]
    links = {path for path in shards if path.is_symlink()}
    contents.damage.extend(f"{printable(path.name)}: not read, a symbolic link" for path in sorted(links))
    return sorted(set(shards) - links, key=lambda path: (shard_number(path.name), path.name))


def _run(path: Path, manifest: Manifest | None, contents: Contents) -> Run:
    records = list(contents.records.values())
    for lost in sorted({record.environment for record in records} - {"", *contents.environments}):
        contents.damage.append(f"environment '{printable(lost)}' is named by records, and no shard describes it")
    return Run(
        path=path,
        manifest=manifest,
        records=records,
        environments=contents.environments,
        torn=contents.torn,
        damage=contents.damage,
        duplicates=contents.duplicates,
        rooflines=contents.rooflines,
    )


def _sets(only: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    return {key: set(values) for key, values in only.items()}


def _encodable(text: str) -> str:
    """Text from the command line, where a file name that is not UTF-8 holds lone surrogates."""
    return text.encode(errors="backslashreplace").decode()
