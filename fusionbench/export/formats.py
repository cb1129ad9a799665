"""The formats that a run can be exported to, and how one is written."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from ..errors import FusionbenchError, UnknownNameError, printable
from ..report.files import STDOUT
from ..store import Run
from . import asv, bencher, github_benchmark, pytest_benchmark, trace
from .measured import Exported


class Format(Struct, frozen=True):
    """A name, what reads it, and what writes it: the path is a file, or where ``folder`` a folder."""

    name: str
    summary: str
    write: Callable[[Run, Path], Exported]
    folder: bool = False


def _csv(run: Run, path: Path) -> Exported:
    from .tables import frame_of, to_csv  # pandas

    to_csv(frame_of(run), path)
    return Exported(jobs=len(run.records))


def _json(run: Run, path: Path) -> Exported:
    from .tables import to_json

    to_json(run.records, path)
    return Exported(jobs=len(run.records))


def _parquet(run: Run, path: Path) -> Exported:
    from .tables import frame_of, to_parquet

    to_parquet(frame_of(run), path)
    return Exported(jobs=len(run.records))


FORMATS = {
    each.name: each
    for each in (
        Format("csv", "the table, a row for each record", _csv),
        Format("json", "the records with all samples", _json),
        Format("parquet", "the table for pandas and DuckDB", _parquet),
        Format("pytest-benchmark", "`pytest-benchmark compare`, `--benchmark-compare`", pytest_benchmark.write),
        Format("github-smaller", "github-action-benchmark, customSmallerIsBetter", github_benchmark.write_smaller),
        Format("github-bigger", "github-action-benchmark, customBiggerIsBetter", github_benchmark.write_bigger),
        Format("bencher", "`bencher run --adapter json`", bencher.write),
        Format("asv", "`asv publish`, `asv compare`", asv.write, folder=True),
        Format("trace", "Perfetto and chrome://tracing", trace.write),
    )
}


def find(name: str) -> Format:
    """The format of that name; raises UnknownNameError."""
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    return FORMATS[name]


def export(run: Run, chosen: Format, output: Path) -> Exported:
    """Write the run to ``output``, whole or not at all; ``-`` is the standard output. Raises FusionbenchError."""
    if output != STDOUT:
        _check_kind(chosen, output)
        return chosen.write(run, output)
    if chosen.folder:
        raise FusionbenchError(f"'{chosen.name}' is a folder, which has no place on the standard output; name one")
    with tempfile.TemporaryDirectory(prefix="fusionbench-") as folder:
        found = chosen.write(run, path := Path(folder, "export"))
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    return found


def _check_kind(chosen: Format, output: Path) -> None:
    shown = printable(str(output))
    if chosen.folder and output.exists() and not output.is_dir():
        raise FusionbenchError(f"'{chosen.name}' is a folder, and '{shown}' is a file; name a folder")
    if not chosen.folder and output.is_dir():
        raise FusionbenchError(f"'{chosen.name}' is a file, and '{shown}' is a folder; name a file in it")
