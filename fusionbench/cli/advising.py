"""The verb that answers for shapes that were not measured: `advise`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from .. import exits
from ..remote import place
from . import completing
from .options import DEFAULT_RESULTS, AsJson, Place, Plugin, Quiet, builtins, print_json

_MOST = 2**31 - 1


def advise(
    image: Annotated[int | None, typer.Option(min=1, max=_MOST, metavar="N", help="Image tokens.")] = None,
    text: Annotated[int | None, typer.Option(min=1, max=_MOST, metavar="N", help="Text tokens.")] = None,
    width: Annotated[int | None, typer.Option(min=1, max=_MOST, help="Inner width; 768 if not given.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, max=_MOST, help="Heads; if not given, of 64 each.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, max=_MOST, help="Batch; 1 if not given.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, max=1024, help="Layers; 1 if not given.")] = None,
    image_width: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST, help="Width of the image's features; the inner one if not given."),
    ] = None,
    text_width: Annotated[
        int | None, typer.Option(min=1, max=_MOST, help="Width of the text's features; the inner one if not given.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The sizes of this system (see: list presets).",
            autocompletion=completing.of("presets"),
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only among these strategies; may be repeated.",
            autocompletion=completing.of("strategies"),
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="fp32, tf32, fp16, bf16 or int8.", autocompletion=completing.of("dtypes"))
    ] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    mode: Annotated[
        str, typer.Option(help="fwd, fwd_bwd, step, decode, …", autocompletion=completing.of("modes"))
    ] = "fwd",
    budget_ms: Annotated[float | None, typer.Option(min=0, help="A call may take so long.")] = None,
    budget_mib: Annotated[float | None, typer.Option(min=0, help="A call may need so much beyond its inputs.")] = None,
    max_error: Annotated[float | None, typer.Option(min=0, help="The result may be so far off (relative L2).")] = None,
    machine: Annotated[str | None, typer.Option(metavar="NAME", help="Whose records; else this machine's.")] = None,
    results: Annotated[
        Place,
        typer.Option(
            "--results",
            metavar="DIR",
            parser=place,
            help="The folder of runs and sealed runs to advise from, or its URL.",
        ),
    ] = DEFAULT_RESULTS,
    plugin: Plugin = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the candidates in doubt at this shape, then advise.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show every candidate that is not advised.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Which strategy and backend for this shape: predicted latency, memory and error, with their uncertainty."""
    from .. import advising
    from ..advice import Limits
    from ..terminal import console, note

    sizes = {"image": image, "text": text, "width": width, "heads": heads, "batch": batch, "depth": depth,
             "image_width": image_width, "text_width": text_width}  # fmt: skip
    request = advising.Request(
        sizes={name: size for name, size in sizes.items() if size is not None},
        preset=preset,
        dtype=dtype,
        device=device,
        mode=mode,
        limits=Limits(ms=budget_ms, mib=budget_mib, error=max_error),
        results=results,
        machine=machine,
        strategies=tuple(strategy or ()),
        plugins=tuple(str(path) for path in plugin or []),
    )
    log = console(stderr=True)
    case = advising.case_of(request)
    found = advising.advised(request, case, lambda text: note(log, text))
    if measure and advising.doubtful(found):
        number = advising.settle(request, found, log, quiet=quiet)
        if number:
            raise typer.Exit(128 + number)
        found = advising.advised(request, case, lambda text: None)
    if as_json:
        print_json(builtins(found))
    else:
        from ..counsel import show

        out = console()
        again = "" if measure or not advising.doubtful(found) else _again()
        out.print(show(found, width=out.width, settle=again, everything=everything), crop=False)
    if not found.advised:
        raise typer.Exit(exits.NOTHING)


def _again() -> str:
    return shlex.join(["fusionbench", *sys.argv[1:], "--measure"])
