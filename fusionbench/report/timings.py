"""The columns of time: medians with their intervals, percentiles, every timer of a GPU, and the state it was in."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..record import TIMED_AS, Record, Timing
from ..stats import block_sizes, interval_ranks, median, quantile_rank
from .columns import Counts, Floats, integer, number, ratio

_PERCENTILES = {"p90_ms": 0.9, "p99_ms": 0.99}
_LAUNCHED = (("kernel", "hot"), ("graph", "cold"))  # without and with the launches, in the same state of the cache


def timing(columns: dict[str, Any], records: Sequence[Record]) -> None:
    times = [r.time for r in records]
    for name in ("timer", "cache", "stop"):
        columns[name] = pd.Series([getattr(t, name) if t else None for t in times], dtype="str")
    for name in ("threads", "loops", "discarded"):
        columns[name] = integer([getattr(t, name) if t else None for t in times])
    columns["samples"] = integer([len(t.samples_ns) if t else None for t in times])
    columns["rounds"] = integer([len(t.round_sizes) if t else None for t in times])
    flat, counts = per_call(times)
    found = _quantiles(flat, counts, [t.rounds if t else () for t in times])
    columns.update({name: values / 1e6 for name, values in found.items()})
    columns["contention"] = _contention(times)
    columns["first_call_ms"] = number([t.first_call_ns / 1e6 if t else None for t in times])
    controls = [median(sorted(t.control_ns)) / 1e6 if t and t.control_ns else None for t in times]
    columns["control_ms"] = number(controls)
    _timers(columns, records)


def per_call(times: Sequence[Timing | None]) -> tuple[Floats, Counts]:
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
    for each, ordered in _sorted_runs(*per_call([t for _, t in rows])):
        medians[each] = _middle(ordered) / 1e6
    for (row, timing), value in zip(rows, medians, strict=True):
        found[timing.timer, timing.cache][row] = value
    for name, kind in TIMED_AS.items():
        columns[f"{name}_ms"] = found[kind]
    launches, of_cold = (1 - ratio(columns[f"{a}_ms"], columns[f"{b}_ms"]) for a, b in _LAUNCHED)
    columns["launch_share"] = np.where(np.isnan(launches), of_cold, launches)


def device(columns: dict[str, Any], records: Sequence[Record]) -> None:
    states = [r.device for r in records]
    columns["sm_mhz"] = integer([s.sm_mhz[1] if s and s.sm_mhz else None for s in states])
    columns["power_watts"] = number([s.power_watts if s else None for s in states])
    columns["temperature_c"] = integer([s.temperature_c if s else None for s in states])
    columns["throttle"] = pd.Series([", ".join(s.throttle) if s else None for s in states], dtype="str")
    columns["foreign"] = integer([s.foreign if s else None for s in states])


def _contention(times: Sequence[Timing | None]) -> Floats:
    """As remarks.contention, a share of the threads' time; NA where the kernel gave no run delay, which is not 0."""
    waited = number([sum(t.run_delay_ns) / t.threads if t and t.run_delay_ns else None for t in times])
    sampled = number([sum(t.samples_ns) if t and t.run_delay_ns else None for t in times])
    return ratio(waited, sampled)
