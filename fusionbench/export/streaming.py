"""JSON written piece by piece, so that a run of any size needs the memory of one job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..report.files import replacing

_encoder = msgspec.json.Encoder()  # a number that is not finite is null


def write(path: Path, pieces: Iterable[bytes]) -> None:
    """Write the pieces as one file, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(pieces)


def elements(items: Iterable[Any]) -> Iterator[bytes]:
    """A JSON array, an item a line."""
    yield b"["
    for number, item in enumerate(items):
        yield (b",\n" if number else b"\n") + _encoder.encode(item)
    yield b"\n]\n"


def members(items: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    """A JSON object, a member a line."""
    yield b"{"
    for number, (name, value) in enumerate(items):
        yield (b",\n" if number else b"\n") + _encoder.encode(name) + b":" + _encoder.encode(value)
    yield b"\n}\n"


def document(head: Mapping[str, Any], name: str, items: Iterable[Any]) -> Iterator[bytes]:
    """A JSON object with the members of ``head``, which has some, and then the array ``name``."""
    yield _encoder.encode(head)[:-1] + b"," + _encoder.encode(name) + b":"
    yield from elements(items)
    yield b"}\n"
