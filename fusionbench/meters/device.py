"""The state of a GPU while it is sampled, looked at between blocks of samples: a thread would disturb the timing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from multiprocessing import parent_process
from statistics import fmean, median_low
from time import perf_counter_ns
from types import TracebackType
from typing import TypeVar

from .. import nvml
from ..fitness import crowded, foreign
from ..record import DeviceState

T = TypeVar("T")

CENSUS_NS = 1_000_000_000  # processes are counted no more often: they come and go in seconds


class Monitor:
    """Looks at one GPU whenever it is asked, and remembers; on the CPU and without NVML it says nothing.

    The timer asks ``throttled()`` after each block of samples and takes a block again that was; if it keeps such a
    block for want of a better one, it says so with ``keep()``. Raises DeviceLostError when the GPU is gone.

    Where two processes sample by turns, ``root`` is the one that both descend from: neither is foreign to the other.
    """

    def __init__(self, device: str, root: int = 0) -> None:
        self._device, self._root = device, root
        self._session = contextlib.ExitStack()
        self._gpu: nvml.Gpu | None = None
        self._expected_mhz: int | None = None
        self._before: nvml.State | None = None
        self._kept: list[nvml.State] = []
        self._reasons: tuple[str, ...] = ()
        self._kept_reasons: set[str] = set()
        self._foreign = 0
        self._counted_ns = 0

    def __enter__(self) -> Monitor:
        self._gpu = self._session.enter_context(nvml.session(self._device))
        if self._gpu is not None:
            try:
                self._expected_mhz = self._gpu.expected_mhz()
                self._before = self._gpu.state()
                self._count(self._gpu)
            except BaseException:
                self._session.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if self._gpu is not None and error is None:
                self._count(self._gpu)
        finally:
            self._gpu = None
            self._session.close()

    def restart(self) -> None:
        """What was until now belongs to no block."""
        if self._gpu is not None:
            self._before = self._gpu.state()

    def throttled(self) -> bool:
        """Whether something held the clocks down since the last look (see nvml.throttling)."""
        if self._gpu is None:
            return False
        now = self._gpu.state()
        self._reasons = nvml.throttling(now, self._expected_mhz, self._before)
        self._before = now
        if perf_counter_ns() - self._counted_ns > CENSUS_NS:
            self._count(self._gpu)
        if not self._reasons:
            self._kept.append(now)
        return bool(self._reasons)

    def keep(self) -> None:
        """The block that was throttled is kept all the same."""
        if self._reasons and self._before is not None:
            self._kept.append(self._before)
            self._kept_reasons.update(self._reasons)
            self._reasons = ()

    def state(self) -> DeviceState | None:
        """What was seen at the blocks that were kept; None where there was no GPU to ask."""
        if self._before is None:
            return None
        temperatures = _told(s.temperature_c for s in self._kept)
        power = _told(s.power_watts for s in self._kept)
        return DeviceState(
            sm_mhz=_range(_told(s.sm_mhz for s in self._kept)),
            memory_mhz=_range(_told(s.memory_mhz for s in self._kept)),
            power_watts=fmean(power) if power else None,
            temperature_c=max(temperatures, default=None),
            throttle=tuple(sorted(self._kept_reasons)),
            foreign=self._foreign,
        )

    def _count(self, gpu: nvml.Gpu) -> None:
        runner = parent_process()
        alone = os.getpid() if runner is None or runner.pid is None else runner.pid
        found = foreign(gpu, self._root or alone, holding=2 if self._root else 1)
        self._foreign = max(self._foreign, found or 0)
        self._counted_ns = perf_counter_ns()


def notes(state: DeviceState | None, device: str) -> tuple[str, ...]:
    """What the reader of a timing must know of the device's state; empty where it was as it should be."""
    if state is None:
        return ()
    kept = f"'{device}' throttled ({', '.join(state.throttle)}) while samples were taken, and no better ones came"
    kept += "; let it cool down, or lock lower clocks (nvidia-smi -lgc)"
    crowd = crowded(state.foreign, f"'{device}'")
    return (*([kept] if state.throttle else ()), *([crowd] if state.foreign else ()))


def _told(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _range(values: Sequence[int]) -> tuple[int, int, int] | None:
    return (min(values), median_low(values), max(values)) if values else None
