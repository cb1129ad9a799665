"""Results as files for others: CSV, JSON and Parquet tables, and the sealed Parquet that holds every fact."""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from .errors import DamagedError, StoreError, printable
from .record import VERSION, Environment, Record
from .report.files import replacing

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins so (OWASP, CSV injection)
_VERSION, _ENVIRONMENTS = b"fusionbench.version", b"fusionbench.environments"
_BLOCK = 64 * 2**20  # bytes of JSON per parsed block; a record must fit into one
_ROW_GROUP = 20_000


def to_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write ``frame`` as CSV. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    guarded = frame.copy()
    for name in guarded.columns:
        if not pd.api.types.is_numeric_dtype(guarded[name]):
            risky = guarded[name].str.startswith(_FORMULA, na=False)
            guarded[name] = guarded[name].mask(risky, "'" + guarded[name])
    with replacing(path) as temporary:
        guarded.to_csv(temporary, index=False)
    return path


def to_json(records: Sequence[Record], path: Path) -> Path:
    """Write the records as one JSON list, as they are on the wire; a number that is not finite is null."""
    with replacing(path) as temporary:
        temporary.write_bytes(msgspec.json.encode(list(records)))
    return path


def to_parquet(frame: pd.DataFrame, path: Path) -> Path:
    """Write the flat frame, derived numbers included, for pandas and DuckDB."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")
    return path


def seal(records: Sequence[Record], environments: Mapping[str, Environment], path: Path) -> Path:
    """Write all facts of a run, and no derived number, into one Parquet file; ``unseal`` gives them back."""
    metadata = {_VERSION: str(VERSION).encode(), _ENVIRONMENTS: msgspec.json.encode(dict(environments))}
    schema = SCHEMA.with_metadata(metadata)
    with replacing(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for start in range(0, len(records), _ROW_GROUP):
            writer.write_table(_table(records[start : start + _ROW_GROUP]).replace_schema_metadata(metadata))
    return path


def unseal(path: Path) -> tuple[list[Record], dict[str, Environment]]:
    """What ``seal`` was given. Raises StoreError for a file that is damaged, newer, or something else."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            version = int(metadata.get(_VERSION, b"0"))
            if version > VERSION:
                raise StoreError(f"'{path}': schema {version} is newer than this fusionbench ({VERSION}); upgrade")
            if version < 1:
                raise StoreError(f"'{path}' is a Parquet file, but no sealed run of fusionbench")
            environments = msgspec.json.decode(metadata[_ENVIRONMENTS], type=dict[str, Environment])
            records: list[Record] = []
            for batch in file.iter_batches(_ROW_GROUP):
                records += msgspec.convert(_python(batch.to_struct_array()), list[Record])
    except (pa.ArrowException, msgspec.MsgspecError, KeyError, ValueError, OSError) as error:
        raise DamagedError(f"'{path}' cannot be read as a sealed run: {printable(str(error))}") from error
    return records, environments


def _table(records: Sequence[Record]) -> pa.Table:
    """Records go through JSON because Arrow parses it in C++; it knows no maps, so those columns are built here."""
    lines = b"\n".join(map(msgspec.json.encode, records))
    maps = [index for index, field in enumerate(SCHEMA) if pa.types.is_map(field.type)]
    parsed = pyarrow.json.read_json(
        io.BytesIO(lines),
        read_options=pyarrow.json.ReadOptions(block_size=max(_BLOCK, 2 * len(lines) // max(1, len(records)))),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=pa.schema([field for field in SCHEMA if not pa.types.is_map(field.type)]),
            unexpected_field_behavior="ignore",
        ),
    )
    for index in maps:
        field = SCHEMA.field(index)
        cells = [list(getattr(record, field.name).items()) for record in records]
        parsed = parsed.add_column(index, field, pa.chunked_array([pa.array(cells, type=field.type)]))
    return parsed.cast(SCHEMA)


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


def _arrow(kind: Any) -> pa.DataType:
    """The Arrow type of a record's annotation: a new field of a record is sealed by existing."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _arrow(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return _arrow(next(a for a in arguments if a is not type(None)))
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


SCHEMA = pa.schema(_fields(Record))
