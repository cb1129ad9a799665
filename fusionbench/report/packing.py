"""Columns as bytes: texts as codes of the smallest width, measurements as shortened floats, in planes that fold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import printable

LONGEST = 2000  # characters of one text that a page carries
MANY = 1000  # texts beyond which a column keeps them by their words: keys are few words in many orders

_KEPT_BITS = 17  # of a float's 23: five digits and a half, as samples are not known better
_WORD = re.compile(r"[^ /-]+[ /-]?|[ /-]")
_SECOND = pd.Timedelta(seconds=1)

Array = npt.NDArray[Any]


class Column(msgspec.Struct, frozen=True):
    """What the page's script needs to know of one column, and its arrays; data.js unpacks them in this order."""

    facts: dict[str, Any]
    arrays: tuple[Array, ...]


def pack(payload: Mapping[str, Any]) -> bytes:
    """The length of a JSON text, the text, and behind it the arrays of ``columns`` as planes of bytes.

    A plane is the first byte of every number, the next the second of every number: exponents and high bytes hardly
    change, and what does not fold is only the noise.
    """
    columns: Mapping[str, Column] = payload["columns"]
    facts = {name: column.facts | {"arrays": _described(column)} for name, column in columns.items()}
    head = msgspec.json.encode({**payload, "columns": facts})
    planes = (_planes(array) for column in columns.values() for array in column.arrays)
    return b"".join((len(head).to_bytes(4, "little"), head, *planes))


def texts(column: pd.Series) -> Column:
    """Texts and sizes as codes of a dictionary, -1 where there is none."""
    codes, values = pd.factorize(column)
    plain = [printable(v, LONGEST) if isinstance(v, str) else v for v in values.tolist()]
    narrow = signed(codes, len(plain))
    if len(plain) <= MANY or not all(isinstance(v, str) for v in plain):
        return Column({"kind": "texts", "values": plain}, (narrow,))
    return _worded(plain, narrow)


def _worded(values: Sequence[str], codes: Array) -> Column:
    split = [_WORD.findall(value) for value in values]
    flat, words = pd.factorize(np.array([word for each in split for word in each], dtype=object))
    counts = np.array([len(each) for each in split])
    facts = {"kind": "texts", "words": words.tolist()}
    return Column(facts, (codes, signed(flat, len(words)), signed(counts, int(counts.max()) + 1)))


def codes(values: Array) -> Column:
    """Codes without a dictionary: they only tell what is alike."""
    return Column({"kind": "codes"}, (signed(values, int(values.max(initial=0)) + 1),))


def numbers(values: npt.NDArray[np.float64], by: npt.NDArray[np.float64] | None = None, **facts: object) -> Column:
    """Measurements to five digits, not-a-number where there is none.

    Divided by the column ``by``, which the facts name for the page, noise that both have is carried once.
    """
    with np.errstate(all="ignore"):
        kept = np.where(np.isfinite(values), values, np.nan) / (1.0 if by is None else by)
        narrow = kept.astype(np.float32)
        lost = (np.isfinite(kept) != np.isfinite(narrow)) | ((kept != 0) & (np.abs(narrow) < np.finfo(np.float32).tiny))
    return Column({"kind": "numbers", **facts}, (kept if lost.any() else _shortened(narrow),))


def moments(column: pd.Series) -> Column:
    """Times of day to the second, or texts where one of them is no time."""
    given = column.fillna("")
    at = pd.to_datetime(given.where(given != ""), format="ISO8601", utc=True, errors="coerce")
    if at.isna().all() or (at.isna() & (given != "")).any():
        return texts(column)
    first = at.min().floor("s")
    seconds = (at - first) // _SECOND
    if seconds.max() >= 2**31 - 1:
        return texts(column)
    codes = seconds.fillna(-1).to_numpy(np.int64)
    return Column({"kind": "moments", "first": int(first.timestamp())}, (signed(codes, int(codes.max()) + 1),))


def signed(values: Array, below: int) -> Array:
    """In the smallest signed integers that hold -1 and everything up to ``below``, exclusive."""
    kind = next(kind for kind in (np.int8, np.int16, np.int32) if below - 1 <= np.iinfo(kind).max)
    return values.astype(kind)


def _shortened(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rounded to the bits that are kept; the others are 0, which gzip folds away."""
    drop = 23 - _KEPT_BITS
    bits = values.view(np.uint32)
    rounded: npt.NDArray[np.float32] = ((bits + np.uint32(1 << (drop - 1))) >> drop << drop).view(np.float32)
    return np.where(np.isfinite(values), rounded, np.float32(np.nan))


def _described(column: Column) -> list[dict[str, Any]]:
    return [{"type": array.dtype.str[1:], "length": len(array)} | _constant(array) for array in column.arrays]


def _constant(array: Array) -> dict[str, Any]:
    """The one value of an array that has no other: it takes no bytes."""
    alike = array.dtype.kind == "i" and len(array) and (array == array[0]).all()
    return {"all": int(array[0])} if alike else {}


def _planes(array: Array) -> bytes:
    if _constant(array):
        return b""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(len(array), array.dtype.itemsize).T.tobytes()
