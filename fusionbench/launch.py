"""One run of a suite from its plan to its last record: a new one, or one that goes on where it was cut off."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from . import backends, pool, registry, store, suite
from .ceilings import Ceilings, Prober
from .disk import locked
from .environment import commit_of, differences
from .errors import FusionbenchError, StoreError, UnstoredError, printable
from .footprint import footprint
from .plan import Plan
from .record import Environment, Record, Roofline
from .roofline import Probe
from .rounds import rounds_of
from .runner import Engine, Listener, Outcome, Sweep, interruptible, run
from .schedule import Limits
from .shard import Identity, Item
from .site import Site, here
from .slices import Slices
from .spec import Budget, Job, Skip
from .stopping import Stop

JOB = "job"  # the key under which a manifest keeps the one job that was asked for


@dataclass(frozen=True)
class Launch:
    """Everything that is settled before the first job starts."""

    plan: Plan
    budget: Budget
    plugins: tuple[str, ...]
    site: Site
    folder: Path
    finished: frozenset[Identity]
    begun: Mapping[Identity, Record]  # what lacks rounds
    order_seed: int

    @property
    def environment(self) -> Environment:
        """That of this machine, or the first of several."""
        return self.site.environments[0]

    def is_done(self, job: Job) -> bool:
        """Whether one of the site's machines has measured the job, or one like it."""
        return any(identity in self.finished for identity in self._identities(job))

    def known(self, job: Job) -> Record | None:
        """The record of a job that has some of its rounds."""
        found = (self.begun.get(identity) for identity in self._identities(job)) if self.begun else ()
        return next((record for record in found if record is not None), None)

    def partly(self) -> dict[str, Record]:
        """The records by key of jobs that have some of their rounds."""
        jobs = self.jobs() if self.begun else ()
        return {job.key: known for job in jobs if (known := self.known(job)) is not None}

    def _identities(self, job: Job) -> list[Identity]:
        source = _source(job)
        return [(job.key, source, environment.id) for environment in self.site.environments]

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
    begun: tuple[int, ...]  # how many rounds each job has that has some, but not all
    devices: tuple[str, ...]


def tally(launch: Launch) -> Tally:
    """Count what the plan holds; every job is made once and forgotten."""
    todo: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    devices: dict[str, None] = {}
    begun: list[int] = []
    done = 0
    for item in launch.plan:
        if isinstance(item, Skip):
            skips[item.reason] += 1
        elif launch.is_done(item):
            done += 1
        else:
            todo[item.backend] += 1
            devices[item.case.device] = None
            if known := launch.known(item):
                begun.append(rounds_of(known))
    return Tally(todo, skips, done, tuple(begun), tuple(devices))


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
    slices: Slices | None = None,
    plugins: Sequence[str] = (),
    fresh: bool = False,
    retry_failed: bool = False,
    order_seed: int | None = None,
    command: Sequence[str] = (),
    machine: str | None = None,
    site: Site | None = None,
    read: Callable[[Path], store.Run] = store.read,
    warn: Callable[[str], object],
) -> Launch:
    """A launch of ``chosen`` (not yet narrowed). An unfinished run of the same suite, narrowing and budget, made in
    this environment (and in the order of ``order_seed``, where that is given), is continued unless ``fresh``; ``warn``
    is told why one that looks like it is not; ``read`` reads a run of which ``results`` may have no more than its
    manifest. Raises FusionbenchError for names, values and jobs that do not exist.
    """
    load_plugins(plugins)
    plugins = [str(Path(plugin).resolve()) for plugin in plugins]
    site = site or here(machine)
    plan = _plan(chosen, only, limit, job, slices, site)
    asked = {**only, **({JOB: [job]} if job else {})}
    environment = site.environments[0]
    if not fresh and not job:
        found = store.latest(
            results, chosen.hash, asked, limit, slices=slices, budget=budget, retry_failed=retry_failed, read=read,
            ignored=warn,
        )  # fmt: skip
        earlier = None if found is None else read(found)
        reason = _why_anew(earlier, site, results, chosen, order_seed, read)
        if earlier is not None and reason is None:
            return _continued(earlier, plan, budget, plugins, site, retry_failed, warn)
        if reason is not None:
            warn(f"a new run begins: {reason}")
    manifest = store.new_manifest(
        suite_name=chosen.name,
        suite_hash=chosen.hash,
        command=command,
        only=asked,
        limit=limit,
        slices=slices,
        budget=budget,
        plugins=plugins,
        order_seed=secrets.randbits(31) if order_seed is None else order_seed,
        planned=sum(1 for _ in plan),
        number=store.next_number(results),
        commit=commit_of([Path(plugin) for plugin in plugins]) if plugins else (environment.commit, environment.dirty),
    )
    folder = store.create(results, manifest, chosen.text)
    return Launch(plan, budget, tuple(plugins), site, folder, frozenset(), {}, manifest.order_seed)


def resume(
    folder: Path,
    *,
    plugins: Sequence[str] = (),
    retry_failed: bool = False,
    allow_env_change: bool = False,
    site: Site | None = None,
    warn: Callable[[str], object],
) -> Launch:
    """The launch that goes on with the run in ``folder``, under the suite and the budget it began with.

    In another environment timings would not compare with those that are there: FusionbenchError, or with
    ``allow_env_change`` every job is measured again, beside the records of the environment before.
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
    site = site or here()
    plan = _plan(chosen, only, manifest.limit, job, manifest.slices, site)
    earlier = store.read(folder)
    changes = _moved(earlier, site)
    if changes and not allow_env_change:
        raise FusionbenchError(
            f"run '{printable(str(folder))}' was measured in another environment ({', '.join(changes)}); "
            "go back to it, begin a new run, or measure everything again here with --allow-env-change"
        )
    return _continued(earlier, plan, manifest.budget, plugins, site, retry_failed, warn)


def _plan(
    chosen: suite.Suite,
    only: Mapping[str, Sequence[str]],
    limit: int | None,
    job: str | None,
    slices: Slices | None,
    site: Site,
) -> Plan:
    plan = Plan(suite.narrow(chosen, only), limit, job, slices, site.devices)
    plan.check()
    if job is not None and next(iter(plan), None) is None:
        raise FusionbenchError(
            f"suite '{chosen.name}' has no job '{printable(job)}' (see: fusionbench plan {chosen.name})"
        )
    return plan


def _moved(earlier: store.Run, site: Site) -> list[str]:
    """What differs between the site's first environment and the last one of a run; empty if the run has seen one."""
    if not earlier.environments or any(each.id in earlier.environments for each in site.environments):
        return []
    *_, last = earlier.environments.values()
    return [printable(change) for change in differences(last, site.environments[0])]


def _why_anew(
    earlier: store.Run | None,
    site: Site,
    results: Path,
    chosen: suite.Suite,
    order_seed: int | None,
    read: Callable[[Path], store.Run],
) -> str | None:
    """Why the unfinished run ``earlier`` is not continued or, if there is none, why one that the user may think of is
    another; None where nothing needs to be said."""
    if earlier is not None:
        changes, name = ", ".join(_moved(earlier, site)), printable(earlier.path.name)
        if earlier.manifest and order_seed not in (None, earlier.manifest.order_seed):
            return f"the order seed of '{name}' is {earlier.manifest.order_seed}, not {order_seed}"
        return f"the environment is not that of '{name}': {changes}" if changes else None
    namesakes = (run for run in store.runs(results).items() if run[1].suite_name == chosen.name)
    path, newest = next(namesakes, (results, None))
    if newest is None or newest.suite_hash == chosen.hash:
        return None
    with suppress(StoreError):  # what cannot be read cannot be continued either
        if not store.complete(read(path)):
            remedy = f"fusionbench resume {printable(str(path))}"
            return f"suite '{chosen.name}' was edited; its unfinished run goes on with: {remedy}"
    return None


def _continued(
    earlier: store.Run,
    plan: Plan,
    budget: Budget,
    plugins: Sequence[str],
    site: Site,
    retry_failed: bool,
    warn: Callable[[str], object],
) -> Launch:
    for problem in earlier.problems:
        warn(problem)
    finished = frozenset(store.finished(earlier, budget, retry_failed=retry_failed))
    seed = earlier.manifest.order_seed if earlier.manifest else 0
    begun = store.begun(earlier, budget)
    return Launch(plan, budget, tuple(plugins), site, earlier.path, finished, begun, seed)


def execute(
    launch: Launch,
    engine: Engine,
    listener: Listener,
    prober: Prober = lambda probes: iter(()),
    note: Callable[[str], object] = lambda text: None,
) -> Outcome:
    """Store a record for every skip, then measure what remains, below the ceilings that ``prober`` finds. What the
    run's folder does not take is saved elsewhere:
    UnstoredError says where."""
    with locked(launch.folder), store.Writer(launch.folder, launch.environment) as writer, _rescued(writer):
        kinds: dict[tuple[str, str], Job] = {}  # a job of each device and dtype, which is what rooflines are about
        skipped = writer.append_all(_skip_records(launch, kinds))
        if launch.site.slots:
            writer.append_all(launch.site.environments)
            outcome = _pooled(launch, writer, listener, kinds.values(), note)
            outcome.statuses["skipped"] += skipped
            return outcome
        ceilings = Ceilings(prober, writer.append, note, launch.budget.threads, launch.environment.id)
        ceilings.prepare(kinds.values())
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
            size=footprint,
            source=_source,
            judged=ceilings.judged,
        )
        if not writer.path.exists():
            raise StoreError(f"run '{printable(str(launch.folder))}' was moved or removed while it was measured")
    outcome.statuses["skipped"] += skipped
    return outcome


def _pooled(
    launch: Launch,
    writer: store.Writer,
    listener: Listener,
    kinds: Collection[Job],
    note: Callable[[str], object],
) -> Outcome:
    """The same on many slots: below the ceilings of each one's environment, which the first that has it measures."""
    slots, lock = launch.site.slots, Lock()

    def append(item: Item) -> None:
        with lock:
            writer.append(item)

    known: dict[tuple[str, str], dict[Probe, Roofline]] = {}
    judges: dict[str, pool.Judge] = {}
    for slot in slots:
        found = known.get((slot.environment.id, slot.device))
        ceilings = Ceilings(slot.prober, append, note, launch.budget.threads, slot.environment.id, dict(found or {}))
        if found is None:
            ceilings.prepare(job for job in kinds if slot.takes(job))
            known[slot.environment.id, slot.device] = ceilings.known
        judges[slot.name] = ceilings.judged
    stop = Stop(listener.interrupted)
    sweep = Sweep(
        append, listener, stop.asked, launch.budget, launch.plugins, launch.order_seed, Limits(footprint), _source
    )
    deck = pool.Deck(
        lambda device: (job for job in launch.jobs() if job.case.device.startswith(device)),
        launch.order_seed,
        pool.size_of(sum(1 for _ in launch.jobs()), len(slots)),
    )
    begun = pool.known_of(launch.begun.values(), launch.budget)
    with interruptible(stop, sweep.outcome):
        pool.Pool(sweep, slots, deck, begun, judges, note).run()
    return sweep.outcome


@contextmanager
def _rescued(writer: store.Writer) -> Iterator[None]:
    """Save what ``writer`` has stored, and what it has not, where its run cannot be written to any more."""
    try:
        yield
    except StoreError as error:
        try:
            saved = f"everything measured in this session is in '{printable(str(store.rescue(writer)))}'"
        except StoreError as second:
            saved = f"nor could the results be saved elsewhere: {second}"
        raise UnstoredError(f"{error}; {saved}") from error


def _source(job: Job) -> str:
    return backends.source(registry.get(job.strategy), backends.get(job.backend))


def _skip_records(launch: Launch, kinds: dict[tuple[str, str], Job]) -> Iterator[Record]:
    """A record of every skip that has none; on the same walk through the plan, ``kinds`` is filled from the jobs."""
    for item in launch.remaining():
        if isinstance(item, Skip):
            yield _skip_record(item, launch.environment)
        else:
            kinds.setdefault((item.case.device, item.case.dtype), item)


def _skip_record(skip: Skip, environment: Environment) -> Record:
    return Record(
        job=skip.job,
        status="skipped",
        reason=skip.reason,
        source=_source(skip.job),
        environment=environment.id,
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
