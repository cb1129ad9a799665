"""The static profile of the Triton kernels beside the jobs that ran them, from what ``inspect --json`` wrote."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..errors import printable
from ..inspection import Inspected, Inspection
from ..record import Environment, Record
from ..spec import Case
from .packing import LONGEST

_RAN = "triton:"  # in front of the name of a kernel of ours, in a record
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "tf32": 4}


def payload(found: Inspection | None, records: Sequence[Record], environments: Mapping[str, Environment]) -> Any:
    """Of each row that ran our kernels on a GPU, the profiles that they may have had.

    The block sizes follow from sizes that a record does not hold (of which tokens are queries, say): where several are
    possible they all are given.
    """
    if found is None:
        return None
    possible = functools.cache(functools.partial(_possible, found))
    lists: dict[tuple[int, ...], int] = {}
    chosen = [possible(*_ran(record, environments.get(record.environment))) for record in records]
    return {
        "triton": printable(found.triton, LONGEST),
        "profiles": [_plain(each) for each in found.profiles],
        "list": [lists.setdefault(each, len(lists)) for each in chosen],
        "lists": [list(each) for each in lists],
    }


def _plain(profile: Inspected) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(profile)
    texts = {name: printable(value, LONGEST) for name, value in facts.items() if isinstance(value, str)}
    tables = {
        name: {printable(key, 100): value for key, value in facts[name].items()}
        for name in ("where", "config", "instructions")
    }
    return facts | texts | tables


def _ran(record: Record, environment: Environment | None) -> tuple[tuple[str, ...], str, tuple[tuple[str, int], ...]]:
    """The kernels that a GPU ran, its architecture, and what is known of the sizes by which rows are chosen."""
    case = record.job.case
    if environment is None or not case.device.startswith("cuda"):
        return (), "", ()
    names = tuple(name.removeprefix(_RAN) for name in record.kernels if name.startswith(_RAN))
    return names, "sm_" + environment.capability.replace(".", ""), tuple(_sizes(case).items())


def _sizes(case: Case) -> dict[str, int]:
    sizes = {"head_dim": case.shape.width // case.shape.heads}
    if case.dtype in _BYTES:
        sizes |= {"bytes": _BYTES[case.dtype], "ieee": int(case.dtype == "fp32")}
    return sizes


def _possible(
    found: Inspection, kernels: tuple[str, ...], arch: str, sizes: tuple[tuple[str, int], ...]
) -> tuple[int, ...]:
    return tuple(at for kernel in kernels for at in _rows(found, kernel, arch, dict(sizes)))


def _rows(found: Inspection, kernel: str, arch: str, known: Mapping[str, int]) -> Iterator[int]:
    """A kernel has the first row whose bounds hold: every one that may hold, up to the first that surely does."""
    for at, profile in enumerate(found.profiles):
        if (profile.kernel, profile.arch) != (kernel, arch):
            continue
        if all(size <= profile.where.get(name, size) for name, size in known.items()):
            yield at
            if profile.where.keys() <= known.keys():
                return
