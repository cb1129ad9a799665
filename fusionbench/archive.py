"""A folder of runs: the run folders and sealed files in it, read one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import mirror, remote, store
from .disk import NewerSchemaError, explained
from .errors import DamagedError, StoreError, printable
from .remote import Place, Url
from .sealed import Wanted, unseal

LeftOut = Callable[[str, bool], object]  # what was left out and why, and whether it was damaged


def runs(
    folder: Place, fields: Sequence[str] = (), wanted: Wanted | None = None, *, left_out: LeftOut
) -> Iterator[store.Run]:
    """The runs in ``folder`` and in the folders directly in it; of a sealed one only ``fields`` of ``wanted`` jobs.

    ``left_out`` is told of what could not be read, in part or in whole, and why. Links are not followed.
    """
    for path in _urls(folder) if isinstance(folder, Url) else _paths(folder):
        try:
            run = unseal(path, fields, wanted) if path.suffix == ".parquet" else mirror.read(path)
        except StoreError as error:
            left_out(str(error), isinstance(error, DamagedError | NewerSchemaError))
            continue
        for text in run.damage:
            left_out(f"{printable(path.name)}: {text}", True)
        for text in run.torn:
            left_out(f"{printable(path.name)}: {text}", False)
        yield run


def _paths(folder: Path) -> Iterator[Path]:
    """Run folders and Parquet files by name, those directly in ``folder`` first."""
    if _is_run(folder):
        yield folder
        return
    inner: list[Path] = []
    for path in _listed(folder):
        if _is_run(path) or _is_parquet(path):
            yield path
        elif path.is_dir() and not path.is_symlink():
            inner.append(path)
    for place in inner:
        yield from (path for path in _listed(place) if _is_run(path) or _is_parquet(path))


def _urls(folder: Url) -> Iterator[Url]:
    """As ``_paths``, behind a URL."""
    found = _sorted(folder)
    if found is None:
        yield folder
        return
    known, inner = found
    yield from known
    for place in inner:
        yield from (_sorted(place) or ([], []))[0]


def _sorted(folder: Url) -> tuple[list[Url], list[Url]] | None:
    """The runs in a folder, and its other folders; None where it is a run itself."""
    entries = [each for each in remote.entries(folder) or () if remote.is_safe(each.name)]
    folders = [each.name for each in entries if each.is_folder]
    if store.SHARDS in folders:
        return None
    manifests = remote.read_all([folder / name / store.MANIFEST for name in folders], store.MAX_MANIFEST)
    runs = [name for name, manifest in zip(folders, manifests, strict=True) if manifest is not None]
    files = [each.name for each in entries if not each.is_folder and each.name.endswith(".parquet")]
    return [folder / name for name in sorted(runs + files)], [folder / name for name in folders if name not in runs]


def _listed(folder: Path) -> list[Path]:
    with explained(f"cannot list '{printable(str(folder))}'"):
        return sorted(folder.iterdir()) if folder.exists() else []


def _is_run(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / store.SHARDS).is_dir()


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet" and path.is_file() and not path.is_symlink()
