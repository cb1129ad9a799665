"""One run of a suite from its plan to its last record: a new one, or one that goes on where it was cut off."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import backends, registry, store, suite
from .disk import locked
from .environment import capture
from .errors import FusionbenchError, printable
from .plan import Plan
from .record import Environment, Record
from .runner import Engine, Listener, Outcome, run
from .shard import Identity
from .spec import Budget, Job, Skip

JOB = "job"  # the key under which a manifest keeps the one job that was asked for


@dataclass(frozen=True)
class Launch:
    """Everything that is settled before the first job starts."""

    plan: Plan
    budget: Budget
    plugins: tuple[str, ...]
    environment: Environment
    folder: Path
    finished: frozenset[Identity]
    begun: Mapping[Identity, Record]  # what lacks rounds
    order_seed: int

    def is_done(self, job: Job) -> bool:
        return self._identity(job) in self.finished

    def partly(self) -> dict[str, Record]:
        """The records by key of jobs that have some of their rounds."""
        jobs = self.jobs() if self.begun else ()
        return {job.key: self.begun[identity] for job in jobs if (identity := self._identity(job)) in self.begun}

    def _identity(self, job: Job) -> Identity:
        return job.key, _source(job), self.environment.id

    def remaining(self) -> Iterator[Job | Skip]:
        """What no record answers yet."""
        for item in self.plan:
            if not self.is_done(item.job if isinstance(item, Skip) else item):
                yield item

    def jobs(self) -> Iterator[Job]:
        return (item for item in self.remaining() if isinstance(item, Job))


@dataclass(frozen=True)
class Tally:
    """A plan in numbers."""

    todo: Counter[str]  # jobs to measure, by backend
    skips: Counter[str]  # reasons
    done: int
    devices: tuple[str, ...]


def tally(launch: Launch) -> Tally:
    """Count what the plan holds; every job is made once and forgotten."""
    todo: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    devices: dict[str, None] = {}
    done = 0
    for item in launch.plan:
        if isinstance(item, Skip):
            skips[item.reason] += 1
        elif launch.is_done(item):
            done += 1
        else:
            todo[item.backend] += 1
            devices[item.case.device] = None
    return Tally(todo, skips, done, tuple(devices))


def load_plugins(plugins: Sequence[str]) -> None:
    for plugin in plugins:
        registry.load_plugin(Path(plugin))


def new(
    chosen: suite.Suite,
    results: Path,
    *,
    budget: Budget,
    only: Mapping[str, Sequence[str]],
    limit: int | None = None,
    job: str | None = None,
    plugins: Sequence[str] = (),
    fresh: bool = False,
    retry_failed: bool = False,
    order_seed: int | None = None,
    command: Sequence[str] = (),
    warn: Callable[[str], object],
) -> Launch:
    """A launch of ``chosen`` (not yet narrowed). An unfinished run of the same suite, narrowing and budget is
    continued unless ``fresh``; raises FusionbenchError for names, values and jobs that do not exist."""
    load_plugins(plugins)
    plugins = [str(Path(plugin).resolve()) for plugin in plugins]
    plan = _plan(chosen, only, limit, job)
    asked = {**only, **({JOB: [job]} if job else {})}
    found = None
    if not fresh and not job:
        found = store.latest(results, chosen.hash, asked, limit, budget=budget, retry_failed=retry_failed, ignored=warn)
    if found is not None:
        return _continued(found, plan, budget, plugins, retry_failed, warn)
    manifest = store.new_manifest(
        suite_name=chosen.name,
        suite_hash=chosen.hash,
        command=command,
        only=asked,
        limit=limit,
        budget=budget,
        plugins=plugins,
        order_seed=secrets.randbits(31) if order_seed is None else order_seed,
        planned=sum(1 for _ in plan),
    )
    folder = store.create(results, manifest, chosen.text)
    return Launch(plan, budget, tuple(plugins), capture(), folder, frozenset(), {}, manifest.order_seed)


def resume(
    folder: Path, *, plugins: Sequence[str] = (), retry_failed: bool = False, warn: Callable[[str], object]
) -> Launch:
    """The launch that goes on with the run in ``folder``, under the suite and the budget it began with.

    Its plugins must be named again: a run folder may come from elsewhere, and is not trusted to name code.
    """
    manifest = store.read_manifest(folder)
    plugins = [str(Path(plugin).resolve()) for plugin in plugins]
    for plugin in manifest.plugins:
        if plugin not in plugins:
            name = printable(plugin)
            raise FusionbenchError(
                f"run '{folder}' used the plugin '{name}'; to run its code again add --plugin {name}"
            )
    chosen = suite.parse(store.read_suite(folder), manifest.suite_name, str(folder / store.SUITE))
    load_plugins(plugins)
    only = {axis: values for axis, values in manifest.only.items() if axis != JOB}
    job = next(iter(manifest.only.get(JOB, [])), None)
    plan = _plan(chosen, only, manifest.limit, job)
    return _continued(folder, plan, manifest.budget, plugins, retry_failed, warn)


def _plan(chosen: suite.Suite, only: Mapping[str, Sequence[str]], limit: int | None, job: str | None) -> Plan:
    plan = Plan(suite.narrow(chosen, only), limit, job)
    plan.check()
    if job is not None and next(iter(plan), None) is None:
        raise FusionbenchError(
            f"suite '{chosen.name}' has no job '{printable(job)}' (see: fusionbench plan {chosen.name})"
        )
    return plan


def _continued(
    folder: Path,
    plan: Plan,
    budget: Budget,
    plugins: Sequence[str],
    retry_failed: bool,
    warn: Callable[[str], object],
) -> Launch:
    earlier = store.read(folder)
    for problem in earlier.problems:
        warn(problem)
    finished = frozenset(store.finished(earlier, budget, retry_failed=retry_failed))
    seed = earlier.manifest.order_seed if earlier.manifest else 0
    return Launch(plan, budget, tuple(plugins), capture(), folder, finished, store.begun(earlier, budget), seed)


def execute(launch: Launch, engine: Engine, listener: Listener) -> Outcome:
    """Store a record for every skip, then measure what remains."""
    with locked(launch.folder), store.Writer(launch.folder, launch.environment) as writer:
        skipped = 0
        for item in launch.remaining():
            if isinstance(item, Skip):
                writer.append(_skip_record(item, launch.environment))
                skipped += 1
        outcome = run(
            launch.jobs(),
            engine,
            launch.environment,
            writer.append,
            listener,
            budget=launch.budget,
            plugins=launch.plugins,
            seed=launch.order_seed,
            begun=launch.partly(),
        )
    outcome.statuses["skipped"] += skipped
    return outcome


def _source(job: Job) -> str:
    return backends.source(registry.get(job.strategy), backends.get(job.backend))


def _skip_record(skip: Skip, environment: Environment) -> Record:
    return Record(
        job=skip.job,
        status="skipped",
        reason=skip.reason,
        source=_source(skip.job),
        environment=environment.id,
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
