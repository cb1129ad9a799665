"""Records as one flat table: a row per record, facts and what follows from them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from ..presets import departures
from ..record import PARTS, Deviation, Environment, Record, Roofline
from ..roofline import NO_PRODUCTS, UNKNOWN, Probe, limits, sound, working_set
from .columns import Floats, integer, number, ratio, text
from .timings import device, timing

NOTES_APART = " | "  # a note may hold a semicolon before its remedy
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

    With one thread they are times on the core: waiting for it is taken off each sample, and ``contention`` is its share
    of the sampled time. ``low_ms`` and ``high_ms`` bound the median at 95 %; they are the extremes below 6 samples.
    Percentiles are NA where there are too few samples (stats.least_samples). ``launch_share`` is 1 - kernel / hot, or
    where those are not known 1 - graph / cold; ``of_bound`` the least time that one of ``rooflines`` allows as a share
    of the median. Of ``share_attention`` and the other parts ``_parts`` has more.
    """
    columns: dict[str, Any] = {}
    _identity(columns, records)
    _outcome(columns, records)
    timing(columns, records)
    device(columns, records)
    _measures(columns, records)
    _parts(columns, records)
    _provenance(columns, records, environments)
    _bounds(columns, records, rooflines)
    return pd.DataFrame(columns)


def _identity(columns: dict[str, Any], records: Sequence[Record]) -> None:
    cases = [r.job.case for r in records]
    case_keys = [case.key for case in cases]
    columns["key"] = pd.Series([r.job.key_with(key) for r, key in zip(records, case_keys, strict=True)], dtype="str")
    columns["case"] = pd.Series(case_keys, dtype="str")
    questions = [case.question if case.preset else key for case, key in zip(cases, case_keys, strict=True)]
    columns["question"] = pd.Series(questions, dtype="str")
    columns["candidate"] = pd.Series([_candidate(r) for r in records], dtype="str")
    columns["strategy"] = text(records, lambda r: r.job.strategy)
    columns["backend"] = text(records, lambda r: r.job.backend)
    for name in _SHAPE:
        columns[name] = integer([getattr(case.shape, name) for case in cases])
    for name in ("projector", "dtype", "device", "mode"):
        columns[name] = pd.Series([getattr(case, name) for case in cases], dtype="str")
    columns["type_embedding"] = np.array([case.type_embedding for case in cases], dtype=bool)
    columns["padding"] = number([case.padding for case in cases])
    columns["treatment"] = pd.Series([case.treatment for case in cases], dtype="str")
    columns["preset"] = pd.Series([case.preset for case in cases], dtype="str")
    columns["scale"] = pd.Series([f"1/{case.shrink}" if case.shrink > 1 else "1" for case in cases], dtype="str")
    columns["match"] = pd.Series([case.match for case in cases], dtype="str")
    columns["design"] = pd.Series([case.design.key for case in cases], dtype="str")
    columns["hidden"] = integer([case.shape.hidden for case in cases])
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
    columns["status"] = text(records, lambda r: r.status)
    columns["reason"] = text(records, lambda r: r.reason)
    columns["phase"] = text(records, lambda r: r.phase)


def _measures(columns: dict[str, Any], records: Sequence[Record]) -> None:
    peak = [r.memory.peak_bytes if r.memory else None for r in records]
    columns["peak_bytes"] = integer(peak)
    columns["peak_mib"] = number(peak) / _MIB
    columns["resting_bytes"] = integer([r.memory.resting_bytes if r.memory else None for r in records])
    columns["joules_per_call"] = number(
        [r.energy.joules / r.energy.calls if r.energy and r.energy.calls else None for r in records]
    )
    for name in _COSTS:
        columns[name] = integer([getattr(r.costs, name) if r.costs else None for r in records])
    caches = [r.costs.cache_bytes if r.costs and r.costs.cache_bytes else None for r in records]
    columns["cache_mib"] = number(caches) / _MIB  # NA where a step has no cache
    flops = number([r.costs.flops if r.costs and r.costs.flops else None for r in records])  # 0 FLOPs has no rate
    median_s = columns["median_ms"] / 1e3
    columns["tflops"] = ratio(flops, median_s * 1e12)
    columns["reference"] = text(records, lambda r: r.accuracy.reference if r.accuracy else None)
    accuracies = [r.accuracy for r in records]
    _deviations(columns, "", [a.output if a else None for a in accuracies])
    _deviations(columns, "yardstick_", [a.yardstick if a else None for a in accuracies])
    _deviations(columns, "grad_", [a.gradient if a else None for a in accuracies])
    _deviations(columns, "grad_yardstick_", [a.gradient_yardstick if a else None for a in accuracies])


def _parts(columns: dict[str, Any], records: Sequence[Record]) -> None:
    """The shares of a call's time: of what its ops or kernels were for, and in which none of them ran.

    The latter is what the ops leave of the quickest sample, or the kernels of the ``hot`` timer's median.
    """
    spent_ms = {p: number([getattr(r.parts, f"{p}_ns") / 1e6 if r.parts else None for r in records]) for p in PARTS}
    busy_ms = sum(spent_ms.values(), np.zeros(len(records)))
    call_ms = np.where(columns["timer"] == "wall", columns["min_ms"], columns["hot_ms"])
    whole_ms = np.fmax(call_ms, busy_ms)
    for name, values in spent_ms.items():
        columns[f"share_{name}"] = ratio(values, whole_ms)
    columns["share_gaps"] = np.where(np.isnan(call_ms), np.nan, ratio(whole_ms - busy_ms, whole_ms))


def _deviations(columns: dict[str, Any], prefix: str, found: Sequence[Deviation | None]) -> None:
    for name in _DEVIATION:
        columns[prefix + name] = number([getattr(d, name) if d else None for d in found])


def _provenance(columns: dict[str, Any], records: Sequence[Record], environments: Mapping[str, Environment]) -> None:
    columns["kernels"] = text(records, lambda r: "; ".join(r.kernels))
    columns["launches"] = integer([r.launches for r in records])
    columns["notes"] = text(records, lambda r: NOTES_APART.join(r.notes))
    columns["wall_s"] = number([r.wall_s for r in records])
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
    flops = number([r.costs.flops if r.costs else None for r in records])
    moved = number([r.costs.min_bytes if r.costs else None for r in records])
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
        touched = number([working_set(r) for r in records])
        cold = (columns["cache"] == "cold").to_numpy(bool)
        keys = {name: columns[name] for name in Probe.__struct_fields__}
        rows_of = pd.DataFrame(keys).groupby([*keys], sort=False).indices
        for probe, roofline in known.items():
            rows = rows_of.get(msgspec.structs.astuple(probe), [])
            found = limits(roofline, flops[rows], moved[rows], touched[rows], cold=cold[rows])
            compute_s[rows], memory_s[rows] = found
    return compute_s, memory_s
