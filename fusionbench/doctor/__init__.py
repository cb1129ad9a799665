"""Is this machine fit to measure? Checks of machine, software and of the tool's own timer, one after the other."""

from __future__ import annotations

import contextlib
import functools
import gc
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import FusionbenchError, printable
from ..spec import DEVICE_PATTERN
from . import gpu, machine, software, storage
from .check import Check, guarded, ok

__all__ = ["Check", "examine"]

# Seconds: sleeping calls, proportional work, A/A pairs.
FULL, QUICK = (0.2, 0.6, 3.0), (0.05, 0.15, 0.4)


def examine(devices: Sequence[str], results: Path, *, quick: bool = False) -> Iterator[Check]:
    """Each check as it is made, the cheap ones first. Raises FusionbenchError for a device that is none.

    The CPU is always examined; ``devices`` are those to examine beside it (``cpu`` for no other), and without any the
    first GPU. A check that crashes is one that failed.
    """
    for device in devices:
        if not re.fullmatch(DEVICE_PATTERN, device):
            raise FusionbenchError(f"--device '{printable(device)}' is no device; give cpu, cuda or cuda:N")
    return _examine(devices, results, QUICK if quick else FULL)


def _examine(devices: Sequence[str], results: Path, seconds: tuple[float, float, float]) -> Iterator[Check]:
    yield from guarded("software", "versions", software.versions)
    yield from guarded("software", "environment", software.settings)
    yield from guarded("machine", "cores", machine.cores)
    yield from guarded("machine", "threads", machine.threads)
    yield from guarded("machine", "clocks", machine.clocks)
    yield from guarded("machine", "load", machine.load)
    yield from guarded("machine", "memory", _memory)
    yield from guarded("machine", "energy", machine.energy)
    yield from guarded("results", "results", functools.partial(storage.results, results))
    yield from guarded("results", "cache", storage.caches)
    yield from guarded("timer", "builds", _builds)
    yield from guarded("timer", "timer", functools.partial(_cpu, seconds))
    gpus = _gpus(devices)
    for device in gpus:
        yield from guarded(device, "device", functools.partial(_gpu, device, seconds[2] / 2))
    if not gpus:
        yield from guarded(
            "timer",
            "sync",
            lambda: ok("sync, flush", "for GPUs only: a CPU's call returns when it is done, and its caches stay hot"),
        )


def _memory() -> Check:
    import psutil

    from ..environment import device_memory

    found = psutil.virtual_memory()
    total = device_memory("cpu") or found.total
    return machine.memory(min(found.available, total), total, psutil.swap_memory().used)


def _builds() -> Check:
    import torch

    return software.builds(
        torch_debug=bool(torch.version.debug),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        assertions=not sys.flags.optimize,
    )


def _cpu(seconds: tuple[float, float, float]) -> Iterator[Check]:
    """The timer on the CPU, on one thread as jobs have by default, and what disturbed it meanwhile."""
    from . import probes

    clocks, ticks = probes.both_clocks(), machine.ticks()
    yield from probes.clock()
    with _measuring():
        yield probes.sleeping(seconds[0])
        yield probes.proportion(seconds[1])
        pairs = probes.same_twice(probes.attention(), seconds[2])
    yield probes.noise(pairs)
    yield machine.run_delay(*probes.delays(pairs.timings))
    yield from machine.watched(ticks, machine.ticks())
    now = probes.both_clocks()
    if clocks and now:
        yield probes.drift(now[0] - clocks[0], now[1] - clocks[1])


@contextlib.contextmanager
def _measuring() -> Iterator[None]:
    """As in a worker: one thread, and no collection that walks all of torch before each timing (0.1 s each)."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


def _gpus(devices: Sequence[str]) -> list[str]:
    if devices:
        return [device if ":" in device else f"{device}:0" for device in devices if device != "cpu"]
    import torch

    return ["cuda:0"] if torch.cuda.device_count() else []


def _gpu(device: str, seconds: float) -> Iterator[Check]:
    from ..plan import missing_device

    missing = missing_device(device)
    if missing is not None:
        told = f"{missing}{_cpu_build()}"
        yield Check(name="device", status="fail", found=told, remedy="see what the driver says", command="nvidia-smi")
        return
    number = int(device.partition(":")[2])
    yield from gpu.checks(number, gpu.facts(device))
    yield from _probes(device, seconds)


def _cpu_build() -> str:
    import torch

    return "" if torch.version.cuda else "; this torch is built without CUDA"


def _probes(device: str, seconds: float) -> Iterator[Check]:
    import torch

    from . import cuda, probes

    place = torch.device(device)
    cuda.begin(place)
    for name, probe in (("proportion", cuda.known_time), ("sync", cuda.synchronizing), ("flush", cuda.flushing)):
        yield from guarded(device, name, functools.partial(probe, place))
    with _measuring():
        pairs = probes.same_twice(cuda.attention(place), seconds, place)
    yield probes.noise(pairs)
