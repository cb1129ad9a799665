"""A pynvml of our own: as much of it as fusionbench asks, with GPUs whose state a test sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 4, 6, 12, 13, 15
TEXTS = {LIBRARY_NOT_FOUND: "NVML Shared Library Not Found", GPU_IS_LOST: "GPU is lost"}
SM, MEMORY = 1, 2


class NVMLError(Exception):
    def __init__(self, value: int = NOT_SUPPORTED) -> None:
        super().__init__(TEXTS.get(value, f"error {value}"))
        self.value = value


class NVMLLibraryMismatchError(Exception):
    """What pynvml raises, outside its own hierarchy, where the driver is older than the bindings."""


@dataclass
class FakeGpu:
    uuid: str | bytes = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
    name: str = "NVIDIA H200"
    sm_mhz: int = 1980
    memory_mhz: int = 3201
    applications_mhz: int | None = None  # None: not supported
    max_sm_mhz: int | None = 1980
    milliwatts: int = 350_000
    temperature_c: int = 45
    reasons: int = 0
    counters: dict[int, int] = field(default_factory=dict)  # ns by field
    pids: list[int] = field(default_factory=list)
    energy_mj: Callable[[], int] | None = None
    memory_bytes: int = 141 << 30
    mig: bool = False
    parent: FakeGpu | None = None  # the board, for a slice
    lost: bool = False


class FakeNvml:
    """The module. Functions named in ``broken`` fail with that code, those in ``missing`` are not in the bindings."""

    NVMLError = NVMLError
    NVMLLibraryMismatchError = NVMLLibraryMismatchError

    def __init__(
        self, *gpus: FakeGpu, broken: dict[str, int] | None = None, missing: Iterable[str] = (), inited: int = 0
    ) -> None:
        self.gpus = list(gpus)
        self.broken = broken or {}
        self.missing = set(missing)
        self.open = inited
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        answer = ANSWERS.get(name)
        if answer is None or name in self.missing:
            raise AttributeError(name)
        return functools.partial(self._call, name, answer)

    def _call(self, name: str, answer: Callable[..., Any], *about: Any) -> Any:
        self.calls.append((name, *about))
        if name in self.broken:
            raise NVMLError(self.broken[name])
        if name != "nvmlInit" and not self.open:
            raise AssertionError(f"{name} was asked outside a session")
        if about and isinstance(about[0], FakeGpu) and about[0].lost:
            raise NVMLError(GPU_IS_LOST)
        return answer(self, *about)

    def asked(self, part: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if part in call[0]]


def told(value: Any) -> Any:
    if value is None:
        raise NVMLError(NOT_SUPPORTED)
    return value


def _init(nvml: FakeNvml) -> None:
    nvml.open += 1


def _shutdown(nvml: FakeNvml) -> None:
    nvml.open -= 1


def _by_index(nvml: FakeNvml, index: int) -> FakeGpu:
    whole = [gpu for gpu in nvml.gpus if gpu.parent is None]
    if index >= len(whole):
        raise NVMLError(NOT_FOUND)
    return whole[index]


def _by_uuid(nvml: FakeNvml, uuid: str) -> FakeGpu:
    for gpu in nvml.gpus:
        if gpu.uuid == uuid:
            return gpu
    raise NVMLError(NOT_FOUND)


def _field(gpu: FakeGpu, number: int) -> SimpleNamespace:
    known = number in gpu.counters
    value = SimpleNamespace(ullVal=gpu.counters.get(number, 0))
    return SimpleNamespace(nvmlReturn=0 if known else NOT_SUPPORTED, valueType=3, value=value)


def _processes(nvml: FakeNvml, gpu: FakeGpu) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in gpu.pids]


def _unversioned_processes(nvml: FakeNvml, gpu: FakeGpu) -> list[SimpleNamespace]:
    raise NVMLLibraryMismatchError("use a versioned function")


ANSWERS: dict[str, Callable[..., Any]] = {
    "nvmlInit": _init,
    "nvmlShutdown": _shutdown,
    "nvmlDeviceGetCount": lambda nvml: sum(gpu.parent is None for gpu in nvml.gpus),
    "nvmlDeviceGetHandleByIndex": _by_index,
    "nvmlDeviceGetHandleByUUID": _by_uuid,
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda _, gpu: told(gpu.parent),
    "nvmlDeviceGetMigMode": lambda _, gpu: [int(gpu.mig), 0],
    "nvmlDeviceGetUUID": lambda _, gpu: gpu.uuid,
    "nvmlDeviceGetName": lambda _, gpu: gpu.name,
    "nvmlDeviceGetCudaComputeCapability": lambda _, gpu: (9, 0),
    "nvmlSystemGetDriverVersion": lambda _: b"570.86.15",  # older bindings answer in bytes
    "nvmlSystemGetCudaDriverVersion": lambda _: 12080,
    "nvmlDeviceGetEnforcedPowerLimit": lambda _, gpu: 700_000,
    "nvmlDeviceGetMemoryInfo": lambda _, gpu: SimpleNamespace(total=gpu.memory_bytes),
    "nvmlDeviceGetClockInfo": lambda _, gpu, clock: {SM: gpu.sm_mhz, MEMORY: gpu.memory_mhz}[clock],
    "nvmlDeviceGetMaxClockInfo": lambda _, gpu, clock: told(gpu.max_sm_mhz),
    "nvmlDeviceGetApplicationsClock": lambda _, gpu, clock: told(gpu.applications_mhz),
    "nvmlDeviceGetPowerUsage": lambda _, gpu: gpu.milliwatts,
    "nvmlDeviceGetTemperature": lambda _, gpu, sensor: gpu.temperature_c,
    "nvmlDeviceGetCurrentClocksEventReasons": lambda _, gpu: gpu.reasons,
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _, gpu: gpu.reasons,
    "nvmlDeviceGetFieldValues": lambda _, gpu, fields: [_field(gpu, number) for number in fields],
    "nvmlDeviceGetComputeRunningProcesses_v3": _processes,
    "nvmlDeviceGetComputeRunningProcesses_v2": _processes,
    "nvmlDeviceGetComputeRunningProcesses": _unversioned_processes,
    "nvmlDeviceGetTotalEnergyConsumption": lambda _, gpu: told(gpu.energy_mj)(),
}
