"""The verbs that hold two measurements against each other: `compare` shows, `check` judges, `baseline` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import exits
from ..collector import paused
from ..errors import DamagedError, FusionbenchError, NothingError, StoreError, counted, printable, refuse_unknown
from ..remote import place
from . import completing
from .options import DEFAULT_RESULTS, Place, Plugin, Quiet, Results, RunArgument, Strict, narrowing

if TYPE_CHECKING:
    from ..baseline import Baseline
    from ..delta import Comparison, Gate, Judgement

SHOWN = 20  # changes of facts that `baseline update` prints

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all of it as JSON; - instead of the table.")
]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write it as Markdown.")]
Everything = Annotated[bool, typer.Option("--all", help="Print every job, also those where nothing changed.")]
Machine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="This machine's name, where its host's says nothing (as in a container); or set FUSIONBENCH_MACHINE.",
    ),
]

SIDE = "A run folder, a shard (.jsonl), a sealed run (.parquet) or a baseline (.json), here or behind a URL."

baseline = typer.Typer(
    help="Keep a run as what `check` judges by: baseline update.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def compare(
    base: Annotated[Place, typer.Argument(metavar="BASE", parser=place, help=SIDE, autocompletion=completing.runs)],
    head: Annotated[Place, typer.Argument(metavar="HEAD", parser=place, help=SIDE, autocompletion=completing.runs)],
    json: JsonFile = None,
    markdown: MarkdownFile = None,
    everything: Everything = False,
) -> None:
    """Compare two measurements job by job, in times and facts; judge nothing."""
    from ..report.files import put, refuse_unwritable

    refuse_unwritable(json, markdown)
    from .. import checking, comparison
    from ..summary import as_json
    from ..summary import markdown as in_markdown

    with paused():
        found = comparison.of(checking.side(base), checking.side(head), (str(base), str(head)))
    try:
        if json:
            put(json, as_json.encode(found))
        if markdown:
            put(markdown, in_markdown.full(found).encode())
    finally:
        _print(found, None, everything, json, markdown)
    if all(delta.verdict in ("new", "missing") for delta in found.deltas):
        typer.echo("fusionbench: the two have no job in common", err=True)
        raise typer.Exit(exits.NOTHING)


def check(
    run: Annotated[
        Place | None,
        typer.Argument(
            metavar="[RUN]",
            parser=place,
            help="The run to judge; without it the baseline's suite is measured now.",
            autocompletion=completing.runs,
        ),
    ] = None,
    baselines: Annotated[
        list[Place] | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            parser=place,
            help="What to judge by; repeatable: what `baseline update` wrote, and what `inspect --json` wrote.",
        ),
    ] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="NAME",
            help="deterministic: FLOPs, memory, launches, kernels; timing: times, on the baseline's machine. "
            "Repeatable; without it both.",
            autocompletion=completing.of("gates"),
        ),
    ] = None,
    paired: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="Judge the working tree by this revision instead of a file: both are measured now, by turns.",
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="REVISION", help="With --paired: what to judge, instead of the working tree.")
    ] = None,
    setup: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="With --paired: run first in each checkout, as 'make setup'."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="With --paired: the interpreter in each checkout (.venv/bin/python)."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=200, help="With --paired: rounds of the screen; 7 unless given.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The baseline's suite, where no shipped one has its name; with --paired what to measure (else smoke).",
            autocompletion=completing.suites,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="AXIS=VALUE,...",
            help="With --paired: only these values of an axis; may be repeated.",
            autocompletion=completing.only,
        ),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="1/N", help="With --paired: shrink presets to this share.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=10**12, help="With --paired: look at no more than this many cases.")
    ] = None,
    machine: Machine = None,
    results: Results = DEFAULT_RESULTS,
    plugin: Plugin = None,
    json: JsonFile = None,
    markdown: MarkdownFile = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as JUnit XML.")] = None,
    comment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a comment for a pull request (Markdown).")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print workflow annotations, and add to $GITHUB_STEP_SUMMARY.")
    ] = False,
    everything: Everything = False,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Judge a run, or this code now, by a baseline or another revision: 1 regression, 5 no verdict."""
    from ..report.files import refuse_unwritable

    asked = _gates(gates)
    refuse_unwritable(json, markdown, junit, comment)
    for_pairs = {"--head": head, "--setup": setup, "--python": python, "--rounds": rounds}
    _refuse_misplaced(run, paired, for_pairs | {"--only": only, "--scale": scale, "--limit": limit})
    from .. import checking
    from ..summary import files
    from ..terminal import console, note

    found, out = checking.baselines(baselines or ()), console(stderr=True)
    plugins = tuple(str(path) for path in plugin or [])
    how = checking.Measuring(suite, results, plugins, machine or None, quiet, strict)
    if paired is None:
        judged, stopped = checking.judged(found, run, asked, how, out), 0
    else:
        revisions = checking.Revisions(paired, head, setup, python, rounds, narrowing(only, scale), limit)
        judged, stopped = checking.paired(revisions, found, asked, how, out)
    try:
        files.write(judged, json=json, markdown=markdown, junit=junit, comment=comment)
    finally:  # what took an hour to measure is told, if not kept
        _print(judged.comparison, judged, everything, json, markdown, junit, comment)
    if github:
        files.write(judged, github=True)
    if stopped:
        note(out, "interrupted: nothing is said of the jobs that are missing")
    raise typer.Exit(128 + stopped if stopped else judged.exit_code)


@baseline.command()
def update(
    run: RunArgument = None,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why this run is the one to judge by; stored in the file.")
    ] = "",
    machine: Annotated[str | None, typer.Option(metavar="NAME", help="Keep it under this machine's name.")] = None,
    output: Annotated[
        Place | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            parser=place,
            help="The file, here or to a URL; without it results/baseline/<machine>/<suite>.json.",
        ),
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write a run as the baseline of its suite on its machine, and say what changed against the one before."""
    from .. import baseline as baselines
    from .. import checking, mirror, present
    from ..report.files import STDOUT, put, refuse_unwritable

    refuse_unwritable(output if isinstance(output, Path) else None)
    if not reason.strip():  # told before a large run is read
        raise FusionbenchError(f"a baseline needs a reason, for whoever reviews it: {baselines.ANEW}")
    with paused():
        found = checking.whole_run(run, "keep") if run else present.read(None, results)
        made = baselines.of(found, reason, machine or None)
    target = output or baselines.place(baselines.FOLDER, made.environment.machine, made.suite_name)
    with mirror.landing(target, fetch=True) as path:
        data, before = baselines.encode(made), _before(path)
        put(path, data)
    if path == STDOUT:
        return
    for line in _changes(before, made):
        typer.echo(line)
    typer.echo(str(target))


def _gates(names: list[str] | None) -> tuple[Gate, ...]:
    from ..delta import GATES

    refuse_unknown("gate", names or (), GATES)
    return tuple(gate for gate in GATES if gate in (names or ()))


def _refuse_misplaced(run: Place | None, paired: str | None, for_pairs: Mapping[str, object]) -> None:
    for option, given in for_pairs.items():
        if given is not None and paired is None:
            raise FusionbenchError(f"{option} is for --paired; a baseline says itself what was measured")
    if paired is not None and run is not None:
        raise FusionbenchError(f"--paired measures both sides now; leave '{printable(str(run))}' out")


def _print(found: Comparison, judgement: Judgement | None, everything: bool, *written: Path | None) -> None:
    """The table, where no file has taken its place on the standard output."""
    from ..report.files import STDOUT
    from ..summary import terminal

    if STDOUT in written:
        return
    from ..terminal import console

    out = console()
    out.print(terminal.show(found, judgement, out.width, everything), crop=False)


def _before(path: Path) -> Baseline | None:
    """The baseline that is about to be replaced; raises StoreError for a file that is something else."""
    from .. import baseline as baselines
    from ..disk import NewerSchemaError

    if not path.is_file():  # nor is a device one
        return None
    try:
        return baselines.load(path)
    except (DamagedError, NothingError) as error:
        typer.echo(f"replaced unread: {error}", err=True)
        return None
    except NewerSchemaError:
        raise
    except StoreError as error:
        raise StoreError(f"nothing is overwritten: {error}") from error


def _changes(before: Baseline | None, made: Baseline) -> list[str]:
    """What a new baseline changes, a line for each fact; and what the timing gate will miss in it."""
    from .. import comparison, facts

    lines = []
    if not made.commit or made.dirty:
        lines.append("its commit is not known or had changes: what looks slower than it cannot be measured again")
    measured = sum(job.status == "ok" for job in made.jobs)
    if before is None:
        return [*lines, f"a new baseline of {counted(measured, 'job')} of suite '{made.suite_name}'"]
    found = comparison.of(before, made)
    changed = [f"{delta.key}: {facts.told(change)}" for delta in found.deltas for change in delta.changes]
    lines += [printable(line, 500) for line in changed[:SHOWN]]
    if len(changed) > SHOWN:
        lines.append(f"and {len(changed) - SHOWN} more")
    lines += map(printable, (*found.differences, *found.notes))
    verdicts = [delta.verdict for delta in found.deltas]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in ("new", "missing", "fixed", "broken"))
    return [*lines, f"{counted(measured, 'job')}: {len(changed)} facts changed, {counts}"]
