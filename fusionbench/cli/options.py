"""Arguments and options that several verbs share, and how their texts become values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import exits, remote
from ..errors import FusionbenchError, printable, refuse_unknown
from . import completing

if TYPE_CHECKING:
    from ..remote import Place as Place
    from ..slices import Slices
    from ..store import Run
else:
    Place = Path  # typer takes no unions: what it gives is what its ``parser`` makes of the text

SuiteArgument = Annotated[
    str,
    typer.Argument(
        help="A suite file, or the name of a shipped suite (see: list suites).", autocompletion=completing.suites
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="AXIS=VALUE,...",
        help="Keep only these values of an axis; may be repeated.",
        autocompletion=completing.only,
    ),
]
Scale = Annotated[
    str | None, typer.Option("--scale", metavar="1/N", help="Shrink presets to this share, so that they run anywhere.")
]
Limit = Annotated[int | None, typer.Option(min=1, max=10**12, help="Look at no more than this many cases.")]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only the I-th of N slices of about the same length, for N machines; put together by merge.",
    ),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Load strategies from this Python file (it is run: trust it)."),
]
Results = Annotated[
    Place,
    typer.Option("--results", metavar="DIR", parser=remote.place, help="Where run folders go, or a URL."),
]
RunArgument = Annotated[
    Place | None,
    typer.Argument(
        metavar="[RUN]",
        parser=remote.place,
        help="A run folder, a shard (.jsonl) or a sealed run (.parquet), here or behind a URL; without it the newest.",
        autocompletion=completing.runs,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
WithReport = Annotated[bool, typer.Option("--report", help="Write report.html into the run folder when done.")]
RetryFailed = Annotated[bool, typer.Option(help="Measure jobs again that failed before.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 4 where others disturbed a measurement: on the cores or the GPU.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No plan, no progress; only results.")]
TimerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--timer",
        metavar="NAME",
        help="What times a call on CUDA; may be repeated, the first one ranks. cold: events around it on an idle GPU "
        "with its L2 cache flushed; hot: without the flush; graph: events around the replay of its CUDA graph, "
        "flushed; kernel: the sum of its kernels; host: until it returns.",
        autocompletion=completing.of("timers"),
    ),
]

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Where jobs run: on this machine, or on the slots of a Ray cluster (extra 'ray')."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="The Ray cluster: ray://HOST:PORT, HOST:PORT or auto."),
]
Accelerator = Annotated[
    str | None, typer.Option("--accelerator", metavar="TYPE", help="Only Ray nodes with this type of GPU, as H100.")
]
Resource = Annotated[
    str | None, typer.Option("--resource", metavar="NAME", help="A custom Ray resource, of which each slot takes one.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Reach another machine's Ray cluster without a token.")]

DEFAULT_RESULTS = Path("results/runs")


def suite_file(suite: str) -> str:
    """The suite that is named; one behind a URL is fetched."""
    if not remote.is_url(suite):
        return suite
    from .. import mirror

    return str(mirror.here(remote.place(suite)))


def leave_if_damaged(found: Run) -> None:
    if found.damaged:
        raise typer.Exit(exits.DAMAGED)
    if not found.records:
        raise typer.Exit(exits.NOTHING)


def slices_of(shard: str | None) -> Slices | None:
    from ..slices import parse

    return None if shard is None else parse(shard)


def timer_names(names: list[str] | None) -> list[str] | None:
    from ..spec import TIMERS

    refuse_unknown("timer", names or (), TIMERS)
    return list(dict.fromkeys(names)) if names else None


def narrowing(options: list[str] | None, scale: str | None = None) -> dict[str, list[str]]:
    """``["dtypes=bf16,fp16"]`` as {"dtypes": ["bf16", "fp16"]}; ``--scale`` is the axis of that name."""
    narrowing: dict[str, list[str]] = {}
    for option in options or []:
        axis, equals, values = option.partition("=")
        if not equals or not values:
            raise FusionbenchError(f"--only '{printable(option)}' is not of the form AXIS=VALUE,VALUE")
        narrowing.setdefault(axis, []).extend(values.split(","))
    if scale is not None:
        narrowing["scale"] = [scale]
    return narrowing


def builtins(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def print_json(value: Any) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
