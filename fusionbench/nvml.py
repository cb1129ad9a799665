"""What the driver says of the GPUs that CUDA sees: to a question that it does not answer, the answer is None."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from .errors import DeviceLostError

# What holds clocks down against the user's will: the bits of NVML's clocks event reasons, by nvidia-smi's names.
THROTTLING = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
IDLE = 0x01
ASKED = IDLE | 0x02 | 0x10 | 0x100  # nothing to do, clocks set by the user, by a group of GPUs, by a display

# A busy GPU below this share of the clock that it should have is throttling, whatever it gives as a reason: the rule
# and the number are nvbench's.
LOW_CLOCK, LOW_SHARE = "low_sm_clock", 0.75
# Counters of the ns under a reason see what was over before the look. Only these two have one number in all drivers:
# hw_thermal_slowdown is 252 in driver 580, 270 in CUDA 13's header, where 252 is something else.
COUNTERS = {"sw_power_cap": 74, "sw_thermal_slowdown": 75}
THROTTLED_SHARE = 0.01  # of the time between two looks: less than this moves no median by 1 %

_GRAPHICS, _SM, _MEMORY, _CORE = 0, 1, 2, 0  # NVML's numbers of clocks, and of the sensor in the chip
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")  # from 2023, before
_TEMPERATURE = ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV")  # until CUDA 14, after
_APPLICATIONS_CLOCK = ("nvmlDeviceGetApplicationsClock", "nvmlDeviceGetDefaultApplicationsClock")
_PROCESSES = tuple(f"nvmlDeviceGetComputeRunningProcesses{version}" for version in ("_v3", "_v2", ""))
_LOST = (15, 16)  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED


@dataclass(frozen=True)
class State:
    """One look at a GPU; clocks in MHz."""

    at_ns: int
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    power_watts: float | None = None
    temperature_c: int | None = None
    reasons: int | None = None  # bits: why the clocks are as they are
    throttled_ns: dict[str, int] = field(default_factory=dict)  # by reason, since the driver was loaded


@dataclass(frozen=True)
class Facts:
    """What does not change while a process lives, of the first GPU that CUDA sees; empty where nobody says."""

    name: str = ""
    count: int = 0
    capability: str = ""
    driver: str = ""
    cuda: str = ""
    power_limit_w: float | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU that can be asked, as long as its session lasts. Every method raises DeviceLostError once it is gone."""

    nvml: Any
    device: str  # as CUDA calls it
    handle: Any
    board: Any  # the whole GPU, where the handle is a MIG slice of it: clocks and sensors are the board's

    @property
    def name(self) -> str:
        return f"gpu '{self.uuid() or self.device}'"

    def uuid(self) -> str | None:
        return _text(self.ask("nvmlDeviceGetUUID", self.handle)) or None

    def state(self) -> State:
        milliwatts = self.ask("nvmlDeviceGetPowerUsage", self.board)
        return State(
            at_ns=perf_counter_ns(),
            sm_mhz=self.ask("nvmlDeviceGetClockInfo", self.board, _SM),
            memory_mhz=self.ask("nvmlDeviceGetClockInfo", self.board, _MEMORY),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_c=self.first(_TEMPERATURE, self.board, _CORE),
            reasons=self.first(_REASONS, self.board),
            throttled_ns=self._counters(),
        )

    def _counters(self) -> dict[str, int]:
        values = self.ask("nvmlDeviceGetFieldValues", self.board, list(COUNTERS.values())) or ()
        unsigned = (2, 3)  # NVML_VALUE_TYPE_UNSIGNED_LONG, .._LONG_LONG
        return {
            name: int(answer.value.ullVal)
            for name, answer in zip(COUNTERS, values, strict=False)
            if answer.nvmlReturn == 0 and answer.valueType in unsigned
        }

    def expected_mhz(self) -> int | None:
        """The SM clock of a busy GPU that nothing holds down: the one applications are given, else the highest."""
        clock = self.first(_APPLICATIONS_CLOCK, self.board, _GRAPHICS)
        clock = clock or self.ask("nvmlDeviceGetMaxClockInfo", self.board, _SM)
        return None if clock is None else int(clock)

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded; None for a slice, as the counter is the whole board's."""
        return None if self.sliced() else self.ask("nvmlDeviceGetTotalEnergyConsumption", self.board)

    def sliced(self) -> bool:
        """Whether CUDA has only a slice of this GPU (MIG)."""
        mode = self.ask("nvmlDeviceGetMigMode", self.board)  # current, pending
        return self.handle is not self.board or bool(mode and mode[0])

    def processes(self) -> set[int] | None:
        """The ids of the processes with a CUDA context here, in the numbers of the host where the driver knows no
        others: a container may not find itself among them."""
        found = self.first(_PROCESSES, self.handle)
        return None if found is None else {process.pid for process in found}

    def first(self, questions: tuple[str, ...], *about: Any) -> Any:
        """The first answer: functions come and go between drivers."""
        answers = (self.ask(question, *about) for question in questions)
        return next((answer for answer in answers if answer is not None), None)

    def ask(self, question: str, *about: Any) -> Any:
        return _ask(self.nvml, question, *about, device=self.device)


def throttling(state: State, expected_mhz: int | None, before: State | None = None) -> tuple[str, ...]:
    """Why the clocks are, or have been since ``before``, lower than the work deserves.

    The clock itself is judged only where the GPU is busy: an idle one clocks down and says so (gpu_idle), and a clock
    that somebody has set is as low as he wants it.
    """
    reasons = state.reasons or 0
    found = {name for name, bit in THROTTLING.items() if reasons & bit}
    if before is not None:
        share = THROTTLED_SHARE * (state.at_ns - before.at_ns)
        found |= {n for n, ns in state.throttled_ns.items() if ns - before.throttled_ns.get(n, ns) > share}
    judged = state.reasons is not None and not reasons & ASKED
    if judged and expected_mhz and state.sm_mhz is not None and state.sm_mhz < LOW_SHARE * expected_mhz:
        found.add(LOW_CLOCK)
    return tuple(sorted(found))


@contextlib.contextmanager
def session(device: str) -> Iterator[Gpu | None]:
    """The GPU that CUDA calls ``device``, to be asked; None for the CPU and where NVML does not know it."""
    with contextlib.ExitStack() as stack:
        nvml = stack.enter_context(_library()) if device.startswith("cuda") else None
        handle = None if nvml is None else _handle(nvml, int(device.partition(":")[2] or 0))
        if handle is None:
            yield None
            return
        slice_of = _ask(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
        yield Gpu(nvml, device, handle, handle if slice_of is None else slice_of)


def uuid(device: str) -> str | None:
    """The name of the GPU that no renumbering changes; None where NVML does not know it. Raises DeviceLostError."""
    with session(device) as gpu:
        return None if gpu is None else gpu.uuid()


def memory_bytes(device: str) -> int | None:
    """Bytes of memory that a GPU has; None where nobody says. Creates no CUDA context."""
    with session(device) as gpu:
        found = None if gpu is None else gpu.ask("nvmlDeviceGetMemoryInfo", gpu.handle)
        return None if found is None else int(found.total)


def absent() -> str | None:
    """Why NVML says nothing at all; None where it does."""
    try:
        import pynvml
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return str(error)
    pynvml.nvmlShutdown()
    return None


def facts() -> Facts:
    """Empty where there is no GPU, no driver, or none that is still reached."""
    with contextlib.suppress(DeviceLostError), session("cuda:0") as gpu:
        if gpu is not None:
            return _facts(gpu)
    return Facts()


def _facts(gpu: Gpu) -> Facts:
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    capability = gpu.ask("nvmlDeviceGetCudaComputeCapability", gpu.handle)
    cuda = gpu.ask("nvmlSystemGetCudaDriverVersion")
    milliwatts = gpu.ask("nvmlDeviceGetEnforcedPowerLimit", gpu.handle)
    return Facts(
        name=_text(gpu.ask("nvmlDeviceGetName", gpu.handle)),
        count=len(shown.split(",")) if shown else gpu.ask("nvmlDeviceGetCount") or 0,
        capability=".".join(map(str, capability)) if capability else "",
        driver=_text(gpu.ask("nvmlSystemGetDriverVersion")),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        power_limit_w=milliwatts / 1000 if milliwatts else None,
    )


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """NVML while it is needed; None on a machine without a driver or the library."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _ask(nvml: Any, question: str, *about: Any, device: str = "") -> Any:
    """None where these bindings, this driver or this kind of GPU do not say; raises DeviceLostError."""
    function = getattr(nvml, question, None)
    try:
        return None if function is None else function(*about)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) in _LOST:
            raise DeviceLostError(f"gpu '{device}' is lost: the driver no longer reaches it; reset it") from error
        return None
    except getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError):  # the driver is older than the bindings
        return None


def _handle(nvml: Any, index: int) -> Any:
    """The GPU that CUDA calls ``index``: NVML itself does not heed CUDA_VISIBLE_DEVICES. None where there is none."""
    name = visible(index)
    if name.isdecimal():
        return _ask(nvml, "nvmlDeviceGetHandleByIndex", int(name), device=name)
    if not name.startswith(("GPU-", "MIG-")):
        return None
    return _ask(nvml, "nvmlDeviceGetHandleByUUID", name, device=name) or _abbreviated(nvml, name)


def _abbreviated(nvml: Any, name: str) -> Any:
    """The one GPU whose UUID begins so, as CUDA takes it."""
    handles = [_ask(nvml, "nvmlDeviceGetHandleByIndex", n) for n in range(_ask(nvml, "nvmlDeviceGetCount") or 0)]
    matching = [h for h in handles if h is not None and _text(_ask(nvml, "nvmlDeviceGetUUID", h)).startswith(name)]
    return matching[0] if len(matching) == 1 else None


def visible(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls the device ``index``: a number, a UUID, or nothing where it hides it."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index)] * (index + 1) if shown is None else [name.strip() for name in shown.split(",")]
    return names[index] if index < len(names) else ""


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
