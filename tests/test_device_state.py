"""The state of the device: what the monitor remembers, who else is there, one run per GPU, and what a lost one means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fusionbench import device_lock, fitness, nvml
from fusionbench.device_loss import loss
from fusionbench.errors import DeviceLostError, UnfitError
from fusionbench.meters import device
from fusionbench.meters.device import Monitor, notes
from fusionbench.record import DeviceState
from tests.fake_nvml import LIBRARY_NOT_FOUND, FakeGpu, FakeNvml

POWER, HEAT = nvml.THROTTLING["sw_power_cap"], nvml.THROTTLING["hw_thermal_slowdown"]
STRANGER = 1  # a process that is never ours


@pytest.fixture(autouse=True)
def _all_gpus_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    found = FakeGpu(pids=[os.getpid()])
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(found))
    return found


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken={"nvmlInit": LIBRARY_NOT_FOUND}))


# The monitor


def test_the_state_is_that_of_the_blocks_that_were_kept(gpu: FakeGpu) -> None:
    with Monitor("cuda:0") as monitor:
        for mhz, reasons in ((1980, 0), (1200, POWER), (1950, 0), (1965, 0)):
            gpu.sm_mhz, gpu.reasons, gpu.milliwatts, gpu.temperature_c = mhz, reasons, mhz * 100, mhz // 40
            assert monitor.throttled() == bool(reasons)
    assert monitor.state() == DeviceState(
        sm_mhz=(1950, 1965, 1980), memory_mhz=(3201, 3201, 3201), power_watts=196.5, temperature_c=49
    )


def test_a_throttled_block_that_is_kept_is_flagged_with_its_reasons(gpu: FakeGpu) -> None:
    with Monitor("cuda:0") as monitor:
        gpu.sm_mhz, gpu.reasons = 1600, POWER | HEAT
        assert monitor.throttled()
        assert monitor.throttled()
        monitor.keep()
        monitor.keep()  # twice said is once kept
    found = monitor.state()
    assert found is not None
    assert found.throttle == ("hw_thermal_slowdown", "sw_power_cap")
    assert found.sm_mhz == (1600, 1600, 1600)
    (note,) = notes(found, "cuda:0")
    assert note == (
        "'cuda:0' throttled (hw_thermal_slowdown, sw_power_cap) while samples were taken, and no better ones came; "
        "let it cool down, or lock lower clocks (nvidia-smi -lgc)"
    )


def test_throttling_between_two_looks_is_not_missed(gpu: FakeGpu) -> None:
    gpu.counters = {74: 10}
    with Monitor("cuda:0") as monitor:
        assert not monitor.throttled()
        gpu.counters[74] += 10**15  # more than any time that this test may take
        assert monitor.throttled()
        assert not monitor.throttled()


def test_a_busy_gpu_with_low_clocks_throttles_though_it_gives_no_reason(gpu: FakeGpu) -> None:
    with Monitor("cuda:0") as monitor:
        gpu.sm_mhz = 1000
        assert monitor.throttled()
        gpu.reasons = nvml.IDLE
        assert not monitor.throttled()


@pytest.mark.parametrize("name", ["cpu", "cuda:0"])
def test_without_anyone_to_ask_nothing_is_said(no_nvml: None, name: str) -> None:
    with Monitor(name) as monitor:
        assert not monitor.throttled()
        monitor.keep()
    assert monitor.state() is None
    assert notes(None, name) == ()


def test_a_driver_that_answers_nothing_gives_an_empty_state(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = [
        "nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetFieldValues", *nvml._PROCESSES,
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(), missing=sensors))
    with Monitor("cuda:0") as monitor:
        assert not monitor.throttled()
    assert monitor.state() == DeviceState()


def test_the_session_ends_with_the_monitor_also_when_the_gpu_is_lost(gpu: FakeGpu) -> None:
    fake = sys.modules["pynvml"]

    def lose() -> None:
        with Monitor("cuda:0") as monitor:
            gpu.lost = True
            monitor.throttled()

    for _ in range(2):  # the second time it is lost before it is first asked
        with pytest.raises(DeviceLostError):
            lose()
        assert fake.open == 0


def test_an_error_of_the_job_is_not_hidden_by_a_lost_gpu(gpu: FakeGpu) -> None:
    def fail() -> None:
        with Monitor("cuda:0"):
            gpu.lost = True
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_others_are_counted_at_most_at_once_and_not_at_every_look(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = sys.modules["pynvml"]
    with Monitor("cuda:0") as monitor:
        gpu.pids = [os.getpid(), STRANGER]
        for _ in range(50):
            monitor.throttled()
        assert len(fake.asked("Processes")) == 1
        monkeypatch.setattr(device, "CENSUS_NS", -1)
        monitor.throttled()
        gpu.pids = [os.getpid()]
    found = monitor.state()
    assert found is not None
    assert found.foreign == 1
    assert notes(found, "cuda:0") == (
        "1 other process uses 'cuda:0', and timings share it with them; wait for them, or choose another device",
    )


# Who else is there


def others(gpu: FakeGpu, pids: list[int], *, holding: int) -> int | None:
    gpu.pids = pids
    with nvml.session("cuda:0") as found:
        assert found is not None
        return fitness.foreign(found, os.getpid(), holding=holding)


def test_processes_of_our_own_run_are_not_foreign(gpu: FakeGpu) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert others(gpu, [os.getpid(), child.pid], holding=1) == 0
        assert others(gpu, [child.pid, STRANGER, os.getppid()], holding=1) == 2
        child.communicate(b"\n")


def test_in_a_pid_namespace_one_of_the_unknown_processes_is_ours(gpu: FakeGpu) -> None:
    host_pids = [2**22 + 1, 2**22 + 2]  # above the highest that Linux gives
    assert others(gpu, host_pids, holding=1) == 1
    assert others(gpu, host_pids, holding=0) == 2
    assert others(gpu, host_pids, holding=2) == 0
    assert others(gpu, [], holding=1) == 0


def test_the_other_process_of_a_pair_is_not_foreign(gpu: FakeGpu) -> None:
    def seen(pids: list[int], root: int) -> int:
        gpu.pids = pids
        with Monitor("cuda:0", root) as monitor:
            pass
        found = monitor.state()
        assert found is not None
        return found.foreign

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        pair = [os.getpid(), other.pid]
        assert seen(pair, 0) == 0
        assert seen([os.getppid(), *pair], 0) == 1
        assert seen([os.getppid(), *pair], os.getppid()) == 0
        assert seen([STRANGER, *pair], os.getppid()) == 1
        other.communicate(b"\n")
    assert seen([2**22 + 1, 2**22 + 2], os.getppid()) == 0  # numbers of another pid namespace
    assert seen([2**22 + 1, 2**22 + 2, 2**22 + 3], os.getppid()) == 1


# What a run says before it begins


def test_a_quiet_gpu_gives_no_warning(gpu: FakeGpu) -> None:
    gpu.reasons = nvml.IDLE | POWER  # idle GPUs say so of their low clocks
    gpu.sm_mhz, gpu.pids = 345, []
    assert fitness.warnings(["cuda:0", "cuda:0", "cpu"]) == []


def test_neighbours_and_heat_are_told_with_a_remedy(gpu: FakeGpu) -> None:
    gpu.pids, gpu.reasons, gpu.temperature_c = [STRANGER, 2**22 + 1], nvml.IDLE | HEAT, 93
    crowd, heat = fitness.warnings(["cuda:0"])
    assert crowd == (
        f"2 other processes use gpu '{gpu.uuid!s}', and timings share it with them; wait for them, or choose another device"
    )
    assert "throttles before anything runs (hw_thermal_slowdown) at 93 °C; let it cool down" in heat


def test_a_lost_gpu_is_a_warning_and_not_the_end(gpu: FakeGpu) -> None:
    gpu.lost = True
    (warning,) = fitness.warnings(["cpu", "cuda:0"])
    assert "is lost" in warning


def test_absent_nvml_is_one_note_where_a_gpu_is_planned(no_nvml: None) -> None:
    assert fitness.warnings(["cuda:0", "cuda:1"]) == []
    note = fitness.absent(["cpu", "cuda:0", "cuda:1"])
    assert (
        note
        == "NVML says nothing (nvml shared library not found): clocks, other processes and energy are unknown (see: fusionbench doctor)"
    )
    assert fitness.absent(["cpu"]) is None


# One run per GPU

HOLDER = """
import sys
from pathlib import Path
from fusionbench import device_lock
device_lock.PLACE = Path(sys.argv[1])
with device_lock.held(["cuda:0"]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(device_lock, "PLACE", tmp_path)
    return tmp_path / f"fusionbench-{os.getuid()}"


@pytest.fixture
def holder(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A second process, without NVML, that measures cuda:0."""
    root = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (root / "kernels", root)))
    command = [sys.executable, "-c", HOLDER, str(place.parent)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_on_one_gpu_is_refused_with_the_first_ones_pid(
    no_nvml: None, holder: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(UnfitError) as refused, device_lock.held(["cuda:0"]):
        pass
    assert str(refused.value) == (
        f"gpu 'cuda:0' is being measured by process {holder.pid}; wait for it, or choose another device"
    )
    assert refused.value.exit_code == 4
    with device_lock.held(["cuda:1", "cpu"]):  # another GPU is free
        pass


def test_kill_frees_the_gpu_at_once(no_nvml: None, holder: subprocess.Popen[bytes]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with device_lock.held(["cuda:0"]):
        pass


def test_the_lock_is_by_uuid_whatever_number_cuda_gives(
    monkeypatch: pytest.MonkeyPatch, place: Path, gpu: FakeGpu
) -> None:
    with device_lock.held(["cuda", "cuda:0"]):  # one and the same
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(gpu.uuid))
        with pytest.raises(UnfitError, match=f"gpu '{gpu.uuid!s}' is being measured by process {os.getpid()}"):
            device_lock.held(["cuda:0"]).__enter__()
    with device_lock.held(["cuda:0"]):
        pass
    assert [file.name for file in place.iterdir()] == [gpu.uuid]
    assert place.stat().st_mode & 0o777 == 0o700


def test_a_refused_run_lets_go_of_what_it_had(no_nvml: None, place: Path) -> None:
    with device_lock.held(["cuda:1"]):
        with pytest.raises(UnfitError), device_lock.held(["cuda:0", "cuda:1"]):
            pass
        with device_lock.held(["cuda:0"]):
            pass


def test_the_cpu_needs_no_lock(place: Path) -> None:
    with device_lock.held(["cpu"]), device_lock.held(["cpu"]):
        pass
    assert not place.exists()


def test_a_folder_that_is_a_link_open_to_others_or_a_file_is_refused(no_nvml: None, place: Path) -> None:
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    place.symlink_to(elsewhere)
    with pytest.raises(UnfitError, match="cannot lock gpus in"), device_lock.held(["cuda:0"]):
        pass
    assert list(elsewhere.iterdir()) == []
    place.unlink()
    place.write_text("")
    with pytest.raises(UnfitError, match="cannot lock gpus in"), device_lock.held(["cuda:0"]):
        pass
    place.unlink()
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(UnfitError, match="not yours alone"), device_lock.held(["cuda:0"]):
        pass


def test_a_folder_of_someone_else_is_refused(no_nvml: None, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(mode=0o700)
    place.rename(place.with_name(f"fusionbench-{os.getuid() + 1}"))
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(UnfitError, match="not yours alone"), device_lock.held(["cuda:0"]):
        pass


# What an error says of the device


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: unspecified launch failure", "poisoned"),
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronous", "poisoned"),
        ("Triton Error [CUDA]: an illegal memory access was encountered", "poisoned"),
        ("CUDA error: device-side assert triggered", "poisoned"),
        ("CUDA error: the launch timed out and was terminated", "poisoned"),
        ("CUDA error: misaligned address", "poisoned"),
        ("CUDA error: uncorrectable ECC error encountered", "poisoned"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", "gone"),
        ("all CUDA-capable devices are busy or unavailable", "gone"),
        ("CUDA error: no CUDA-capable device is detected", "gone"),
        ("No CUDA GPUs are available", "gone"),
        ("CUDA error: invalid device ordinal", "gone"),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", "gone"),
        ("NVMLError_GpuIsLost: GPU is lost", "gone"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", None),
        ("CUDA error: invalid argument", None),
        ("CUDA error: invalid configuration argument", None),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_errors_tell_a_gone_device_from_a_poisoned_context(text: str, expected: str | None) -> None:
    assert loss(RuntimeError(text)) == expected
    assert loss(torch.AcceleratorError(text)) == expected
    assert loss(f"RuntimeError: {text}") == expected  # as the reason of a record


def test_a_lost_gpu_is_gone_also_by_nvmls_word(gpu: FakeGpu) -> None:
    gpu.lost = True
    with pytest.raises(DeviceLostError) as lost:
        nvml.uuid("cuda:0")
    assert loss(lost.value) == "gone"
    assert loss(f"DeviceLostError: {lost.value}") == "gone"


def test_the_code_of_an_error_of_the_device_counts_whatever_its_words_are() -> None:
    error = torch.AcceleratorError("CUDA error: something new")
    assert loss(error) is None
    error.error_code = 719  # type: ignore[attr-defined]
    assert loss(error) == "poisoned"
    error.error_code = 100  # type: ignore[attr-defined]
    assert loss(error) == "gone"
    stranger = OSError("no such file")
    stranger.error_code = 719  # type: ignore[attr-defined]
    assert loss(stranger) is None
