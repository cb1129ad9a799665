"""Read runs and show them: as tables in the terminal, as files, as a page.

Needs no torch, and each function imports only what it shows with: a bare GPU image can measure without plotly.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import comparison, mirror, remote, store, timeline
from .delta import Comparison
from .errors import FusionbenchError, StoreError, printable
from .history import History
from .inspection import Inspection
from .ledger import FILE, Ledger
from .ledger import load as load_ledger
from .remote import Place, Url
from .suite import parse, shipped
from .suite import read as read_suite

SEALED = "records.parquet"  # all facts of a finished run in one file, for pandas, DuckDB and for keeping


def read(run: Place | None, results: Place) -> store.Run:
    """The run in a folder, a shard or a sealed file; the newest below ``results`` when none is given."""
    if run is None:
        run = mirror.newest(results)
        if run is None:
            raise FusionbenchError(f"no run in '{results}' yet; measure one with: fusionbench run smoke")
    if run.suffix == ".parquet" and (isinstance(run, Url) or run.is_file()):
        from .sealed import unseal

        return unseal(run)
    found = mirror.read(run)
    run = found.path
    if not found.records and run.is_file() and run.suffix != ".jsonl" and run.stat().st_size:
        shown = printable(str(run))
        raise StoreError(f"'{shown}' is no run; give a run folder, a shard (.jsonl) or a sealed run (.parquet)")
    return found


def print_tables(run: store.Run, *, groups: int = 12, rows: int = 12, reference: str = "") -> None:
    """The fastest per shape, the winners, failures, skips, environments and damage."""
    from .export.tables import frame_of
    from .report import table
    from .terminal import console

    out = console()
    shown = table.show(
        frame_of(run), run.environments, run.problems, width=out.width, command=_command(run), groups=groups, rows=rows,
        reference=reference,
    )  # fmt: skip
    out.print(shown, crop=False)


def write_tables(run: store.Run, csv: Path | None, json: Path | None, parquet: Path | None) -> list[Path]:
    """The files that were asked for; returns their paths."""
    from .export import tables

    found = tables.frame_of(run)
    written = [
        tables.to_csv(found, csv) if csv else None,
        tables.to_json(run.records, json) if json else None,
        tables.to_parquet(found, parquet) if parquet else None,
    ]
    return [path for path in written if path is not None]


def ledgers(runs: Sequence[store.Run], given: Path | None) -> tuple[list[Ledger], list[str]]:
    """The claims that a page about ``runs`` shows: the ledger given, else those in the run folders; and which of the
    latter cannot be read. Raises StoreError for the one given."""
    if given:
        return [load_ledger(given)], []
    found, problems = [], []
    for path in (run.path / FILE for run in runs):
        if path.exists():
            try:
                found.append(load_ledger(path))
            except StoreError as error:
                problems.append(str(error))
    return found, problems


def write_page(
    runs: Sequence[store.Run],
    path: Path,
    claims: Sequence[Ledger] = (),
    problems: Sequence[str] = (),
    kernels: Inspection | None = None,
) -> Path:
    """One page about all ``runs``, with what was checked of the claims and what could not be read of them; the second
    of two runs is compared with the first, and of three or more the history is told."""
    from .report import page
    from .report.frame import frame
    from .report.views import Views

    records = [record for each in runs for record in each.records]
    environments = {key: value for each in runs for key, value in each.environments.items()}
    rooflines = [roofline for each in runs for roofline in each.rooflines]
    return page.write(
        path,
        frame(records, environments, rooflines),
        environments,
        [*problems, *(problem for each in runs for problem in each.problems)],
        ledgers=claims,
        rooflines=rooflines,
        beside=Views(records, _comparison(runs), _history(runs), kernels),
        title=", ".join(each.manifest.id if each.manifest else each.path.name for each in runs),
        command=_command(runs[0]),
    )


def _comparison(runs: Sequence[store.Run]) -> Comparison | None:
    if len(runs) != 2:
        return None
    base, head = runs
    return comparison.of(base, head, (str(base.path), str(head.path)))


def _history(runs: Sequence[store.Run]) -> History | None:
    """Of the jobs that more than one of the runs has; none of fewer than three runs."""
    if len(runs) < 3:
        return None
    met = Counter(key for run in runs for key in {record.job.key for record in run.records})
    again = {key for key, count in met.items() if count > 1}
    return timeline.build(
        replace(run, records=[record for record in run.records if record.job.key in again]) for run in runs
    )


def seal(run: store.Run) -> Path:
    """Put all facts of the run into one Parquet file inside its folder."""
    from .sealed import seal_run

    return seal_run(run.path, run.path / SEALED)


def _command(run: store.Run) -> str:
    """The command that runs the suite of ``run`` again under the same budget: a shipped suite by name, another by
    the copy in the run."""
    manifest = run.manifest
    if manifest is None:
        return "fusionbench run SUITE"
    known = shipped().get(manifest.suite_name)
    same = known is not None and read_suite(str(known)).hash == manifest.suite_hash
    suite = manifest.suite_name if same else str(run.path / store.SUITE)
    options = [*_scale(manifest), *plugin_options(manifest.plugins), *_budget(run, manifest)]
    return shlex.join(["fusionbench", "run", remote.told(suite), *options])


def _scale(manifest: store.Manifest) -> list[str]:
    """Jobs of shrunk presets exist only where the suite is asked for at that scale."""
    return [argument for scale in manifest.only.get("scale", []) for argument in ("--scale", scale)]


def plugin_options(plugins: Sequence[str]) -> list[str]:
    """The plugins of a run as command-line arguments."""
    return [argument for path in plugins for argument in ("--plugin", path)]


def _budget(run: store.Run, manifest: store.Manifest) -> list[str]:
    """The options by which the run's budget differs from its suite's."""
    try:
        own = parse(store.read_suite(run.path), manifest.suite_name, store.SUITE).budget
    except FusionbenchError:  # a damaged copy: the tables have said so
        return []
    used = manifest.budget
    options = {name: getattr(used, name) for name in ("measure_s", "timeout_s", "threads", "seed", "rounds")}
    changed = {name: value for name, value in options.items() if value != getattr(own, name)}
    numbers = [text for name, value in changed.items() for text in (f"--{name.replace('_', '-')}", f"{value:g}")]
    timers = [text for timer in used.timers for text in ("--timer", timer)] if used.timers != own.timers else []
    return numbers + timers + (["--energy"] if used.energy_s and not own.energy_s else [])
