"""What there is to measure: `list` names it, `plan` expands a suite to jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import exits
from . import names
from .options import (
    AsJson,
    Limit,
    Only,
    Plugin,
    Scale,
    Shard,
    SuiteArgument,
    builtins,
    narrowing,
    print_json,
    slices_of,
    suite_file,
)

BESIDE = 40  # columns that a summary needs to stand behind its name


def list_(
    what: Annotated[Literal["strategies", "backends", "suites", "presets"], typer.Argument(help="What to list.")],
    as_json: AsJson = False,
    plugin: Plugin = None,
) -> None:
    """List strategies, backends, suites or the presets of real systems."""
    listings = {"strategies": _strategies, "backends": _backends, "suites": _suites, "presets": _presets}
    rows = listings[what](plugin or [])
    if not plugin:  # a plugin's are there only where it is named
        known = {what: [row["name"] for row in rows]} if what in ("strategies", "backends") else {}
        names.refresh(**known)
    if as_json:
        print_json(rows)
        return
    width = max(len(str(row["name"])) for row in rows)
    if sys.stdout.isatty():
        _print_folded(rows, width)
        return
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['summary']}")


def _print_folded(rows: list[dict[str, Any]], names: int) -> None:
    """Summaries behind the names, and in a narrow terminal below them."""
    from ..summary.folding import hanging, paragraph
    from ..terminal import console

    out = console()
    for row in rows:
        name, summary = str(row["name"]), str(row["summary"])
        beside = out.width >= names + BESIDE
        lines = hanging(name, summary, out.width, "", names + 2) if beside else paragraph(summary, out.width, indent=2)
        out.print(*([] if beside else [name]), *lines, sep="\n")


def _strategies(plugins: list[Path]) -> list[dict[str, Any]]:
    from ..launch import load_plugins
    from ..registry import strategies

    load_plugins([str(path) for path in plugins])
    return [
        {"name": s.name, "summary": s.summary + (f" [{_assignments(s.options)}]" if s.options else ""),
         "impls": list(s.impls), "options": dict(s.options)}
        for s in strategies().values()
    ]  # fmt: skip


def _assignments(options: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _backends(plugins: list[Path]) -> list[dict[str, Any]]:
    from ..backends import BACKENDS

    return [{"name": b.name, "summary": b.summary, "impl": b.impl} for b in BACKENDS.values()]


def _suites(plugins: list[Path]) -> list[dict[str, Any]]:
    from ..suite import read, shipped

    suites = [read(str(path)) for path in shipped().values()]
    return [{"name": s.name, "summary": s.question or s.title, "cases": s.count} for s in suites]


def _presets(plugins: list[Path]) -> list[dict[str, Any]]:
    from ..presets import encoders, parts, presets

    rows = [
        {**builtins(part), "name": label, "summary": f"{presets()[name].title}: {part.summary}",
         "source": presets()[name].source}
        for name in presets() for label, part in parts([name])
    ]  # fmt: skip
    return rows + [
        {**builtins(e), "name": name,
         "summary": f"an encoder, to be joined (as vit-b16+bert-base): {e.tokens} tokens of {e.width}"}
        for name, e in encoders().items()
    ]  # fmt: skip


def plan(
    suite: SuiteArgument,
    only: Only = None,
    scale: Scale = None,
    limit: Limit = None,
    shard: Shard = None,
    plugin: Plugin = None,
    count: Annotated[bool, typer.Option("--count", help="Print only how many cases the suite spans.")] = False,
    head: Annotated[int, typer.Option(min=0, help="How many jobs to print; 0 for all.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the jobs that a suite expands to, and why some are skipped."""
    from .. import suite as suites

    chosen, slices = suites.narrow(suites.read(suite_file(suite)), narrowing(only, scale)), slices_of(shard)
    if count and slices is None:
        typer.echo(chosen.count)
        return
    from ..launch import load_plugins
    from ..plan import Plan
    from ..spec import Skip

    load_plugins([str(path) for path in plugin or []])
    expanded = Plan(chosen, limit, slices=slices)
    expanded.check()
    items = list(expanded)
    if count:  # of a slice only the plan knows
        typer.echo(len(items))
        return
    jobs = [item for item in items if not isinstance(item, Skip)]
    skips = [item for item in items if isinstance(item, Skip)]
    if as_json:
        print_json({
            "suite": chosen.name,
            "cases": chosen.count,
            "jobs": [{"key": job.key, **builtins(job)} for job in jobs],
            "skips": [{"key": skip.job.key, "reason": skip.reason} for skip in skips],
        })  # fmt: skip
        return
    from ..progress import plan_listing
    from ..terminal import console

    console().print(plan_listing(chosen.title, jobs, skips, head or len(jobs)), crop=False)
    if not jobs:
        raise typer.Exit(exits.NOTHING)
