"""The environment: facts come from fakes of /proc, NVML and git; what is absent is empty and raises nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fusionbench import environment
from fusionbench.environment import capture, differences, identify, native
from fusionbench.record import Environment
from tests.fake_nvml import FakeGpu, FakeNvml

X86 = {"model name": "AMD EPYC 9654", "flags": "fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni"}
ARM = {"CPU implementer": "0x41", "CPU part": "0xd40", "Features": "fp asimd asimdhp asimddp"}


@pytest.fixture(autouse=True)
def _all_gpus_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture(scope="module")
def here() -> Environment:
    return capture(machine="test")


def on_cpu(here: Environment, *flags: str) -> Environment:
    return replace(here, cpu_flags=flags)


def test_capture_fills_every_fact_of_this_machine(here: Environment) -> None:
    assert here.machine == "test"
    assert here.id == identify(here)
    assert here.cores >= 1
    assert here.memory_bytes > 1 << 20
    assert all([here.system, here.python, here.torch, here.cpu, here.fusionbench])


def test_capture_names_the_host_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSIONBENCH_MACHINE", raising=False)
    monkeypatch.setattr("platform.node", lambda: "the-host")
    assert capture().machine == "the-host"
    monkeypatch.setenv("FUSIONBENCH_MACHINE", "ci")
    assert capture().machine == "ci"
    assert capture("given").machine == "given"
    monkeypatch.setenv("FUSIONBENCH_MACHINE", "")
    assert capture().machine == "the-host"


def test_capture_does_not_import_torch() -> None:
    code = "import sys; from fusionbench.environment import capture; capture(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_packages_that_are_not_installed_are_empty() -> None:
    assert environment._version("no-such-package-here") == ""


@pytest.mark.parametrize(
    ("cpuinfo", "name", "flags"),
    [
        (X86, "AMD EPYC 9654", ("avx2", "avx512_bf16", "avx512_vnni", "avx512f")),
        (ARM, "Arm implementer 0x41 part 0xd40", ("asimd", "asimddp", "asimdhp")),
    ],
)
def test_cpu_is_read_from_proc(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: dict[str, str], name: str, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(environment, "_cpuinfo", lambda: cpuinfo)
    assert environment._cpu_name() == name
    assert environment._cpu_flags() == flags


def test_only_the_first_core_of_cpuinfo_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model name\t: A: b\nflags\t\t: avx2\n\nmodel name\t: other\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert environment._cpuinfo() == {"model name": "A: b", "flags": "avx2"}


def test_a_system_without_proc_still_has_a_cpu_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert environment._cpu_name()
    assert environment._cpu_flags() == ()


def test_gpu_facts_come_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*(FakeGpu() for _ in range(8))))
    found = capture()
    assert (found.gpu, found.gpu_count, found.capability) == ("NVIDIA H200", 8, "9.0")
    assert (found.driver, found.cuda, found.power_limit_w) == ("570.86.15", "12.8", 700.0)


def test_the_memory_of_a_device_is_what_the_driver_or_the_container_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = environment.device_memory.__wrapped__  # what was found once is remembered
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(memory_bytes=80 << 30), FakeGpu(lost=True)))
    assert [asked("cuda:0"), asked("cuda:1"), asked("cuda:2")] == [80 << 30, None, None]
    monkeypatch.setattr(environment, "_cgroup_limit", lambda: 1 << 20)
    assert asked("cpu") == 1 << 20


@pytest.mark.parametrize("change", [{"torch": "9.9"}, {"cpu": "other"}, {"cores": 999}, {"driver": "1"}, {"cuda": "1"}])
def test_facts_that_decide_comparability_change_the_id(here: Environment, change: dict[str, Any]) -> None:
    other = replace(here, **change)
    assert identify(other) != here.id
    (difference,) = differences(here, other)
    assert difference.endswith(f" → {next(iter(change.values()))}")


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "b"},
        {"commit": "0" * 40},
        {"dirty": True},
        {"fusionbench": "9"},
        {"memory_bytes": 1},
        {"gpu_count": 4},
    ],
)
def test_facts_of_time_and_name_do_not_change_the_id(here: Environment, change: dict[str, Any]) -> None:
    other = replace(here, **change)
    assert identify(other) == here.id
    assert differences(here, other) == []


def test_patch_levels_of_kernel_and_python_do_not_change_the_id(here: Environment) -> None:
    old = replace(here, system="Linux 6.8.0-45-generic x86_64", python="3.11.7")
    patched = replace(here, system="Linux 6.8.0-51-generic x86_64", python="3.11.9")
    newer = replace(here, system="Linux 6.11.0-8-generic x86_64", python="3.11.7")
    assert identify(old) == identify(patched)
    assert differences(old, newer) == ["system Linux 6.8 x86_64 → Linux 6.11 x86_64"]


def test_differences_read_well(here: Environment) -> None:
    old = replace(here, torch="2.11.0", gpu="")
    new = replace(here, torch="2.13.0", gpu="NVIDIA L4")
    assert differences(old, new) == ["torch 2.11.0 → 2.13.0", "gpu none → NVIDIA L4"]


def test_native_dtypes_have_no_note(here: Environment) -> None:
    able = on_cpu(here, "avx2", "amx_bf16", "avx512_fp16", "avx_vnni")
    assert [native(dtype, "cpu", able) for dtype in ("fp32", "bf16", "fp16", "int8")] == [None] * 4
    assert native("int8", "cpu", on_cpu(here, "asimd", "i8mm")) is None


def test_emulated_dtypes_are_told_with_what_is_missing(here: Environment) -> None:
    assert native("bf16", "cpu", on_cpu(here, "avx2")) == (
        "bf16 is emulated on this CPU (no avx512_bf16 or amx_bf16); its time says nothing about hardware with it, "
        "measure there"
    )
    assert "(no asimdhp)" in (native("fp16", "cpu", on_cpu(here, "asimd")) or "")
    assert "(no avx512_vnni or avx_vnni or amx_int8)" in (native("int8", "cpu", on_cpu(here, "avx2")) or "")
    assert "plain fp32" in (native("tf32", "cpu", here) or "")
    assert "unclear" in (native("bf16", "cpu", on_cpu(here)) or "")


@pytest.mark.parametrize(
    ("dtype", "capability", "note"),
    [
        ("bf16", "9.0", None),
        ("bf16", "10.0", None),  # as a number, not as text
        ("tf32", "7.5", "tf32 is emulated on this GPU (capability 7.5, needs 8.0)"),
        ("int8", "6.1", None),
        ("int8", "6.0", "int8 is emulated"),
        ("fp32", "", None),
        ("bf16", "", "unclear"),
    ],
)
def test_gpu_dtypes_go_by_compute_capability(here: Environment, dtype: Any, capability: str, note: str | None) -> None:
    answer = native(dtype, "cuda:1", replace(here, capability=capability))
    assert answer is None if note is None else note in (answer or "")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_checkout_knows_its_commit_and_whether_code_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "fusionbench").mkdir()
    (tmp_path / "fusionbench" / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")  # as inside a hook of another repository
    (tmp_path / "notes.txt").write_text("not code")
    assert environment._checkout(tmp_path) == (head, False)
    (tmp_path / "fusionbench" / "new.py").write_text("2")
    assert environment._checkout(tmp_path) == (head, True)


def test_an_installed_package_has_no_commit_even_inside_a_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert environment._checkout(tmp_path / "site-packages") == ("", False)


def test_no_git_a_broken_repository_and_a_hang_mean_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    assert environment._checkout(tmp_path) == ("", False)
    git_program = tmp_path / "git"
    git_program.write_text("#!/bin/sh\nexec sleep 5\n")
    git_program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(environment, "SECONDS", 0.1)
    assert environment._checkout(tmp_path) == ("", False)
    monkeypatch.setenv("PATH", "")
    assert environment._checkout(tmp_path) == ("", False)
