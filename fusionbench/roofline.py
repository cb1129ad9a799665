"""The rooflines of devices: which ones a run needs, where a machine keeps them, and what they say about a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from .disk import opened, reason, write_atomically
from .errors import printable
from .places import cache_folder
from .record import Positive, Record, Roofline, Timing
from .spec import Device, Dtype, Job
from .stats import median

VERSION = 1  # of the cache; another one is measured again
MAX_BYTES = 1 << 20
MOST = 1000  # rooflines that are kept, the newest; one takes 300 bytes
FILE = "rooflines.json"

# Why a timed call has no bound.
NO_PRODUCTS = "it has no matrix products, whose FLOPs a roofline is about"
UNKNOWN = "no roofline was measured for its device, dtype and threads"

# How much faster than its roofline a result may be before it is not believed. Honest jobs reach 0.90 of it at most
# (315 records of M1). On two cores with six busy processes the probe of M1 finds 97 % of the rate of products that it
# finds alone, and 72 % of memory's bandwidth, which they use too. The rest is for what M1 cannot show: cores of one CPU
# that differ, and a probe under lower clocks than the jobs.
MARGIN = 3.0

Note = Callable[[str], object]


class Probe(Struct, frozen=True):
    """What a roofline is measured for: the key of the cache, and what a worker is asked to measure."""

    device: Device
    dtype: Dtype
    threads: Positive
    environment: str

    @classmethod
    def of(cls, roofline: Roofline) -> Probe:
        return cls(roofline.device, roofline.dtype, roofline.threads, roofline.environment)


class Bound(Struct, frozen=True):
    """The least time that a call can take on its device, and what sets it."""

    seconds: float
    by: Literal["compute", "memory"]


class _Cache(Struct):
    v: int
    rooflines: list[Roofline]


def needed(jobs: Iterable[Job], threads: int, environment: str) -> tuple[Probe, ...]:
    """What must be known to judge ``jobs``: a probe per device and dtype, in the order in which they come up."""
    pairs = dict.fromkeys((job.case.device, job.case.dtype) for job in jobs)
    return tuple(Probe(device, dtype, threads, environment) for device, dtype in pairs)


# --- the cache -----------------------------------------------------------------------------------------------------


def cache_path() -> Path:
    """The file in the cache (places.py). Raises OSError where there is no home."""
    return cache_folder() / FILE


def load(path: Path | None = None, note: Note = lambda text: None) -> dict[Probe, Roofline]:
    """What this machine has kept; empty where there is nothing, or, after one ``note``, nothing that can be read."""
    try:
        path = path or cache_path()
        with opened(path, MAX_BYTES) as file:
            cache = msgspec.json.decode(file.read(MAX_BYTES), type=_Cache)
    except FileNotFoundError:
        return {}
    except OSError as error:
        note(f"the cache of rooflines cannot be read{_place(path)}: {reason(error)}; they are measured again")
        return {}
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        note(f"'{printable(str(path))}' is damaged: {printable(str(error))}; its rooflines are measured again")
        return {}
    if cache.v != VERSION or not all(map(sound, cache.rooflines)):
        what = "holds impossible rates" if cache.v == VERSION else f"has version {cache.v}, not {VERSION}"
        note(f"'{printable(str(path))}' {what}; its rooflines are measured again")
        return {}
    return {Probe.of(roofline): roofline for roofline in cache.rooflines}


def save(rooflines: Iterable[Roofline], path: Path | None = None, note: Note = lambda text: None) -> None:
    """Keep ``rooflines`` beside what is kept already; where that cannot be done, one ``note`` says so."""
    try:
        path = path or cache_path()
        kept = load(path) | {Probe.of(roofline): roofline for roofline in rooflines}
        newest = sorted(kept.values(), key=lambda roofline: roofline.measured_at)[-MOST:]
        path.parent.mkdir(parents=True, exist_ok=True)
        # By way of a name of its own: two runs may end in the same moment, and the later one wins.
        own = path.with_name(f"{path.name}.{os.getpid()}")
        write_atomically(own, msgspec.json.encode(_Cache(VERSION, newest)))
        own.replace(path)
    except OSError as error:
        note(f"rooflines cannot be kept{_place(path)}: {reason(error)}; the next run measures them again")


def _place(path: Path | None) -> str:
    """Where it should be, if that is known."""
    return f" in '{printable(str(path.parent))}'" if path else ""


def sound(roofline: Roofline) -> bool:
    """Whether the numbers can be a device's: rates above 0, working sets that grow."""
    sizes = [0, *(size for size, _ in roofline.bytes_per_s)]
    rates = [roofline.flops_per_s, *(rate for _, rate in roofline.bytes_per_s)]
    return len(sizes) > 1 and all(a < b for a, b in pairwise(sizes)) and all(0 < r < math.inf for r in rates)


def better(before: Roofline, again: Roofline) -> Roofline:
    """The higher of two ceilings of one device, as both were reached."""
    rates = tuple((size, max(rate, float(bandwidth(before, size, cold=False)))) for size, rate in again.bytes_per_s)
    return msgspec.structs.replace(again, flops_per_s=max(before.flops_per_s, again.flops_per_s), bytes_per_s=rates)


# --- what a roofline says ------------------------------------------------------------------------------------------


def bandwidth(roofline: Roofline, working_set: Any, *, cold: Any) -> Any:
    """Bytes/s at ``working_set`` bytes, a number or an array: memory's where the caches are ``cold``, else that of the
    measured curve, straight between its points where both axes are logarithmic, and level outside of them."""
    sizes, rates = np.log(np.array(roofline.bytes_per_s)).T
    hot = np.exp(np.interp(np.log(np.maximum(working_set, 1)), sizes, rates))
    return np.where(cold, roofline.bytes_per_s[-1][1], hot)


def limits(roofline: Roofline, flops: Any, min_bytes: Any, working_set: Any, *, cold: Any) -> tuple[Any, Any]:
    """Seconds that computing takes at least, and seconds that moving bytes does; numbers or arrays of one length."""
    return flops / roofline.flops_per_s, min_bytes / bandwidth(roofline, working_set, cold=cold)


def bound(record: Record, roofline: Roofline | None) -> Bound | str:
    """The least time that the record's call can take, or in words why there is none.

    Computing takes its FLOPs at the rate of products, moving its least bytes at the bandwidth of its working set (what
    rests and the peak above it), and the longer of the two is the bound. The bytes are those of the forward pass alone.
    """
    why = missing(record, roofline)
    if why or roofline is None or record.costs is None:
        return why
    cold = record.time is not None and record.time.cache == "cold"
    compute, memory = limits(roofline, record.costs.flops, record.costs.min_bytes, working_set(record), cold=cold)
    return Bound(float(max(compute, memory)), "compute" if compute >= memory else "memory")


def missing(record: Record, roofline: Roofline | None) -> str:
    """Why the record has no bound; empty where it has one."""
    if record.time is None:
        return "it was not timed"
    if record.costs is None or record.costs.flops == 0:
        return NO_PRODUCTS
    if roofline is None or not sound(roofline):
        return UNKNOWN
    return ""


def working_set(record: Record) -> int:
    """Bytes that one call touches; the least that it must move, where nobody measured."""
    if record.memory:
        return record.memory.resting_bytes + record.memory.peak_bytes
    return record.costs.min_bytes if record.costs else 0


def impossible(record: Record, roofline: Roofline | None) -> str | None:
    """Why the record's time cannot be that of its work, or None: the call was faster than physics.

    Either its products would take longer at ``MARGIN`` times the measured rate, or after a flush of the caches its
    inputs and weights could not have been read in that time at ``MARGIN`` times memory's bandwidth.
    """
    time, costs = record.time, record.costs
    if roofline is None or time is None or costs is None or time.timer == "host" or not sound(roofline):
        return None  # the host's timer ends before the work does
    taken = _seconds(time)
    flops, rate = costs.flops / _spared(record.job), roofline.flops_per_s
    if taken < flops / (MARGIN * rate):
        return _message(taken, f"{_scaled(flops)}FLOP", flops / rate, f"{_scaled(rate)}FLOP/s")
    if time.cache == "cold" and record.job.case.mode in ("fwd", "fwd_bwd") and record.memory:
        # Not all that rests is read: of a table of words only those that occur.
        read, rate = min(record.memory.resting_bytes, costs.min_bytes), roofline.bytes_per_s[-1][1]
        if taken < read / (MARGIN * rate):
            return _message(taken, f"{_scaled(read)}B of inputs and weights", read / rate, f"{_scaled(rate)}B/s")
    return None


def _seconds(time: Timing) -> float:
    return median(sorted(time.samples_ns)) / time.loops / 1e9


def _spared(job: Job) -> float:
    """By what factor an honest kernel may do less than the closed form counts, or do it by faster products.

    Causal attention counts as dense, and of weights pruned to 2:4 only one half is multiplied: each product is spared
    once. What is padding need not be computed: attention over a share of queries and keys is the square of it. fp32 on
    CUDA can be three products of tf32, which on an H100 are 2.5 times as fast (165 of 67 TFLOP/s, data sheet).
    """
    case = job.case
    halved = 2.0 if case.design.causal or job.backend == "sparse" else 1.0
    by_tensor_cores = 2.5 if case.dtype == "fp32" and case.device != "cpu" else 1.0
    return halved * by_tensor_cores / (1 - case.padding) ** 2


def _message(taken: float, work: str, needs: float, rate: str) -> str:
    return (
        f"the output is right, but {_scaled(taken)}s is faster than physics: {work} need at least {_scaled(needs)}s "
        f"at the {rate} measured on this device, and {_scaled(needs / MARGIN)}s at {MARGIN:g} times that"
    )


_PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}


def _scaled(value: float) -> str:
    """``3.2e12`` as ``3.2 T``, for a unit to follow."""
    factor, prefix = next(((f, p) for f, p in _PREFIXES.items() if value >= f), (1e-9, "n"))
    return f"{value / factor:.3g} {prefix}"
