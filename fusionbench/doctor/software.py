"""Versions and settings under which a timing means something else, or nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping

from .check import Check, Status, ok

# What the tests run with and pyproject.toml asks for.
OLDEST = {"python": (3, 11), "torch": (2, 11), "triton": (3, 6)}
NEWEST = {"python": (3, 13), "torch": (2, 15), "triton": (3, 9)}

# Environment variables that change what is measured: how bad that is, and why.
SETTINGS: dict[str, tuple[Status, str]] = {
    "TRITON_INTERPRET": ("fail", "Triton kernels are interpreted in Python, timings of them are void"),
    "CUDA_LAUNCH_BLOCKING": ("fail", "every launch waits for its kernel, host and device no longer overlap"),
    "NVIDIA_TF32_OVERRIDE": ("fail", "fp32 and tf32 rows no longer compute what they say"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("fail", "fp32 rows compute in tf32"),
    "TORCH_COMPILE_DISABLE": ("fail", "backends that compile run eager code"),
    "TORCHDYNAMO_DISABLE": ("fail", "backends that compile run eager code"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": ("fail", "every allocation is a cudaMalloc, which waits for the device"),
    "TORCH_SHOW_CPP_STACKTRACES": ("warn", "refusals are slow, and reasons of failures are longer"),
    "CUBLAS_WORKSPACE_CONFIG": ("warn", "cuBLAS leaves out kernels that need more workspace"),
    "PYTORCH_TUNABLEOP_ENABLED": ("warn", "matrix products are tuned in the first calls, and differ from the default"),
    "TORCH_LOGS": ("warn", "logging is inside the timings"),
    "LD_PRELOAD": ("warn", "a preloaded library (allocator, tracer) is part of what is measured"),
    "PYTHONMALLOC": ("warn", "Python allocates in another way than usual"),
}
OFF = ("", "0", "false", "off", "no")
MEANS_SOMETHING = {"NVIDIA_TF32_OVERRIDE", "LD_PRELOAD", "CUBLAS_WORKSPACE_CONFIG"}  # "0" is no "off" here


def versions(installed: Mapping[str, str] | None = None) -> Iterator[Check]:
    """Python, torch and triton against what this version of fusionbench is tested with."""
    found = installed_versions() if installed is None else installed
    for name, oldest in OLDEST.items():
        version = found.get(name, "")
        if not version:
            yield _missing(name)
            continue
        release = _release(version)
        if release < oldest:
            needs = ".".join(map(str, oldest))
            yield Check(
                name=name,
                status="fail",
                found=f"{version}, older than {needs}",
                remedy=f"fusionbench needs {name} {needs} or newer",
                command="" if name == "python" else f"pip install '{name}>={needs}'",
            )
        elif release > NEWEST[name]:
            newest = ".".join(map(str, NEWEST[name]))
            yield Check(
                name=name,
                status="warn",
                found=f"{version}, newer than the tests know ({newest})",
                remedy="run the tests here before trusting figures",
                command="make test",
            )
        else:
            yield ok(name, version)


def installed_versions() -> dict[str, str]:
    """Versions by name, without importing the packages."""
    found = {"python": platform.python_version()}
    for package in ("torch", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _missing(name: str) -> Check:
    if name == "triton":  # macOS has none, and everything but the Triton backends runs
        return Check(name=name, status="warn", found="not installed", remedy="Triton backends are skipped without it")
    return Check(name=name, status="fail", found="not installed", command=f"pip install {name}", remedy="install it")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def builds(*, torch_debug: bool, deterministic: bool, assertions: bool, python_debug: bool | None = None) -> Check:
    """Debug builds, and PyTorch set to deterministic algorithms."""
    slow = {
        "a debug build of Python": hasattr(sys, "gettotalrefcount") if python_debug is None else python_debug,
        "a debug build of torch": torch_debug,
        "deterministic algorithms are on in torch": deterministic,
    }
    problems = [what for what, there in slow.items() if there]
    if problems:
        remedy = "use release builds and leave torch.use_deterministic_algorithms off"
        return Check(name="builds", status="fail", found=", ".join(problems), remedy=remedy)
    return ok("builds", "release builds" + ("" if assertions else ", Python without assertions (-O)"))


def settings(environ: Mapping[str, str] | None = None) -> Iterator[Check]:
    """Environment variables that change what is measured."""
    surroundings = os.environ if environ is None else environ
    found = [name for name in SETTINGS if _is_set(name, surroundings.get(name, ""))]
    for name in found:
        status, why = SETTINGS[name]
        yield Check(
            name="environment", status=status, found=f"{name} is set: {why}", remedy="unset it", command=f"unset {name}"
        )
    if not found:
        yield ok("environment", "no variable is set that changes what is measured")


def _is_set(name: str, value: str) -> bool:
    return value != "" if name in MEANS_SOMETHING else value.lower() not in OFF
