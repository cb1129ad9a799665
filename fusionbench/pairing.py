"""Two revisions of a repository against each other, from their names to the comparison of what was measured."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from . import backends, facts
from .delta import Change, Comparison, Delta, Side
from .engines.twins import Code, Twins
from .environment import differences
from .errors import FusionbenchError, printable
from .plan import Plan
from .record import Environment, Record
from .revisions import (
    Checkout,
    Repository,
    Revision,
    checked_out,
    dependencies_differ,
    interpreter,
    repository,
    resolve,
)
from .spec import Budget, Job
from .suite import Suite
from .trial import SCREEN_ROUNDS, Listener, Trial


@dataclass(frozen=True)
class Request:
    """What to measure: ``suite`` is narrowed, ``head`` None is the working tree as it stands.

    ``setup`` is run in each checkout, and ``python`` there is its interpreter; without them the running one imports
    from each checkout what it imports from the repository.
    """

    base: str
    suite: Suite
    budget: Budget
    head: str | None = None
    where: Path = Path()
    setup: str | None = None
    python: str | None = None
    plugins: tuple[Path, ...] = ()
    limit: int | None = None
    rounds: int = SCREEN_ROUNDS
    seed: int = 0
    only_jobs: frozenset[str] | None = None  # keys


@dataclass(frozen=True)
class Outcome:
    """What was found; ``interrupted`` where the user ended it early."""

    comparison: Comparison
    interrupted: bool


@dataclass(frozen=True)
class Ready:
    """Both revisions, checked out and with their interpreters."""

    base: tuple[Checkout, Code]
    head: tuple[Checkout, Code]
    notes: tuple[str, ...] = field(default=())


def run(request: Request, jobs: Sequence[Job], listener: Listener, stopping: Callable[[], bool]) -> Outcome:
    """Measure these jobs on both sides, screen and confirm.

    Raises FusionbenchError for revisions and setups that are not there or do not work.
    """
    with _ready(request) as ready, _twins(request, ready, jobs, stopping) as twins:
        base, head = twins.environments
        trial = _trial(request, twins, listener)
        deltas = trial.run(jobs, request.seed)
        return Outcome(_comparison(request, ready, base, head, deltas), trial.interrupted)


def confirm(
    request: Request, jobs: Sequence[Job], listener: Listener, stopping: Callable[[], bool]
) -> dict[str, Delta]:
    """The deltas of these jobs from fresh pairs alone: somebody else's screen has named them."""
    with _ready(request) as ready, _twins(request, ready, jobs, stopping) as twins:
        trial = _trial(request, twins, listener)
        trial.confirm(jobs, request.seed)
        return {delta.key: delta for delta in trial.deltas()}


def _twins(request: Request, ready: Ready, jobs: Sequence[Job], stopping: Callable[[], bool]) -> Twins:
    compiles = any(backends.get(job.backend).compiles for job in jobs)
    return Twins(ready.base[1], ready.head[1], request.budget, stopping, compiles=compiles)


def _trial(request: Request, twins: Twins, listener: Listener) -> Trial:
    def compared(base: Record, head: Record) -> tuple[int, tuple[Change, ...]]:
        return facts.between(base, head, twins.environments)

    return Trial(twins.round, listener, compared, rounds=request.rounds)


def jobs(request: Request) -> list[Job]:
    """What is to be measured; raises FusionbenchError where there is nothing."""
    plan = Plan(request.suite, request.limit)
    plan.check()
    found = [item for item in plan if isinstance(item, Job)]
    if request.only_jobs is not None:
        found = [job for job in found if job.key in request.only_jobs]
    if not found:
        raise FusionbenchError(f"suite '{request.suite.name}' has no job that can run here (see: fusionbench plan)")
    return found


@contextlib.contextmanager
def _ready(request: Request) -> Iterator[Ready]:
    """Both revisions checked out; they are removed at the end."""
    repo = repository(request.where)
    base, head = resolve(repo, request.base), resolve(repo, request.head)
    if base.commit == head.commit and not head.dirty:
        raise FusionbenchError(
            f"base '{printable(base.name)}' and head '{printable(head.name)}' are the same commit; name another base"
        )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fusionbench-")))
        sides = []
        for name, revision in (("base", base), ("head", head)):
            checkout = stack.enter_context(checked_out(repo, revision, folder / name))
            sides.append((checkout, _code(checkout, repo, request)))
        yield Ready(sides[0], sides[1], _notes(request, repo, base, head, [checkout for checkout, _ in sides]))


def _code(checkout: Checkout, repo: Repository, request: Request) -> Code:
    found = interpreter(checkout, repo, request.setup, request.python)
    plugins = [_moved(plugin, checkout, repo) for plugin in request.plugins]
    if not found.paths and request.python is None and not any(path.is_relative_to(checkout.path) for path in plugins):
        raise FusionbenchError(
            f"nothing that is measured comes from '{printable(str(repo.path))}', both revisions would run the same "
            "code; name a plugin in it (--plugin), or the environment of each checkout (--setup and --python)"
        )
    return Code(
        name=checkout.revision.name,
        argv=found.argv,
        env=found.env,
        plugins=tuple(str(path) for path in plugins if path.exists()),
    )


def _moved(plugin: Path, checkout: Checkout, repo: Repository) -> Path:
    """A plugin of the repository where the checkout has it; one from elsewhere is the same for both."""
    path, top = plugin.resolve(), repo.path.resolve()
    return checkout.path / path.relative_to(top) if path.is_relative_to(top) else path


def _notes(
    request: Request, repo: Repository, base: Revision, head: Revision, checkouts: Sequence[Checkout]
) -> tuple[str, ...]:
    notes = [note for checkout in checkouts for note in checkout.notes]
    changed = dependencies_differ(repo, base, head) if request.python is None else []
    if changed:
        shown = ", ".join(map(printable, changed[:3])) + (" and more" if len(changed) > 3 else "")
        notes.append(
            f"{shown} differ between the revisions, and both are measured with this environment; give each its own "
            "with --setup and --python"
        )
    return tuple(notes)


def _comparison(
    request: Request, ready: Ready, base: Environment, head: Environment, deltas: tuple[Delta, ...]
) -> Comparison:
    changed = differences(base, head)
    notes = (f"the environments differ: {', '.join(map(printable, changed))}",) if changed else ()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    sides = [
        Side(
            name=checkout.revision.name, machine=environment.machine, environment=environment.id,
            commit=checkout.revision.commit, dirty=checkout.revision.dirty, suite=request.suite.name,
            suite_hash=request.suite.hash, measured_at=now, jobs=len(deltas),
        )
        for (checkout, _), environment in ((ready.base, base), (ready.head, head))
    ]  # fmt: skip
    return Comparison(method="paired", base=sides[0], head=sides[1], notes=ready.notes + notes, deltas=deltas)
