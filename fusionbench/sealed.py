"""A finished run in one Parquet file that holds every fact, for pandas, DuckDB and for keeping."""

from __future__ import annotations

import functools
import itertools
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from msgspec.structs import astuple

from . import remote, store
from .collector import paused
from .disk import NewerSchemaError
from .errors import DamagedError, StoreError, printable
from .record import VERSION, Environment, Record, Roofline
from .remote import Place, Url
from .report.files import replacing
from .spec import Job
from .survey import survey

_VERSION, _CRC32 = b"fusionbench.version", b"fusionbench.crc32"
_ENVIRONMENTS, _ROOFLINES = b"fusionbench.environments", b"fusionbench.rooflines"
_DAMAGE = b"fusionbench.damage"
MAX_ROWS = 10_000_000  # runs that Parquet packs into a few bytes; as records these are 30 GB
_BATCH = 2_000  # records that become columns at once: 12 us each; of 20,000, which no cache holds, 19 us
_BATCH_SAMPLES = 1_000_000  # 40 MB; a single record may have 100,000
_ROW_GROUP, _GROUP_BYTES = 20_000, 64 << 20

Wanted = Callable[[Job], bool]


def seal(
    records: Iterable[Record],
    environments: Mapping[str, Environment],
    path: Path,
    rooflines: Sequence[Roofline] = (),
    damage: Sequence[str] = (),
) -> Path:
    """Write all facts of a run, and no derived number, into one Parquet file; ``unseal`` gives them back.

    ``damage`` says what of the run could not be read, so that the file does not pass for the whole of it.
    """
    facts = {
        _ENVIRONMENTS: msgspec.json.encode(dict(environments)),
        _ROOFLINES: msgspec.json.encode(list(rooflines)),
        _DAMAGE: msgspec.json.encode(list(damage)),
    }
    metadata = facts | {_VERSION: b"%d" % VERSION, _CRC32: _crc32(facts)}
    schema = SCHEMA.with_metadata(metadata)
    with (
        paused(),
        replacing(path) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema, **_LAYOUT) as writer,
    ):
        for group in _groups(records):
            writer.write_table(pa.Table.from_batches(group, schema=schema))
    return path


def seal_run(run: Path, path: Path) -> Path:
    """Seal the run in a folder, of whatever size: no more than a batch of its records is in memory."""
    found = survey(run)
    known = found.contents
    return seal(found.records(), known.environments, path, known.rooflines, known.damage)


def unseal(path: Place, fields: Sequence[str] = (), wanted: Wanted | None = None) -> store.Run:
    """What ``seal`` was given. Raises StoreError for a file that is damaged, newer, or something else.

    Where ``fields`` of a record are named (``job`` and ``status`` among them), only their columns are read, and the
    others have their defaults. Of jobs that are not ``wanted`` there are no records, and of row groups without a wanted
    job only the column of jobs is read. Of a file behind a URL nothing else is fetched; its run has no path here.
    """
    shown = printable(str(path))
    try:
        with _opened(path) as file:
            environments, rooflines, damage = _facts(file, shown)
            records: list[Record] = []
            for batch in file.iter_batches(_ROW_GROUP, row_groups=_holding(file, wanted), columns=list(fields) or None):
                found = msgspec.convert(_python(batch.to_struct_array()), list[Record])
                records += found if wanted is None else [record for record in found if wanted(record.job)]
    except (pa.ArrowException, msgspec.MsgspecError, KeyError, ValueError, OSError) as error:
        raise DamagedError(f"'{shown}' cannot be read as a sealed run: {printable(str(error))}") from error
    place = Path(path.name) if isinstance(path, Url) else path
    return store.Run(place, None, records, environments, torn=[], damage=damage, duplicates=0, rooflines=rooflines)


@contextmanager
def _opened(path: Place) -> Iterator[pyarrow.parquet.ParquetFile]:
    if not isinstance(path, Url):
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
        return
    # Requests cost 10 ms and more: ranges that lie close together are fetched as one.
    with (
        remote.opened(path) as ranges,
        pyarrow.parquet.ParquetFile(ranges, page_checksum_verification=True, pre_buffer=True) as file,
    ):
        yield file


def _holding(file: pyarrow.parquet.ParquetFile, wanted: Wanted | None) -> list[int]:
    """The row groups with a wanted job; statistics cannot tell, since a key is made of many columns."""
    groups = list(range(file.num_row_groups))
    if wanted is None or len(groups) < 2:
        return groups
    return [group for group in groups if any(map(wanted, _jobs(file, group)))]


def _jobs(file: pyarrow.parquet.ParquetFile, group: int) -> Iterator[Job]:
    for batch in file.iter_batches(_ROW_GROUP, row_groups=[group], columns=["job"]):
        yield from msgspec.convert(_python(batch.column("job")), list[Job])


def _facts(file: pyarrow.parquet.ParquetFile, shown: str) -> tuple[dict[str, Environment], list[Roofline], list[str]]:
    """What a sealed run knows beside its records, if it is one and its columns are what they should be."""
    metadata = file.schema_arrow.metadata or {}
    version = int(metadata.get(_VERSION, b"0"))
    if version > VERSION:
        raise NewerSchemaError(f"'{shown}': schema {version} is newer than this fusionbench ({VERSION}); upgrade")
    if version < 1:
        raise StoreError(f"'{shown}' is a Parquet file, but no sealed run of fusionbench")
    if file.metadata.num_rows > MAX_ROWS:
        raise StoreError(f"'{shown}' has {file.metadata.num_rows:,} rows, more than the limit of {MAX_ROWS:,}")
    if version > 1:
        facts = {name: metadata[name] for name in (_ENVIRONMENTS, _ROOFLINES, _DAMAGE)}
        # What is missing from a file of an earlier version has its default, from one of today's it is lost.
        whole = version < VERSION or file.schema_arrow.remove_metadata().equals(SCHEMA)
        if metadata[_CRC32] != _crc32(facts) or not whole:
            raise ValueError("its columns or its facts about the machine are not as they were written")
    return (
        msgspec.json.decode(metadata[_ENVIRONMENTS], type=dict[str, Environment]),
        msgspec.json.decode(metadata.get(_ROOFLINES, b"[]"), type=list[Roofline]),
        msgspec.json.decode(metadata.get(_DAMAGE, b"[]"), type=list[str]),
    )


def _crc32(facts: Mapping[bytes, bytes]) -> bytes:
    return b"%08x" % zlib.crc32(b"\0".join(facts.values()))


def _groups(records: Iterable[Record]) -> Iterator[list[pa.RecordBatch]]:
    """Records as columns, a batch at a time, and of these as many as make a row group."""
    group: list[pa.RecordBatch] = []
    for batch in _batches(records):
        group.append(pa.RecordBatch.from_arrays(_array(batch, Record).flatten(), schema=SCHEMA))
        if sum(len(each) for each in group) >= _ROW_GROUP or sum(each.nbytes for each in group) >= _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    samples = 0
    for record in records:
        batch.append(record)
        samples += len(record.time.samples_ns) if record.time else 0
        if len(batch) == _BATCH or samples >= _BATCH_SAMPLES:
            yield batch
            batch, samples = [], 0
    if batch:
        yield batch


def _array(values: Sequence[Any], hint: Any) -> pa.Array:
    """A column of ``values``, each as ``hint`` says; structs and lists are taken apart, a hundred leaves in all.

    Five times as fast as giving Arrow the same values as dicts.
    """
    kind, optional = _kind(hint)
    if optional and None in values:
        known = [value for value in values if value is not None]
        places = np.cumsum([value is not None for value in values]) - 1
        absent = np.array([value is None for value in values])
        return _array(known, kind).take(pa.array(places, mask=absent))
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return pa.ListArray.from_arrays(_ends(values), _array(_chained(values), arguments[0]), type=_arrow(kind))
    if typing.get_origin(kind) is dict:
        keys, items = _chained(values), _chained(value.values() for value in values)
        return pa.MapArray.from_arrays(_ends(values), _array(keys, arguments[0]), _array(items, arguments[1]))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        columns = zip(*map(astuple, values), strict=True) if values else itertools.repeat(())
        leaves = [_array(column, hint) for column, hint in zip(columns, _hints(kind).values(), strict=False)]
        return pa.StructArray.from_arrays(leaves, fields=_fields(kind))
    return pa.array(values, type=_arrow(kind))


def _ends(values: Sequence[Any]) -> pa.Array:
    return pa.array(np.cumsum([0, *map(len, values)]), type=pa.int32())


def _chained(values: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(values))


def _python(array: pa.Array) -> list[Any]:
    """``array.to_pylist()``, ten times as fast where lists of numbers make up most of it."""
    if pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        rows = zip(*map(_python, array.flatten()), strict=True)
        return _known(array, [dict(zip(names, row, strict=True)) for row in rows])
    if pa.types.is_list(array.type):
        flat = _python(array.flatten())
        ends = np.cumsum(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)).tolist()
        return _known(array, [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)])
    if pa.types.is_map(array.type):
        return array.to_pylist(maps_as_pydicts="strict")  # type: ignore[no-any-return]
    if array.null_count or not pa.types.is_primitive(array.type):
        return array.to_pylist()  # type: ignore[no-any-return]
    return array.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]


def _known(array: pa.Array, values: list[Any]) -> list[Any]:
    if not array.null_count:
        return values
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


@functools.cache
def _kind(hint: Any) -> tuple[Any, bool]:
    """An annotation without its bounds, and whether None may stand in its place."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return _kind(next(a for a in arguments if a is not type(None)))[0], type(None) in arguments
    return hint, False


@functools.cache
def _arrow(hint: Any) -> pa.DataType:
    """The Arrow type of a record's annotation: a new field of a record is sealed by existing."""
    kind, _ = _kind(hint)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(_arrow(arguments[0]))
    if origin is dict:
        return pa.map_(*map(_arrow, arguments))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return pa.struct(_fields(kind))
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[kind]


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> list[pa.Field]:
    return [pa.field(name, _arrow(hint)) for name, hint in _hints(kind).items()]


@functools.cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


def _leaves(kind: pa.DataType, path: str) -> Iterator[tuple[str, pa.DataType]]:
    """The Parquet columns that values of one Arrow type become."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(field.type, f"{path}.{field.name}")
    elif pa.types.is_list(kind):
        yield from _leaves(kind.value_type, f"{path}.list.element")
    elif pa.types.is_map(kind):
        yield from _leaves(kind.key_type, f"{path}.key_value.key")
        yield from _leaves(kind.item_type, f"{path}.key_value.value")
    else:
        yield path, kind


SCHEMA = pa.schema(_fields(Record))
_LEAVES = {path: kind for field in SCHEMA for path, kind in _leaves(field.type, field.name)}
# Measured figures differ from record to record, where a dictionary is in the way: a sample with 1 % noise takes 2.0
# bytes and with a dictionary 2.6 (at 0.1 ms; at 2.5 ms 2.8), an error figure 5.9 and 7.6.
_ENCODED = {path: "BYTE_STREAM_SPLIT" for path, kind in _LEAVES.items() if kind == pa.float64()} | {
    path: "DELTA_BINARY_PACKED" for path, kind in _LEAVES.items() if kind == pa.int64() and path.endswith(".element")
}
_LAYOUT: dict[str, Any] = {
    "compression": "zstd",
    "column_encoding": _ENCODED,
    "use_dictionary": [path for path in _LEAVES if path not in _ENCODED],
    "write_page_checksum": True,
}
