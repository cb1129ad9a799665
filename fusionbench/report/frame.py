"""Records as one flat table: a row per record, facts and what follows from them side by side."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from ..presets import departures
from ..record import TIMED_AS, Deviation, Environment, Record, Roofline, Timing
from ..roofline import NO_PRODUCTS, UNKNOWN, Probe, limits, sound, working_set
from ..stats import block_sizes, interval_ranks, median, quantile_rank

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_MIB = 2**20
_PERCENTILES = {"p90_ms": 0.9, "p99_ms": 0.99}
_LAUNCHED = (("kernel", "hot"), ("graph", "cold"))  # without and with the launches, in the same state of the cache
_SHAPE = ("batch", "image", "text", "image_width", "text_width", "width", "heads", "depth", "ffn")
_DEVIATION = ("rel_l2", "max_abs", "mean_abs", "cosine")
_COSTS = (
    *("flops", "params", "trainable_params", "min_bytes", "activation_bytes", "optimizer_bytes", "cache_bytes"),
    "counted_flops",
)


def frame(
    records: Sequence[Record], environments: Mapping[str, Environment], rooflines: Sequence[Roofline] = ()
) -> pd.DataFrame:
    """One row per record, in the order given. What was not measured is NA; times are per call, in ms.

    With one thread they are times on the core: waiting for it is taken off each sample, and ``contention`` is its share
    of the sampled time. ``low_ms`` and ``high_ms`` bound the median at 95 %; they are the extremes below 6 samples.
    Percentiles are NA where there are too few samples (stats.least_samples). ``launch_share`` is 1 - kernel / hot, or
    where those are not known 1 - graph / cold; ``of_bound`` the least time that one of ``rooflines`` allows as a share
    of the median.
    """
    columns: dict[str, Any] = {}
    _identity(columns, records)
    _outcome(columns, records)
    _timing(columns, records)
    _device(columns, records)
    _measures(columns, records)
    _provenance(columns, records, environments)
    _bounds(columns, records, rooflines)
    return pd.DataFrame(columns)


def _text(records: Sequence[Record], read: Callable[[Record], str | None]) -> pd.Series[str]:
    return pd.Series([read(r) for r in records], dtype="str")


def _integer(values: Sequence[int | None]) -> Any:
    missing = np.fromiter((v is None for v in values), bool, len(values))
    try:  # pd.array would look at every value again, at three times the cost
        known = np.array([v or 0 for v in values] if missing.any() else values, dtype=np.int64)
    except OverflowError:  # a closed form beyond 2**63 is still a number
        return np.array([np.nan if v is None else float(v) for v in values])
    return pd.arrays.IntegerArray(known, missing)


def _number(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _identity(columns: dict[str, Any], records: Sequence[Record]) -> None:
    cases = [r.job.case for r in records]
    case_keys = [case.key for case in cases]
    columns["key"] = pd.Series([r.job.key_with(key) for r, key in zip(records, case_keys, strict=True)], dtype="str")
    columns["case"] = pd.Series(case_keys, dtype="str")
    questions = [case.question if case.preset else key for case, key in zip(cases, case_keys, strict=True)]
    columns["question"] = pd.Series(questions, dtype="str")
    columns["candidate"] = pd.Series([_candidate(r) for r in records], dtype="str")
    columns["strategy"] = _text(records, lambda r: r.job.strategy)
    columns["backend"] = _text(records, lambda r: r.job.backend)
    for name in _SHAPE:
        columns[name] = _integer([getattr(case.shape, name) for case in cases])
    for name in ("projector", "dtype", "device", "mode"):
        columns[name] = pd.Series([getattr(case, name) for case in cases], dtype="str")
    columns["type_embedding"] = np.array([case.type_embedding for case in cases], dtype=bool)
    columns["padding"] = _number([case.padding for case in cases])
    columns["treatment"] = pd.Series([case.treatment for case in cases], dtype="str")
    columns["preset"] = pd.Series([case.preset for case in cases], dtype="str")
    columns["scale"] = pd.Series([f"1/{case.shrink}" if case.shrink > 1 else "1" for case in cases], dtype="str")
    columns["match"] = pd.Series([case.match for case in cases], dtype="str")
    columns["design"] = pd.Series([case.design.key for case in cases], dtype="str")
    columns["hidden"] = _integer([case.shape.hidden for case in cases])
    # What the feed-forward layers of one question have in common, which a matched width is not.
    alike = [f"{c.shape.hidden}" if c.shape.hidden and not c.match else f"{c.shape.ffn} x" for c in cases]
    columns["feed_forward"] = pd.Series(alike, dtype="str")


def _candidate(record: Record) -> str:
    """What is compared with others: a strategy, of which system, how many layers of it, and what was done to it."""
    case, strategy = record.job.case, record.job.strategy
    if not case.preset:
        return f"{strategy} {case.treatment}".strip()
    layers = f"x{case.shape.depth}" if case.shape.depth > 1 else ""
    return " ".join(filter(None, (case.preset, strategy, layers, case.treatment, *departures(case))))


def _outcome(columns: dict[str, Any], records: Sequence[Record]) -> None:
    columns["status"] = _text(records, lambda r: r.status)
    columns["reason"] = _text(records, lambda r: r.reason)
    columns["phase"] = _text(records, lambda r: r.phase)


def _timing(columns: dict[str, Any], records: Sequence[Record]) -> None:
    times = [r.time for r in records]
    for name in ("timer", "cache", "stop"):
        columns[name] = pd.Series([getattr(t, name) if t else None for t in times], dtype="str")
    for name in ("threads", "loops", "discarded"):
        columns[name] = _integer([getattr(t, name) if t else None for t in times])
    columns["samples"] = _integer([len(t.samples_ns) if t else None for t in times])
    columns["rounds"] = _integer([len(t.rounds) or 1 if t else None for t in times])
    flat, counts = _per_call(times)
    found = _quantiles(flat, counts, [t.rounds if t else () for t in times])
    columns.update({name: values / 1e6 for name, values in found.items()})
    columns["contention"] = _contention(times)
    columns["first_call_ms"] = _number([t.first_call_ns / 1e6 if t else None for t in times])
    controls = [median(sorted(t.control_ns)) / 1e6 if t and t.control_ns else None for t in times]
    columns["control_ms"] = _number(controls)
    _timers(columns, records)


def _per_call(times: Sequence[Timing | None]) -> tuple[Floats, Counts]:
    """The samples of all timings one after another, in ns per call, and how many each has."""
    counts = np.array([len(t.samples_ns) if t else 0 for t in times], dtype=np.int64)
    flat = _flat([t.samples_ns if t else () for t in times], counts)
    # Of several threads some went on while others waited for a core.
    known = [bool(t and t.threads == 1 and len(t.run_delay_ns) == len(t.samples_ns)) for t in times]
    delays = [t.run_delay_ns for t, one in zip(times, known, strict=True) if t and one]
    alone = np.repeat(np.array(known, dtype=bool), counts)
    flat[alone] = np.maximum(flat[alone] - _flat(delays, counts[known]), 1.0)
    return flat / np.repeat([float(t.loops) if t else 1.0 for t in times], counts), counts


def _flat(values: Sequence[tuple[int, ...]], counts: Counts) -> Floats:
    return np.fromiter(itertools.chain.from_iterable(values), np.float64, int(counts.sum()))


def _quantiles(values: Floats, counts: Counts, rounds: Sequence[tuple[int, ...]]) -> dict[str, Floats]:
    """Of each run of ``counts`` values: the median, its interval (see stats), the minimum and the percentiles."""
    names = ("median_ms", "low_ms", "high_ms", "min_ms", *_PERCENTILES)
    found = {name: np.full(len(counts), np.nan) for name in names}
    for rows, ordered in _sorted_runs(values, counts):
        n = ordered.shape[1]
        found["median_ms"][rows], found["min_ms"][rows] = _middle(ordered), ordered[:, 0]
        for name, share in _PERCENTILES.items():
            if (rank := quantile_rank(n, share)) is not None:
                found[name][rows] = ordered[:, rank]
    sizes = [_sizes(n, rounds[row]) for row, n in enumerate(counts.tolist())]
    lengths = np.fromiter(itertools.chain.from_iterable(sizes), np.int64)
    medians = np.empty(len(lengths))
    for blocks, ordered in _sorted_runs(values, lengths):
        medians[blocks] = _middle(ordered)
    for rows, ordered in _sorted_runs(medians, np.array([len(each) for each in sizes], dtype=np.int64)):
        low, high = interval_ranks(ordered.shape[1]) or (0, -1)
        found["low_ms"][rows] = np.minimum(found["median_ms"][rows], ordered[:, low])
        found["high_ms"][rows] = np.maximum(found["median_ms"][rows], ordered[:, high])
    return found


@functools.lru_cache(maxsize=10_000)
def _sizes(samples: int, rounds: tuple[int, ...]) -> tuple[int, ...]:
    return block_sizes(samples, rounds) if samples else ()


def _sorted_runs(values: Floats, counts: Counts) -> Iterator[tuple[Counts, Floats]]:
    """For each length of run, which runs have it, and those sorted as the rows of one matrix."""
    starts = np.cumsum(counts) - counts
    for n in np.unique(counts[counts > 0]).tolist():
        rows = np.flatnonzero(counts == n)
        yield rows, np.sort(values[starts[rows][:, None] + np.arange(n)], axis=1)  # [rows, n]


def _middle(ordered: Floats) -> Floats:
    n = ordered.shape[1]
    middle: Floats = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    return middle


def _timers(columns: dict[str, Any], records: Sequence[Record]) -> None:
    """The median by each timer of a GPU, and the share of the time in which no kernel ran.

    The share is below 0 where kernels run beside each other.
    """
    found = {kind: np.full(len(records), np.nan) for kind in TIMED_AS.values()}
    rows = [(row, t) for row, r in enumerate(records) for t in (r.time, *r.timers) if t and (t.timer, t.cache) in found]
    medians = np.empty(len(rows))
    for each, ordered in _sorted_runs(*_per_call([t for _, t in rows])):
        medians[each] = _middle(ordered) / 1e6
    for (row, timing), value in zip(rows, medians, strict=True):
        found[timing.timer, timing.cache][row] = value
    for name, kind in TIMED_AS.items():
        columns[f"{name}_ms"] = found[kind]
    launches, of_cold = (1 - _ratio(columns[f"{a}_ms"], columns[f"{b}_ms"]) for a, b in _LAUNCHED)
    columns["launch_share"] = np.where(np.isnan(launches), of_cold, launches)


def _ratio(values: Floats, by: Floats) -> Floats:
    """NA where ``by`` is NA or 0."""
    ratio: Floats = np.divide(values, by, out=np.full(len(by), np.nan), where=by > 0)
    return ratio


def _device(columns: dict[str, Any], records: Sequence[Record]) -> None:
    states = [r.device for r in records]
    columns["sm_mhz"] = _integer([s.sm_mhz[1] if s and s.sm_mhz else None for s in states])
    columns["power_watts"] = _number([s.power_watts if s else None for s in states])
    columns["temperature_c"] = _integer([s.temperature_c if s else None for s in states])
    columns["throttle"] = pd.Series([", ".join(s.throttle) if s else None for s in states], dtype="str")
    columns["foreign"] = _integer([s.foreign if s else None for s in states])


def _contention(times: Sequence[Timing | None]) -> Floats:
    """As remarks.contention, a share of the threads' time; NA where the kernel gave no run delay, which is not 0."""
    waited = _number([sum(t.run_delay_ns) / t.threads if t and t.run_delay_ns else None for t in times])
    sampled = _number([sum(t.samples_ns) if t and t.run_delay_ns else None for t in times])
    return _ratio(waited, sampled)


def _measures(columns: dict[str, Any], records: Sequence[Record]) -> None:
    peak = [r.memory.peak_bytes if r.memory else None for r in records]
    columns["peak_bytes"] = _integer(peak)
    columns["peak_mib"] = _number(peak) / _MIB
    columns["resting_bytes"] = _integer([r.memory.resting_bytes if r.memory else None for r in records])
    columns["joules_per_call"] = _number(
        [r.energy.joules / r.energy.calls if r.energy and r.energy.calls else None for r in records]
    )
    for name in _COSTS:
        columns[name] = _integer([getattr(r.costs, name) if r.costs else None for r in records])
    caches = [r.costs.cache_bytes if r.costs and r.costs.cache_bytes else None for r in records]
    columns["cache_mib"] = _number(caches) / _MIB  # NA where a step has no cache
    flops = _number([r.costs.flops if r.costs and r.costs.flops else None for r in records])  # 0 FLOPs has no rate
    median_s = columns["median_ms"] / 1e3
    columns["tflops"] = _ratio(flops, median_s * 1e12)
    columns["reference"] = _text(records, lambda r: r.accuracy.reference if r.accuracy else None)
    accuracies = [r.accuracy for r in records]
    _deviations(columns, "", [a.output if a else None for a in accuracies])
    _deviations(columns, "yardstick_", [a.yardstick if a else None for a in accuracies])
    _deviations(columns, "grad_", [a.gradient if a else None for a in accuracies])
    _deviations(columns, "grad_yardstick_", [a.gradient_yardstick if a else None for a in accuracies])


def _deviations(columns: dict[str, Any], prefix: str, found: Sequence[Deviation | None]) -> None:
    for name in _DEVIATION:
        columns[prefix + name] = _number([getattr(d, name) if d else None for d in found])


def _provenance(columns: dict[str, Any], records: Sequence[Record], environments: Mapping[str, Environment]) -> None:
    columns["kernels"] = _text(records, lambda r: "; ".join(r.kernels))
    columns["notes"] = _text(records, lambda r: "; ".join(r.notes))
    columns["wall_s"] = _number([r.wall_s for r in records])
    for name in ("started_at", "environment", "source"):
        columns[name] = pd.Series([getattr(r, name) for r in records], dtype="str")
    known = [environments.get(r.environment) for r in records]
    for name in ("machine", "torch", "commit"):
        columns[name] = pd.Series([getattr(e, name) if e else None for e in known], dtype="str")
    columns["hardware"] = pd.Series(
        [_hardware(r, e) if e else None for r, e in zip(records, known, strict=True)], dtype="str"
    )


def _hardware(record: Record, environment: Environment) -> str:
    on_gpu = record.job.case.device.startswith("cuda") and environment.gpu
    return environment.gpu if on_gpu else environment.cpu


def _bounds(columns: dict[str, Any], records: Sequence[Record], rooflines: Sequence[Roofline]) -> None:
    """The least time that the device allows, and how much of it was reached; ``no_bound`` says why there is none."""
    flops = _number([r.costs.flops if r.costs else None for r in records])
    moved = _number([r.costs.min_bytes if r.costs else None for r in records])
    median_s = np.where(columns["median_ms"] > 0, columns["median_ms"] / 1e3, np.nan)
    compute_s, memory_s = _limits(columns, records, rooflines, flops, moved)
    seconds = np.where(flops > 0, np.maximum(compute_s, memory_s), np.nan)
    none = np.isnan(seconds)
    columns["bound_ms"] = seconds * 1e3
    columns["bound_by"] = _words(("compute", "memory"), np.where(none, -1, compute_s < memory_s))
    columns["of_bound"] = seconds / median_s
    timed = ~np.isnan(columns["median_ms"])
    columns["no_bound"] = _words((NO_PRODUCTS, UNKNOWN), np.where(none & timed, flops > 0, -1))
    # The closed form counts the bytes of the forward pass: over the time of a training step they would be no rate.
    forward = ~columns["mode"].isin(("fwd_bwd", "step")).to_numpy(bool)
    columns["gb_per_s"] = np.where(forward & (moved > 0), moved / median_s / 1e9, np.nan)


def _words(words: Sequence[str], codes: npt.NDArray[Any]) -> pd.Series[str]:
    """The word of each code; NA where it is -1."""
    return pd.Series(np.array([*words, None], dtype=object)[codes.astype(np.int64)], dtype="str")


def _limits(
    columns: dict[str, Any], records: Sequence[Record], rooflines: Sequence[Roofline], flops: Floats, moved: Floats
) -> tuple[Floats, Floats]:
    """Seconds that computing and that moving bytes take at least, by the roofline of each row; NA without one."""
    compute_s, memory_s = (np.full(len(records), np.nan) for _ in range(2))
    known = {Probe.of(roofline): roofline for roofline in rooflines if sound(roofline)}
    if known:
        touched = _number([working_set(r) for r in records])
        cold = (columns["cache"] == "cold").to_numpy(bool)
        keys = {name: columns[name] for name in Probe.__struct_fields__}
        rows_of = pd.DataFrame(keys).groupby([*keys], sort=False).indices
        for probe, roofline in known.items():
            rows = rows_of.get(msgspec.structs.astuple(probe), [])
            found = limits(roofline, flops[rows], moved[rows], touched[rows], cold=cold[rows])
            compute_s[rows], memory_s[rows] = found
    return compute_s, memory_s
