"""Runs of one suite, of its slices or on several machines, put together to one run.

In whatever order, and however often the same run is given: the merged run holds the same records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from . import __version__, store
from .errors import FusionbenchError, NothingError, StoreError, printable
from .record import Environment, Record, Roofline, encode_line
from .rounds import done
from .shard import Identity, Item
from .slices import Slices
from .store import Manifest, Run

AND = ", "  # between the names of machines

# What must agree for runs to be of one sweep, and what to say of it.
SAME: dict[str, Callable[[Manifest], object]] = {
    "suite": lambda m: m.suite_name,
    "text of the suite": lambda m: m.suite_hash,
    "--only": lambda m: {axis: sorted(set(values)) for axis, values in m.only.items()},
    "--limit": lambda m: m.limit,
    "budget": lambda m: m.budget,
}


@dataclass(frozen=True)
class Merged:
    """The run that was written, and what was wrong with its sources; every text in ``problems`` is one line."""

    path: Path
    manifest: Manifest
    problems: list[str]
    damaged: bool

    @property
    def missing(self) -> list[int]:
        """The slices that no source had."""
        slices = self.manifest.slices
        return [] if slices is None else sorted(set(range(1, slices.of + 1)) - set(slices.numbers))


def merge(paths: Sequence[Path], output: Path) -> Merged:
    """Write the run ``output`` from the runs in ``paths``; a run that already holds just this is left as it is.

    Each record keeps the environment it was measured in. Of records of one job, source and environment the finished one
    counts, and of several the one begun last. Raises FusionbenchError for runs of different sweeps, StoreError for a
    folder that is no run, or where ``output`` holds something else.
    """
    runs = [store.read(path) for path in paths]
    manifests = [_manifest(run) for run in runs]
    _check_alike(paths, manifests)
    items = _items(runs, manifests[0])
    if not items or not isinstance(first := items[0], Environment):
        raise NothingError(f"nothing was measured yet in {', '.join(repr(printable(str(path))) for path in paths)}")
    manifest = _joined(manifests, items)
    problems = [f"{printable(run.path.name)}: {problem}" for run in runs for problem in run.problems]
    if output.exists() or output.is_symlink():
        if not _holds(output, items, manifest):
            raise StoreError(f"'{printable(str(output))}' is there and is not this merged run; choose another folder")
    else:
        store.write(output, manifest, store.read_suite(paths[0]), first, items[1:])
    return Merged(output, manifest, problems, any(run.damaged for run in runs))


def _manifest(run: Run) -> Manifest:
    if run.manifest is None:
        told = run.damage[0] if run.damage else "a lone shard or a sealed file"
        raise StoreError(
            f"'{printable(str(run.path))}' cannot be merged without its manifest: {told}; give a run folder"
        )
    return run.manifest


def _check_alike(paths: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    def refuse(index: int, other: int, name: str, what: Callable[[Manifest], object]) -> None:
        values = [printable(str(what(manifests[each])), 60) for each in (index, other)]
        shown, than = (printable(str(paths[each])) for each in (index, other))
        raise FusionbenchError(
            f"'{shown}' is of another sweep than '{than}': its {name} is {values[0]}, not {values[1]}"
        )

    for name, what in SAME.items():
        for index, each in enumerate(manifests):
            if what(each) != what(manifests[0]):
                refuse(index, 0, name, what)
    sliced = [index for index, each in enumerate(manifests) if each.slices]
    for index in sliced:
        if _count(manifests[index]) != _count(manifests[sliced[0]]):
            refuse(index, sliced[0], "number of slices (--shard)", _count)


def _count(manifest: Manifest) -> int | None:
    return manifest.slices.of if manifest.slices else None


def _items(runs: Sequence[Run], manifest: Manifest) -> list[Item]:
    """Environments, rooflines and records, each once, in an order that is theirs and not that of the runs."""
    environments: dict[str, list[Environment]] = {}
    rooflines: dict[bytes, Roofline] = {}
    records: dict[Identity, Record] = {}
    for run in runs:
        for each in run.environments.values():
            environments.setdefault(each.id, []).append(each)
        rooflines |= {encode_line(roofline): roofline for roofline in run.rooflines}
        for record in run.records:
            known = records.get(record.identity)
            if known is None or _rank(record, manifest) > _rank(known, manifest):
                records[record.identity] = record
    return [
        *(_one(environments[key]) for key in sorted(environments)),
        *(rooflines[key] for key in sorted(rooflines)),
        *(records[identity] for identity in sorted(records)),
    ]


def _one(alike: Sequence[Environment]) -> Environment:
    """Environments of one id are machines whose timings may be compared: their names together, and what they share."""
    names = {name for each in alike for name in each.machine.split(AND)}
    commits = {(each.commit, each.dirty) for each in alike}
    commit, dirty = commits.pop() if len(commits) == 1 else ("", any(dirty for _, dirty in commits))
    bare = (replace(each, machine=AND.join(sorted(names)), commit=commit, dirty=dirty) for each in alike)
    return min(bare, key=encode_line)


def _rank(record: Record, manifest: Manifest) -> tuple[bool, str, bytes]:
    return done(record, manifest.budget), record.started_at, encode_line(record)


def _joined(manifests: Sequence[Manifest], items: Iterable[Item]) -> Manifest:
    first = min(manifests, key=lambda each: (each.created_at, each.id))
    slices, planned = _slices(manifests)
    body = hashlib.blake2b(digest_size=4)
    for item in items:
        body.update(encode_line(item) + b"\n")
    commits = {(each.commit, each.dirty) for each in manifests}
    commit, dirty = commits.pop() if len(commits) == 1 else ("", any(dirty for _, dirty in commits))
    return replace(
        first,
        v=store.VERSION,
        id=f"{first.id.rpartition('-')[0]}-{body.hexdigest()}",
        command=(),
        slices=slices,
        plugins=tuple(sorted({plugin for each in manifests for plugin in each.plugins})),
        order_seed=min(each.order_seed for each in manifests),
        planned=planned,
        commit=commit,
        dirty=dirty,
        number=max(each.number for each in manifests),
        fusionbench=__version__,
    )


def _slices(manifests: Sequence[Manifest]) -> tuple[Slices | None, int | None]:
    """The slices of all together, None for the whole sweep; and how many jobs they have, where that follows."""
    whole = [each.planned for each in manifests if each.slices is None]
    if whole:
        return None, max((planned for planned in whole if planned is not None), default=None)
    parts = [(each.slices, each.planned) for each in manifests if each.slices]
    of = parts[0][0].of
    found: set[int] = set()
    total: int | None = 0
    for slices, planned in sorted(parts, key=lambda part: (-len(part[0].numbers), part[0].numbers, part[1] or 0)):
        new = set(slices.numbers) - found
        if new:
            alone = len(new) == len(slices.numbers)  # else some of what was planned is counted already
            total = total + planned if total is not None and planned is not None and alone else None
        found |= new
    return (None if len(found) == of else Slices(of=of, numbers=tuple(sorted(found)))), total


def _holds(path: Path, items: Sequence[Item], manifest: Manifest) -> bool:
    """Whether the run in ``path`` is what would be written."""
    try:
        run = store.read(path)
    except StoreError:
        return False
    known = run.manifest
    return known is not None and known == manifest and not run.damage and _items([run], manifest) == list(items)
