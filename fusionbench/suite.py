"""Read a suite: a TOML file of sweeps, each the product of explicit lists. Data only, and untrusted."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from .errors import SuiteError, nearest, printable
from .spec import (
    NAME_PATTERN,
    Budget,
    Case,
    Count,
    Device,
    Dtype,
    Fraction,
    Job,
    Mode,
    Name,
    Projector,
    Shape,
    Size,
)

MAX_BYTES = 1_000_000

some = Meta(min_length=1)
Filter = dict[str, Any]


class Sweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The product of its axes. ``include`` keeps only cases that match one of its tables, ``exclude`` drops
    those that match one; a table names axes with the value, or the list of values, that they must have."""

    strategies: Annotated[tuple[Name, ...], some]
    backends: Annotated[tuple[Name, ...], some]
    batch: Annotated[tuple[Size, ...], some] = (1,)
    image: Annotated[tuple[Size, ...], some]
    text: Annotated[tuple[Size, ...], some]
    image_width: Annotated[tuple[Size, ...], some]
    text_width: Annotated[tuple[Size, ...], some]
    width: Annotated[tuple[Size, ...], some]
    heads: Annotated[tuple[Size, ...], some]
    depth: Annotated[tuple[Count, ...], some] = (1,)
    ffn: Annotated[tuple[Count, ...], some] = (4,)
    projectors: Annotated[tuple[Projector, ...], some] = ("linear",)
    type_embedding: Annotated[tuple[bool, ...], some] = (False,)
    padding: Annotated[tuple[Fraction, ...], some] = (0.0,)
    dtypes: Annotated[tuple[Dtype, ...], some] = ("fp32",)
    devices: Annotated[tuple[Device, ...], some] = ("cpu",)
    modes: Annotated[tuple[Mode, ...], some] = ("fwd",)
    include: tuple[Filter, ...] = ()
    exclude: tuple[Filter, ...] = ()

    @property
    def count(self) -> int:
        """How many cases the axes span, before ``include`` and ``exclude``."""
        return math.prod(len(getattr(self, axis)) for axis in AXES)


AXES = tuple(name for name in Sweep.__struct_fields__ if name not in ("include", "exclude"))


class Suite(Struct, frozen=True, kw_only=True):
    """A question, and the sweeps that answer it."""

    name: str
    title: str
    question: str
    analysis: str
    budget: Budget
    sweeps: tuple[Sweep, ...]
    text: str  # the file as it was read; stored with every run

    @property
    def hash(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    @property
    def count(self) -> int:
        return sum(sweep.count for sweep in self.sweeps)


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    title: Annotated[str, Meta(max_length=200)]
    question: Annotated[str, Meta(max_length=2000)] = ""
    analysis: Annotated[str, Meta(max_length=20_000)] = ""
    budget: Budget = Budget()
    sweep: Annotated[tuple[Sweep, ...], Meta(min_length=1, max_length=1000)]


def read(source: str) -> Suite:
    """The suite in the file ``source``, or the shipped suite of that name; raises SuiteError with file and key."""
    path = find(source)
    try:
        data = path.read_bytes()[: MAX_BYTES + 1]
    except OSError as error:
        raise SuiteError(f"{printable(source)}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SuiteError(f"{source}: larger than {MAX_BYTES} bytes, which no suite needs")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise SuiteError(f"{source}: is not UTF-8 text") from None
    return parse(text, path.stem, source)


def parse(text: str, name: str, source: str) -> Suite:
    """The suite that ``text`` describes; ``source`` is what messages call it."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise SuiteError(f"{source}: file name '{printable(name)}' does not match {NAME_PATTERN}")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one; a number of 5000 digits another
        raise SuiteError(f"{source}: not valid TOML: {str(error) or 'nested too deeply'}") from None
    _refuse_unknown_keys(data, source)
    try:
        file = msgspec.convert(data, _File)
    except msgspec.ValidationError as error:
        raise SuiteError(f"{source}: {_explain(str(error), data)}") from None
    for number, sweep in enumerate(file.sweep, 1):
        for table in (*sweep.include, *sweep.exclude):
            _check_filter(table, sweep, f"{source}: sweep {number}: filter")
    return Suite(
        name=name,
        title=file.title,
        question=file.question,
        analysis=file.analysis,
        budget=file.budget,
        sweeps=file.sweep,
        text=text,
    )


def _refuse_unknown_keys(data: Mapping[str, Any], source: str) -> None:
    _refuse_unknown(data, _File.__struct_fields__, f"{source}: suite")
    if isinstance(data.get("budget"), dict):
        _refuse_unknown(data["budget"], Budget.__struct_fields__, f"{source}: budget")
    if isinstance(data.get("sweep"), list):
        for number, sweep in enumerate(data["sweep"], 1):
            if isinstance(sweep, dict):
                _refuse_unknown(sweep, Sweep.__struct_fields__, f"{source}: sweep {number}")


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise SuiteError(f"{where} has unknown key '{printable(key)}'{nearest(key, known)}")


def _check_filter(table: Filter, sweep: Sweep, where: str) -> None:
    """A filter that names what the sweep does not have would silently keep or drop nothing."""
    _refuse_unknown(table, AXES, where)
    if not table:
        raise SuiteError(f"{where} is empty and would match every case")
    for axis, wanted in table.items():
        known = {_text(value) for value in getattr(sweep, axis)}
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if _text(value) not in known:
                shown = printable(_text(value))
                raise SuiteError(f"{where}: the sweep has no {axis} '{shown}'{nearest(shown, known)}")


def _explain(message: str, data: Mapping[str, Any]) -> str:
    """msgspec's message with our words for the place, and the value that was given."""
    what, _, path = message.partition(" - at `$")
    steps = re.findall(r"\.?([A-Za-z_]\w*)|\[(\d+)\]", path.rstrip("`"))
    value: Any = data
    words = []
    for key, index in steps:
        value = value[key] if key else value[int(index)]
        words.append(key if key else f"{int(index) + 1}")
    match = re.match(r"Invalid enum value (.*)", what)
    if match and len(steps) > 1:
        known = _allowed(steps[-2][0] or steps[-1][0])
        kind = (steps[-2][0] or steps[-1][0]).rstrip("s")
        return f"{' '.join(words[:-1])}: no {kind} named '{printable(str(value))}'{nearest(str(value), known)}"
    what = what[:1].lower() + what[1:]
    given = "" if isinstance(value, dict | list) else f"; got '{printable(str(value))}'"
    return f"{' '.join(words)}: {what}{given}" if words else what


def _allowed(axis: str) -> tuple[str, ...]:
    from .spec import DTYPES, MODES, PROJECTORS

    return {"dtypes": DTYPES, "modes": MODES, "projectors": PROJECTORS}.get(axis, ())


def narrow(suite: Suite, only: Mapping[str, Sequence[str]]) -> Suite:
    """The suite with each axis in ``only`` cut down to the given values; sweeps left empty drop out.

    Raises SuiteError for an axis or a value that no sweep has.
    """
    for axis, wanted in only.items():
        if axis not in AXES:
            raise SuiteError(f"--only: no axis named '{printable(axis)}'{nearest(axis, AXES)}")
        known = {_text(value) for sweep in suite.sweeps for value in getattr(sweep, axis)}
        for value in wanted:
            if value not in known:
                raise SuiteError(
                    f"--only: suite '{suite.name}' has no {axis} '{printable(value)}'{nearest(value, known)}"
                )
    sweeps = []
    for sweep in suite.sweeps:
        kept = {axis: tuple(v for v in getattr(sweep, axis) if _text(v) in wanted) for axis, wanted in only.items()}
        if all(kept.values()):
            sweeps.append(msgspec.structs.replace(sweep, **kept))
    if not sweeps:
        raise SuiteError(f"--only: no sweep of '{suite.name}' has all of these values together")
    return msgspec.structs.replace(suite, sweeps=tuple(sweeps))


def _text(value: object) -> str:
    """A value as it is written in TOML and on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def jobs(suite: Suite) -> Iterator[Job | None]:
    """The jobs of all sweeps in order, lazily; None stands for a case that include or exclude left out."""
    for sweep in suite.sweeps:
        for values in itertools.product(*(getattr(sweep, axis) for axis in AXES)):
            point = dict(zip(AXES, values, strict=True))
            yield _job(point) if _wanted(sweep, point) else None


def _wanted(sweep: Sweep, point: Mapping[str, Any]) -> bool:
    def matches(table: Filter) -> bool:
        return all(point[axis] in (v if isinstance(v, list) else [v]) for axis, v in table.items())

    if sweep.include and not any(map(matches, sweep.include)):
        return False
    return not any(map(matches, sweep.exclude))


_SHAPE_AXES = ("batch", "image", "text", "image_width", "text_width", "width", "heads", "depth", "ffn")


def _job(point: Mapping[str, Any]) -> Job:
    case = Case(
        shape=Shape(**{axis: point[axis] for axis in _SHAPE_AXES}),
        dtype=point["dtypes"],
        device=point["devices"],
        mode=point["modes"],
        projector=point["projectors"],
        type_embedding=point["type_embedding"],
        padding=point["padding"],
    )
    return Job(strategy=point["strategies"], backend=point["backends"], case=case)


def folder() -> Path:
    """Where the shipped suites are: inside the installed wheel, or in the checkout."""
    inside = Path(__file__).with_name("suites")
    return inside if inside.is_dir() else Path(__file__).parents[1] / "suites"


def shipped() -> dict[str, Path]:
    """The shipped suites by name."""
    return {path.stem: path for path in sorted(folder().glob("*.toml"))}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def find(source: str) -> Path:
    """The file that ``source`` names: a path, or the name of a shipped suite. Raises SuiteError."""
    path = Path(source)
    if len(source) < 1000 and _is_file(path):
        return path
    known = shipped()
    if source in known:
        return known[source]
    if path.suffix == ".toml" or "/" in source:
        raise SuiteError(f"{printable(source)}: no such suite file (shipped suites: {', '.join(known)})")
    raise SuiteError(f"no suite named '{printable(source)}'{nearest(source, known)}")
