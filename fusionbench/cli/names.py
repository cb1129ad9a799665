"""The names that a Tab offers: found without torch, and kept as JSON so that the next Tab need not look for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..places import cache_folder

FILE = "names.json"
VERSION = 1
MAX_BYTES = 1_000_000
KINDS = ("strategies", "backends", "presets", "timers", "dtypes", "modes", "gates", "claims")

Axes = dict[str, list[str]]  # the values of each axis of a suite


@dataclass(frozen=True)
class Names:
    """Names by kind, and the axes of every shipped suite with their values; ``of`` are the files they were found in."""

    of: str
    kinds: dict[str, list[str]]
    suites: dict[str, Axes]


def known() -> Names:
    """What is kept, found anew where a file of the package has changed since."""
    kept, now = _load(), _fingerprint()
    if kept is not None and kept.of == now:
        return kept
    found = _found(now, kept.kinds if kept else {})
    _save(found)
    return found


def refresh(**kinds: Iterable[str]) -> None:
    """Keep what is there now; ``kinds`` are names that only an import of torch could find out."""
    kept = _load()
    _save(_found(_fingerprint(), {**(kept.kinds if kept else {}), **kinds}, certain=kinds))


def axes_of(suite: str | None) -> Axes:
    """The axes of a suite by name or path with their values; those of all shipped suites where none is named."""
    suites = known().suites
    if suite is None:
        merged: Axes = {}
        for axes in suites.values():
            for axis, values in axes.items():
                merged[axis] = list(dict.fromkeys([*merged.get(axis, []), *values]))
        return merged
    if suite in suites and not Path(suite).is_file():
        return suites[suite]
    from .. import suite as files

    return files.offered(files.read(suite))


def _found(of: str, before: Mapping[str, Iterable[str]], certain: Iterable[str] = ()) -> Names:
    """Everything that the package's data say. Strategies and backends are code: until `list` has asked the registry for
    them, they are those known before and those that suites and presets name."""
    from .. import presets, suite
    from ..claims.table import CLAIMS
    from ..delta import GATES
    from ..spec import DTYPES, MODES, TIMERS

    suites = {name: suite.offered(suite.read(str(path))) for name, path in suite.shipped().items()}
    parts = dict(presets.parts(list(presets.presets())))
    labels = [*presets.presets(), *parts, *presets.encoders()]
    kinds: dict[str, Iterable[str]] = {"presets": dict.fromkeys(labels), "claims": CLAIMS, "gates": GATES}
    kinds |= {"timers": TIMERS, "dtypes": DTYPES, "modes": MODES}
    for kind in ("strategies", "backends"):
        named = {name for axes in suites.values() for name in axes.get(kind, ())}
        named |= {part.strategy for part in parts.values() if part.strategy and kind == "strategies"}
        kinds[kind] = before[kind] if kind in certain else sorted(named.union(before.get(kind, ())))
    return Names(of, {kind: list(kinds[kind]) for kind in KINDS}, suites)


def _fingerprint() -> str:
    """The names, sizes and times of the files that names come from; 40 of them take 1 ms."""
    import hashlib

    package = Path(__file__).parents[1]
    shipped = package / "suites" if (package / "suites").is_dir() else package.parent / "suites"  # as suite.folder()
    digest = hashlib.blake2b(__version__.encode(), digest_size=8)
    for folder in (package, package / "strategies", shipped):
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith((".py", ".toml")):
                    facts = entry.stat()
                    digest.update(f"{entry.path}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _load() -> Names | None:
    """What is kept; None where there is nothing, or nothing that can be used."""
    try:
        with (cache_folder() / FILE).open("rb") as file:
            data: Any = json.loads(file.read(MAX_BYTES))
        if data["v"] != VERSION:
            return None
        suites = {str(name): {str(axis): _texts(values) for axis, values in axes.items()}
                  for name, axes in data["suites"].items()}  # fmt: skip
        return Names(str(data["of"]), {kind: _texts(data["kinds"][kind]) for kind in KINDS}, suites)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _texts(values: Any) -> list[str]:
    """Only names that a shell's line can hold."""
    return [text for text in values if isinstance(text, str) and text.isprintable() and " " not in text]


def _save(names: Names) -> None:
    """Keep them; a cache that cannot be written is none."""
    data = {"v": VERSION, "of": names.of, "kinds": names.kinds, "suites": names.suites}
    with suppress(OSError):
        path = cache_folder() / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.name}.{os.getpid()}")  # two Tabs may end in the same moment
        own.write_text(json.dumps(data))
        own.replace(path)
