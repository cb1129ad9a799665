"""The verbs that look closely at one thing: `claims`, `inspect`, `doctor` and `profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from . import completing
from .options import (
    DEFAULT_RESULTS,
    AsJson,
    Only,
    Plugin,
    Results,
    Scale,
    SuiteArgument,
    builtins,
    narrowing,
    print_json,
)


def claims(
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...",
            help="Claims to check (C1 to C28); without any, all.",
            autocompletion=completing.of("claims"),
        ),
    ] = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Save the findings, for `report --claims`.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Seed of weights and inputs.")] = 0,
) -> None:
    """Check what is commonly said about fusion: claim, verdict, the figures found here, and the condition."""
    from .. import ledger
    from ..claims import table

    wanted = table.chosen(ids or ())  # wrong names and places are told before torch is imported
    if output:
        ledger.make_place(output)
    from .. import findings
    from ..claims import run
    from ..claims.check import Lab
    from ..terminal import console

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
        raise typer.Exit(exits.INTERRUPTED)
    if any(finding.error for finding in found):
        raise typer.Exit(exits.FAILED)


def inspect(
    arch: Annotated[
        list[str] | None, typer.Option(metavar="SM", help="Only this chip (sm_90, …); may be repeated.")
    ] = None,
    kernel: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this kernel; may be repeated.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the profile as JSON, too.")] = None,
) -> None:
    """Compile the Triton kernels for every chip, without a GPU: registers, spills, shared memory, instructions."""
    from rich.progress import track

    from .. import inspection
    from ..terminal import console, note

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
        raise typer.Exit(exits.FAILED)


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
    from .. import doctor as doctors
    from .. import staging

    checks = doctors.examine(device or (), staging.folder_of(results), quick=quick)
    if as_json:
        found = list(checks)
        print_json({"fit": all(check.status != "fail" for check in found), "checks": builtins(found)})
    else:
        from .. import diagnosis
        from ..terminal import console

        found = diagnosis.tell(checks, console())
    if strict and any(check.status == "fail" for check in found):
        raise typer.Exit(exits.UNFIT)


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
    from .. import profiling
    from ..terminal import console, note

    request = profiling.Request(
        suite=suite,
        only=narrowing(only, scale),
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
    from .. import breakdown

    out = console()
    out.print(breakdown.show(found, out.width), crop=False)
