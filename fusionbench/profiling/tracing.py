"""Calls under torch.profiler: the trace as a file that was checked, and the time of each op and kernel."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..errors import FusionbenchError, printable
from ..spec import Job
from ..subject import Subject
from .request import Profile, Row, refuse_existing, unfinished

CALL = "fusionbench call"  # the span around every call, in the trace
PYTHON = "(Python, outside of ops)"
MAX_TRACE_BYTES = 4 << 30  # unpacked; 20 calls of a layer are 1 MB


def profiled(job: Job, subject: Subject, calls: int, trace: Path, *, shapes: bool) -> Profile:
    """Run ``subject`` ``calls`` times without and with torch.profiler; writes the trace and checks it."""
    device = torch.device(job.case.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]

    def spanned() -> None:
        with record_function(CALL):
            subject.call()

    before_ns = _per_call(subject.call, calls, device)
    with profile(activities=activities, acc_events=False):  # starts what starts once: 1.7 s the first time
        spanned()
    with profile(activities=activities, record_shapes=shapes, profile_memory=True, acc_events=False) as session:
        profiled_ns = _per_call(spanned, calls, device, warm=0)
    plain_ns = min(before_ns, _per_call(subject.call, calls, device))
    rows = tuple(_rows(session.key_averages(group_by_input_shape=shapes), shapes))
    events = write_trace(session.export_chrome_trace, trace)
    return Profile(
        job=job.key,
        device=job.case.device,
        calls=calls,
        plain_ns=plain_ns,
        profiled_ns=profiled_ns,
        rows=rows,
        trace=str(trace),
        events=events,
    )


def _per_call(call: Callable[[], object], calls: int, device: torch.device, warm: int = 3) -> int:
    """Nanoseconds per call, back to back: the median; on a GPU, where calls overlap, the mean until all are done."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warm):
        call()
    wait()
    times = [perf_counter_ns()]
    for _ in range(calls):
        call()
        times.append(perf_counter_ns())
    wait()
    if device.type == "cuda":
        return (perf_counter_ns() - times[0]) // calls
    return round(statistics.median(after - before for before, after in itertools.pairwise(times)))


def _rows(averages: Sequence[Any], shapes: bool) -> Iterator[Row]:
    """Host rows by their own CPU time, device rows by their own device time.

    An op also carries the device time of the kernels that it launched: counted once, at the kernels. What our span
    has for itself is time in which no op ran, Python as a rule.
    """
    for average in averages:
        on_host = average.device_type.name == "CPU"
        if average.key == CALL and not on_host:  # the span's shadow on the device, no kernel
            continue
        yield Row(
            name=PYTHON if average.key == CALL else average.key,
            place="host" if on_host else "device",
            calls=average.count,
            self_ns=round(1e3 * (average.self_cpu_time_total if on_host else average.self_device_time_total)),
            memory_bytes=_allocated(average) if on_host and average.key != CALL else 0,
            shapes=_sizes(average.input_shapes) if shapes and average.key != CALL else "",
        )


def _allocated(average: Any) -> int:
    return int(average.self_cpu_memory_usage + average.self_device_memory_usage)


def _sizes(shapes: Sequence[Any] | None) -> str:
    """``[[2, 64], [64, 8], []]`` as ``2×64, 64×8``: arguments that are tensors."""
    return ", ".join("×".join(map(str, shape)) for shape in shapes or () if shape and not isinstance(shape[0], list))


def write_trace(export: Callable[[str], object], path: Path) -> int:
    """Let ``export`` write a gzipped Chrome trace to ``path``, which must not exist; returns its number of spans.

    Raises FusionbenchError where what was written is no trace; then nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = unfinished(path.parent, os.getpid())
    try:
        export(str(hidden))
        spans = check_trace(hidden)
        try:
            os.link(hidden, path)  # unlike a rename it overwrites nothing
        except FileExistsError:
            refuse_existing(path)
    finally:
        hidden.unlink(missing_ok=True)
    return spans


def check_trace(path: Path) -> int:
    """How many spans a gzipped Chrome trace has; raises FusionbenchError where it is none, or has none."""
    try:
        with gzip.open(path) as file:
            events = json.loads(file.read(MAX_TRACE_BYTES))["traceEvents"]
        spans = [event for event in events if event.get("ph") == "X"]
        bad = sum(not (isinstance(e.get("ts"), int | float) and e.get("dur", -1) >= 0) for e in spans)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FusionbenchError(
            f"the profiler wrote no trace: {type(error).__name__}: {printable(str(error))}"
        ) from error
    if bad or not spans:
        raise FusionbenchError(f"the profiler wrote a trace of {len(spans)} spans, {bad} of them without time")
    return len(spans)
