"""What NVML says of a GPU, and what of that makes its timings doubtful."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from .. import environment
from .check import Check, Status, ok

HOT_C = 80  # data-centre parts slow down between 83 and 90 °C
# nvmlClocksEventReasons, by bit: the names of nvidia-smi, and whether they slow a kernel down.
REASONS: dict[int, tuple[str, bool]] = {
    0x1: ("idle", False),
    0x2: ("application clocks", False),
    0x4: ("power cap", True),
    0x8: ("hardware slowdown", True),
    0x10: ("sync boost", True),
    0x20: ("thermal, by software", True),
    0x40: ("thermal, by hardware", True),
    0x80: ("power brake", True),
    0x100: ("display clocks", False),
}


class GpuFacts(Struct, frozen=True, kw_only=True):
    """One GPU as NVML sees it; None where this driver or this kind of GPU does not say."""

    name: str = ""
    driver: str = ""
    persistence: bool | None = None
    sm_mhz: int | None = None
    application_sm_mhz: int | None = None
    max_sm_mhz: int | None = None
    throttle: int | None = None  # the bits of REASONS
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    temperature_c: int | None = None
    foreign: int | None = None  # processes of others
    ecc: bool | None = None
    mig: bool | None = None
    energy: bool | None = None  # whether the total-energy counter answers


def facts(index: int) -> GpuFacts | None:
    """The GPU that CUDA calls ``index``; None without NVML or such a GPU. The only place here that asks NVML."""
    with environment._nvml() as nvml:
        handle = None if nvml is None else environment._visible(nvml, index)
        return None if handle is None else _asked(nvml, handle)


def _asked(nvml: Any, handle: Any) -> GpuFacts:
    def ask(question: str, *about: Any) -> Any:
        function = getattr(nvml, question, None)  # older bindings lack the newer questions
        return None if function is None else environment._ask(nvml, function, *about)

    def watts(question: str) -> float | None:
        milliwatts = ask(question, handle)
        return None if milliwatts is None else milliwatts / 1000

    sm = getattr(nvml, "NVML_CLOCK_SM", 1)
    throttle = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if throttle is None:
        throttle = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return GpuFacts(
        name=environment._text(ask("nvmlDeviceGetName", handle)),
        driver=environment._text(ask("nvmlSystemGetDriverVersion")),
        persistence=_flag(ask("nvmlDeviceGetPersistenceMode", handle)),
        sm_mhz=ask("nvmlDeviceGetClockInfo", handle, sm),
        application_sm_mhz=ask("nvmlDeviceGetApplicationsClock", handle, sm),
        max_sm_mhz=ask("nvmlDeviceGetMaxClockInfo", handle, sm),
        throttle=throttle,
        power_limit_w=watts("nvmlDeviceGetEnforcedPowerLimit"),
        default_power_limit_w=watts("nvmlDeviceGetPowerManagementDefaultLimit"),
        temperature_c=ask("nvmlDeviceGetTemperature", handle, getattr(nvml, "NVML_TEMPERATURE_GPU", 0)),
        foreign=_others(ask("nvmlDeviceGetComputeRunningProcesses", handle)),
        ecc=_first_flag(ask("nvmlDeviceGetEccMode", handle)),
        mig=_first_flag(ask("nvmlDeviceGetMigMode", handle)),
        energy=ask("nvmlDeviceGetTotalEnergyConsumption", handle) is not None,
    )


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _first_flag(current_and_pending: Any) -> bool | None:
    return None if current_and_pending is None else bool(current_and_pending[0])


def _others(processes: Any) -> int | None:
    """In a container NVML may call our own process by the host's number: ours is there only once CUDA is."""
    return None if processes is None else sum(process.pid != os.getpid() for process in processes)


def checks(number: int, gpu: GpuFacts | None) -> Iterator[Check]:
    """One check per fact that is known of the GPU ``number``."""
    if gpu is None:
        yield Check(
            name="NVML", status="warn", found="NVML does not answer: clocks, power and other users are unknown",
            remedy="is the driver's libnvidia-ml.so here, and nvidia-ml-py installed?", command="nvidia-smi",
        )  # fmt: skip
        return
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


def _persistence(number: int, gpu: GpuFacts) -> Iterator[Check]:
    if gpu.persistence is False:
        yield Check(
            name="persistence", status="warn", found="off: the driver unloads between jobs",
            remedy="clocks and first calls differ from job to job", command=f"sudo nvidia-smi -i {number} -pm 1",
        )  # fmt: skip


def _clocks(number: int, gpu: GpuFacts) -> Iterator[Check]:
    if gpu.max_sm_mhz is None:
        return
    now = f"now {gpu.sm_mhz}, " if gpu.sm_mhz is not None else ""
    asked = f"application {gpu.application_sm_mhz}, " if gpu.application_sm_mhz is not None else ""
    found = f"SM {now}{asked}at most {gpu.max_sm_mhz} MHz"
    if gpu.application_sm_mhz is not None and gpu.application_sm_mhz < gpu.max_sm_mhz:
        steady = gpu.application_sm_mhz
        yield Check(
            name="clocks", status="warn", found=found, value=steady, unit="MHz",
            remedy="boost goes up to the maximum and back with heat; for figures that repeat, lock the clocks "
            f"(sudo nvidia-smi -i {number} -rgc undoes it)",
            command=f"sudo nvidia-smi -i {number} -lgc {steady},{steady}",
        )  # fmt: skip
    else:
        yield ok("clocks", found, gpu.max_sm_mhz, "MHz")


def _throttling(gpu: GpuFacts) -> Iterator[Check]:
    if gpu.throttle is None:
        return
    known = [(name, slows) for bit, (name, slows) in REASONS.items() if gpu.throttle & bit]
    slowing = [name for name, slows in known if slows]
    if slowing:
        yield Check(
            name="throttling", status="fail", found=f"slowed down now: {', '.join(slowing)}",
            remedy="let it cool down, raise the power limit, or find who else computes on it",
            command="nvidia-smi -q -d PERFORMANCE",
        )  # fmt: skip
    else:
        yield ok("throttling", f"none{''.join(f' ({name})' for name, _ in known)}")


def _power(number: int, gpu: GpuFacts) -> Iterator[Check]:
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
