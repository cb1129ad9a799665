"""The static profile of the shipped Triton kernels: compile for chips that need not be here, show, keep, compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .disk import explained, opened, refuse_newer
from .errors import FusionbenchError, StoreError, printable, refuse_unknown

if TYPE_CHECKING:
    from rich.table import Table

    from fusionbench_kernels.static import Profile

SCHEMA = 1
MAX_BYTES = 16 << 20


class Inspected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel, one architecture, one row of the table; units are in the names."""

    kernel: str
    arch: str
    where: dict[str, int]
    config: dict[str, int | bool]
    registers: int
    spill_bytes: int
    shared_bytes: int
    shared_limit_bytes: int
    code_bytes: int
    instructions: dict[str, int]
    error: str = ""

    @property
    def key(self) -> str:
        return _key(self.kernel, self.arch, self.where)


class Inspection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them, and the compiler they are true for."""

    triton: str
    profiles: list[Inspected]
    v: int = SCHEMA


def planned(arches: Sequence[str] = (), kernels: Sequence[str] = ()) -> list[Any]:
    """The configurations that ``inspect`` would compile; raises FusionbenchError for a name that is not there."""
    from fusionbench_kernels import runtime, static, table

    if not runtime.has_triton():
        raise FusionbenchError("inspect compiles with Triton, which is not installed here (it exists for Linux)")
    refuse_unknown("architecture", arches, table.architectures())
    refuse_unknown("kernel", kernels, {name for arch in table.architectures() for name in table.rows(arch)})
    return static.shipped(tuple(arches), tuple(kernels))


def among(rows: list[Any], base: Inspection) -> list[Any]:
    """Those of the rows that ``base`` has a profile of."""
    from fusionbench_kernels import table

    known = {profile.key for profile in base.profiles}
    return [
        (arch, kernel, index)
        for arch, kernel, index in rows
        if _key(kernel, arch, table.rows(arch)[kernel][index][0]) in known
    ]


def inspect(rows: list[Any]) -> Iterator[Inspected]:
    """Compile these configurations; two seconds each on one core, all cores are used."""
    from fusionbench_kernels import static

    for profile in static.profiles(rows):
        yield _inspected(profile)


def inspection(profiles: list[Inspected]) -> Inspection:
    """The profiles with the compiler they are true for."""
    return Inspection(version("triton"), profiles)


def _key(kernel: str, arch: str, where: Mapping[str, int]) -> str:
    return f"{kernel}/{arch}/{bounds(where)}"


def _inspected(p: Profile) -> Inspected:
    from fusionbench_kernels.table import SHARED_MEMORY_BYTES

    return Inspected(
        p.kernel, p.arch, dict(p.where), dict(p.config), p.registers, p.spill_bytes, p.shared_bytes,
        SHARED_MEMORY_BYTES[p.arch], p.code_bytes, dict(p.instructions), p.error,
    )  # fmt: skip


def bounds(where: Mapping[str, int]) -> str:
    """``head_dim ≤ 64, bytes ≤ 2`` as text; "any" without bounds."""
    return ", ".join(f"{name} ≤ {size}" for name, size in where.items()) or "any"


def save(found: Inspection, path: Path) -> None:
    """One line per profile, so that a change of one row is a change of one line. Raises StoreError."""
    encode = msgspec.json.encode
    lines = b",\n".join(encode(profile) for profile in found.profiles)
    head = b'{"v":%d,"triton":%s,"profiles":[\n' % (found.v, encode(found.triton))
    with explained(f"cannot write '{printable(str(path))}'"):
        path.write_bytes(head + lines + b"\n]}\n")


def load(path: Path) -> Inspection:
    """What ``save`` wrote; raises StoreError where it is something else, NewerSchemaError where it is from later."""
    shown = printable(str(path))
    with explained(f"cannot read '{shown}'"), opened(path, MAX_BYTES) as file:
        data = file.read()
    refuse_newer(data, SCHEMA, shown)
    try:
        return msgspec.json.decode(data, type=Inspection)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise StoreError(
            f"'{shown}' is not what 'fusionbench inspect --json' writes: {printable(str(error))}"
        ) from error


def grown(base: Inspection, head: Inspection) -> list[str]:
    """What got worse from base to head, one line each: spills, registers, shared memory, instructions, a lost kernel.

    Raises FusionbenchError where two compilers made them, since then nothing follows from a difference.
    """
    if base.triton != head.triton:
        raise FusionbenchError(f"the baseline is of triton {base.triton}, this is {head.triton}; they are not compared")
    now = {profile.key: profile for profile in head.profiles}
    worse = []
    for before in base.profiles:
        after = now.get(before.key)
        if after is None:
            worse.append(f"{before.key}: is gone")
            continue
        if after.error and not before.error:
            worse.append(f"{before.key}: no longer compiles: {after.error}")
        for name in ("registers", "spill_bytes", "shared_bytes"):
            worse += _more(before.key, name, getattr(before, name), getattr(after, name))
        worse += _more(before.key, "instructions", before.instructions.get("all", 0), after.instructions.get("all", 0))
        # More products than before is more work, fewer may be none on tensor cores: either is worth a look.
        worse += [
            f"{before.key}: {name} {before.instructions.get(name, 0)} -> {after.instructions.get(name, 0)}"
            for name in PRODUCTS
            if before.instructions.get(name, 0) != after.instructions.get(name, 0) and not after.error
        ]
    return worse


def _more(key: str, name: str, before: int, after: int) -> list[str]:
    return [f"{key}: {name} {before} -> {after}"] if after > before else []


def as_table(profiles: Sequence[Inspected], *, narrow: bool) -> Table:
    """For the terminal: what to look at, problems marked."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kernel", "chip", "row"):
        table.add_column(name, overflow="fold")
    numbers = ("regs", "spill B", "shared KiB") if narrow else ("regs", "spill B", "shared KiB", "products", "code KiB")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for p in profiles:
        if p.error:
            continue
        products = " ".join(f"{n} {p.instructions[n]}" for n in PRODUCTS if n in p.instructions) or "FMA"
        cells = [
            str(p.registers),
            f"[red]{p.spill_bytes}[/]" if p.spill_bytes else "0",
            f"{'[red]' if p.shared_bytes > p.shared_limit_bytes else ''}{p.shared_bytes / 1024:.0f}"
            f" of {p.shared_limit_bytes / 1024:.0f}",
        ]
        if not narrow:
            cells += [products, f"{p.code_bytes / 1024:.0f}"]
        table.add_row(p.kernel, p.arch, bounds(p.where), *cells)
    return table


PRODUCTS = ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "tcgen05", "MFMA")
