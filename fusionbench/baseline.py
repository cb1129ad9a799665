"""Baselines: a run kept in a small file of one line per job, which git shows a change of and people review."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from . import facts, store
from .disk import explained, opened, refuse_newer
from .errors import DamagedError, FusionbenchError, NothingError, StoreError, printable
from .facts import Facts
from .record import FAILED, Cache, Clock, Environment, Natural, Positive, Record, Status, Timing, latest
from .spec import Budget, Name
from .stats import median

VERSION = 1  # of the file; a reader refuses a newer one
MAX_BYTES = 64 << 20  # a job takes 700 bytes
FOLDER = Path("results/baseline")
ANEW = 'fusionbench baseline update --reason "…"'

Text = Annotated[str, Meta(max_length=1000)]
Key = Annotated[str, Meta(min_length=1, max_length=1000)]
Samples = Annotated[tuple[Natural, ...], Meta(max_length=10_000)]


class Pace(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A timing in few bytes: of each round its median sample, on the core where that is known, and its control."""

    timer: Clock
    cache: Cache
    threads: Positive = 1
    loops: Positive = 1
    samples_ns: Annotated[Samples, Meta(min_length=1)]
    control_ns: Samples = ()

    @property
    def timing(self) -> Timing:
        """A timing of one sample per round, for ``compare``."""
        return Timing(
            timer=self.timer,
            cache=self.cache,
            threads=self.threads,
            loops=self.loops,
            samples_ns=self.samples_ns,
            rounds=(1,) * len(self.samples_ns),
            control_ns=self.control_ns,
            stop="budget",
            first_call_ns=0,
            warmup_calls=0,
        )


class Kept(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a baseline knows of one job."""

    key: Key
    status: Status = "ok"
    facts: Facts = Facts()
    time: Pace | None = None
    source: Text = ""


class Baseline(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run to judge later ones by, why it is the one to judge by, and what it takes to measure it again."""

    kind: Literal["fusionbench-baseline"] = "fusionbench-baseline"
    v: int = VERSION
    suite_name: Name
    suite_hash: Text
    reason: Annotated[Text, Meta(min_length=1)]
    created_at: Text  # UTC, ISO 8601
    measured_at: Text
    command: tuple[str, ...] = ()
    commit: Text = ""  # of the code that was measured
    dirty: bool = False
    plugins: tuple[str, ...] = ()  # names of the files; nobody is trusted to name code to run
    only: dict[str, list[str]] = {}
    limit: int | None = None
    budget: Budget = Budget()
    environment: Environment
    jobs: tuple[Kept, ...] = ()
    checksum: str = ""  # of the lines before it, as they are in the file

    def __post_init__(self) -> None:
        keys = [job.key for job in self.jobs]
        if keys != sorted(set(keys)):
            raise ValueError("its jobs are not in the order of their keys, each once")


def of(run: store.Run, reason: str, machine: str | None = None) -> Baseline:
    """The baseline that a whole run without failures makes; ``machine`` is the name to keep it under.

    Raises FusionbenchError where there is no reason, or the run is not fit to be judged by.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise FusionbenchError(f"a baseline needs a reason, for whoever reviews it: {ANEW}")
    manifest = _manifest(run)
    records = latest(run.records)
    _refuse_failures(run, records.values())
    environment = _environment(run, records.values())
    return Baseline(
        suite_name=manifest.suite_name,
        suite_hash=manifest.suite_hash,
        reason=reason,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        measured_at=manifest.created_at,
        command=("fusionbench", *manifest.command[1:]),  # where it lies on one machine is nobody's business
        commit=manifest.commit or ("" if manifest.plugins else environment.commit),  # that is fusionbench's own
        dirty=manifest.dirty if manifest.commit else environment.dirty,
        plugins=tuple(Path(plugin).name for plugin in manifest.plugins),
        only=manifest.only,
        limit=manifest.limit,
        budget=manifest.budget,
        environment=replace(environment, machine=machine or environment.machine),
        jobs=tuple(kept(record, key) for key, record in sorted(records.items())),
    )


def kept(record: Record, key: str) -> Kept:
    """What is kept of a record; of a skip only that it is one."""
    if record.status != "ok":
        return Kept(key=key, status=record.status)
    pace = pace_of(record.time) if record.time else None
    return Kept(key=key, facts=facts.of(record), time=pace, source=record.source)


def pace_of(timing: Timing) -> Pace:
    """A timing's rounds in a number each."""
    calls, start, middles = timing.calls_ns, 0, []
    for size in timing.round_sizes:
        middles.append(round(median(sorted(calls[start : start + size])) * timing.loops))
        start += size
    return Pace(
        timer=timing.timer,
        cache=timing.cache,
        threads=timing.threads,
        loops=timing.loops,
        samples_ns=tuple(middles),
        control_ns=timing.control_ns,
    )


def place(folder: Path, machine: str, suite: str) -> Path:
    """Where a machine's baseline of a suite is, in ``folder``; a name that is no safe folder name becomes one."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", machine)[:64].lstrip(".-") or "unnamed"
    if safe != machine:  # two names that look alike now are still two machines
        safe += "-" + hashlib.blake2b(machine.encode(errors="replace"), digest_size=3).hexdigest()
    return folder / safe / f"{suite}.json"


def encode(baseline: Baseline) -> bytes:
    """The file: a line for each fact about the run, a line for each job. Raises StoreError for what would not read
    back."""
    try:
        body = _body(baseline)
        data = body + b'\n"checksum":"%s"}\n' % _checksum(body)
        msgspec.json.decode(data, type=Baseline)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise StoreError(f"the baseline cannot be stored: {printable(str(error))}") from error
    if len(data) > MAX_BYTES:
        raise StoreError(f"the baseline is {len(data):,} bytes, more than the limit of {MAX_BYTES:,}")
    return data


def load(path: Path) -> Baseline:
    """What ``encode`` made. Raises StoreError, NewerSchemaError or DamagedError where it is anything else, and
    NothingError where there is no job in it."""
    shown = printable(str(path))
    if path.is_dir():
        raise StoreError(f"'{shown}' is a folder, no baseline; give its file ({FOLDER}/<machine>/<suite>.json)")
    if not path.exists():
        raise StoreError(f"no baseline at '{shown}'; write one with: {ANEW}")
    with explained(f"cannot read baseline '{shown}'"), opened(path, MAX_BYTES) as file:
        data = file.read()
    if not data.strip():
        raise NothingError(f"baseline '{shown}' is empty; restore it, or write it anew with: {ANEW}")
    if not claims_to_be_one(data):
        raise StoreError(f"'{shown}' is no baseline; give what 'fusionbench baseline update' wrote")
    refuse_newer(data, VERSION, shown)
    found = _decoded(data, f"baseline '{shown}' is damaged")
    if all(job.status != "ok" for job in found.jobs):
        raise NothingError(f"baseline '{shown}' holds no job that was measured; write it anew with: {ANEW}")
    return found


def claims_to_be_one(data: bytes) -> bool:
    """Whether a file is meant to be a baseline, whole or not."""
    return re.search(rb'"kind"\s*:\s*"fusionbench-baseline"', data[:4096]) is not None


def _manifest(run: store.Run) -> store.Manifest:
    shown = printable(str(run.path))
    if run.damage:
        raise DamagedError(f"run '{shown}' is damaged ({run.damage[0]}); a baseline needs a whole one")
    if run.manifest is None:
        raise FusionbenchError(f"'{shown}' does not say which suite it is of; make a baseline of its run folder")
    if not store.complete(run):
        raise FusionbenchError(f"run '{shown}' is not complete; finish it with: fusionbench resume {shown}")
    return run.manifest


def _refuse_failures(run: store.Run, records: Iterable[Record]) -> None:
    failed = [record for record in records if record.status in FAILED]
    if failed:
        first = f"{failed[0].job.key}: {failed[0].status}, {printable(failed[0].reason)}"
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise FusionbenchError(f"run '{printable(str(run.path))}' has failures and is no baseline ({first}{more})")


def _environment(run: store.Run, records: Iterable[Record]) -> Environment:
    """The one that all records were made in."""
    ids = {record.environment for record in records if record.status == "ok"}
    if not ids:
        raise NothingError(f"run '{printable(str(run.path))}' measured nothing: every job was skipped")
    if len(ids) > 1:
        raise FusionbenchError(
            f"run '{printable(str(run.path))}' was measured in {len(ids)} environments; measure it in one, with --fresh"
        )
    if (found := run.environments.get(ids.pop())) is None:
        raise FusionbenchError(f"run '{printable(str(run.path))}' does not say where it was measured; measure it anew")
    return found


def _body(baseline: Baseline) -> bytes:
    write = msgspec.json.encode
    header = [
        b'"%s":%s' % (name.encode(), write(getattr(baseline, name)))
        for name in baseline.__struct_fields__
        if name not in ("kind", "v", "jobs", "checksum")
    ]
    jobs = b",\n".join(map(write, baseline.jobs))
    first = b'{"kind":%s,"v":%d' % (write(baseline.kind), baseline.v)
    return b",\n".join([first, *header]) + b',\n"jobs":[\n' + jobs + b"\n],"


def _checksum(body: bytes) -> bytes:
    """Of the lines, whatever ends them: git may change that on the way."""
    return hashlib.blake2b(body.replace(b"\r\n", b"\n"), digest_size=8).hexdigest().encode()


def _decoded(data: bytes, damaged: str) -> Baseline:
    end = re.search(rb'\r?\n"checksum":"([0-9a-f]{16})"\}\s*\Z', data)
    if re.search(rb"^(<{7}|={7}|>{7})( |\r?$)", data, re.MULTILINE):
        why = "it holds the marks of a merge conflict"
    elif end is None:
        why = "its end is missing"
    elif end[1] != _checksum(data[: end.start()]):
        why = "its checksum does not match (edited by hand?)"
    else:
        try:
            return msgspec.json.decode(data, type=Baseline)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            why = printable(str(error))
    raise DamagedError(f"{damaged}: {why}; restore it, or write it anew with: {ANEW}")
