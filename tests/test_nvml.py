"""NVML: the right GPU is asked, and whatever the library, the driver or the GPU does not answer is None."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusionbench import nvml
from fusionbench.errors import DeviceLostError
from tests.fake_nvml import FUNCTION_NOT_FOUND, GPU_IS_LOST, LIBRARY_NOT_FOUND, NO_PERMISSION, FakeGpu, FakeNvml

OTHER = "GPU-11111111-0000-0000-0000-000000000000"


@pytest.fixture(autouse=True)
def _all_gpus_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch, FakeGpu()).gpus[0]


def install(monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu, **options: object) -> FakeNvml:
    fake = FakeNvml(*gpus, **options)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def look(device: str = "cuda:0") -> nvml.State:
    with nvml.session(device) as found:
        assert found is not None
        return found.state()


def test_the_module_imports_neither_torch_nor_pynvml() -> None:
    code = "import sys, fusionbench.nvml; sys.exit(bool({'torch', 'pynvml'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_facts_are_those_of_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeGpu(), FakeGpu(uuid=OTHER))
    assert nvml.facts() == nvml.Facts("NVIDIA H200", 2, "9.0", "570.86.15", "12.8", 700.0)
    assert fake.open == 0  # every session that was opened has been closed


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_no_driver_or_no_gpu_means_no_gpu(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    install(monkeypatch, FakeGpu(), broken={broken: LIBRARY_NOT_FOUND})
    assert nvml.facts() == nvml.Facts()
    assert nvml.uuid("cuda:0") is None
    assert nvml.memory_bytes("cuda:0") is None


def test_no_bindings_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.facts() == nvml.Facts()
    assert nvml.absent() == "the package nvidia-ml-py is not installed"


def test_why_nvml_says_nothing_is_its_own_word(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, broken={"nvmlInit": LIBRARY_NOT_FOUND})
    assert nvml.absent() == "NVML Shared Library Not Found"
    install(monkeypatch, FakeGpu())
    assert nvml.absent() is None


def test_a_machine_without_a_driver_is_answered_by_the_real_library() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert nvml.absent() == "NVML Shared Library Not Found"
        assert (nvml.uuid("cuda:0"), nvml.facts()) == (None, nvml.Facts())
    else:
        pynvml.nvmlShutdown()
        assert nvml.absent() is None


@pytest.mark.parametrize(
    "broken",
    [
        "nvmlDeviceGetCount",
        "nvmlDeviceGetName",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlSystemGetDriverVersion",
        "nvmlSystemGetCudaDriverVersion",
        "nvmlDeviceGetEnforcedPowerLimit",
    ],
)
def test_a_question_that_is_not_answered_costs_one_fact(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    install(monkeypatch, FakeGpu())
    whole = nvml.facts()
    install(monkeypatch, FakeGpu(), broken={broken: NO_PERMISSION})
    lost = [name for name, value in vars(nvml.facts()).items() if value != getattr(whole, name)]
    assert len(lost) == 1


@pytest.mark.parametrize(
    ("visible", "device", "uuid"),
    [
        (None, "cuda:1", OTHER),
        ("1,0", "cuda:0", OTHER),
        ("1,0", "cuda", OTHER),
        (OTHER, "cuda:0", OTHER),
        ("GPU-111", "cuda:0", OTHER),  # CUDA takes an abbreviation
        ("GPU-", "cuda:0", None),  # of two GPUs
        ("0", "cuda:1", None),
        ("", "cuda:0", None),
        ("-1", "cuda:0", None),
        (None, "cuda:7", None),
        (None, "cpu", None),
    ],
)
def test_the_gpu_is_the_one_that_cuda_means(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, uuid: str | None
) -> None:
    install(monkeypatch, FakeGpu(), FakeGpu(uuid=OTHER))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.uuid(device) == uuid


@pytest.mark.parametrize(("visible", "count"), [("3,1", 2), ("MIG-7f", 1), ("", 0), ("-1", 0)])
def test_only_visible_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    boards = [FakeGpu() for _ in range(4)]
    install(monkeypatch, *boards, FakeGpu(uuid="MIG-7f", parent=boards[0]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.facts().count == count


def test_a_state_is_what_the_sensors_say(gpu: FakeGpu) -> None:
    gpu.counters = {74: 5, 75: 7}
    gpu.reasons = nvml.THROTTLING["sw_power_cap"]
    found = look()
    assert (found.sm_mhz, found.memory_mhz, found.power_watts, found.temperature_c) == (1980, 3201, 350.0, 45)
    assert found.reasons == 4
    assert found.throttled_ns == {"sw_power_cap": 5, "sw_thermal_slowdown": 7}


def test_an_old_driver_is_asked_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(reasons=8, pids=[7])
    broken = {"nvmlDeviceGetComputeRunningProcesses_v3": FUNCTION_NOT_FOUND}
    install(monkeypatch, gpu, broken=broken, missing=["nvmlDeviceGetCurrentClocksEventReasons"])
    assert look().reasons == 8
    with nvml.session("cuda") as found:
        assert found is not None
        assert found.processes() == {7}


def test_bindings_too_new_for_the_driver_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {f"nvmlDeviceGetComputeRunningProcesses_v{n}": FUNCTION_NOT_FOUND for n in (2, 3)}
    install(monkeypatch, FakeGpu(), broken=versions)
    with nvml.session("cuda") as found:
        assert found is not None
        assert found.processes() is None  # NVMLLibraryMismatchError, which is no NVMLError


@pytest.mark.parametrize(
    "question",
    [
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ],
)
def test_a_sensor_without_permission_costs_one_reading(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    install(monkeypatch, FakeGpu(), broken={question: NO_PERMISSION})
    found = look()
    assert nvml.throttling(found, 1980) == ()


def test_what_a_gpu_that_is_lost_says_is_an_error(gpu: FakeGpu) -> None:
    with nvml.session("cuda:0") as found:
        assert found is not None
        gpu.lost = True
        with pytest.raises(DeviceLostError, match="gpu 'cuda:0' is lost"):
            found.state()
    assert nvml.facts() == nvml.Facts()  # the others go on
    assert DeviceLostError.exit_code == 3


def test_a_lost_gpu_may_not_even_give_a_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeGpu(), broken={"nvmlDeviceGetHandleByIndex": GPU_IS_LOST})
    with pytest.raises(DeviceLostError):
        nvml.uuid("cuda:0")
    assert fake.open == 0


def test_a_slice_has_the_clocks_of_its_board_and_no_energy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeGpu(sm_mhz=1234, mig=True, energy_mj=lambda: 5)
    install(monkeypatch, board, FakeGpu(uuid="MIG-7f", parent=board, sm_mhz=0, pids=[7]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7f")
    with nvml.session("cuda:0") as found:
        assert found is not None
        assert (found.uuid(), found.state().sm_mhz, found.processes()) == ("MIG-7f", 1234, {7})
        assert found.energy_mj() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # CUDA takes the board's first slice
    with nvml.session("cuda:0") as found:
        assert found is not None
        assert found.energy_mj() is None


def state(**what: object) -> nvml.State:
    return nvml.State(**({"at_ns": 0, "sm_mhz": 1980, "reasons": 0} | what))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", nvml.THROTTLING)
def test_reasons_against_the_users_will_are_throttling(name: str) -> None:
    assert nvml.throttling(state(reasons=nvml.THROTTLING[name]), 1980) == (name,)


def test_the_bits_are_those_of_the_library() -> None:
    pynvml = pytest.importorskip("pynvml")
    camel = {name: "".join(part.title() for part in name.split("_")) for name in nvml.THROTTLING}
    assert {n: getattr(pynvml, f"nvmlClocksThrottleReason{camel[n]}") for n in camel} == nvml.THROTTLING
    asked = ("GpuIdle", "ApplicationsClocksSetting", "SyncBoost", "DisplayClockSetting")
    assert sum(getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in asked) == nvml.ASKED
    fields = (pynvml.NVML_FI_DEV_PERF_POLICY_POWER, pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL)
    assert tuple(nvml.COUNTERS.values()) == fields
    assert (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED) == nvml._LOST
    assert (pynvml.NVML_CLOCK_GRAPHICS, pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM) == (0, 1, 2)


def test_every_question_is_one_that_the_library_knows() -> None:
    pynvml = pytest.importorskip("pynvml")
    source = Path(nvml.__file__).read_text()
    asked = set(re.findall(r'"(nvml\w+)"', source))
    assert len(asked) > 15
    assert {name for name in asked if not hasattr(pynvml, name)} == set()


@pytest.mark.parametrize(
    ("mhz", "reasons", "low"),
    [
        (1485, 0, False),  # 75 % of 1980
        (1484, 0, True),
        (345, nvml.IDLE, False),  # an idle GPU clocks down
        (345, 0x2, False),  # somebody set the clocks
        (345, None, False),  # nobody says whether it was busy
    ],
)
def test_a_busy_gpu_below_three_quarters_of_its_clock_throttles(mhz: int, reasons: int | None, low: bool) -> None:
    assert nvml.throttling(state(sm_mhz=mhz, reasons=reasons), 1980) == ((nvml.LOW_CLOCK,) if low else ())


def test_a_clock_without_a_yardstick_is_not_judged() -> None:
    assert nvml.throttling(state(sm_mhz=1), None) == ()


def test_the_expected_clock_is_the_applications_or_the_highest(gpu: FakeGpu) -> None:
    with nvml.session("cuda") as found:
        assert found is not None
        assert found.expected_mhz() == 1980
        gpu.applications_mhz = 1095
        assert found.expected_mhz() == 1095
        gpu.applications_mhz = gpu.max_sm_mhz = None
        assert found.expected_mhz() is None


def test_throttling_that_is_over_by_the_look_is_seen_by_its_counter() -> None:
    before = state(throttled_ns={"sw_power_cap": 1_000_000})
    for rise, found in ((1_000_000, ()), (1_000_001, ("sw_power_cap",))):  # 1 % of 100 ms
        after = state(at_ns=100_000_000, throttled_ns={"sw_power_cap": 1_000_000 + rise})
        assert nvml.throttling(after, 1980, before) == found
    assert nvml.throttling(state(at_ns=1, throttled_ns={"sw_power_cap": 9}), 1980, state()) == ()
