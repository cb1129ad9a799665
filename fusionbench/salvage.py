"""Where results go when their run can no longer take them: a shard in the system's folder for temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import FusionbenchError, StoreError, UnstoredError, printable
from .record import Environment, Record
from .shard import ShardWriter


def keeper(writer: ShardWriter, environment: Environment) -> Callable[[Record], None]:
    """``writer.append``, which tells when the shard has been removed, and keeps elsewhere what it could not store.

    The function raises UnstoredError, with the place of what was saved.
    """

    def keep(record: Record) -> None:
        try:
            writer.append(record)
            if not writer.path.exists():  # a file that was removed takes lines all the same
                raise StoreError(f"'{printable(str(writer.path))}' was removed while it was written")
        except StoreError as error:
            raise UnstoredError(f"{error}; {_saved(writer, record, environment)}") from error

    return keep


def _saved(writer: ShardWriter, record: Record, environment: Environment) -> str:
    """Where this session's records are now, or that they are lost."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="fusionbench-"))
        copy = folder / writer.path.name
        with suppress(OSError, StoreError):  # it is still in its place
            writer.rescue(copy)
        if not copy.exists():
            with ShardWriter(folder, environment) as other:
                other.append(record)
            copy = other.path
    except (OSError, FusionbenchError) as error:
        return f"the last record is lost, it could not be kept elsewhere either ({error})"
    return f"what was not stored is in '{printable(str(copy))}': show it, or copy it into the shards of a run"
