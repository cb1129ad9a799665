"""One `check` from what the user names to its judgement: sides read, jobs measured, kernels compiled, gates asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from . import baseline, comparison, judge, mirror, remote, staging, store
from . import suite as suites
from .baseline import ANEW, Baseline
from .comparison import Source
from .delta import GATES, Comparison, Delta, Gate, Judgement, Ruling
from .disk import explained, opened
from .environment import PACKAGE
from .errors import (
    DamagedError,
    FusionbenchError,
    NothingError,
    StoppedError,
    StoreError,
    UnfitError,
    printable,
)
from .inspection import Inspection
from .remote import Place, Url
from .shard import MAX_SHARD
from .spec import Budget

if TYPE_CHECKING:
    from rich.console import Console

    from .pairing import Request


@dataclass(frozen=True)
class Measuring:
    """How to measure what is to be judged: the suite's file, where runs go, what may be run, and who it is called."""

    suite: str | None = None
    results: Place = Path("results/runs")
    plugins: tuple[str, ...] = ()
    machine: str | None = None
    quiet: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Revisions:
    """Two revisions as the user names them, and what of the suite is measured of each (see pairing.Request)."""

    base: str
    head: str | None = None
    setup: str | None = None
    python: str | None = None
    rounds: int | None = None
    only: Mapping[str, list[str]] = field(default_factory=dict)
    limit: int | None = None


@dataclass(frozen=True)
class Baselines:
    """What is judged by: a run of a suite, and profiles of kernels, each with its path."""

    run: tuple[Path, Baseline] | None
    kernels: tuple[tuple[Path, Inspection], ...]


# --- reading -------------------------------------------------------------------------------------------------------


def side(place: Place) -> Source:
    """What a file or folder holds, told by its content: a run, a shard, a sealed run or a baseline.

    Raises StoreError for anything else, and where there is nothing at all in it.
    """
    shown = printable(str(place))
    if isinstance(place, Url) and place.suffix == mirror.SEALED:
        from .sealed import unseal

        return _with_records(unseal(place), shown)
    path = mirror.here(place)
    beginning = b"" if path.is_dir() else _beginning(path, shown)
    if baseline.claims_to_be_one(beginning):
        return baseline.load(path)
    if beginning.startswith(b"PAR1"):
        from .sealed import unseal

        return _with_records(unseal(path), shown)
    if not path.is_dir() and not beginning.strip():
        raise NothingError(f"'{shown}' is empty: there is nothing to compare")
    return _with_records(mirror.read(place if path.is_dir() else path), shown)


def _beginning(path: Path, shown: str) -> bytes:
    if not path.exists():
        raise StoreError(f"no run and no baseline at '{shown}'")
    with explained(f"cannot read '{shown}'"), opened(path.resolve(), MAX_SHARD) as file:
        return file.read(4096)


def _with_records(run: store.Run, shown: str) -> store.Run:
    if run.records:
        return run
    if run.path.is_file() and run.path.suffix not in (".jsonl", ".parquet"):
        raise StoreError(
            f"'{shown}' is neither a run, a shard (.jsonl), a sealed run (.parquet) nor a baseline (.json)"
        )
    if run.damage:
        raise DamagedError(f"run '{shown}' is damaged: {run.damage[0]}")
    raise NothingError(f"run '{shown}' has no records: there is nothing to compare")


def renamed(run: store.Run, machine: str | None) -> store.Run:
    """The run as one of the machine of this name."""
    if machine is None:
        return run
    named = {key: msgspec.structs.replace(each, machine=machine) for key, each in run.environments.items()}
    return replace(run, environments=named)


def baselines(places: Sequence[Place]) -> Baselines:
    """What these files are to judge by; raises FusionbenchError where one is no baseline or two are of suites."""
    from . import inspection

    run, kernels = None, []
    for path in map(mirror.here, places):
        if path.is_file() and _is_profile(path):
            kernels.append((path, inspection.load(path)))
        elif run is not None:
            raise FusionbenchError(
                f"'{printable(str(run[0]))}' and '{printable(str(path))}' are both of suites; check them one by one"
            )
        else:
            run = path, baseline.load(path)
    return Baselines(run, tuple(kernels))


def _is_profile(path: Path) -> bool:
    beginning = _beginning(path, printable(str(path)))
    return b'"triton"' in beginning and b'"profiles"' in beginning and not baseline.claims_to_be_one(beginning)


# --- judging -------------------------------------------------------------------------------------------------------


def judged(
    found: Baselines,
    head: Place | None,
    gates: Sequence[Gate],
    how: Measuring,
    out: Console,
) -> Judgement:
    """The judgement of every gate on every baseline; without ``head`` the suite is measured here and now.

    Where only kernels are judged and no gate is named, the deterministic one is meant.
    """
    if found.run is None and not found.kernels:
        raise FusionbenchError("nothing to judge by; name a baseline with --baseline FILE, or a revision with --paired")
    asked = gates or (GATES if found.run else ("deterministic",))
    of_jobs = [gate for gate in asked if found.run or gate == "timing"]
    compared = _compared(found, head, asked, how, out)
    told = judge.judge(compared, of_jobs, _confirm(found, compared, how, out, measured_now=head is None))
    of_kernels = [_of_kernels(path, base, out) for path, base in found.kernels if "deterministic" in asked]
    return judge.concluded(told.comparison, [*told.rulings, *of_kernels])


def paired(
    revisions: Revisions, found: Baselines, gates: Sequence[Gate], how: Measuring, out: Console
) -> tuple[Judgement, int]:
    """The judgement on two revisions, and on kernels; and the signal that ended it early, or 0."""
    if found.run is not None:
        raise FusionbenchError(
            f"--paired judges by a revision, and '{printable(str(found.run[0]))}' is another base; check one by one"
        )
    chosen = suites.narrow(suites.read(how.suite or "smoke"), dict(revisions.only))  # told before torch is imported
    from . import launch, paired_session
    from .pairing import Request
    from .trial import SCREEN_ROUNDS

    launch.load_plugins(how.plugins)
    request = Request(
        base=revisions.base,
        head=revisions.head,
        suite=chosen,
        budget=chosen.budget,
        setup=revisions.setup,
        python=revisions.python,
        plugins=tuple(map(Path, how.plugins)),
        limit=revisions.limit,
        rounds=revisions.rounds or SCREEN_ROUNDS,
    )
    told, stopped = paired_session.execute(request, gates, out, quiet=how.quiet, strict=how.strict)
    kernels = found.kernels if "deterministic" in (gates or GATES) and not stopped else ()
    of_kernels = [_of_kernels(path, base, out) for path, base in kernels]
    return judge.concluded(told.comparison, [*told.rulings, *of_kernels]), stopped


def _confirm(
    found: Baselines, compared: Comparison, how: Measuring, out: Console, *, measured_now: bool
) -> judge.Confirm | None:
    """How suspects are measured again: the baseline's commit against the code of the run, by turns."""
    if found.run is None:
        return None
    path, base = found.run

    def request() -> Request:
        head = compared.head
        clean = head.commit and not head.dirty
        if not clean and not measured_now:
            raise FusionbenchError("the run is of uncommitted changes, which may be gone; commit, and measure it anew")
        from .launch import load_plugins
        from .pairing import Request

        plugins = _plugins(base, how.plugins)
        load_plugins(plugins)
        return Request(
            base=compared.base.commit,
            head=head.commit if clean else None,
            suite=suites.narrow(_suite(base, path, how.suite), base.only),
            budget=base.budget,
            plugins=tuple(map(Path, plugins)),
            limit=base.limit,
            where=Path(plugins[0]).parent if plugins else PACKAGE,
        )

    def confirm(keys: Sequence[str]) -> Mapping[str, Delta]:
        if compared.head.commit == compared.base.commit and not compared.head.dirty:
            why = "the code is that of the baseline: it is the machine that was slower"
            return {key: Delta(key=key, verdict="unclear", stage="confirm", reason=why) for key in keys}
        from . import paired_session

        return paired_session.confirmation(request, out, quiet=how.quiet)(keys)

    return confirm


def _compared(found: Baselines, head: Place | None, gates: Sequence[Gate], how: Measuring, out: Console) -> Comparison:
    """The suite's baseline with the run that it is to judge; without jobs where kernels alone are judged."""
    if found.run is None and head is not None:
        raise FusionbenchError(f"no baseline to judge '{printable(str(head))}' by; name one with --baseline FILE")
    if found.run is None:
        (path, profile), *_ = found.kernels
        return judge.kernels_alone(printable(str(path)), len(profile.profiles))
    path, base = found.run
    run = whole_run(head, "judge") if head else measured(base, path, gates, how, out)
    if how.strict and "timing" in gates:
        _refuse_disturbed(run)
    labels = remote.told(str(path)), str(head or remote.told(str(run.path)))
    return comparison.of(base, renamed(run, how.machine), labels)


def whole_run(path: Place, what: str) -> store.Run:
    """The run to judge or keep: a damaged one may have lost what matters, and a baseline is none."""
    found = side(path)
    if isinstance(found, Baseline):
        raise FusionbenchError(f"'{printable(str(path))}' is a baseline; give the run to {what}")
    if found.damaged:
        raise DamagedError(f"run '{printable(str(path))}' is damaged ({found.damage[0]}); measure it again")
    return found


def _refuse_disturbed(run: store.Run) -> None:
    """No times where others were at work: facts have none."""
    from .remarks import disturbed

    doubtful = disturbed(run.records)
    if doubtful:
        raise UnfitError(f"--strict: {doubtful}; measure when it is quiet")


# --- measuring -----------------------------------------------------------------------------------------------------


def measured(base: Baseline, path: Path, gates: Sequence[Gate], how: Measuring, out: Console) -> store.Run:
    """A fresh run of the baseline's suite, by its budget where times are asked for, else in one short round."""
    chosen = _suite(base, path, how.suite)
    plugins = _plugins(base, how.plugins)
    from .engines import local

    local.start_server()
    from . import launch, session
    from .terminal import note

    prepared = launch.new(
        chosen,
        staging.folder_of(how.results),
        budget=base.budget if "timing" in gates else short(base.budget),
        only=base.only,
        limit=base.limit,
        plugins=plugins,
        fresh=True,
        command=sys.argv,
        machine=how.machine,
        warn=lambda problem: note(out, problem),
    )
    outcome = session.measure(prepared, out, quiet=how.quiet, strict=how.strict and "timing" in gates)
    if outcome.signal:
        raise StoppedError(f"nothing was judged; what was measured is in '{prepared.folder}'", outcome.signal)
    return store.read(prepared.folder)


def short(budget: Budget) -> Budget:
    """Enough for facts: whether jobs still run, are right, and what they cost."""
    return msgspec.structs.replace(
        budget, measure_s=0.01, warmup_s=0.0, min_samples=6, max_samples=6, rounds=1, energy_s=0.0
    )


def _suite(base: Baseline, path: Path, given: str | None) -> suites.Suite:
    """The suite that the baseline is of, by the name it has among the shipped ones or in the file given."""
    if given is None and base.suite_name not in suites.shipped():
        raise FusionbenchError(f"no suite named '{base.suite_name}' is shipped; name the baseline's with --suite FILE")
    chosen = suites.read(given or str(suites.shipped()[base.suite_name]))
    if chosen.hash != base.suite_hash:
        raise FusionbenchError(
            f"suite '{chosen.name}' ({chosen.hash}) is not the one of '{printable(str(path))}' "
            f"({printable(base.suite_hash)}); name that with --suite FILE, or write the baseline anew with: {ANEW}"
        )
    return chosen


def _plugins(base: Baseline, given: Sequence[str]) -> list[str]:
    names = {Path(plugin).name for plugin in given}
    for plugin in base.plugins:
        if plugin not in names:
            raise FusionbenchError(f"the baseline needs the plugin '{printable(plugin)}'; give it with --plugin FILE")
    return list(given)


# --- kernels -------------------------------------------------------------------------------------------------------


def _of_kernels(path: Path, base: Inspection, out: Console) -> Ruling:
    """Compile the rows that the profile names, and see what has grown."""
    from importlib.metadata import PackageNotFoundError, version

    from . import inspection

    name = printable(str(path))
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return judge.of_kernels(name, (), (), "Triton is not installed here (it exists for Linux)")
    if installed != base.triton:
        return judge.of_kernels(name, (), (), f"of triton {base.triton}, this is {installed}; they are not compared")
    rows = inspection.among(inspection.planned(), base)
    from rich.progress import track

    compiled = list(track(inspection.inspect(rows), "compiling", len(rows), console=out, transient=True))
    grown = inspection.grown(base, inspection.inspection(compiled))
    failures = [(key, what) for key, _, what in (line.partition(": ") for line in grown)]
    return judge.of_kernels(name, [profile.key for profile in base.profiles], failures)
