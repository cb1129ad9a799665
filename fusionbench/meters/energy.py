"""How much energy a call takes: calls back to back for a second and more, between two refreshes of a counter."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Literal

import torch

from .. import nvml
from ..errors import DeviceLostError
from ..record import Energy

POWERCAP = Path("/sys/class/powercap")
# NVML's counter is refreshed every 20 to 100 ms (PETSc's and Zeus' finding): over a shorter window it says nothing.
MIN_WINDOW_S = 1.0
LOOK_NS = 10_000_000  # between two looks at clock and counter; a longer call is looked at when it is over
STUCK_NS = 1_000_000_000  # a counter that does not move for so long is none
AHEAD = 2  # batches queued on a GPU while the host waits for the first, so that it never runs dry

Call = Callable[[], object]
Joules = Callable[[], float | None]  # since some moment; None once the counter no longer answers


@dataclass(frozen=True)
class Meter:
    """A counter that may be read now."""

    name: Literal["nvml", "rapl"]
    joules: Joules


@dataclass(frozen=True)
class Mark:
    """The counter at one of its refreshes, and how many calls were over by then."""

    at_ns: int
    joules: float
    calls: int


def measure(
    call: Call,
    device: torch.device,
    seconds: float,
    interrupted: Callable[[], bool] = lambda: False,
    root: Path = POWERCAP,
) -> Energy | None:
    """Joules of as many calls as take ``seconds`` and at least 1 s, of the whole GPU (NVML) or CPU package (RAPL), with
    all that rests in it and whatever else runs there.

    Both ends lie at the first look after a refresh, one look (10 ms) late at most, which is within 1 % of 1 s; calls
    longer than that are late by up to a refresh (100 ms). None without a counter, and when interrupted.
    """
    with _meter(device, root) as meter:
        if meter is None:
            return None
        with contextlib.closing(_completed(call, device)) as completed:
            begin = _mark(completed, meter.joules, interrupted)
            if begin is None:
                return None
            window_ns = round(max(seconds, MIN_WINDOW_S) * 1e9)
            end = _mark(completed, meter.joules, interrupted, begin, window_ns)
    if end is None or end.joules <= begin.joules:
        return None
    return Energy(
        joules=end.joules - begin.joules,
        calls=end.calls - begin.calls,
        window_s=(end.at_ns - begin.at_ns) / 1e9,
        meter=meter.name,
    )


def unavailable(device: torch.device, root: Path = POWERCAP) -> str | None:
    """Why there is no energy to be had, as a note for the run; None where there is."""
    try:
        with _meter(device, root) as meter:
            if meter is not None:
                return None
    except DeviceLostError as error:
        return f"energy: {error}"
    if device.type == "cpu":
        remedy = "root can make energy_uj there readable, if there is one"
        return f"energy: no RAPL counter that may be read in {root}; {remedy}"
    if reason := nvml.absent():
        return f"energy: NVML says nothing ({reason.lower()}); see: fusionbench doctor"
    return f"energy: '{device}' has no counter of its own (a MIG slice, or older than Volta)"


@contextlib.contextmanager
def _meter(device: torch.device, root: Path) -> Iterator[Meter | None]:
    if device.type == "cpu":
        joules = _rapl(root)
        yield None if joules is None else Meter("rapl", joules)
        return
    with nvml.session(str(device)) as gpu:
        if gpu is None or gpu.energy_mj() is None:
            yield None
            return

        def read() -> float | None:
            millijoules = gpu.energy_mj()
            return None if millijoules is None else millijoules / 1000

        yield Meter("nvml", read)


def _mark(
    completed: Iterator[int],
    joules: Joules,
    interrupted: Callable[[], bool],
    last: Mark | None = None,
    window_ns: int = 0,
) -> Mark | None:
    """The first refresh that is seen, ``window_ns`` after ``last``; None when interrupted, or if the counter is stuck
    or gone."""
    from_ns = window_ns + last.at_ns if last else 0
    before = last.joules if last else None
    moved_ns = perf_counter_ns()
    for calls in completed:
        found, now = joules(), perf_counter_ns()
        if found is None or interrupted():
            return None
        if before is not None and found != before:
            moved_ns = now
            if now >= from_ns:
                return Mark(now, found, calls)
        elif before is not None and now - moved_ns > STUCK_NS:
            return None
        before = found
    return None


def _completed(call: Call, device: torch.device) -> Generator[int, None, None]:
    """Call without end, and tell about every 10 ms how many calls are over."""
    ahead = AHEAD if device.type == "cuda" else 1
    queued: deque[tuple[Call, int]] = deque()
    batch, total, told_ns = 1, 0, perf_counter_ns()
    try:
        while True:
            for _ in itertools.repeat(None, batch):
                call()
            queued.append((_finish(device), batch))
            if len(queued) < ahead:
                continue
            finish, calls = queued.popleft()
            finish()
            total += calls
            now = perf_counter_ns()
            if now - told_ns < LOOK_NS // 2:
                batch *= 2
            told_ns = now
            yield total
    finally:
        for finish, _ in queued:
            finish()


def _finish(device: torch.device) -> Call:
    """A function that waits until everything called so far is over."""
    if device.type == "cpu":
        return lambda: None
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize


def _rapl(root: Path) -> Joules | None:
    """Joules of all CPU packages since now, from the counters of the Linux kernel; None where one may not be read."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _package(zone)]
    last = [_microjoules(zone / "energy_uj") for zone in zones]
    ranges = [_microjoules(zone / "max_energy_range_uj") for zone in zones]
    if not zones or None in last or None in ranges:
        return None
    total = 0

    def joules() -> float | None:
        nonlocal total
        for n, zone in enumerate(zones):
            now, before, full = _microjoules(zone / "energy_uj"), last[n], ranges[n]
            if now is None or before is None or full is None:
                return None
            total += now - before if now >= before else now - before + full  # it starts again at its range
            last[n] = now
        return total / 1e6

    return joules


def _package(zone: Path) -> bool:
    """Whether a zone is a whole package: its cores and memory are zones inside it, and psys is the whole machine."""
    try:
        return zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _microjoules(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
