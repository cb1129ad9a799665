"""Read a suite: a TOML file of sweeps, each the product of explicit lists. Data only, and untrusted."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from .errors import SuiteError, UnknownNameError, nearest, printable
from .presets import EXTENTS, Extent, Part, denominator, parts, shrunk
from .spec import (
    DTYPES,
    MODES,
    NAME_PATTERN,
    PLAIN,
    PROJECTORS,
    Adapt,
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
    Prune,
    Shape,
    Size,
)

MAX_BYTES = 1_000_000

some = Meta(min_length=1)
Value = TypeVar("Value")
Axis = Annotated[tuple[Value, ...], some]  # empty only where it is not named
Filter = dict[str, Any]


class Sweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The product of its axes. ``include`` keeps only cases that match one of its tables, ``exclude`` drops
    those that match one; a table names axes with the value, or the list of values, that they must have.

    ``presets`` gives strategies and sizes that the sweep does not name itself: of one layer or of the whole
    stack (``extent``), at full size or at ``scale``, which divides what the sweep names, too. ``match`` sets each
    strategy's feed-forward width so that its parameters or FLOPs are those of the sweep's first strategy.
    """

    presets: Axis[str] = ()
    extent: Axis[Extent] = ()
    scale: Axis[str] = ()
    strategies: Axis[Name] = ()
    backends: Annotated[tuple[Name, ...], some]
    batch: Axis[Size] = ()
    image: Axis[Size] = ()
    text: Axis[Size] = ()
    image_width: Axis[Size] = ()
    text_width: Axis[Size] = ()
    width: Axis[Size] = ()
    heads: Axis[Size] = ()
    depth: Axis[Count] = ()
    ffn: Axis[Count] = ()
    projectors: Axis[Projector] = ()
    type_embedding: Axis[bool] = ()
    padding: Annotated[tuple[Fraction, ...], some] = (0.0,)
    dtypes: Annotated[tuple[Dtype, ...], some] = ("fp32",)
    devices: Annotated[tuple[Device, ...], some] = ("cpu",)
    modes: Annotated[tuple[Mode, ...], some] = ("fwd",)
    adapt: Annotated[tuple[Adapt, ...], some] = ("full",)
    prune: Annotated[tuple[Prune, ...], some] = ("none",)
    match: Literal["", "params", "flops"] = ""
    include: tuple[Filter, ...] = ()
    exclude: tuple[Filter, ...] = ()

    @property
    def count(self) -> int:
        """How many cases the axes span, before ``include`` and ``exclude``."""
        named = math.prod(len(self.values(axis)) or 1 for axis in AXES if axis != "presets")
        return named * (len(list(parts(self.presets))) if self.presets else 1)

    def values(self, axis: str) -> tuple[Any, ...]:
        """What the sweep says of an axis; nothing where its presets do."""
        given: tuple[Any, ...] = getattr(self, axis)
        return given or (PRESETS_DEFAULTS if self.presets else DEFAULTS).get(axis, ())


# Axes that a sweep need not name, and what they are then; of sizes, only where no preset knows better.
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "batch": (1,), "depth": (1,), "ffn": (4,), "projectors": ("linear",), "type_embedding": (False,),
}  # fmt: skip
PRESETS_DEFAULTS: dict[str, tuple[Any, ...]] = {"extent": ("layer",), "scale": ("1",)}
AXES = tuple(name for name in Sweep.__struct_fields__ if name not in ("match", "include", "exclude"))
REQUIRED = ("strategies", "image", "text", "image_width", "text_width", "width", "heads")  # unless presets give them


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
        _check_sweep(sweep, f"{source}: sweep {number}")
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


def _check_sweep(sweep: Sweep, where: str) -> None:
    """Refuse what each value alone does not show: axes that nobody gives, names and scales that do not exist."""
    try:
        known = list(parts(sweep.presets))
        for scale in sweep.scale:
            denominator(scale)
    except (SuiteError, UnknownNameError) as error:
        raise SuiteError(f"{where}: {error}") from None
    if not sweep.presets:
        for axis in REQUIRED:
            if not sweep.values(axis):
                raise SuiteError(f"{where} names no '{axis}', and no presets that would")
        for axis in ("extent", "scale"):
            if getattr(sweep, axis):
                raise SuiteError(f"{where} has '{axis}' but no presets for it")
    elif not sweep.strategies:
        for label, part in known:
            if not part.strategy:
                raise SuiteError(f"{where}: preset '{label}' has no fusion of its own; name the strategies")
    if sweep.extent and sweep.depth:
        raise SuiteError(f"{where} has 'extent' and 'depth', and each says how many layers there are; name one of them")
    if sweep.match and len(set(sweep.strategies)) < 2:
        count = "one" if sweep.strategies else "none"
        raise SuiteError(f"{where}: match makes the strategies alike that the sweep names, and it names {count}")
    for table in (*sweep.include, *sweep.exclude):
        _check_filter(table, sweep, f"{where}: filter")


def _check_filter(table: Filter, sweep: Sweep, where: str) -> None:
    """A filter that names what the sweep does not have would silently keep or drop nothing."""
    _refuse_unknown(table, AXES, where)
    if not table:
        raise SuiteError(f"{where} is empty and would match every case")
    for axis, wanted in table.items():
        if not sweep.values(axis):
            raise SuiteError(f"{where}: the sweep takes its {axis} from its presets; filter by presets")
        known = _offered(sweep, axis)
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
    axis = next((key for key, _ in reversed(steps) if key), "")
    known, form = _ALLOWED.get(axis, ()), _FORMS.get(axis, "")
    if what.startswith("Invalid enum value") or (form and "matching regex" in what):
        remedy = f" (use {form})" if form else nearest(str(value), known)
        return f"{' '.join(words[:-1])}: no {axis.rstrip('s')} named '{printable(str(value))}'{remedy}"
    what = what[:1].lower() + what[1:]
    given = "" if isinstance(value, dict | list) else f"; got '{printable(str(value))}'"
    return f"{' '.join(words)}: {what}{given}" if words else what


# What an axis takes: one of a few names, or names of a form.
_ALLOWED: dict[str, tuple[str, ...]] = {
    "dtypes": DTYPES, "modes": MODES, "projectors": PROJECTORS, "extent": EXTENTS, "match": ("params", "flops"),
}  # fmt: skip
_FORMS = {
    "adapt": "full, frozen or lora:RANK, as lora:8",
    "prune": "none, 2:4, structured:SHARE or unstructured:SHARE, as structured:0.5",
    "devices": "cpu, cuda or cuda:N",
}


def narrow(suite: Suite, only: Mapping[str, Sequence[str]]) -> Suite:
    """The suite with each axis in ``only`` cut down to the given values; sweeps left empty drop out.

    ``scale`` is not cut down but set, in every sweep of presets. Raises SuiteError for an axis or a value that no
    sweep has.
    """
    only = dict(only)
    if "scale" in only:
        suite = _scaled(suite, only.pop("scale"))
    for axis, wanted in only.items():
        if axis not in AXES:
            raise SuiteError(f"--only: no axis named '{printable(axis)}'{nearest(axis, AXES)}")
        known = {text for sweep in suite.sweeps for text in _offered(sweep, axis)}
        if not known and suite.sweeps:
            raise SuiteError(f"--only: suite '{suite.name}' takes its {axis} from presets; narrow presets instead")
        for value in wanted:
            if value not in known:
                raise SuiteError(
                    f"--only: suite '{suite.name}' has no {axis} '{printable(value)}'{nearest(value, known)}"
                )
    sweeps = [cut for sweep in suite.sweeps if (cut := _cut(sweep, only)) is not None]
    if not sweeps:
        raise SuiteError(f"--only: no sweep of '{suite.name}' has all of these values together")
    return msgspec.structs.replace(suite, sweeps=tuple(sweeps))


def _scaled(suite: Suite, scale: Sequence[str]) -> Suite:
    for each in scale:
        denominator(each)
    if not any(sweep.presets for sweep in suite.sweeps):
        raise SuiteError(f"--scale: suite '{suite.name}' has no presets to scale")
    sweeps = (msgspec.structs.replace(s, scale=tuple(scale)) if s.presets else s for s in suite.sweeps)
    return msgspec.structs.replace(suite, sweeps=tuple(sweeps))


def _offered(sweep: Sweep, axis: str) -> set[str]:
    """The texts by which a filter or ``--only`` may ask for a value of the axis."""
    if axis == "presets":
        return {name for label, _ in parts(sweep.presets) for name in (label, label.partition(":")[0])}
    if axis == "strategies" and not sweep.strategies:
        return {part.strategy for _, part in parts(sweep.presets)}
    return {_text(value) for value in sweep.values(axis)}


def offered(suite: Suite) -> dict[str, list[str]]:
    """The values of each axis by which ``--only`` may narrow the suite."""
    found = {axis: {text for sweep in suite.sweeps for text in _offered(sweep, axis)} for axis in AXES}
    return {axis: sorted(values, key=lambda text: (len(text), text)) for axis, values in found.items() if values}


def _cut(sweep: Sweep, only: Mapping[str, Sequence[str]]) -> Sweep | None:
    """The sweep with only those values, or None where an axis has none of them."""
    changed: dict[str, tuple[Any, ...]] = {}
    for axis, wanted in only.items():
        if axis == "presets" or (axis == "strategies" and not sweep.strategies):
            labelled = list(parts(changed.get("presets", sweep.presets)))
            chosen = _asked_for(labelled, axis, wanted)
            changed["presets"] = tuple(chosen)
        elif axis == "strategies" and sweep.match:  # its first strategy stays what the others are matched with
            chosen = [name for name in sweep.strategies if name in wanted]
            others = [name for name in sweep.strategies if name not in wanted]
            changed["exclude"] = (*sweep.exclude, {"strategies": others}) if others else sweep.exclude
        else:
            chosen = [value for value in sweep.values(axis) if _text(value) in wanted]
            changed[axis] = tuple(chosen)
        if not chosen:
            return None
    return msgspec.structs.replace(sweep, **changed)


def _asked_for(labelled: Sequence[tuple[str, Part]], axis: str, wanted: Sequence[str]) -> list[str]:
    if axis == "strategies":
        return [label for label, part in labelled if part.strategy in wanted]
    return [label for label, _ in labelled if label in wanted or label.partition(":")[0] in wanted]


def _text(value: object) -> str:
    """A value as it is written in TOML and on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def jobs(suite: Suite) -> Iterator[Job | None]:
    """The jobs of all sweeps in order, lazily; None stands for a case that include or exclude left out."""
    for sweep in suite.sweeps:
        for point, part in _points(sweep):
            yield _job(point, part, sweep) if _wanted(sweep, point) else None


def _points(sweep: Sweep) -> Iterator[tuple[dict[str, Any], Part | None]]:
    """Each combination of the axes' values; beside it the part of a preset that gives what no axis does."""
    axes = [axis for axis in AXES if axis != "presets" and sweep.values(axis)]
    known: Iterable[tuple[str, Part | None]] = parts(sweep.presets) if sweep.presets else [("", None)]
    for label, part in known:
        for values in itertools.product(*(sweep.values(axis) for axis in axes)):
            yield {"presets": label} | dict(zip(axes, values, strict=True)), part


def _wanted(sweep: Sweep, point: Mapping[str, Any]) -> bool:
    def matches(table: Filter) -> bool:
        return all(_is(point, axis, v if isinstance(v, list) else [v]) for axis, v in table.items())

    if sweep.include and not any(map(matches, sweep.include)):
        return False
    return not any(map(matches, sweep.exclude))


def _is(point: Mapping[str, Any], axis: str, values: Sequence[Any]) -> bool:
    return point[axis] in values or (axis == "presets" and point[axis].partition(":")[0] in values)


_SHAPE_AXES = ("batch", "image", "text", "image_width", "text_width", "width", "heads", "depth", "ffn")


def _job(point: Mapping[str, Any], part: Part | None, sweep: Sweep) -> Job:
    def of(axis: str, field: str = "") -> Any:
        return point[axis] if axis in point or part is None else getattr(part, field or axis)

    sizes = {axis: of(axis) for axis in _SHAPE_AXES if axis != "depth"}
    depth = point["depth"] if "depth" in point or part is None else part.depth(point["extent"])
    case = Case(
        shape=Shape(**sizes, depth=depth, hidden=part.hidden if part and "ffn" not in point else 0),
        dtype=point["dtypes"],
        device=point["devices"],
        mode=point["modes"],
        projector=of("projectors", "projector"),
        type_embedding=of("type_embedding"),
        padding=point["padding"],
        design=part.design if part else PLAIN,
        preset=point["presets"],
        adapt=point["adapt"],
        prune=point["prune"],
        match=f"{sweep.match}={sweep.strategies[0]}" if sweep.match else "",
    )
    strategy = of("strategies", "strategy")
    return Job(strategy=strategy, backend=point["backends"], case=shrunk(case, denominator(point.get("scale", "1"))))


def single(axes: Mapping[str, Any], source: str) -> Job:
    """The one job that has these values of the axes, and the rest by default; ``source`` is what messages call it.

    Raises SuiteError for what no suite could say, and for a preset that stands for several jobs.
    """
    _refuse_unknown(axes, AXES, source)
    data = {axis: [value] for axis, value in axes.items()}
    try:
        sweep = msgspec.convert(data, Sweep)
    except msgspec.ValidationError as error:
        raise SuiteError(f"{source}: {_explain(str(error), data).replace(' 1: ', ': ', 1)}") from None
    _check_sweep(sweep, source)
    found = [_job(point, part, sweep) for point, part in _points(sweep)]
    if len(found) > 1:
        labels = ", ".join(f"'{label}'" for label, _ in parts(sweep.presets))
        raise SuiteError(f"{source}: preset '{sweep.presets[0]}' stands for {len(found)} jobs; name one of {labels}")
    return found[0]


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
