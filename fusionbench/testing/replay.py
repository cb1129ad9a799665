"""Samples that were taken elsewhere, as pytest-benchmark takes them: by a timer that tells them one after the other.

The marker's ``timer``, ``benchmark.pedantic``, ``extra_info`` and ``enabled`` are its documented interface; ``params``
is what its report groups by. Nothing else of it is touched.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import pytest

from ..errors import FusionbenchError
from ..export import measured, pytest_benchmark
from ..record import Record
from . import measure

_moments: deque[float] = deque()


def fusionbench_samples() -> float:
    """The timer: the next moment of a sample that is told, else the time (its name is in pytest-benchmark's files)."""
    return _moments.popleft() if _moments else perf_counter()


def take_samples(item: pytest.Item) -> None:
    """Let the ``benchmark`` of this test ask our timer, beside what its own marker says."""
    marker = item.get_closest_marker("benchmark")
    options = dict(marker.kwargs) if marker else {}
    item.add_marker(pytest.mark.benchmark(**options | {"timer": fusionbench_samples}), append=False)


def feed(benchmark: Any, record: Record) -> None:
    """Give the samples of a record, in seconds per call, to pytest-benchmark, and beside them what else is known."""
    if record.status != "ok" or record.time is None:
        _leave_out(benchmark)
        return
    samples = [ns / 1e9 for ns in record.time.calls_ns]
    job, here = measured.of(record), measure.environment()
    if job.timed:
        benchmark.extra_info.update(pytest_benchmark.extra_info(job, job.timed, {here.id: here}))
    benchmark.params = pytest_benchmark.parameters(record.job)
    _moments.extend(moment for sample in samples for moment in (0.0, sample))
    try:
        benchmark.pedantic(_told if benchmark.enabled else _nothing, rounds=len(samples))
    finally:
        _moments.clear()


@contextlib.contextmanager
def nothing_else(benchmark: Any) -> Iterator[None]:
    """What ends the block early, Ctrl-C too, leaves the benchmark out of the report, and unused without a warning."""
    try:
        yield
    except BaseException:
        _leave_out(benchmark)
        raise


def _leave_out(benchmark: Any) -> None:
    with contextlib.suppress(measure.JobFailedError):
        benchmark.pedantic(_failing)


def _failing() -> None:
    raise measure.JobFailedError("there are no samples")


def _told() -> None:
    """What a round calls: half of its sample's two moments must be told by now."""
    if len(_moments) % 2 == 0:
        raise FusionbenchError(
            "this benchmark does not ask our timer; let the test name both fixtures, fusion_job and benchmark"
        )


def _nothing() -> None:
    pass
