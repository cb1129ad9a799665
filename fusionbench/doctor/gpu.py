"""What NVML says of a GPU, and what of that makes its timings doubtful."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from .. import fitness, nvml
from .check import Check, Status, ok

SM = 1  # NVML's number of that clock
HOT_C = 80  # data-centre parts slow down between 83 and 90 °C


class GpuFacts(Struct, frozen=True, kw_only=True):
    """One GPU as NVML sees it; None where this driver or this kind of GPU does not say."""

    name: str = ""
    uuid: str = ""
    driver: str = ""
    persistence: bool | None = None
    sm_mhz: int | None = None
    expected_sm_mhz: int | None = None  # under load: the application clock
    max_sm_mhz: int | None = None
    throttling: tuple[str, ...] | None = None  # why the clocks are held down
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    temperature_c: int | None = None
    foreign: int | None = None  # processes of others
    ecc: bool | None = None
    mig: bool | None = None
    energy: bool | None = None  # whether the total-energy counter answers


def facts(device: str) -> GpuFacts | None:
    """The GPU that CUDA calls ``device``; None where NVML does not know it. The only place here that asks NVML."""
    with nvml.session(device) as found:
        return None if found is None else _asked(found)


def _asked(found: nvml.Gpu) -> GpuFacts:
    def watts(question: str) -> float | None:
        milliwatts = found.ask(question, found.board)
        return None if milliwatts is None else milliwatts / 1000

    state = found.state()
    return GpuFacts(
        name=_text(found.ask("nvmlDeviceGetName", found.handle)),
        uuid=found.uuid() or "",
        driver=_text(found.ask("nvmlSystemGetDriverVersion")),
        persistence=_flag(found.ask("nvmlDeviceGetPersistenceMode", found.board)),
        sm_mhz=state.sm_mhz,
        expected_sm_mhz=found.expected_mhz(),
        max_sm_mhz=found.ask("nvmlDeviceGetMaxClockInfo", found.board, SM),
        throttling=_throttling_now(found, state),
        power_limit_w=watts("nvmlDeviceGetEnforcedPowerLimit"),
        default_power_limit_w=watts("nvmlDeviceGetPowerManagementDefaultLimit"),
        temperature_c=state.temperature_c,
        foreign=fitness.foreign(found, os.getpid(), holding=0),
        ecc=_first_flag(found.ask("nvmlDeviceGetEccMode", found.board)),
        mig=found.sliced(),
        energy=found.energy_mj() is not None,
    )


def _throttling_now(found: nvml.Gpu, state: nvml.State) -> tuple[str, ...] | None:
    """What holds the clocks down; of an idle GPU only what does so whatever it has to do."""
    if state.reasons is None:
        return None
    names = nvml.throttling(state, found.expected_mhz())
    return tuple(name for name in names if name in fitness.TELLING) if state.reasons & nvml.IDLE else names


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _first_flag(current_and_pending: Any) -> bool | None:
    return None if current_and_pending is None else bool(current_and_pending[0])


def checks(index: int, gpu: GpuFacts | None) -> Iterator[Check]:
    """One check per fact that is known of the GPU that CUDA calls ``index``."""
    if gpu is None:
        yield Check(
            name="NVML", status="warn", found="NVML does not answer: clocks, power and other users are unknown",
            remedy="is the driver's libnvidia-ml.so here, and nvidia-ml-py installed?", command="nvidia-smi",
        )  # fmt: skip
        return
    number = gpu.uuid or str(index)  # CUDA and nvidia-smi need not count alike
    yield ok("device", f"{gpu.name}, driver {gpu.driver}" + _extras(gpu))
    yield from _persistence(number, gpu)
    yield from _clocks(number, gpu)
    yield from _throttling(gpu)
    yield from _power(number, gpu)
    yield from _temperature(gpu)
    yield from _users(gpu)
    told = "the energy counter is readable" if gpu.energy else "no energy counter: records have no energy of this GPU"
    yield ok("energy", told)


def _extras(gpu: GpuFacts) -> str:
    known = {"ECC": gpu.ecc, "MIG": gpu.mig}
    return "".join(f", {name} {'on' if on else 'off'}" for name, on in known.items() if on is not None)


def _persistence(number: str, gpu: GpuFacts) -> Iterator[Check]:
    if gpu.persistence is False:
        yield Check(
            name="persistence", status="warn", found="off: the driver unloads between jobs",
            remedy="clocks and first calls differ from job to job", command=f"sudo nvidia-smi -i {number} -pm 1",
        )  # fmt: skip


def _clocks(number: str, gpu: GpuFacts) -> Iterator[Check]:
    if gpu.max_sm_mhz is None:
        return
    now = f"now {gpu.sm_mhz}, " if gpu.sm_mhz is not None else ""
    asked = f"under load {gpu.expected_sm_mhz}, " if gpu.expected_sm_mhz is not None else ""
    found = f"SM {now}{asked}at most {gpu.max_sm_mhz} MHz"
    if gpu.expected_sm_mhz is not None and gpu.expected_sm_mhz < gpu.max_sm_mhz:
        steady = gpu.expected_sm_mhz
        yield Check(
            name="clocks", status="warn", found=found, value=steady, unit="MHz",
            remedy="boost goes up to the maximum and back with heat; for figures that repeat, lock the clocks "
            f"(sudo nvidia-smi -i {number} -rgc undoes it)",
            command=f"sudo nvidia-smi -i {number} -lgc {steady},{steady}",
        )  # fmt: skip
    else:
        yield ok("clocks", found, gpu.max_sm_mhz, "MHz")


def _throttling(gpu: GpuFacts) -> Iterator[Check]:
    if gpu.throttling is None:
        return
    if gpu.throttling:
        yield Check(
            name="throttling", status="fail", found=f"slowed down now: {', '.join(gpu.throttling)}",
            remedy="let it cool down, raise the power limit, or find who else computes on it",
            command="nvidia-smi -q -d PERFORMANCE",
        )  # fmt: skip
    else:
        yield ok("throttling", "nothing holds the clocks down")


def _power(number: str, gpu: GpuFacts) -> Iterator[Check]:
    limit, default = gpu.power_limit_w, gpu.default_power_limit_w
    if limit is None:
        return
    usual = "" if default is None else f" (default {default:.0f} W)"
    found = f"limit {limit:.0f} W{usual}"
    if default is not None and limit < 0.99 * default:
        yield Check(
            name="power", status="warn", found=found, value=limit, unit="W",
            remedy="figures are those of a weaker card; the limit is recorded",
            command=f"sudo nvidia-smi -i {number} -pl {default:.0f}",
        )  # fmt: skip
    else:
        yield ok("power", found, limit, "W")


def _temperature(gpu: GpuFacts) -> Iterator[Check]:
    if gpu.temperature_c is None:
        return
    status: Status = "warn" if gpu.temperature_c >= HOT_C else "ok"
    yield Check(
        name="temperature", status=status, found=f"{gpu.temperature_c} °C before we begin",
        value=gpu.temperature_c, unit="°C", remedy="let it cool down first" if status == "warn" else "",
    )  # fmt: skip


def _users(gpu: GpuFacts) -> Iterator[Check]:
    if gpu.foreign is None:
        return
    if gpu.foreign:
        yield Check(
            name="users", status="fail", found=f"{gpu.foreign} other processes compute on it",
            value=gpu.foreign, unit="processes",
            remedy="a GPU that is shared measures them, too: wait, or take another",
            command="nvidia-smi pmon -c 1",
        )  # fmt: skip
    else:
        yield ok("users", "no other process computes on it", 0, "processes")
