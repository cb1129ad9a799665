"""The doctor: each check against a machine made up for it, a crash inside, and one examination of this machine."""

from __future__ import annotations

import io
import itertools
import json
import math
import statistics
import time
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fusionbench import diagnosis, doctor, nvml
from fusionbench.doctor import cuda, gpu, machine, probes, software, storage
from fusionbench.doctor.check import Check, graded, guarded, ok
from fusionbench.doctor.gpu import GpuFacts
from fusionbench.errors import FusionbenchError
from fusionbench.record import Timing
from tests.command import call as run_cli

CPU0 = "sys/devices/system/cpu"


def tree(root: Path, files: dict[str, str]) -> Path:
    """A machine's /proc and /sys."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def statuses(checks: Iterable[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


# ---- one check ----


def test_a_number_is_graded_by_its_limits() -> None:
    grades = [graded("a", "b", value, "%", (1, 10), "mend it", "fix").status for value in (1, 1.1, 10, 10.1)]
    assert grades == ["ok", "warn", "warn", "fail"]
    assert graded("a", "b", 1, "%", (1, 10), "mend it").remedy == ""


def test_a_check_that_crashes_has_failed_and_the_next_one_runs() -> None:
    def crashes() -> Iterable[Check]:
        yield ok("first", "fine")
        raise ZeroDivisionError("division\nby zero")

    found = list(guarded("machine", "second", crashes))
    assert [(c.name, c.status, c.group) for c in found] == [("first", "ok", "machine"), ("second", "fail", "machine")]
    assert found[1].found == "this check raised ZeroDivisionError: division by zero"
    assert found[1].remedy


# ---- software ----


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"python": "3.11.7", "torch": "2.13.0+cpu", "triton": "3.7.1"}, ["ok", "ok", "ok"]),
        ({"python": "3.10.1", "torch": "2.9.1", "triton": "3.5"}, ["fail", "fail", "fail"]),
        ({"python": "3.99.0", "torch": "9.0.0a1", "triton": "9.0"}, ["warn", "warn", "warn"]),
        ({"python": "3.12.0", "torch": "2.11.0"}, ["ok", "ok", "warn"]),
        ({"python": "3.12.0"}, ["ok", "fail", "warn"]),
    ],
)
def test_versions_are_held_against_what_is_supported(installed: dict[str, str], expected: list[str]) -> None:
    assert [check.status for check in software.versions(installed)] == expected


def test_the_oldest_versions_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'requires-python = ">={_dotted("python")}"' in text
    assert f'"torch>={_dotted("torch")}"' in text
    assert f'"triton>={_dotted("triton")};' in text


def _dotted(name: str) -> str:
    return ".".join(map(str, software.OLDEST[name]))


def test_variables_that_make_timings_void_fail_with_the_command_that_unsets_them() -> None:
    found = list(software.settings({"TRITON_INTERPRET": "1", "CUDA_LAUNCH_BLOCKING": "0", "TORCH_LOGS": "+dynamo"}))
    assert [(c.status, c.command) for c in found] == [("fail", "unset TRITON_INTERPRET"), ("warn", "unset TORCH_LOGS")]


def test_a_zero_is_an_answer_where_it_means_something() -> None:
    assert [c.status for c in software.settings({"NVIDIA_TF32_OVERRIDE": "0"})] == ["fail"]
    assert [c.status for c in software.settings({"TRITON_INTERPRET": "0", "HOME": "/"})] == ["ok"]


def test_debug_builds_and_deterministic_algorithms_fail() -> None:
    fine = {"torch_debug": False, "deterministic": False, "assertions": True, "python_debug": False}
    assert software.builds(**fine).status == "ok"
    for name in ("torch_debug", "deterministic", "python_debug"):
        assert software.builds(**{**fine, name: True}).status == "fail"


# ---- machine ----


def test_siblings_that_share_a_core_are_told_with_the_list_that_leaves_them_out(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"{CPU0}/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}\n" for i in range(4)})
    found = by_name(machine.cores(root, range(4), 4))
    assert found["smt"].status == "warn"
    assert found["smt"].command == "taskset -c 0,1 fusionbench run SUITE"
    assert "smt" not in by_name(machine.cores(root, [0, 1], 4))  # one of each core: nothing is shared
    assert by_name(machine.cores(root, [0, 1], 4))["cores"].found == "2 of 4 may be used"


def test_lists_of_cpus_are_read() -> None:
    assert machine.cpu_list("0-2,8\n") == [0, 1, 2, 8]
    assert machine.cpu_list("") == []


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "2:cpuacct:/\n1:cpu:/x\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_a_containers_quota_is_found_in_both_versions(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert machine.cpu_quota(tree(tmp_path, files)) == quota


def test_a_quota_below_the_cores_is_a_warning(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"})
    assert "--threads at 1" in by_name(machine.cores(root, range(4), 4))["quota"].remedy
    assert "quota" not in by_name(machine.cores(root, [0], 4))


def test_more_openmp_threads_than_cores_are_a_warning() -> None:
    assert machine.threads({"OMP_NUM_THREADS": "8"}, 2).status == "warn"
    assert machine.threads({"OMP_NUM_THREADS": "2"}, 2).found == "OMP_NUM_THREADS=2"
    assert machine.threads({}, 2).status == "ok"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {"clocks": "ok"}),
        ({"cpu0/cpufreq/scaling_governor": "performance\n"}, {"governor": "ok"}),
        ({"cpu0/cpufreq/scaling_governor": "performance", "cpu1/cpufreq/scaling_governor": "powersave"}, {"governor": "warn"}),
        ({"cpu0/cpufreq/scaling_governor": "performance", "intel_pstate/no_turbo": "0"}, {"governor": "ok", "boost": "warn"}),
        ({"cpufreq/boost": "0"}, {"boost": "ok"}),
        ({"intel_pstate/no_turbo": "1"}, {"boost": "ok"}),
    ],
)  # fmt: skip
def test_governor_and_boost(tmp_path: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    root = tree(tmp_path, {f"{CPU0}/{name}": text for name, text in files.items()})
    assert statuses(machine.clocks(root)) == expected


def test_boost_is_switched_off_by_the_file_that_is_there(tmp_path: Path) -> None:
    turbo = by_name(machine.clocks(tree(tmp_path / "a", {f"{CPU0}/intel_pstate/no_turbo": "0"})))["boost"]
    boost = by_name(machine.clocks(tree(tmp_path / "b", {f"{CPU0}/cpufreq/boost": "1"})))["boost"]
    assert turbo.command == f"echo 1 | sudo tee /{CPU0}/intel_pstate/no_turbo"
    assert boost.command == f"echo 0 | sudo tee /{CPU0}/cpufreq/boost"


@pytest.mark.parametrize(("delay", "expected"), [(0, "ok"), (9, "ok"), (11, "warn"), (100, "warn"), (101, "fail")])
def test_waiting_for_a_core_warns_above_1_and_fails_above_10_percent(delay: int, expected: str) -> None:
    assert machine.run_delay([delay], [1000]).status == expected


def test_a_kernel_that_does_not_say_how_long_threads_waited_is_no_failure() -> None:
    assert machine.run_delay([], []).status == "ok"


def test_stolen_time_is_the_difference_of_two_readings(tmp_path: Path) -> None:
    before = machine.ticks(tree(tmp_path, {"proc/stat": "cpu  10 0 10 80 0 0 0 5 0 0\n"}))
    after = machine.ticks(tree(tmp_path, {"proc/stat": "cpu  20 0 20 130 0 0 0 35 7 0\n"}))
    (found,) = machine.watched(before, after)
    assert found.value == pytest.approx(30.0)  # 30 of 100 ticks; guest time (the 9th) is in user time already
    assert found.status == "fail"
    assert machine.ticks(tmp_path / "nowhere") is None
    assert list(machine.watched(None, after)) == []


@pytest.mark.parametrize(
    ("one", "pressure", "expected"),
    [(0.5, "0.40", "ok"), (2.5, "0.00", "warn"), (0.5, "11.00", "warn"), (2.0, None, "ok")],
)
def test_more_tasks_than_cores_are_a_warning(tmp_path: Path, one: float, pressure: str | None, expected: str) -> None:
    files = {"proc/pressure/cpu": f"some avg10={pressure} avg60=0.00 avg300=0.00 total=1\n"} if pressure else {}
    check = machine.load(tree(tmp_path, files), 2, lambda: (one, 0.0, 0.0))
    assert check.status == expected
    assert ("last 10 s" in check.found) == (pressure is not None)


@pytest.mark.parametrize(
    ("available", "swapped", "expected"), [(20, 0, "ok"), (20, 1, "ok"), (20, 4, "warn"), (2, 0, "warn")]
)
def test_little_memory_and_much_swap_are_warnings(available: int, swapped: int, expected: str) -> None:
    assert machine.memory(available << 30, 32 << 30, swapped << 30).status == expected


def test_energy_says_who_may_read_it(tmp_path: Path) -> None:
    assert "no RAPL" in machine.energy(tmp_path).found
    root = tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "12\n"})
    assert "RAPL is readable" in machine.energy(root).found
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("")  # as for one that may not read it
    assert machine.energy(root).command.startswith("sudo chmod a+r")


# ---- results ----


@pytest.mark.parametrize(("free", "expected"), [(2 << 30, "ok"), (500 << 20, "warn"), (50 << 20, "fail")])
def test_little_space_for_results(tmp_path: Path, free: int, expected: str) -> None:
    found = by_name(storage.results(tmp_path / "not" / "yet", root=tmp_path, free=free))
    assert found["disk"].status == expected
    assert found["fsync"].value is not None
    assert list(tmp_path.iterdir()) == []  # the probe leaves nothing behind


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> float:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(storage, "sync_ms", read_only)
    (found,) = storage.results(tmp_path)
    assert (found.status, found.command) == ("fail", "fusionbench run SUITE --results DIR")
    assert "read-only file system" in found.found


def test_a_file_system_that_does_not_last_is_a_warning(tmp_path: Path) -> None:
    mounts = (
        "22 1 0:21 / / rw - overlay overlay rw\n"
        "23 22 0:22 / /data rw shared:1 - ext4 /dev/vda rw\n"
        "24 23 0:23 / /data/fast rw - tmpfs tmpfs rw\n"
    )
    root = tree(tmp_path, {"proc/self/mountinfo": mounts})
    kinds = {name: storage.filesystem(Path(name), root) for name in ("/home", "/data/x", "/data/fast/y", "/datax")}
    assert kinds == {"/home": "overlay", "/data/x": "ext4", "/data/fast/y": "tmpfs", "/datax": "overlay"}
    assert by_name(storage.results(tmp_path, root=root))["filesystem"].status == "warn"


def test_caches_of_compiled_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    variables = {"TRITON_CACHE_DIR": str(tmp_path / "a" / "b"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "c")}
    fine, bad = storage.caches(variables)
    assert fine.status == "ok"
    assert (bad.status, bad.command) == ("warn", "export TORCHINDUCTOR_CACHE_DIR=/tmp/c")
    assert storage.cache_folders({}, tmp_path)["TRITON_CACHE_DIR"] == tmp_path / ".triton" / "cache"
    assert storage.cache_folders({"TRITON_HOME": "/t"})["TRITON_CACHE_DIR"] == Path("/t/.triton/cache")


def test_the_default_caches_are_those_of_torch_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    from triton import knobs

    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    folders = storage.cache_folders({})
    assert str(folders["TORCHINDUCTOR_CACHE_DIR"]) == default_cache_dir()
    assert str(folders["TRITON_CACHE_DIR"]) == knobs.cache.dir


# ---- timer ----


@pytest.mark.parametrize(
    ("step_ns", "expected"),
    [(30, {"clock": "ok", "resolution": "ok"}), (2_000, {"clock": "warn", "resolution": "warn"}),
     (20_000, {"clock": "fail", "resolution": "fail"}), (-5, {"clock": "fail"})],
)  # fmt: skip
def test_a_slow_or_coarse_clock_is_told_and_one_that_goes_back_fails(
    tmp_path: Path, step_ns: int, expected: dict[str, str]
) -> None:
    readings = itertools.count(10**9, step_ns)
    root = tree(tmp_path, {"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n"})
    found = list(probes.clock(lambda: next(readings), 100, root))
    assert statuses(found) == expected
    assert "(clock source hpet)" in found[0].found


@pytest.mark.parametrize(("off_ns", "expected"), [(400, "ok"), (600, "warn"), (-6_000, "fail")])
def test_a_clock_that_is_being_moved(off_ns: int, expected: str) -> None:
    assert probes.drift(1_000_000 + off_ns, 1_000_000).status == expected


def test_a_sleep_is_timed_as_no_less_than_it_was() -> None:
    check = probes.sleeping(0.02)
    assert check.status == "ok"
    assert check.value is not None
    assert check.value >= probes.SLEEP_MS


def timing(samples: list[int], loops: int = 1, delays: tuple[int, ...] = ()) -> Timing:
    return Timing(
        timer="wall", cache="hot", loops=loops, samples_ns=tuple(samples), run_delay_ns=delays, stop="budget",
        first_call_ns=0, warmup_calls=0, threads=1,
    )  # fmt: skip


def test_a_timer_that_reports_less_than_passed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "measured", lambda *_: timing([3_100_000, 2_900_000]))
    assert probes.sleeping(0.02).status == "fail"


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [({2: 2.01, 4: 3.9}, "ok"), ({2: 2.0, 4: 3.6}, "warn"), ({2: 1.2, 4: 1.5}, "fail"), ({2: 2.0, 4: 5.0}, "fail")],
)
def test_the_time_must_grow_with_the_work(ratios: dict[int, float], expected: str) -> None:
    assert probes.proportional(ratios, 100.0).status == expected


def test_work_that_is_repeated_takes_that_much_longer() -> None:
    def busy(times: int) -> Callable[[], object]:
        def call() -> None:  # spins on the thread's CPU time, which does not run while others have the core
            until = time.thread_time_ns() + times * 300_000
            while time.thread_time_ns() < until:
                pass

        return call

    check = probes.proportion(0.06, busy)
    assert check.value is not None
    assert check.value < 100  # on any machine; how exact it is, is what the doctor tells


def test_noise_is_the_difference_that_six_rounds_find_in_four_of_five_cases() -> None:
    logs = (0.01, -0.01) * 5
    spread = statistics.stdev(logs)
    # 1.425 = (t_0.975,5 + t_0.80,5) / √6
    assert probes.detectable(logs) == pytest.approx(math.expm1(1.425 * spread), rel=1e-3)
    check = probes.noise(probes.Pairs(logs, (), 5e5))
    assert check.status == "ok"
    assert check.found.startswith("differences below 1.5% cannot be told here in one run (10 pairs")


def test_the_quantiles_of_the_power_are_students() -> None:
    from scipy.special import stdtrit  # of t: (degrees of freedom, probability)

    degrees = probes.ROUNDS - 1
    expected = (stdtrit(degrees, 0.975) + stdtrit(degrees, 0.80)) / math.sqrt(probes.ROUNDS)
    assert pytest.approx(expected, rel=1e-3) == probes.POWER


def test_noise_that_hides_everything_fails_and_a_bias_without_noise_warns() -> None:
    assert probes.noise(probes.Pairs((0.3, -0.3) * 5, (), 5e5)).status == "fail"
    biased = probes.noise(probes.Pairs(tuple(0.02 + i / 1e4 for i in range(10)), (), 5e5))
    assert biased.status == "warn"
    assert "A and B are the same and differ" in biased.found


def test_pairs_alternate_and_their_delays_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = itertools.count(1)
    # The clock gets slower with every take: B comes second in even pairs, and first in odd ones.
    monkeypatch.setattr(probes, "measured", lambda *_: timing([next(takes) * 1000] * 3, delays=(1, 2, 3)))
    pairs = probes.same_twice(lambda: None, 1.0, pairs=4)
    assert [round(math.exp(log), 3) for log in pairs.logs] == [2.0, 0.75, round(6 / 5, 3), round(7 / 8, 3)]
    delays, samples = probes.delays([*pairs.timings, timing([5])])
    assert (len(delays), len(samples)) == (24, 24)


# ---- GPU ----


def test_a_launch_that_waits_and_a_synchronize_that_does_not_are_caught() -> None:
    assert cuda.judged_sync(0.02, 15.1, 15.0).status == "ok"
    blocking = cuda.judged_sync(15.0, 15.1, 15.0)
    assert (blocking.status, blocking.command) == ("fail", "unset CUDA_LAUNCH_BLOCKING")
    assert cuda.judged_sync(0.02, 0.03, 15.0).status == "fail"


def test_a_flush_that_changes_nothing_is_a_warning() -> None:
    assert cuda.judged_flush(0.012, 0.006, 12 << 20).status == "ok"
    assert cuda.judged_flush(0.006, 0.006, 12 << 20).status == "warn"


def test_cycles_and_events_must_agree() -> None:
    device = torch.device("cuda", 0)
    assert cuda.known_time(device, lambda cycles: cycles / 1.7e6).status == "ok"
    assert cuda.known_time(device, lambda cycles: 0.004).status == "fail"  # events that see the launch alone


def test_the_private_kernel_that_waits_is_still_there() -> None:
    assert callable(torch.cuda._sleep)


class FakeEvent:
    """An event of a device whose clock is ours."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeDevice.now

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeDevice:
    """A device of 1 GHz that computes when it is waited for; in milliseconds."""

    now = 0.0


def test_the_probes_run_against_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path through torch.cuda, with a device that takes its time where the real one would."""

    def sleep(cycles: int) -> None:
        FakeDevice.now += cycles / 1e6

    cache = types.SimpleNamespace(zero_=lambda: setattr(FakeDevice, "cold", True))

    def add(*_: object, out: object) -> None:
        FakeDevice.now += 0.02 if getattr(FakeDevice, "cold", False) else 0.01
        FakeDevice.cold = False  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: time.sleep(0.021))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    properties = types.SimpleNamespace(L2_cache_size=4 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(cuda.timer, "flush_buffer", lambda device: cache)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.empty(1))
    monkeypatch.setattr(torch, "add", add)
    device = torch.device("cuda", 0)
    cuda.begin(device)
    assert cuda.known_time(device).value == pytest.approx(0)
    assert cuda.synchronizing(device).status == "ok"
    flushed = cuda.flushing(device)
    assert (flushed.status, flushed.value) == ("ok", pytest.approx(2.0))


HEALTHY = GpuFacts(
    name="NVIDIA X", driver="600.1", persistence=True, sm_mhz=345, expected_sm_mhz=1980, max_sm_mhz=1980,
    throttling=(), power_limit_w=700.0, default_power_limit_w=700.0, temperature_c=40, foreign=0, ecc=True, mig=False,
    energy=True,
)  # fmt: skip


def changed(**facts: object) -> GpuFacts:
    import msgspec

    return msgspec.structs.replace(HEALTHY, **facts)


def test_a_healthy_gpu_has_nothing_to_mend() -> None:
    found = list(gpu.checks(0, HEALTHY))
    assert {check.status for check in found} == {"ok"}
    assert found[0].found == "NVIDIA X, driver 600.1, ECC on, MIG off"


@pytest.mark.parametrize(
    ("facts", "name", "status", "command"),
    [
        (changed(persistence=False), "persistence", "warn", "sudo nvidia-smi -i 3 -pm 1"),
        (changed(expected_sm_mhz=1500), "clocks", "warn", "sudo nvidia-smi -i 3 -lgc 1500,1500"),
        (changed(throttling=("sw_power_cap",)), "throttling", "fail", "nvidia-smi -q -d PERFORMANCE"),
        (changed(throttling=("hw_thermal_slowdown",)), "throttling", "fail", "nvidia-smi -q -d PERFORMANCE"),
        (changed(power_limit_w=400.0), "power", "warn", "sudo nvidia-smi -i 3 -pl 700"),
        (changed(temperature_c=85), "temperature", "warn", ""),
        (changed(foreign=2), "users", "fail", "nvidia-smi pmon -c 1"),
    ],
)
def test_each_fact_that_disturbs_has_its_remedy(facts: GpuFacts, name: str, status: str, command: str) -> None:
    check = by_name(gpu.checks(3, facts))[name]
    assert (check.status, check.command) == (status, command)
    assert check.remedy


def test_commands_name_the_gpu_by_what_no_renumbering_changes() -> None:
    found = by_name(gpu.checks(0, changed(persistence=False, uuid="GPU-12-ab")))
    assert found["persistence"].command == "sudo nvidia-smi -i GPU-12-ab -pm 1"


def test_a_gpu_that_says_nothing_and_no_nvml_at_all() -> None:
    assert statuses(gpu.checks(0, GpuFacts())) == {"device": "ok", "energy": "ok"}
    assert statuses(gpu.checks(0, None)) == {"NVML": "warn"}


class FakeNvml:
    """An NVML that answers some questions and refuses the rest, as old drivers do."""

    reasons = nvml.THROTTLING["sw_thermal_slowdown"]

    def __getattr__(self, name: str) -> Callable[..., object]:
        answers: dict[str, object] = {
            "nvmlDeviceGetName": b"NVIDIA Y", "nvmlDeviceGetPersistenceMode": 0, "nvmlDeviceGetEccMode": (1, 1),
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.reasons, "nvmlDeviceGetEnforcedPowerLimit": 300_000,
        }  # fmt: skip
        return lambda *_: answers.get(name)


def asked(monkeypatch: pytest.MonkeyPatch, library: FakeNvml) -> GpuFacts:
    @contextmanager
    def session(device: str) -> Iterator[nvml.Gpu]:
        yield nvml.Gpu(library, device, "handle", "board")

    monkeypatch.setattr(nvml, "session", session)
    monkeypatch.setattr(nvml, "_ask", lambda library, question, *about, device="": getattr(library, question)(*about))
    found = gpu.facts("cuda:0")
    assert found is not None
    return found


def test_the_facts_are_asked_of_nvml_and_a_refusal_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, FakeNvml())
    assert (found.name, found.persistence, found.power_limit_w) == ("NVIDIA Y", False, 300.0)
    assert found.throttling == ("sw_thermal_slowdown",)
    assert (found.ecc, found.energy, found.temperature_c, found.foreign) == (True, False, None, None)


def test_an_idle_gpus_power_cap_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    library.reasons = nvml.IDLE | nvml.THROTTLING["sw_power_cap"]
    assert asked(monkeypatch, library).throttling == ()
    library.reasons = nvml.IDLE | nvml.THROTTLING["hw_thermal_slowdown"]
    assert asked(monkeypatch, library).throttling == ("hw_thermal_slowdown",)


# ---- the whole ----


def test_a_device_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FusionbenchError, match="--device 'gpu0' is no device; give cpu, cuda or cuda:N"):
        doctor.examine(["cpu", "gpu0"], tmp_path)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_cli("doctor", *arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_this_machine_is_examined(call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "QUICK", (0.02, 0.02, 0.05))
    threads = torch.get_num_threads()
    code, out, err = call("--quick", "--json", "--device", "cpu")
    found = json.loads(out)
    names = {check["name"] for check in found["checks"]}
    assert (code, err) == (0, "")
    assert {
        "python",
        "torch",
        "cores",
        "memory",
        "disk",
        "fsync",
        "clock",
        "known time",
        "A/A noise",
        "waiting",
    } <= names
    assert [check for check in found["checks"] if "this check raised" in check["found"]] == []
    assert found["fit"] == all(check["status"] != "fail" for check in found["checks"])
    assert all(check["remedy"] for check in found["checks"] if check["status"] != "ok")
    assert torch.get_num_threads() == threads
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("status", "strict", "code"),
    [("ok", True, 0), ("warn", False, 0), ("warn", True, 0), ("fail", False, 0), ("fail", True, 4)],
)
def test_only_a_failure_under_strict_is_an_exit_code(
    call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, status: str, strict: bool, code: int
) -> None:
    found = Check(name="clock", status=status, found="so it is", remedy="mend it", command="mend")  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: iter([found]))
    left, out, _ = call(*(["--strict"] if strict else []))
    assert left == code
    assert "so it is" in out
    assert "\n                     mend\n" in out  # the command alone in its line


def test_a_missing_gpu_is_a_failure_that_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("fusionbench.plan.missing_device", lambda device: f"device '{device}' is not available")
    (found,) = doctor._gpu("cuda:0", 0.1)
    assert found.status == "fail"
    assert "cuda:0" in found.found


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_lines_are_broken_at_words_and_commands_are_whole(width: int) -> None:
    check = Check(
        name="A/A noise", status="fail", found="a sentence of many short words that go on " * 4, remedy="and so on " * 12,
        command="sudo a-command --that is --longer-than sixty columns | and may not be broken at all, ever",
    )  # fmt: skip
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    diagnosis.tell([check], console)
    lines = console.export_text().splitlines()
    assert sum(check.command in line for line in lines) == 1
    assert [line for line in lines if len(line) > width and check.command not in line] == []
    beside, below = "  fail  A/A noise    a sentence", "  fail  A/A noise\n    a sentence"
    assert (beside if width >= diagnosis.BELOW else below) in "\n".join(lines)


def test_what_comes_from_outside_is_shown_without_control_characters() -> None:
    text = diagnosis.block(Check(name="disk", status="ok", found="a\x1b[31mb", command="c\x07d"), 80).plain
    assert "\x1b" not in text
    assert "\x07" not in text
