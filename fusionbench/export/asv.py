"""A folder of asv results: ``asv publish`` draws it, ``asv compare`` compares its commits, and what is exported into it
later is added. One file holds what one suite found at one commit in one environment."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..disk import explained, opened
from ..environment import ask_git
from ..errors import FusionbenchError, StoreError, printable
from ..record import Environment, Record
from ..report.files import replacing
from ..store import Run
from .asv_results import COLUMNS, PARAM_NAMES, Benchmark, benchmarks, described, milliseconds, row
from .measured import Exported, newest
from .names import encoded, plain, suite_name

MAX_BYTES = 1 << 26  # of a list of benchmarks
COMMIT = re.compile(r"[0-9a-f]{7,64}")
_MARKUP = str.maketrans(dict.fromkeys("<>&\"'`", "_"))  # asv's pages take texts for HTML

Json = dict[str, Any]


class Commit(Struct, frozen=True, kw_only=True):
    """What asv files results by: the whole hash, when the commit was made, and a repository that has it."""

    hash: str
    ms: int
    repository: Path | None = None  # None: found nowhere, and then the time is that of the measurement


def write(run: Run, folder: Path) -> Exported:
    """Add the run to the folder, which need not exist.

    Raises FusionbenchError where the run does not know its commit, StoreError where the folder holds something else.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in run.records:
        groups[record.environment].append(record)
    filed = {key: run.environments[key] for key in groups if COMMIT.fullmatch(_commit_of(run, key))}
    if groups and not filed:
        raise FusionbenchError(
            f"'{printable(str(run.path))}' does not say which commit it measured, and asv files results by commit; "
            "measure with a git checkout of fusionbench, or export as pytest-benchmark"
        )
    listed = _earlier(folder / "results" / "benchmarks.json")
    notes: list[str] = []
    for key, environment in filed.items():
        commit = _found(environment.commit, max(milliseconds(record.started_at) for record in groups[key]))
        made = benchmarks(newest(groups[key]))
        _write_results(folder / "results", commit, environment, suite_name(run), made)
        listed = _with(listed, made)
        _configure(folder / "asv.conf.json", commit)
        notes += _doubts(environment, commit)
    _write_json(folder / "results" / "benchmarks.json", listed)
    if unfiled := sum(len(records) for key, records in groups.items() if key not in filed):
        notes.append(f"{unfiled} results are left out: their environment does not say which commit was measured")
    return Exported(jobs=sum(len(newest(groups[key])) for key in filed), notes=tuple(dict.fromkeys(notes)))


def _commit_of(run: Run, key: str) -> str:
    return run.environments[key].commit if key in run.environments else ""


def _found(commit: str, measured_ms: int) -> Commit:
    """The commit as the repository knows it that fusionbench runs from, or the one around this folder."""
    for place in (Path(__file__).parents[2], Path.cwd()):
        answer = ask_git(place, "rev-list", "-n", "1", "--format=%at", commit) or ""
        top = ask_git(place, "rev-parse", "--show-toplevel")
        if top and (told := re.fullmatch(r"commit ([0-9a-f]{40,64})\n([0-9]+)", answer)):
            return Commit(hash=told[1], ms=int(told[2]) * 1000, repository=Path(top))
    return Commit(hash=commit, ms=measured_ms)


def _write_results(results: Path, commit: Commit, environment: Environment, suite: str, made: list[Benchmark]) -> None:
    machine, series = machine_of(environment), series_of(environment)
    name = f"{encoded(plain(environment.id, 40), '-')}-{encoded(suite, '-')}"
    found = {
        "commit_hash": commit.hash,
        "env_name": name,
        "date": commit.ms,
        "params": machine | series,
        "python": series["python"],
        "requirements": {},
        "env_vars": {},
        "result_columns": COLUMNS,
        "results": {benchmark.name: row(benchmark) for benchmark in made},
        "durations": {},
        "version": 2,
    }
    _write_json(results / machine["machine"] / f"{commit.hash[:8]}-{name}.json", found)
    _write_json(results / machine["machine"] / "machine.json", machine | {"version": 1})


def machine_of(environment: Environment) -> dict[str, str]:
    """asv's six facts about a machine. Its name is that of a folder, too."""
    system, _, rest = environment.system.partition(" ")
    return {
        "machine": encoded(plain(environment.machine, 60), "-") or "unnamed",
        "os": inert(system),
        "arch": inert(rest.rpartition(" ")[2]),
        "cpu": inert(environment.cpu),
        "num_cpu": str(environment.cores),
        "ram": str(environment.memory_bytes),
    }


def series_of(environment: Environment) -> dict[str, str]:
    """What else keeps results apart: asv draws a line for each combination, and times of two are not compared."""
    return {
        "python": inert(".".join(environment.python.split(".")[:2])),
        "torch": inert(environment.torch),
        "triton": inert(environment.triton),
        "gpu": inert(environment.gpu),
        "environment": inert(environment.id),
    }


def inert(text: str) -> str:
    """A text from outside that is harmless in asv's pages, and short enough for a part of a path."""
    return plain(text, 100).translate(_MARKUP)


def _earlier(path: Path) -> Json:
    """The benchmarks that the folder has already."""
    shown = printable(str(path))
    if not path.exists():
        return {"version": 2}
    with explained(f"cannot read '{shown}'"), opened(path, MAX_BYTES) as file:
        data = file.read()
    try:
        found = msgspec.json.decode(data, type=Json)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise StoreError(f"'{shown}' is no list of asv's benchmarks: {error}; choose another folder") from error
    if found.get("version") != 2:
        raise StoreError(f"'{shown}' is no list of benchmarks of asv's version 2; choose another folder")
    return found


def _with(listed: Json, made: list[Benchmark]) -> Json:
    """The list with new benchmarks, and of known ones with the parameters that are new."""
    return listed | {each.name: described(each) | {"params": _joined(listed.get(each.name), each)} for each in made}


def _joined(before: Any, now: Benchmark) -> list[list[str]]:
    match before:
        case {"param_names": names, "params": [[*backends], [*cases]]} if names == PARAM_NAMES:
            earlier = [[value for value in values if isinstance(value, str)] for values in (backends, cases)]
            return [list(dict.fromkeys(old + new)) for old, new in zip(earlier, now.params, strict=True)]
    return list(now.params)


def _configure(path: Path, commit: Commit) -> None:
    """What `asv publish` needs to know; where there is a file, somebody may have changed it."""
    if path.exists():
        return
    repository = os.path.relpath(commit.repository, path.parent.resolve()) if commit.repository else "."
    found = {"version": 1, "project": "fusionbench", "repo": repository, "branches": ["HEAD"]}
    _write_json(path, found | {"results_dir": "results", "html_dir": "html", "environment_type": "virtualenv"})


def _doubts(environment: Environment, commit: Commit) -> list[str]:
    notes = []
    if environment.dirty:
        notes.append(f"the code that was measured is not quite commit {commit.hash[:10]}: it had uncommitted changes")
    if commit.repository is None:
        notes.append(f"no repository here has commit {commit.hash[:10]}; name one that has as 'repo' in asv.conf.json")
    return notes


def _write_json(path: Path, found: Mapping[str, Any]) -> None:
    """As asv writes it: NaN and Infinity by their names, which is no strict JSON."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(found, file, separators=(",", ":"))
        file.write("\n")
