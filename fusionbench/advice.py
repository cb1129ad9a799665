"""Which strategy and backend to take for a shape that was not measured: predictions from records, and their doubts.

Every candidate that was measured on a device has a latency, a memory and an error predicted (calibration.py) from its
own records and its closed form. One is dominated where another is clearly better in something and clearly worse in
nothing; the others are the advice.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import Struct

from . import backends, registry
from .calibration import LEAST, Estimate, Fit, Point, Pool, fit, pool
from .errors import FusionbenchError, NothingError, counted, printable
from .record import Environment, Record, Roofline
from .roofline import bandwidth, sound
from .spec import PLAIN, Case, Job
from .stats import median_interval
from .subject import closed_form

Bound = Literal["launch", "compute", "memory"]
Place = Literal["advised", "dominated", "over budget"]

# What is no difference, however narrow the intervals: of a time (compare.py), of bytes, of a rounding error.
ALIKE_TIME, ALIKE_MEMORY, ALIKE_ERROR = 1.03, 1.03, 1.5
SIZES = ("image", "text", "width", "batch", "heads", "depth", "image_width", "text_width")
_LAUNCHING = 0.5  # share of a call's overhead from which launching is what it mostly does


class Near(Struct, frozen=True, kw_only=True):
    """A measured job: its key, its median in ms, and in what its sizes differ."""

    key: str
    ms: float
    apart: tuple[str, ...]


class Candidate(Struct, frozen=True, kw_only=True):
    """One strategy on one backend, at the shape asked for. Times are ms, memory is MiB above inputs and weights."""

    strategy: str
    backend: str
    latency: Estimate
    memory: Estimate | None
    error: Estimate | None  # relative L2 against the reference
    params: int
    flops: int
    min_bytes: int
    measured: bool  # at this very shape: latency is the median with its interval
    bound: Bound
    share: float  # of the predicted time that what it is bound by explains
    of_ceiling: float | None  # the least time that the device allows as a share of the latency; None: no ceiling known
    outside: tuple[str, ...]  # sizes beyond those of its records: an extrapolation
    nearest: tuple[Near, ...]
    place: Place = "advised"
    tie: bool = False  # with the fastest of those advised
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.strategy}/{self.backend}"


class Advice(Struct, frozen=True, kw_only=True):
    """What was asked, by whose records it is answered, and the candidates, advised ones first, then by latency."""

    case: Case
    machine: str
    hardware: str
    records: int
    threads: int
    candidates: tuple[Candidate, ...]
    refused: tuple[tuple[str, str], ...]  # measured elsewhere, impossible at this shape: name, reason
    unmeasured: int  # combinations that could run it and that these records have nothing of
    notes: tuple[str, ...]

    @property
    def advised(self) -> tuple[Candidate, ...]:
        return tuple(each for each in self.candidates if each.place == "advised")


class Limits(Struct, frozen=True, kw_only=True):
    """What a candidate may need at most."""

    ms: float | None = None
    mib: float | None = None
    error: float | None = None


def advise(
    case: Case,
    records: Iterable[Record],
    environments: Mapping[str, Environment],
    rooflines: Sequence[Roofline],
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    machine: str | None = None,
    here: str = "",
    strategies: Sequence[str] = (),
) -> Advice:
    """The advice on a case, from the records of one environment: that of ``machine``, else ``here`` (its id), else the
    only one that there is; among ``strategies``, or all. Raises NothingError where nothing like it was measured,
    FusionbenchError where several machines have."""
    for name in strategies:
        registry.get(name)
    fitting = [each for each in records if _fits(each, case) and (not strategies or each.job.strategy in strategies)]
    chosen = _environment(fitting, environments, machine, here, case)
    kept, threads, notes = _alike([record for record in fitting if record.environment == chosen])
    ceiling = _ceiling(rooflines, chosen, case, threads)
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in kept:
        groups.setdefault((record.job.strategy, record.job.backend), []).append(record)
    found, refused = [], []
    predict = _Predictor(case, groups, ceiling)
    for (strategy, backend), own in groups.items():
        job = Job(strategy=strategy, backend=backend, case=case)
        reason = _refusal(job)
        if reason is None:
            found.append(predict.candidate(job, own))
        else:
            refused.append((f"{strategy}/{backend}", reason))
    if not found:
        name, reason = refused[0]
        raise NothingError(f"nothing that was measured can run this shape: '{name}': {printable(reason)}")
    place = environments.get(chosen)
    return Advice(
        case=case,
        machine=place.machine if place else chosen,
        hardware="" if place is None else place.gpu if case.device.startswith("cuda") else place.cpu,
        records=len(kept),
        threads=threads,
        candidates=_placed(found, limits),
        refused=tuple(refused),
        unmeasured=_unmeasured(case, groups),
        notes=tuple(notes),
    )


# --- which records -------------------------------------------------------------------------------------------------


def _fits(record: Record, case: Case) -> bool:
    """Whether a record says something about a case: all but its sizes and its projector are the same."""
    other = record.job.case
    return (
        record.status == "ok"
        and record.time is not None
        and (other.dtype, other.mode, other.padding, other.treatment) == (case.dtype, case.mode, case.padding, "")
        and other.device.partition(":")[0] == case.device.partition(":")[0]
        and other.design == PLAIN
        # Those of a plugin that is not loaded have no closed form here.
        and record.job.strategy in registry.strategies()
        and record.job.backend in backends.BACKENDS
    )


def _environment(
    fitting: Sequence[Record], environments: Mapping[str, Environment], machine: str | None, here: str, case: Case
) -> str:
    named = {record.environment: environments.get(record.environment) for record in fitting}
    if machine is not None:
        named = {key: each for key, each in named.items() if each is not None and each.machine == machine}
    if not named:
        of = f" of machine '{printable(machine)}'" if machine else ""
        raise NothingError(
            f"no record{of} in {case.dtype} on '{case.device}', mode '{case.mode}', to advise from; "
            "measure some: 'fusionbench run lengths' has fp32 on cpu and bf16 on cuda, a copy of it any other"
        )
    if here in named or len(named) == 1:
        return here if here in named else next(iter(named))
    if machine is not None:  # one machine that has changed since: what it is now
        newest = max(fitting, key=lambda record: (record.environment in named, record.started_at))
        return newest.environment
    names = sorted({each.machine if each else key for key, each in named.items()})
    shown = ", ".join(f"'{printable(name)}'" for name in names)
    raise FusionbenchError(
        f"records of several machines fit, and times are not mixed; name one with --machine: {shown}"
    )


def _alike(records: Sequence[Record]) -> tuple[list[Record], int, list[str]]:
    """The newest record of each job by the timer, cache state and threads that most have; and what was left out."""
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda each: each.started_at):
        newest[record.job.key] = record
    ways = Counter(_way(record) for record in newest.values())
    (way, count), *_ = ways.most_common(1)
    left = sum(ways.values()) - count
    notes = [f"{counted(left, 'record')} with another timer or number of threads left out"] if left else []
    return [record for record in newest.values() if _way(record) == way], way[2], notes


def _way(record: Record) -> tuple[str, str, int]:
    time = record.time
    return ("", "", 0) if time is None else (time.timer, time.cache, time.threads)


def _ceiling(rooflines: Sequence[Roofline], environment: str, case: Case, threads: int) -> Roofline | None:
    device = case.device.partition(":")[0]
    fitting = [
        each
        for each in rooflines
        if sound(each)
        and (each.device.partition(":")[0], each.dtype, each.threads, each.environment)
        == (device, case.dtype, threads, environment)
    ]
    return fitting[-1] if fitting else None


def _refusal(job: Job) -> str | None:
    return backends.refusal(registry.get(job.strategy), backends.get(job.backend), job.case)


def _unmeasured(case: Case, groups: Mapping[tuple[str, str], object]) -> int:
    """How many combinations of these strategies and all backends could run the case and have no record."""
    strategies = {strategy for strategy, _ in groups}
    return sum(
        (strategy, backend) not in groups and _refusal(Job(strategy=strategy, backend=backend, case=case)) is None
        for strategy in strategies
        for backend in backends.BACKENDS
    )


# --- predicting ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """A record as the fits take it."""

    record: Record
    point: Point
    ms: float


class _Predictor:
    """The predictions for one case; a fit per candidate, and one of all for those with few records."""

    def __init__(
        self, case: Case, groups: Mapping[tuple[str, str], Sequence[Record]], ceiling: Roofline | None
    ) -> None:
        self.case, self.ceiling = case, ceiling
        self.known = {name: [self._known(record) for record in records] for name, records in groups.items()}

    def candidate(self, job: Job, own: Sequence[Record]) -> Candidate:
        known = self.known[job.strategy, job.backend]
        at, costs = self._point(job), closed_form(job, _impl(job), None)
        exact = next((each for each in known if each.record.job.key == job.key), None)
        latency = _exactly(exact.record) if exact else self._time(known, at)
        overhead, of_ceiling, by = self._bound(job, known, at, latency.value)
        return Candidate(
            strategy=job.strategy,
            backend=job.backend,
            latency=latency,
            memory=self._other(known, at, lambda r: r.memory.peak_bytes / 2**20 if r.memory else None, _MEMORY),
            error=self._other(known, at, _error, _ERROR),
            params=costs.params,
            flops=costs.flops,
            min_bytes=costs.min_bytes,
            measured=exact is not None,
            bound=by,
            share=overhead if by == "launch" else 1 - overhead,
            of_ceiling=of_ceiling,
            outside=_outside(job, [each.record.job for each in known]),
            nearest=_nearest(job, known),
        )

    def _known(self, record: Record) -> _Known:
        middle, _, _ = _median_ms(record)
        return _Known(record, self._point(record.job), middle)

    def _point(self, job: Job) -> Point:
        return Point(_logarithms(job), _terms(job, self.ceiling))

    def _time(self, known: Sequence[_Known], at: Point) -> Estimate:
        if len(known) >= LEAST:
            return self._fit(known)(at)
        return self._pool()([each.point for each in known], [each.ms for each in known], at)

    def _fit(self, known: Sequence[_Known]) -> Fit:
        return fit([each.point for each in known], [each.ms for each in known])

    @functools.cache  # noqa: B019 - lives as long as the advice is made
    def _pool(self) -> Pool:
        return pool([([e.point for e in known], [e.ms for e in known]) for known in self.known.values()])

    def _other(
        self, known: Sequence[_Known], at: Point, read: Callable[[Record], float | None], terms: tuple[int, ...]
    ) -> Estimate | None:
        """The prediction of another quantity by the terms that it may follow; None where few records have it."""
        having = [(each.point, value) for each in known if (value := read(each.record))]
        if len(having) < LEAST:
            return None
        points = [Point(point.sizes, tuple(point.terms[t] for t in terms)) for point, _ in having]
        return fit(points, [value for _, value in having])(Point(at.sizes, tuple(at.terms[t] for t in terms)))

    def _bound(self, job: Job, known: Sequence[_Known], at: Point, ms: float) -> tuple[float, float | None, Bound]:
        """The share of a call's overhead, the share of the ceiling that is reached, and what bounds it."""
        compute, memory = sum(at.terms[2:4]), at.terms[4]
        overhead = 0.0
        if len(known) >= LEAST:
            parts = self._fit(known).parts(at)
            overhead = sum(parts[:2]) / max(sum(parts), 1e-300)
        of_ceiling = max(compute, memory) / ms if self.ceiling else None
        if overhead > _LAUNCHING:
            return overhead, of_ceiling, "launch"
        return overhead, of_ceiling, "compute" if compute >= memory else "memory"


# Terms of a time, in ms: a call, its layers, Linear layers' and attention's products, bytes of both kinds.
_MEMORY = (0, 4, 5)
_ERROR = (0,)
_NOMINAL_FLOPS, _NOMINAL_BYTES = 1e11, 1e10  # where no ceiling was measured: the factors take their place


def _terms(job: Job, ceiling: Roofline | None) -> tuple[float, ...]:
    case, impl = job.case, _impl(job)
    costs, parts = closed_form(job, impl, None), registry.get(job.strategy).costs(case, impl)
    linear = parts.linear_flops / parts.flops if parts.flops else 0.0
    rate = ceiling.flops_per_s if ceiling else _NOMINAL_FLOPS
    touched = costs.min_bytes + costs.activation_bytes
    speed = float(bandwidth(ceiling, touched, cold=not case.device.startswith("cpu"))) if ceiling else _NOMINAL_BYTES
    products = costs.flops / rate * 1e3
    layers = float(max(1, case.shape.depth))
    moved = costs.min_bytes / speed * 1e3, costs.activation_bytes / speed * 1e3
    return 1.0, layers, products * linear, products * (1 - linear), *moved


def _impl(job: Job) -> str:
    return backends.get(job.backend).impl_for(registry.get(job.strategy)) or "eager"


def _logarithms(job: Job) -> tuple[float, ...]:
    return tuple(math.log2(max(1, getattr(job.case.shape, name))) for name in SIZES)


def _median_ms(record: Record) -> tuple[float, float, float]:
    assert record.time is not None  # noqa: S101 - _fits says so
    middle, low, high = (ns / 1e6 for ns in median_interval(record.time.calls_ns, record.time.rounds))
    return middle, low, high


def _exactly(record: Record) -> Estimate:
    middle, low, high = _median_ms(record)
    return Estimate(value=middle, low=low, high=high, own=1)


def _error(record: Record) -> float | None:
    return record.accuracy.output.rel_l2 if record.accuracy else None


def _outside(job: Job, measured: Sequence[Job]) -> tuple[str, ...]:
    """The sizes of the job that lie beyond all that was measured of its candidate."""
    found = []
    for name in SIZES:
        asked, seen = getattr(job.case.shape, name), [getattr(each.case.shape, name) for each in measured]
        if not min(seen) <= asked <= max(seen):
            found.append(f"{name.replace('_', ' ')} {asked:,} (measured {_span(seen)})")
    return tuple(found)


def _span(seen: Sequence[int]) -> str:
    return f"{min(seen):,}" if min(seen) == max(seen) else f"{min(seen):,} to {max(seen):,}"


def _nearest(job: Job, known: Sequence[_Known], count: int = 2) -> tuple[Near, ...]:
    at = _logarithms(job)
    order = sorted(known, key=lambda each: (math.dist(each.point.sizes, at), each.record.job.key))
    return tuple(
        Near(key=each.record.job.key, ms=each.ms, apart=_apart(each.record.job, job)) for each in order[:count]
    )


def _apart(measured: Job, job: Job) -> tuple[str, ...]:
    pairs = ((name, getattr(measured.case.shape, name), getattr(job.case.shape, name)) for name in SIZES)
    return tuple(f"{name.replace('_', ' ')} {there:,}" for name, there, here in pairs if there != here)


# --- placing -------------------------------------------------------------------------------------------------------


def _placed(found: Sequence[Candidate], limits: Limits) -> tuple[Candidate, ...]:
    """Every candidate with its place, and why it has it."""
    within = [each for each in found if not _over(each, limits)]
    over = [
        msgspec.structs.replace(each, place="over budget", why=_over(each, limits))
        for each in found
        if _over(each, limits)
    ]
    front, behind = [], []
    for each in within:
        better = [other for other in within if _dominates(other, each)]
        if better and each is not min(within, key=lambda one: one.latency.value):
            best = min(better, key=lambda one: one.latency.value)
            behind.append(msgspec.structs.replace(each, place="dominated", why=_why(each, best)))
        else:
            front.append(each)
    front.sort(key=lambda each: each.latency.value)
    tied = [msgspec.structs.replace(each, tie=each is not front[0] and _tie(front[0], each)) for each in front]
    if any(each.tie for each in tied):
        tied[0] = msgspec.structs.replace(tied[0], tie=True)
    rest = sorted(behind, key=lambda each: each.latency.value) + sorted(over, key=lambda each: each.latency.value)
    return (*tied, *rest)


def _over(each: Candidate, limits: Limits) -> str:
    """Which limit it surely does not keep; empty where it keeps all, or may."""
    checks = (
        ("takes", each.latency, limits.ms, "ms"),
        ("needs", each.memory, limits.mib, "MiB"),
        ("errs by", each.error, limits.error, ""),
    )
    for verb, estimate, limit, unit in checks:
        if estimate is not None and limit is not None and estimate.low > limit:
            return f"{verb} {estimate.low:.3g} {unit} at least, and {limit:g} are allowed".replace("  ", " ")
    return ""


def _tie(one: Candidate, other: Candidate) -> bool:
    return not _less(one.latency, other.latency, ALIKE_TIME)


def _less(one: Estimate | None, other: Estimate | None, alike: float) -> bool:
    """Whether the first is clearly less: the intervals have nothing in common, and it is more than no difference."""
    return one is not None and other is not None and one.high < other.low and one.value * alike < other.value


def _dominates(one: Candidate, other: Candidate) -> bool:
    """Whether the first is clearly better in something and worse in nothing; not on the word of the others' records."""
    if not one.measured and one.latency.own < LEAST:
        return False
    quantities = (
        (one.latency, other.latency, ALIKE_TIME),
        (one.memory, other.memory, ALIKE_MEMORY),
        (one.error, other.error, ALIKE_ERROR),
    )
    better = any(_less(a, b, alike) for a, b, alike in quantities)
    return better and not any(_less(b, a, alike) for a, b, alike in quantities)


def _why(each: Candidate, better: Candidate) -> str:
    """What dominates it, by how much, and what its closed form says about the cause."""
    ratio = each.latency.value / better.latency.value
    low, high = each.latency.low / better.latency.high, each.latency.high / better.latency.low
    if _less(better.latency, each.latency, ALIKE_TIME):
        told = f"{better.name} is {ratio:.2g}× faster [{low:.2g}, {high:.2g}]"
    elif _less(better.memory, each.memory, ALIKE_MEMORY) and better.memory and each.memory:
        told = f"{better.name} is as fast in {better.memory.value:.3g} of {each.memory.value:.3g} MiB"
    else:
        told = f"{better.name} is as fast and errs less"
    return told + _cause(each, better)


def _cause(each: Candidate, better: Candidate) -> str:
    if each.strategy == better.strategy:
        return f"; {each.bound}-bound" if each.bound != better.bound else ""
    work, bytes_ = each.flops / max(1, better.flops), each.min_bytes / max(1, better.min_bytes)
    if each.bound == "compute" and work > 1.1:
        return f"; compute-bound with {work:.2g}× its FLOPs"
    if each.bound == "memory" and bytes_ > 1.1:
        return f"; memory-bound with {bytes_:.2g}× its bytes"
    return f"; {each.bound}-bound"
