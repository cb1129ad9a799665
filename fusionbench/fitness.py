"""Whether the GPUs of a run are fit to be measured: no one else is on them, and they do not throttle already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from . import nvml
from .errors import DeviceLostError, UnfitError

# An idle GPU's power cap and clocks say nothing; heat and the power supply hold it down whatever it does.
TELLING = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")


def remarks(devices: Iterable[str], *, strict: bool) -> list[str]:
    """The warnings about these devices, and what stays unknown about them. With ``strict`` a warning is UnfitError."""
    devices = list(devices)
    found = warnings(devices)
    if strict and found:
        raise UnfitError(f"--strict: {'; '.join(found)}")
    unknown = absent(devices)
    return [*found, unknown] if unknown else found


def warnings(devices: Iterable[str]) -> list[str]:
    """What a run on these devices should say before it begins, with the remedy; empty for CPUs and quiet GPUs."""
    return [line for device in sorted(set(devices)) for line in _warnings(device)]


def absent(devices: Iterable[str]) -> str | None:
    """The one note that clocks, neighbours and energy of the GPUs in ``devices`` stay unknown, or None."""
    if not any(device.startswith("cuda") for device in devices):
        return None
    reason = nvml.absent()
    if reason is None:
        return None
    unknown = "clocks, other processes and energy are unknown (see: fusionbench doctor)"
    return f"NVML says nothing ({reason.lower()}): {unknown}"


def _warnings(device: str) -> list[str]:
    try:
        with nvml.session(device) as gpu:
            return [] if gpu is None else [*_busy(gpu), *_throttling(gpu)]
    except DeviceLostError as error:
        return [str(error)]


def _busy(gpu: nvml.Gpu) -> list[str]:
    others = foreign(gpu, os.getpid(), holding=0)
    return [crowded(others, gpu.name)] if others else []


def crowded(others: int, name: str) -> str:
    """In words: how many other processes were on the GPU ``name``."""
    who = "process uses" if others == 1 else "processes use"
    return f"{others} other {who} {name}, and timings share it with them; wait for them, or choose another device"


def _throttling(gpu: nvml.Gpu) -> list[str]:
    state = gpu.state()
    found = nvml.throttling(state, gpu.expected_mhz())
    if state.reasons is not None and state.reasons & nvml.IDLE:
        found = tuple(reason for reason in found if reason in TELLING)
    heat = "" if state.temperature_c is None else f" at {state.temperature_c} °C"
    remedy = "let it cool down, or see to its cooling and power"
    return [f"{gpu.name} throttles before anything runs ({', '.join(found)}){heat}; {remedy}"] if found else []


def foreign(gpu: nvml.Gpu, root: int, *, holding: int) -> int | None:
    """How many processes on the GPU are neither ``root`` nor its descendants; None where the driver does not say.

    ``holding`` says how many of ours have a context there: if none is listed then, the driver speaks in the numbers of
    another pid namespace, and so many of those that it lists are ours.
    """
    listed = gpu.processes()
    if listed is None:
        return None
    others = sum(not _descends(process, root) for process in listed)
    return max(0, others - holding) if others == len(listed) else others


def _descends(process: int, root: int) -> bool:
    while process > 1 and process != root:
        process = _parent(process)
    return process == root


def _parent(process: int) -> int:
    """0 where it is over, or where there is no /proc."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        # pid (command) state parent; the command may hold anything
        return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return 0
