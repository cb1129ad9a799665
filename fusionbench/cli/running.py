"""The verbs that measure a sweep: `run` and `resume`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import FusionbenchError
from ..remote import place
from . import clustering, completing
from .options import (
    DEFAULT_RESULTS,
    Accelerator,
    Address,
    Engine,
    Insecure,
    Limit,
    Only,
    Place,
    Plugin,
    Quiet,
    Resource,
    Results,
    RetryFailed,
    Scale,
    Shard,
    Strict,
    SuiteArgument,
    TimerNames,
    WithReport,
    narrowing,
    slices_of,
    suite_file,
    timer_names,
)


def run(
    suite: SuiteArgument,
    results: Results = DEFAULT_RESULTS,
    only: Only = None,
    scale: Scale = None,
    limit: Limit = None,
    shard: Shard = None,
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
    energy: Annotated[
        bool, typer.Option("--energy", help="Measure energy per call, too: a second more per job (NVML, RAPL).")
    ] = False,
    engine: Engine = "local",
    address: Address = None,
    accelerator: Accelerator = None,
    resource: Resource = None,
    insecure: Insecure = False,
    strict: Strict = False,
    report: WithReport = False,
    quiet: Quiet = False,
) -> None:
    """Measure a suite: one record per job, saved as it comes. An unfinished run of it is resumed."""
    from .. import suite as suites

    asked = clustering.Asked(engine, address, accelerator, resource, insecure, strict)
    asked.check()
    chosen, narrowed, slices = suites.read(suite_file(suite)), narrowing(only, scale), slices_of(shard)
    if job and slices:
        raise FusionbenchError("--job and --shard exclude each other: one job has no slices")
    narrow = suites.narrow(chosen, narrowed)  # bad values are told before torch is imported
    from ..spec import replace_budget

    budget = replace_budget(
        chosen.budget, measure_s=measure_s, timeout_s=timeout_s, threads=threads, seed=seed, rounds=rounds,
        energy_s=1.0 if energy else None, timers=timer_names(timer),
    )  # fmt: skip
    from .. import staging

    folder = staging.folder_of(results)
    from ..engines import local

    local.start_server()
    from .. import launch as launches
    from .. import session, terminal

    out = terminal.console(stderr=True)
    with clustering.site(asked, narrow, plugin or [], out) as site:
        prepared = launches.new(
            chosen,
            folder,
            budget=budget,
            only=narrowed,
            limit=limit,
            job=job,
            slices=slices,
            plugins=[str(path) for path in plugin or []],
            fresh=fresh,
            retry_failed=retry_failed,
            order_seed=order_seed,
            command=sys.argv,
            site=site,
            read=staging.read,
            warn=lambda problem: terminal.note(out, problem),
        )
        code = session.execute(prepared, out, report=report, quiet=quiet, strict=strict)
    raise typer.Exit(code)


def resume(
    run: Annotated[
        Place,
        typer.Argument(
            metavar="RUN",
            parser=place,
            help="The run folder to go on with, here or behind a URL.",
            autocompletion=completing.runs,
        ),
    ],
    plugin: Plugin = None,
    retry_failed: RetryFailed = False,
    allow_env_change: Annotated[
        bool, typer.Option("--allow-env-change", help="Measure everything again where machine or versions changed.")
    ] = False,
    engine: Engine = "local",
    address: Address = None,
    accelerator: Accelerator = None,
    resource: Resource = None,
    insecure: Insecure = False,
    strict: Strict = False,
    report: WithReport = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was interrupted."""
    from .. import staging, store
    from .. import suite as suites

    asked = clustering.Asked(engine, address, accelerator, resource, insecure, strict)
    asked.check()
    folder = staging.run_of(run)
    manifest = store.read_manifest(folder)  # a wrong path is told before torch is imported
    chosen = suites.parse(store.read_suite(folder), manifest.suite_name, str(folder / store.SUITE))
    from ..engines import local

    local.start_server()
    from .. import launch as launches
    from .. import session, terminal

    out = terminal.console(stderr=True)
    with clustering.site(asked, chosen, plugin or [], out) as site:
        prepared = launches.resume(
            folder,
            plugins=[str(path) for path in plugin or []],
            retry_failed=retry_failed,
            allow_env_change=allow_env_change,
            site=site,
            warn=lambda problem: terminal.note(out, problem),
        )
        code = session.execute(prepared, out, report=report, quiet=quiet, strict=strict)
    raise typer.Exit(code)
