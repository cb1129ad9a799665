"""Where a measurement was made: the facts about this machine, and what they say about comparing two of them."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from . import __version__, nvml, revisions
from .errors import DeviceLostError
from .record import Environment
from .spec import Dtype

# The CPU flags under which a dtype is computed as it is, and not converted to fp32 and back (x86 | Arm).
NATIVE: dict[str, tuple[str, ...]] = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"),
}
ARM_FLAGS = ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2")
FLAGS = {"avx2", "avx512f", *ARM_FLAGS, *(flag for flags in NATIVE.values() for flag in flags)}

# CUDA compute capability from which a dtype has instructions of its own.
UNCLEAR = "compare it with fp32 before you trust it"
ELSEWHERE = "its time says nothing about hardware with it, measure there"
CAPABILITY: dict[str, tuple[int, int]] = {"bf16": (8, 0), "tf32": (8, 0), "int8": (6, 1), "fp16": (5, 3)}

MACHINE = "FUSIONBENCH_MACHINE"  # a name for this machine where the host's says nothing, as in a container
PACKAGE = Path(__file__).parents[1]
SECONDS = 5.0  # for git, which can hang on a network disk


def capture(machine: str | None = None) -> Environment:
    """The environment of this process. Imports no torch, needs no GPU, no driver and no git.

    ``machine`` names it; without one the variable FUSIONBENCH_MACHINE does, and else the host.
    """
    gpu = nvml.facts()
    commit, dirty = _checkout(PACKAGE)
    environment = Environment(
        id="",
        machine=machine or os.environ.get(MACHINE) or platform.node() or "unnamed",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=_version("torch"),
        triton=_version("triton"),
        cpu=_cpu_name(),
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        cpu_flags=_cpu_flags(),
        gpu=gpu.name,
        gpu_count=gpu.count,
        capability=gpu.capability,
        driver=gpu.driver,
        cuda=gpu.cuda,
        power_limit_w=gpu.power_limit_w,
        commit=commit,
        dirty=dirty,
        fusionbench=__version__,
    )
    return replace(environment, id=identify(environment))


def identify(environment: Environment) -> str:
    """The id: a hash of the facts that decide whether two timings may be compared.

    Left out are the machine's name (a CI container has a new one every day), memory size, the number of GPUs (a job
    uses one), commit and fusionbench version (a record has the hash of the code it measured), and the patch
    levels of the kernel and of Python, which change weekly.
    """
    facts = "\n".join(f"{name}={value}" for name, value in _facts(environment).items())
    return hashlib.blake2b(facts.encode(errors="replace"), digest_size=6).hexdigest()


def differences(before: Environment, after: Environment) -> list[str]:
    """What forbids comparing timings, for people: ``torch 2.11.0 → 2.13.0``; empty if the ids are the same."""
    old, new = _facts(before), _facts(after)
    return [f"{name} {old[name] or 'none'} → {new[name] or 'none'}" for name in old if old[name] != new[name]]


def native(dtype: Dtype, device: str, environment: Environment) -> str | None:
    """A note for the reader of a timing when ``dtype`` is only emulated on ``device``; None when it is native."""
    if device.startswith("cuda"):
        return _note_on_gpu(dtype, environment)
    if dtype == "tf32":
        return "tf32 is a format of GPUs, and on this CPU plain fp32; ask for fp32 here"
    wanted = NATIVE.get(dtype)
    if wanted is None or set(wanted) & set(environment.cpu_flags):
        return None
    if not environment.cpu_flags:
        return f"whether {dtype} is native on this CPU is unclear: its flags could not be read; {UNCLEAR}"
    arm = not set(ARM_FLAGS).isdisjoint(environment.cpu_flags)
    missing = " or ".join(flag for flag in wanted if (flag in ARM_FLAGS) == arm)
    return f"{dtype} is emulated on this CPU (no {missing}); {ELSEWHERE}"


def _note_on_gpu(dtype: Dtype, environment: Environment) -> str | None:
    wanted = CAPABILITY.get(dtype)
    if wanted is None:
        return None
    try:
        major, minor = map(int, environment.capability.split("."))
    except ValueError:
        return f"whether {dtype} is native on this GPU is unclear: its capability could not be read; {UNCLEAR}"
    if (major, minor) >= wanted:
        return None
    return f"{dtype} is emulated on this GPU (capability {major}.{minor}, needs {wanted[0]}.{wanted[1]}); {ELSEWHERE}"


def _facts(environment: Environment) -> dict[str, str]:
    power = environment.power_limit_w
    return {
        "system": _without_patch(environment.system),
        "python": ".".join(environment.python.split(".")[:2]),
        "torch": environment.torch,
        "triton": environment.triton,
        "cpu": environment.cpu,
        "cores": str(environment.cores),
        "cpu flags": " ".join(sorted(environment.cpu_flags)),
        "gpu": environment.gpu,
        "capability": environment.capability,
        "driver": environment.driver,
        "cuda": environment.cuda,
        "power limit": "" if power is None else f"{power:.0f} W",
    }


def _without_patch(system: str) -> str:
    """``Linux 6.8.0-45-generic x86_64`` as ``Linux 6.8 x86_64``."""
    name, _, rest = system.partition(" ")
    release, _, machine = rest.partition(" ")
    return " ".join(part for part in (name, ".".join(release.split(".")[:2]), machine) if part)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    import psutil  # 50 ms, not for those who only read

    return int(psutil.virtual_memory().total)


@functools.cache
def device_memory(device: str) -> int | None:
    """Bytes of memory that a device has, or that a container may use of it; None where nobody says.

    Asks the driver and creates no CUDA context.
    """
    if device == "cpu":
        return min(_memory_bytes(), _cgroup_limit() or _memory_bytes())
    try:
        return nvml.memory_bytes(device)
    except DeviceLostError:
        return None


def _cgroup_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _cpuinfo() -> dict[str, str]:
    """The first core's facts on Linux; elsewhere nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_name() -> str:
    info = _cpuinfo()
    arm = f"Arm implementer {info.get('CPU implementer')} part {info['CPU part']}" if "CPU part" in info else ""
    return info.get("model name") or arm or platform.processor() or platform.machine()


def _cpu_flags() -> tuple[str, ...]:
    info = _cpuinfo()
    flags = info.get("flags") or info.get("Features") or ""
    return tuple(sorted(FLAGS & set(flags.split())))


def _checkout(root: Path) -> tuple[str, bool]:
    """Commit and dirty flag of the source checkout that this package runs from; empty for an installed package."""
    commit = ask_git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return "", False
    return commit, bool(commit) and ask_git(root, "status", "--porcelain", "--", "fusionbench", "kernels") != ""


def commit_of(plugins: Sequence[Path]) -> tuple[str, bool]:
    """Commit and dirty flag of the repository of these plugins; empty where there is none, or several."""
    tops = {ask_git(plugin.resolve().parent, "rev-parse", "--show-toplevel") or "" for plugin in plugins}
    top = tops.pop()
    commit = ask_git(Path(top), "rev-parse", "HEAD") if top and not tops else None
    if commit is None:
        return "", False
    tracked = ask_git(Path(top), "status", "--porcelain", "--untracked-files=no")
    new = [ask_git(Path(top), "status", "--porcelain", "--", str(plugin.resolve())) for plugin in plugins]
    return commit, any(answer != "" for answer in (tracked, *new))


def ask_git(root: Path, *arguments: str) -> str | None:
    """What git answers in the repository around ``root``; None where there is no git, no repository or no answer."""
    git = shutil.which("git")
    if git is None:
        return None
    surroundings = revisions.environment(os.environ)
    command = [git, "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    try:
        answer = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
