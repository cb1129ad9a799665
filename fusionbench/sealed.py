"""A finished run in one Parquet file that holds every fact, for pandas, DuckDB and for keeping."""

from __future__ import annotations

import io
import types
import typing
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from . import store
from .errors import DamagedError, StoreError, printable
from .record import VERSION, Environment, Record, Roofline, decode_record, encode_record
from .report.files import replacing
from .survey import survey

_VERSION, _CRC32 = b"fusionbench.version", b"fusionbench.crc32"
_ENVIRONMENTS, _ROOFLINES = b"fusionbench.environments", b"fusionbench.rooflines"
MAX_ROWS = 10_000_000  # runs that Parquet packs into a few bytes; as records these are 30 GB
_ROW_GROUP, _BLOCK = 20_000, 64 * 2**20  # rows and bytes of JSON that are in memory at once
_PARSED = 2 * 2**20  # bytes that one thread parses; a record must fit in


def seal(
    records: Iterable[Record],
    environments: Mapping[str, Environment],
    path: Path,
    rooflines: Sequence[Roofline] = (),
) -> Path:
    """Write all facts of a run, and no derived number, into one Parquet file; ``unseal`` gives them back."""
    return _write(map(encode_record, records), environments, rooflines, path)


def seal_run(run: Path, path: Path) -> Path:
    """Seal the run in a folder, of whatever size: no more than a batch of its records is in memory."""
    found = survey(run)
    return _write(found.lines(), found.contents.environments, found.contents.rooflines, path)


def unseal(path: Path) -> store.Run:
    """What ``seal`` was given. Raises StoreError for a file that is damaged, newer, or something else."""
    shown = printable(str(path))
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            environments, rooflines = _facts(file, shown)
            records: list[Record] = []
            for batch in file.iter_batches(_ROW_GROUP):
                records += msgspec.convert(_python(batch.to_struct_array()), list[Record])
    except (pa.ArrowException, msgspec.MsgspecError, KeyError, ValueError, OSError) as error:
        raise DamagedError(f"'{shown}' cannot be read as a sealed run: {printable(str(error))}") from error
    return store.Run(path, None, records, environments, torn=[], damage=[], duplicates=0, rooflines=rooflines)


def _facts(file: pyarrow.parquet.ParquetFile, shown: str) -> tuple[dict[str, Environment], list[Roofline]]:
    """The environments and rooflines of a sealed run, if it is one and its columns are what they should be."""
    metadata = file.schema_arrow.metadata or {}
    version = int(metadata.get(_VERSION, b"0"))
    if version > VERSION:
        raise StoreError(f"'{shown}': schema {version} is newer than this fusionbench ({VERSION}); upgrade")
    if version < 1:
        raise StoreError(f"'{shown}' is a Parquet file, but no sealed run of fusionbench")
    if file.metadata.num_rows > MAX_ROWS:
        raise StoreError(f"'{shown}' has {file.metadata.num_rows:,} rows, more than the limit of {MAX_ROWS:,}")
    if version > 1:  # what is missing from a file of version 1 has its default, from a later one it is lost
        crc32 = _crc32(metadata[_ENVIRONMENTS], metadata[_ROOFLINES])
        if metadata[_CRC32] != crc32 or not file.schema_arrow.remove_metadata().equals(SCHEMA):
            raise ValueError("its columns or its facts about the machine are not as they were written")
    return (
        msgspec.json.decode(metadata[_ENVIRONMENTS], type=dict[str, Environment]),
        msgspec.json.decode(metadata.get(_ROOFLINES, b"[]"), type=list[Roofline]),
    )


def _crc32(*texts: bytes) -> bytes:
    return b"%08x" % zlib.crc32(b"\0".join(texts))


def _write(
    lines: Iterable[bytes], environments: Mapping[str, Environment], rooflines: Sequence[Roofline], path: Path
) -> Path:
    described, bounds = msgspec.json.encode(dict(environments)), msgspec.json.encode(list(rooflines))
    metadata = {
        _VERSION: b"%d" % VERSION,
        _ENVIRONMENTS: described,
        _ROOFLINES: bounds,
        _CRC32: _crc32(described, bounds),
    }
    schema = SCHEMA.with_metadata(metadata)
    with replacing(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, **_LAYOUT) as writer:
        for batch in _batches(lines):
            writer.write_table(_table(batch).replace_schema_metadata(metadata))
    return path


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Rows of one group: a record may take 4 MB."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if len(batch) == _ROW_GROUP or size >= _BLOCK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _table(lines: list[bytes]) -> pa.Table:
    """Lines go through JSON because Arrow parses it in C++, three times as fast as records become columns.

    What it leaves open, such as a field that an older version did not have, is settled by way of records.
    """
    try:
        table = _parsed(lines)
        if all(_whole(chunk, Record) for chunk in table.to_struct_array().chunks):
            return table
    except pa.ArrowInvalid:
        pass
    return _parsed([encode_record(decode_record(line)) for line in lines])


def _parsed(lines: list[bytes]) -> pa.Table:
    """Arrow's reader knows no maps, so the one that records have is built here."""
    parsed = pyarrow.json.read_json(
        io.BytesIO(b"\n".join(lines)),
        read_options=pyarrow.json.ReadOptions(block_size=max(_PARSED, 2 * max(map(len, lines)))),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=pa.schema([field for field in SCHEMA if not pa.types.is_map(field.type)]),
            unexpected_field_behavior="ignore",
        ),
    )
    cells = [list(_phases.decode(line).phases_s.items()) for line in lines]
    field = SCHEMA.field("phases_s")
    column = pa.chunked_array([pa.array(cells, type=field.type)])
    return parsed.add_column(SCHEMA.get_field_index(field.name), field, column).cast(SCHEMA)


class _Phases(msgspec.Struct):
    phases_s: dict[str, float] = {}


_phases = msgspec.json.Decoder(_Phases)


def _whole(values: pa.Array, hint: Any, absent: int = 0) -> bool:
    """Whether ``values`` lack nothing that the annotation demands; ``absent`` of them have no struct to be in."""
    kind, optional = _kind(hint)
    if values.null_count > absent and not optional:
        return False
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind, include_extras=True)
        return all(
            _whole(child, hints[name], values.null_count)
            for name, child in zip(kind.__struct_fields__, values.flatten(), strict=True)
        )
    return typing.get_origin(kind) is not tuple or _whole(values.flatten(), typing.get_args(kind)[0])


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


def _kind(hint: Any) -> tuple[Any, bool]:
    """An annotation without its bounds, and whether None may stand in its place."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return _kind(next(a for a in arguments if a is not type(None)))[0], type(None) in arguments
    return hint, False


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


def _fields(kind: type[msgspec.Struct]) -> list[pa.Field]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return [pa.field(name, _arrow(hints[name])) for name in kind.__struct_fields__]


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
# Measured figures differ from record to record, where a dictionary is in the way: a sample of 1 % noise around 1 ms
# takes 2.0 bytes so and 2.6 with a dictionary, an error figure 5.9 and 7.6.
_ENCODED = {path: "BYTE_STREAM_SPLIT" for path, kind in _LEAVES.items() if kind == pa.float64()} | {
    path: "DELTA_BINARY_PACKED" for path, kind in _LEAVES.items() if kind == pa.int64() and path.endswith(".element")
}
_LAYOUT: dict[str, Any] = {
    "compression": "zstd",
    "column_encoding": _ENCODED,
    "use_dictionary": [path for path in _LEAVES if path not in _ENCODED],
    "write_page_checksum": True,
}
