"""Where a call runs: Triton on a GPU, Triton's interpreter when asked for, plain PyTorch everywhere else."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # there since 2.4, outside of __all__

from .table import Config

# Triton reads this when a kernel is decorated, that is at import: changing it later has no effect.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# The interpreter computes on the raw bits of bf16 and rounds fp8 wrongly (triton #11584, #10945), so it gets neither.
_INTERPRETER_DTYPES = frozenset({torch.float32, torch.float16, torch.int8})
_GPU_DTYPES = _INTERPRETER_DTYPES | {torch.bfloat16, torch.float8_e4m3fn}


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported (it exists for Linux only)."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def uses_triton(*tensors: Tensor) -> bool:
    """Whether a call on these tensors launches Triton kernels; otherwise plain PyTorch computes the same."""
    kind = tensors[0].device.type
    if kind == "cuda":
        wanted = all(x.dtype in _GPU_DTYPES for x in tensors) and has_kernels(tensors[0].device)
    elif recording():
        wanted = True
    else:
        wanted = INTERPRETED and kind == "cpu" and all(x.dtype in _INTERPRETER_DTYPES for x in tensors)
    return wanted and has_triton()


def has_kernels(device: torch.device) -> bool:
    """Whether the kernels fit this GPU: sm_75 and older have too little shared memory."""
    arch = target(device).arch
    return not arch.startswith("sm_") or int(arch.removeprefix("sm_")) >= 80


def without_kernel(x: Tensor) -> str:
    """Why a call on x launches no kernel."""
    if x.dtype == torch.float64:
        why = "float64 has no kernel"
    else:
        why = "Triton's kernels need a GPU" if x.device.type != "cuda" else f"no kernels for {target(x.device).arch}"
    return f"{why}: plain PyTorch computes the same"


# --- what the device is --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a configuration depends on: the chip's architecture and how many multiprocessors it has."""

    arch: str  # sm_90, gfx942, … or "interpreter"
    multiprocessors: int


_target: ContextVar[Target | None] = ContextVar("target", default=None)


def target(device: torch.device) -> Target:
    """The target of a device; inside ``compiling_for`` the one given there."""
    forced = _target.get()
    return forced if forced is not None else _device_target(device.type, device.index or 0)


@functools.cache
def _device_target(kind: str, index: int) -> Target:
    if kind != "cuda":
        return Target("interpreter", 4)
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Target(properties.gcnArchName.partition(":")[0], properties.multi_processor_count)
    return Target(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)


# --- launching -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """One kernel launch as it was asked for: enough to compile it without a device."""

    kernel: Any  # a triton.JITFunction
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    config: Config


_recorder: ContextVar[Callable[[Launch], None] | None] = ContextVar("recorder", default=None)


@contextmanager
def compiling_for(target: Target, record: Callable[[Launch], None]) -> Iterator[None]:
    """Give every launch in this block to ``record`` instead of a device, configured for ``target``.

    Host functions run as always, on tensors of device ``meta``.
    """
    tokens = _target.set(target), _recorder.set(record)
    try:
        yield
    finally:
        _target.reset(tokens[0])
        _recorder.reset(tokens[1])


def recording() -> bool:
    return _recorder.get() is not None


_watching: list[Counter[str]] = []  # not a ContextVar: backward passes on CUDA run in a thread of their own


@contextmanager
def watching() -> Iterator[Counter[str]]:
    """How often each kernel is launched in this block, by any thread; by name."""
    launches: Counter[str] = Counter()
    _watching.append(launches)
    try:
        yield launches
    finally:
        _watching[:] = [others for others in _watching if others is not launches]


def launch(kernel: Any, programs: int, *arguments: Any, config: Config, **constants: Any) -> None:
    """Start ``programs`` programs of a kernel in one dimension, on the device of its first tensor.

    ``constants`` are its constexpr parameters beyond the config's blocks. No program, no launch.
    """
    if programs == 0:
        return
    record = _recorder.get()
    if record is not None:
        record(Launch(kernel, programs, arguments, constants, config))
        return
    for launches in _watching:
        launches[kernel.__name__] += 1
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    # Entering torch.cuda.device costs microseconds, so only where the current device is another one.
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        kernel[(programs,)](
            *arguments, **config.blocks, **constants, num_warps=config.num_warps, num_stages=config.num_stages
        )


def precision(dtype: torch.dtype) -> str:
    """How products of fp32 are computed: as PyTorch's own matmul setting says; other types have no choice."""
    # Not allow_tf32: torch raises where a user has set the precision through the newer of its two settings.
    tf32 = torch.version.hip is None and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 and dtype == torch.float32 else "ieee"


# --- autocast ------------------------------------------------------------------------------------------------------


def settled(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast in this block: inside an operator it would change types that its kernels and its caller settled."""
    return torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as an autocast region wants the operands of a product: floating ones but float64 in its type."""
    device = next((x.device for x in tensors if isinstance(x, Tensor)), None)
    if device is None or not _autocasts(device):
        return tensors
    wanted = torch.get_autocast_dtype(device.type)
    low = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(x.to(wanted) if isinstance(x, Tensor) and x.dtype in low else x for x in tensors)


def _autocasts(device: torch.device) -> bool:
    return device.type in ("cuda", "cpu") and torch.is_autocast_enabled(device.type)


def operator(name: str, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Make a function the custom operator ``fusionbench_kernels::name``, whose body no autocast region reaches."""

    def register(body: Callable[..., Any]) -> CustomOpDef:
        @functools.wraps(body)
        def settled_body(*arguments: Any, **named: Any) -> Any:
            device = next(x.device for x in (*arguments, *named.values()) if isinstance(x, Tensor))
            with settled(device):
                return body(*arguments, **named)

        schema = torch.library.infer_schema(body, mutates_args=mutates_args)
        full = f"fusionbench_kernels::{name}"
        return torch.library.custom_op(full, settled_body, mutates_args=mutates_args, schema=schema)

    return register


def near(x: Tensor) -> Tensor:
    """x, or a dense copy where a tile of 256 rows would span more than a kernel's 32-bit offsets reach."""
    return x.contiguous() if any(abs(stride) >= 2**22 for stride in x.stride()[-2:]) else x


def of_eights(*tensors: Tensor) -> bool:
    """Whether every stride but the last is a multiple of 8 and not all are of 16, which the compiler cannot see."""
    strides = [stride for x in tensors for stride in x.stride()[:-1]]
    return all(stride % 8 == 0 for stride in strides) and any(stride % 16 for stride in strides)


def dense(x: Tensor | None) -> Tensor | None:
    """A vector as the kernels read it, which take no stride for it: element after element."""
    return None if x is None else x.contiguous()


def aligned(size: int) -> int:
    """Elements up to whole multiples of 16: rows of 8-bit numbers then load in whole vectors."""
    return cdiv(size, 16) * 16


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()
