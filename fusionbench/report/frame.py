"""Records as one flat table: a row per record, facts and what follows from them side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from ..presets import departures
from ..record import Deviation, Environment, Record, Roofline
from ..roofline import NO_PRODUCTS, UNKNOWN, Probe, limits, sound, working_set
from ..stats import interval_ranks

Floats = npt.NDArray[np.float64]

_MIB = 2**20
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

    ``low_ms`` and ``high_ms`` bound the median at 95 %; they are the extremes below 6 samples.
    ``contention`` is the share of the sampled time that threads waited for a core, ``of_bound`` the least time that
    one of ``rooflines`` allows as a share of the median.
    """
    columns: dict[str, Any] = {}
    _identity(columns, records)
    _outcome(columns, records)
    _timing(columns, records)
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
    for name in ("threads", "loops"):
        columns[name] = _integer([getattr(t, name) if t else None for t in times])
    counts = np.array([len(t.samples_ns) if t else 0 for t in times], dtype=np.int64)
    columns["samples"] = _integer([len(t.samples_ns) if t else None for t in times])
    total = int(counts.sum())
    flat = np.fromiter(itertools.chain.from_iterable(t.samples_ns for t in times if t), np.float64, total)
    per_call = flat / np.repeat([float(t.loops) if t else 1.0 for t in times], counts)
    for name, values in _quantiles(per_call, counts).items():
        columns[name] = values / 1e6
    columns["contention"] = _contention(records, flat, counts)
    columns["first_call_ms"] = _number([t.first_call_ns / 1e6 if t else None for t in times])


def _quantiles(values: Floats, counts: npt.NDArray[np.int64]) -> dict[str, Floats]:
    """Median, its interval and the minimum of each run of ``counts`` values; runs of one length sort as one matrix."""
    starts = np.cumsum(counts) - counts
    found = {name: np.full(len(counts), np.nan) for name in ("median_ms", "low_ms", "high_ms", "min_ms")}
    for n in np.unique(counts[counts > 0]).tolist():
        rows = np.flatnonzero(counts == n)
        ordered = np.sort(values[starts[rows][:, None] + np.arange(n)], axis=1)  # [rows, n]
        low, high = interval_ranks(n) or (0, n - 1)
        found["median_ms"][rows] = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
        found["low_ms"][rows], found["high_ms"][rows] = ordered[:, low], ordered[:, high]
        found["min_ms"][rows] = ordered[:, 0]
    return found


def _contention(records: Sequence[Record], samples_ns: Floats, counts: npt.NDArray[np.int64]) -> Floats:
    """NA where the kernel gave no run delay, which is not the same as 0."""
    row = np.repeat(np.arange(len(counts)), counts)
    sampled = np.bincount(row, weights=samples_ns, minlength=len(counts))
    delayed = _number([sum(r.time.run_delay_ns) if r.time and r.time.run_delay_ns else None for r in records])
    share: Floats = np.divide(delayed, sampled, out=np.full(len(counts), np.nan), where=sampled > 0)
    return share


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
    columns["tflops"] = np.divide(flops, median_s * 1e12, out=np.full(len(flops), np.nan), where=median_s > 0)
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
