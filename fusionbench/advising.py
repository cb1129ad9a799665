"""One piece of advice: what the user asks as a case, the records read that tell, and the doubtful ones measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from . import advice, archive, launch, session, staging, suite
from .advice import Advice, Candidate, Limits
from .environment import capture
from .errors import SuiteError
from .record import Environment, Record, Roofline
from .remote import Place
from .spec import Case, Shape
from .suite import single

if TYPE_CHECKING:
    from rich.console import Console

FIELDS = ("job", "status", "time", "memory", "accuracy", "environment", "started_at")  # of sealed runs
HEAD_WIDTH = 64  # of a head, where the user names no heads


@dataclass(frozen=True)
class Request:
    """What is asked: sizes and conditions of a case, in whose records, and what a candidate may need."""

    sizes: dict[str, int]
    preset: str | None
    dtype: str
    device: str
    mode: str
    limits: Limits
    results: Place
    machine: str | None
    strategies: tuple[str, ...]
    plugins: tuple[str, ...]


def case_of(request: Request) -> Case:
    """The case that is asked about: a preset's sizes, or widths that follow from one another; raises SuiteError."""
    sizes = dict(request.sizes)
    if request.preset:
        asked = {"presets": request.preset, "strategies": "cross_attention", "backends": "eager"}
        own = single(asked, "--preset").case.shape
        sizes = {name: getattr(own, name) for name in Shape.__struct_fields__ if name != "hidden"} | sizes
    for name in ("image", "text"):
        if name not in sizes:
            raise SuiteError(f"how many {name} tokens? give --{name} N, or --preset NAME")
    sizes.setdefault("width", 768)
    sizes.setdefault("image_width", sizes["width"])
    sizes.setdefault("text_width", sizes["width"])
    sizes.setdefault("heads", max(1, sizes["width"] // HEAD_WIDTH))
    if sizes["width"] % sizes["heads"]:
        raise SuiteError(f"width {sizes['width']} is no multiple of {sizes['heads']} heads; name others with --heads")
    conditions = {"dtypes": request.dtype, "devices": request.device, "modes": request.mode}
    names = {"strategies": "cross_attention", "backends": "eager"}
    return single({**names, **sizes, **conditions}, "advise").case


def advised(request: Request, case: Case, left_out: Callable[[str], object]) -> Advice:
    """The advice from all runs below the folder of results; ``left_out`` is told what could not be read."""
    launch.load_plugins(request.plugins)
    records: list[Record] = []
    environments: dict[str, Environment] = {}
    rooflines: list[Roofline] = []
    for run in archive.runs(request.results, FIELDS, left_out=lambda text, _: left_out(text)):
        records += run.records
        environments |= run.environments
        rooflines += run.rooflines
    return advice.advise(
        case,
        records,
        environments,
        rooflines,
        limits=request.limits,
        machine=request.machine,
        here="" if request.machine else capture().id,
        strategies=request.strategies,
    )


def settle(request: Request, found: Advice, out: Console, *, quiet: bool) -> int:
    """Measure the candidates in doubt at this very shape; returns the number of the signal that ended it, or 0."""
    chosen = suite.parse(_suite(found.case, doubtful(found)), "advise", "advise")
    prepared = launch.new(
        chosen,
        staging.folder_of(request.results),
        budget=msgspec.structs.replace(chosen.budget, threads=found.threads),
        only={},
        plugins=request.plugins,
        fresh=True,
        command=sys.argv,
        warn=lambda problem: None,
    )
    return session.measure(prepared, out, quiet=quiet).signal


def doubtful(found: Advice) -> list[Candidate]:
    """The candidates whose measuring could change the advice: those advised that are not measured at this shape."""
    return [each for each in found.advised if not each.measured]


def _suite(case: Case, candidates: Sequence[Candidate]) -> str:
    """A suite of the case for these candidates, as TOML: names are checked ones, sizes are numbers."""
    shape = case.shape
    sizes = ("batch", "image", "text", "image_width", "text_width", "width", "heads", "depth", "ffn")
    axes = [f"{name} = [{getattr(shape, name)}]" for name in sizes]
    axes += [f'dtypes = ["{case.dtype}"]', f'devices = ["{case.device}"]', f'modes = ["{case.mode}"]']
    axes += [f'projectors = ["{case.projector}"]']
    lines = ['title = "Advice"', 'question = "Which of the candidates in doubt is it?"']
    for backend in dict.fromkeys(each.backend for each in candidates):
        names = ", ".join(f'"{each.strategy}"' for each in candidates if each.backend == backend)
        lines += ["", "[[sweep]]", f"strategies = [{names}]", f'backends = ["{backend}"]', *axes]
    return "\n".join(lines) + "\n"
