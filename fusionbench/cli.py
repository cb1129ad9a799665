"""The command line: parse, call, print. Everything heavy is imported by the verb that needs it."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import __version__
from .collector import paused
from .errors import FusionbenchError, UnknownNameError, printable

if TYPE_CHECKING:
    from .store import Run

SOME_FAILED, UNFIT, NOTHING, DAMAGED, INTERRUPTED = 3, 4, 5, 6, 130  # exit codes, see EPILOG

EPILOG = (
    "Exit codes: 0 fine, 2 usage or suite error, 3 some jobs failed or were wrong, 4 the machine is unfit (--strict), "
    "5 nothing to measure or show, 6 results damaged or not stored, 130 interrupted (partial results are saved), "
    "143 terminated (the same)."
)

app = typer.Typer(
    help="Measure what it costs to fuse two modalities: strategies, attention backends, shapes and dtypes.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help needs no rich and comes 90 ms sooner
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SuiteArgument = Annotated[str, typer.Argument(help="A suite file, or the name of a shipped suite (see: list suites).")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="AXIS=VALUE,...", help="Keep only these values of an axis; may be repeated."),
]
Scale = Annotated[
    str | None, typer.Option("--scale", metavar="1/N", help="Shrink presets to this share, so that they run anywhere.")
]
Limit = Annotated[int | None, typer.Option(min=1, max=10**12, help="Look at no more than this many cases.")]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Load strategies from this Python file (it is run: trust it)."),
]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where run folders go.")]
RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]", help="A run folder, a shard (.jsonl) or a sealed run (.parquet); without it the newest."
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
    ),
]

DEFAULT_RESULTS = Path("results/runs")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fusionbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command("list")
def list_(
    what: Annotated[Literal["strategies", "backends", "suites", "presets"], typer.Argument(help="What to list.")],
    as_json: AsJson = False,
    plugin: Plugin = None,
) -> None:
    """List strategies, backends, suites or the presets of real systems."""
    listings = {"strategies": _strategies, "backends": _backends, "suites": _suites, "presets": _presets}
    rows = listings[what](plugin or [])
    if as_json:
        _print_json(rows)
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['summary']}")


def _strategies(plugins: list[Path]) -> list[dict[str, Any]]:
    from .launch import load_plugins
    from .registry import strategies

    load_plugins([str(path) for path in plugins])
    return [
        {"name": s.name, "summary": s.summary + (f" [{_assignments(s.options)}]" if s.options else ""),
         "impls": list(s.impls), "options": dict(s.options)}
        for s in strategies().values()
    ]  # fmt: skip


def _assignments(options: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _backends(plugins: list[Path]) -> list[dict[str, Any]]:
    from .backends import BACKENDS

    return [{"name": b.name, "summary": b.summary, "impl": b.impl} for b in BACKENDS.values()]


def _suites(plugins: list[Path]) -> list[dict[str, Any]]:
    from .suite import read, shipped

    suites = [read(str(path)) for path in shipped().values()]
    return [{"name": s.name, "summary": s.question or s.title, "cases": s.count} for s in suites]


def _presets(plugins: list[Path]) -> list[dict[str, Any]]:
    from .presets import encoders, parts, presets

    rows = [
        {**_builtins(part), "name": label, "summary": f"{presets()[name].title}: {part.summary}",
         "source": presets()[name].source}
        for name in presets() for label, part in parts([name])
    ]  # fmt: skip
    return rows + [
        {**_builtins(e), "name": name,
         "summary": f"an encoder, to be joined (as vit-b16+bert-base): {e.tokens} tokens of {e.width}"}
        for name, e in encoders().items()
    ]  # fmt: skip


@app.command()
def plan(
    suite: SuiteArgument,
    only: Only = None,
    scale: Scale = None,
    limit: Limit = None,
    plugin: Plugin = None,
    count: Annotated[bool, typer.Option("--count", help="Print only how many cases the suite spans.")] = False,
    head: Annotated[int, typer.Option(min=0, help="How many jobs to print; 0 for all.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the jobs that a suite expands to, and why some are skipped."""
    from . import suite as suites

    chosen = suites.narrow(suites.read(suite), _only(only, scale))
    if count:
        typer.echo(chosen.count)
        return
    from .launch import load_plugins
    from .plan import Plan
    from .spec import Skip

    load_plugins([str(path) for path in plugin or []])
    expanded = Plan(chosen, limit)
    expanded.check()
    items = list(expanded)
    jobs = [item for item in items if not isinstance(item, Skip)]
    skips = [item for item in items if isinstance(item, Skip)]
    if as_json:
        _print_json({
            "suite": chosen.name,
            "cases": chosen.count,
            "jobs": [{"key": job.key, **_builtins(job)} for job in jobs],
            "skips": [{"key": skip.job.key, "reason": skip.reason} for skip in skips],
        })  # fmt: skip
        return
    from .progress import plan_listing
    from .terminal import console

    console().print(plan_listing(chosen.title, jobs, skips, head or len(jobs)), soft_wrap=True)
    if not jobs:
        raise typer.Exit(NOTHING)


@app.command()
def run(
    suite: SuiteArgument,
    results: Results = DEFAULT_RESULTS,
    only: Only = None,
    scale: Scale = None,
    limit: Limit = None,
    job: Annotated[str | None, typer.Option(metavar="KEY", help="Run this one job, as a new run.")] = None,
    plugin: Plugin = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new run even if one can be resumed.")] = False,
    retry_failed: RetryFailed = False,
    measure_s: Annotated[float | None, typer.Option(help="Sampling time per job, in seconds.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Seconds after which a job is killed.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a job.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and inputs.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Processes that share a job's sampling time; from 6 on its interval is theirs.")
    ] = None,
    order_seed: Annotated[int | None, typer.Option(min=0, help="Seed of the order of jobs; else a new one.")] = None,
    timer: TimerNames = None,
    strict: Strict = False,
    report: WithReport = False,
    quiet: Quiet = False,
) -> None:
    """Measure a suite: one record per job, saved as it comes. An unfinished run of it is resumed."""
    from . import suite as suites

    chosen, narrowing = suites.read(suite), _only(only, scale)
    suites.narrow(chosen, narrowing)  # bad values are told before torch is imported
    from .spec import replace_budget

    budget = replace_budget(
        chosen.budget, measure_s=measure_s, timeout_s=timeout_s, threads=threads, seed=seed, rounds=rounds,
        timers=_timers(timer),
    )  # fmt: skip
    from .engines import local

    local.start_server()
    from . import launch as launches
    from . import session, terminal

    out = terminal.console(stderr=True)
    prepared = launches.new(
        chosen,
        results,
        budget=budget,
        only=narrowing,
        limit=limit,
        job=job,
        plugins=[str(path) for path in plugin or []],
        fresh=fresh,
        retry_failed=retry_failed,
        order_seed=order_seed,
        command=sys.argv,
        warn=lambda problem: terminal.note(out, problem),
    )
    raise typer.Exit(session.execute(prepared, out, report=report, quiet=quiet, strict=strict))


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The run folder to go on with.")],
    plugin: Plugin = None,
    retry_failed: RetryFailed = False,
    allow_env_change: Annotated[
        bool, typer.Option("--allow-env-change", help="Measure everything again where machine or versions changed.")
    ] = False,
    strict: Strict = False,
    report: WithReport = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was interrupted."""
    from . import store

    store.read_manifest(run)  # a wrong path is told before torch is imported
    from .engines import local

    local.start_server()
    from . import launch as launches
    from . import session, terminal

    out = terminal.console(stderr=True)
    plugins = [str(path) for path in plugin or []]
    prepared = launches.resume(
        run,
        plugins=plugins,
        retry_failed=retry_failed,
        allow_env_change=allow_env_change,
        warn=lambda problem: terminal.note(out, problem),
    )
    raise typer.Exit(session.execute(prepared, out, report=report, quiet=quiet, strict=strict))


@app.command()
def show(
    run: RunArgument = None,
    results: Results = DEFAULT_RESULTS,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as CSV.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the records as JSON.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Parquet.")] = None,
    groups: Annotated[int, typer.Option(min=1, help="How many shapes and conditions to print.")] = 12,
    rows: Annotated[int, typer.Option(min=1, help="How many candidates to print for each of them.")] = 12,
) -> None:
    """Print a run as tables, or export it as CSV, JSON or Parquet."""
    from . import present

    with paused():
        found = present.read(run, results)
        if csv or json or parquet:
            for path in present.write_tables(found, csv, json, parquet):
                typer.echo(str(path))
        else:
            present.print_tables(found, groups=groups, rows=rows)
    _leave_if_damaged(found)


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders; without any, the newest.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = None,
    claims: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Findings of `claims --output`; without it those in a run's claims.json."),
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write one offline HTML page with everything a run found."""
    from . import present

    with paused():
        found = [present.read(path, results) for path in runs] if runs else [present.read(None, results)]
        path = output or (found[0].path / "report.html" if found[0].path.is_dir() else Path("report.html"))
        checked, problems = present.ledgers(found, claims)
        typer.echo(str(present.write_page(found, path, checked, problems)))
    if problems:
        raise typer.Exit(DAMAGED)
    for each in found:
        _leave_if_damaged(each)


@app.command()
def claims(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Claims to check (C1 to C28); without any, all.")
    ] = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Save the findings, for `report --claims`.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Seed of weights and inputs.")] = 0,
) -> None:
    """Check what is commonly said about fusion: claim, verdict, the figures found here, and the condition."""
    from . import ledger
    from .claims import table

    wanted = table.chosen(ids or ())  # wrong names and places are told before torch is imported
    if output:
        ledger.make_place(output)
    from . import findings
    from .claims import run
    from .claims.check import Lab
    from .terminal import console

    out, lab = console(), Lab(seed)

    def show(claim: ledger.Claim, finding: ledger.Finding) -> None:
        if not as_json:
            out.print(findings.block(claim, finding, out.width))

    found, interrupted = findings.follow(wanted, run.run(wanted, lab), console(stderr=True), show)
    result = run.ledger(wanted, found, lab)
    if output:
        ledger.save(result, output)
    if as_json:
        typer.echo(ledger.encode(result).decode(), nl=False)
    else:
        out.print(findings.ending(result), soft_wrap=True)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(finding.error for finding in found):
        raise typer.Exit(SOME_FAILED)


@app.command()
def inspect(
    arch: Annotated[
        list[str] | None, typer.Option(metavar="SM", help="Only this chip (sm_90, …); may be repeated.")
    ] = None,
    kernel: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this kernel; may be repeated.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the profile as JSON, too.")] = None,
) -> None:
    """Compile the Triton kernels for every chip, without a GPU: registers, spills, shared memory, instructions."""
    from rich.progress import track

    from . import inspection
    from .terminal import console, note

    rows = inspection.planned(arch or (), kernel or ())
    out, counted = (
        console(),
        track(inspection.inspect(rows), "compiling", len(rows), console=console(stderr=True), transient=True),
    )
    found = list(counted)
    out.print(inspection.as_table(found, narrow=out.width < 110), crop=False)
    for profile in found:
        if profile.error:
            note(out, f"{profile.key} does not compile: {profile.error}")
    if json:
        inspection.save(inspection.inspection(found), json)
        typer.echo(str(json))
    if any(profile.error for profile in found):
        raise typer.Exit(SOME_FAILED)


@app.command()
def doctor(
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE",
            help="cuda or cuda:N to examine beside the CPU, cpu for no other; repeatable. Without it the first GPU.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 4 when a check failed; warnings alone still exit with 0.")
    ] = False,
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter probes: 3 instead of 7 seconds.")] = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Is this machine fit to measure? Timer, noise, contention, clocks, versions, disk; each with its remedy."""
    from . import doctor as doctors

    checks = doctors.examine(device or (), results, quick=quick)
    if as_json:
        found = list(checks)
        _print_json({"fit": all(check.status != "fail" for check in found), "checks": _builtins(found)})
    else:
        from . import diagnosis
        from .terminal import console

        found = diagnosis.tell(checks, console())
    if strict and any(check.status == "fail" for check in found):
        raise typer.Exit(UNFIT)


@app.command()
def profile(
    suite: SuiteArgument,
    job: Annotated[
        str | None, typer.Option(metavar="KEY", help="The job to profile; not needed where there is only one.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The trace (.json.gz); without it in results/profiles."),
    ] = None,
    calls: Annotated[int, typer.Option(min=1, max=10_000, help="How many calls to profile.")] = 20,
    shapes: Annotated[bool, typer.Option("--shapes", help="A row for each op and shapes of its arguments.")] = False,
    proton: Annotated[
        Path | None, typer.Option(metavar="FILE.hatchet", help="Profile with Triton's Proton, too (needs a GPU).")
    ] = None,
    only: Only = None,
    scale: Scale = None,
    plugin: Plugin = None,
) -> None:
    """Where the time of one job goes: a table op by op, and a trace for Perfetto."""
    from . import profiling
    from .terminal import console, note

    request = profiling.Request(
        suite=suite,
        only=_only(only, scale),
        plugins=tuple(str(path) for path in plugin or []),
        job=job,
        calls=calls,
        shapes=shapes,
        output=str(output) if output else None,
        proton=str(proton) if proton else None,
    )
    log = console(stderr=True)
    try:
        with log.status("profiling"):  # nothing where stderr is no terminal
            found = profiling.run(request)
    except profiling.SeveralJobsError as error:
        for line in (f"fusionbench: {error}, for example", *(f"    {key}" for key in error.keys)):
            note(log, line)
        raise typer.Exit(error.exit_code) from None
    from . import breakdown

    out = console()
    out.print(breakdown.show(found, out.width), crop=False)


def _leave_if_damaged(found: Run) -> None:
    if found.damaged:
        raise typer.Exit(DAMAGED)
    if not found.records:
        raise typer.Exit(NOTHING)


def _timers(names: list[str] | None) -> list[str] | None:
    from .spec import TIMERS

    for name in names or []:
        if name not in TIMERS:
            raise UnknownNameError("timer", name, TIMERS)
    return list(dict.fromkeys(names)) if names else None


def _only(options: list[str] | None, scale: str | None = None) -> dict[str, list[str]]:
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


def _builtins(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _print_json(value: Any) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def main() -> None:
    """Entry point: errors that are meant for the user are one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show × still shows the rest
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except FusionbenchError as error:
        typer.echo(f"fusionbench: {printable(str(error), 2000)}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as missing:
        typer.echo(f"fusionbench: this needs the package '{missing.name}', which is not installed here", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left; Python would complain at exit otherwise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        typer.echo(f"fusionbench: {printable(str(error))}", err=True)
        sys.exit(2)
