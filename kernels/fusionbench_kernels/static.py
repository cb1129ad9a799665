"""The static profile of every shipped configuration: compiled ahead of time, no GPU needed, read from the binary.

A configuration is compiled through the kernel's own host function, on tensors of device ``meta``, so what is checked
is what would be launched: same types, alignments, strides and constants.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import table
from .calls import CALLS
from .runtime import Launch, Target, compiling_for
from .table import SHARED_MEMORY_BYTES, Config

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
TENSOR_MEMORY_COLUMNS = 512  # of sm_100
# What tells a good compilation from a bad one: tensor-core products, asynchronous copies, spills' loads and stores.
_COUNTED = {
    "HGMMA": r"\bHGMMA", "IGMMA": r"\bIGMMA", "QGMMA": r"\bQGMMA", "HMMA": r"\bHMMA", "IMMA": r"\bIMMA",
    "tcgen05": r"\bUTC\w*MMA", "MFMA": r"\bv_mfma", "TMA": r"\bUTMA", "UTMALDG": r"\bUTMALDG",
    "LDGSTS": r"\bLDGSTS", "MUFU": r"\bMUFU",
    "USETMAXREG": r"\bUSETMAXREG",
    # Not ATOMG.EXCH, by which a tensor map is published, nor ATOMS, by which sm_100 allots tensor memory.
    "atomics": r"\b(REDG?|ATOM|ATOMG(?!\.\w*\.?EXCH)|UTMAREDG|global_atomic\w*)\b",
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What the compiler made of one kernel with one row of the table.

    ``registers`` per thread; ``spill_bytes`` of local memory per thread; ``shared_bytes`` per program; ``instructions``
    counts by kind, "all" among them; ``error`` instead where it does not compile.
    """

    kernel: str
    arch: str
    row: int
    where: Mapping[str, int]
    config: Mapping[str, Any]
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    code_bytes: int = 0
    instructions: Mapping[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> str:
        bounds = ",".join(f"{name}={size}" for name, size in self.where.items())
        return f"{self.kernel}/{self.arch}/{bounds or 'any'}"

    @property
    def fits(self) -> bool:
        """Whether a program's shared memory is there; the compiler does not ask."""
        return self.shared_bytes <= SHARED_MEMORY_BYTES[self.arch]


Row = tuple[str, str, int]  # architecture, kernel, which of its rows


def shipped(arches: tuple[str, ...] = (), kernels: tuple[str, ...] = ()) -> list[Row]:
    """Every configuration in the table, or those of some architectures and kernels."""
    return [
        (arch, kernel, index)
        for arch in arches or table.architectures()
        for kernel, rows in table.rows(arch).items()
        if not kernels or kernel in kernels
        for index in range(len(rows))
    ]


def profiles(rows: list[Row], processes: int = 0) -> Iterator[Profile]:
    """Compile these configurations, one process per core unless told otherwise; results come in order."""
    # Processes, since the compiler holds the lock; spawned, since torch's threads do not survive a fork.
    with _without_interpreter():
        pool = ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn"), _ignore_interrupts)
        try:
            yield from pool.map(_profile_row, rows)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C: the compilations under way, not the hundreds to come


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _profile_row(which: Row) -> Profile:
    arch, kernel, index = which
    where, config = table.rows(arch)[kernel][index]
    shown = as_shown(config)
    empty = Profile(kernel, arch, index, where, shown)
    try:
        return compiled(the_launch(kernel, arch, where, config), arch, empty)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "").strip()
        return Profile(kernel, arch, index, where, shown, error=f"{type(error).__name__}: {reason}"[:300])


def as_shown(config: Config) -> dict[str, Any]:
    """A configuration as a profile holds it."""
    shown = {**config.blocks, "num_warps": config.num_warps, "num_stages": config.num_stages}
    return shown | {name: True for name in ("split_heads", "split_keys") if getattr(config, name)}


def the_launch(kernel: str, arch: str, where: Mapping[str, int], config: Config) -> Launch:
    """The launch of ``kernel`` that its host function makes for the sizes of a row."""
    launches: list[Launch] = []
    target = Target(arch, MULTIPROCESSORS.get(arch, 100))
    with compiling_for(target, launches.append), table.forced(**{kernel: config}), products_of(where):
        CALLS[kernel](where)
    for launch in launches:
        if launch.kernel.__name__ == kernel:
            return launch
    raise LookupError(f"the call of '{kernel}' launches {[launch.kernel.__name__ for launch in launches]} instead")


@contextmanager
def products_of(where: Mapping[str, int]) -> Iterator[None]:
    """Compute products of float32 in this block as a row with these bounds is meant for."""
    matmul = torch.backends.cuda.matmul
    tf32 = where.get("ieee") == 0 and where.get("bytes", 4) == 4
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def compiled(launch: Launch, arch: str, profile: Profile) -> Profile:
    """``profile`` with the figures of the compiled binary."""
    import triton

    return profile_of(triton.compile(*_source_and_target(launch, arch)), profile)


def profile_of(binary: Any, profile: Profile) -> Profile:
    """``profile`` with the figures of a kernel that Triton compiled for its architecture."""
    read = _read_amdgcn if profile.arch.startswith("gfx") else _read_cubin
    instructions, registers, spills, size = read(binary.asm)
    columns = getattr(binary.metadata, "tmem_size", 0) or 0
    if columns > TENSOR_MEMORY_COLUMNS:  # Triton 3.7.1 then compiles to a trap, without an error
        raise RuntimeError(f"needs {columns} columns of tensor memory, the chip has {TENSOR_MEMORY_COLUMNS}")
    return Profile(
        profile.kernel, profile.arch, profile.row, profile.where, profile.config, registers, spills,
        binary.metadata.shared, size, instructions,
    )  # fmt: skip


def _source_and_target(launch: Launch, arch: str) -> tuple[Any, Any, dict[str, Any]]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**launch.constants, **launch.config.blocks}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    arguments = iter(launch.arguments)
    for index, parameter in enumerate(launch.kernel.params):
        attributes[(index,)] = []  # as the launcher has it: what is compiled here is found by it in Triton's cache
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
            continue
        value = next(arguments)
        signature[parameter.name], divisible = _type(value, not parameter.do_not_specialize)
        if signature[parameter.name] == "constexpr":
            constants[parameter.name] = value
        elif signature[parameter.name] == "fp32":
            del attributes[(index,)]
        elif divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return source, target, {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}


def _type(value: Any, specialised: bool = True) -> tuple[str, bool]:
    """The type in a kernel's signature and whether 16 divides it, as Triton's launcher specialises arguments."""
    if value is None:
        return "constexpr", False
    if isinstance(value, Tensor):
        names = {torch.float8_e4m3fn: "fp8e4nv", torch.bool: "i1", torch.uint8: "u8"}
        short = str(value.dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf").replace("int", "i")
        # A slice of a buffer is as aligned as its offset says; a fresh allocation always is.
        return "*" + names.get(value.dtype, short), value.storage_offset() * value.element_size() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    if specialised and value == 1:
        return "constexpr", False
    return "i32" if -(2**31) <= value < 2**31 else "i64", specialised and value % 16 == 0


def _read_cubin(asm: Mapping[str, Any]) -> tuple[dict[str, int], int, int, int]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(asm["cubin"])
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file))
        code = _output(knobs.nvidia.nvdisasm.path, "-c", str(file))
    registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
    # The stack is where ptxas puts what does not fit the registers: these kernels have no arrays of their own.
    stack = int(re.search(r"STACK:(\d+)", usage)[1])  # type: ignore[index]
    local = int(re.search(r"LOCAL:(\d+)", usage)[1])  # type: ignore[index]
    lines = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", code, re.MULTILINE)
    return _count(lines), registers, max(stack, local), 16 * len(lines)


def _read_amdgcn(asm: Mapping[str, Any]) -> tuple[dict[str, int], int, int, int]:
    text = asm["amdgcn"]
    size = re.search(r"codeLenInByte = (\d+)", text)
    registers, scratch = re.search(r"NumVgprs: (\d+)", text), re.search(r"ScratchSize: (\d+)", text)
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s+(v|s|ds|buffer|global|scratch|flat)_", line)]
    return _count(lines), *(int(found[1]) if found else 0 for found in (registers, scratch, size))  # type: ignore[return-value]


def _count(lines: list[str]) -> dict[str, int]:
    found = Counter({"all": len(lines)})
    for name, pattern in _COUNTED.items():
        found[name] = sum(re.search(pattern, line) is not None for line in lines)
    return {name: count for name, count in found.items() if count}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@contextmanager
def _without_interpreter() -> Iterator[None]:
    """The interpreter's kernels cannot be compiled, and processes inherit its setting."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
