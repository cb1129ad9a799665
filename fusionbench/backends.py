"""The backends: an impl of the inner attention, and what is done to the module around it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import prune
from .errors import FusionbenchError, UnknownNameError
from .int8 import TritonInt8Linear, quantize_linears
from .registry import Strategy
from .spec import Case


def _nothing(case: Case) -> str | None:
    return None


def _unchanged(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class Backend:
    """How a strategy's module is run. ``transforms`` says that strategies without attention can use it too."""

    name: str
    impl: str
    summary: str
    refuses: Callable[[Case], str | None] = _nothing
    prepare: Callable[[nn.Module], nn.Module] = _unchanged
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    transforms: bool = False
    int8: bool = False  # serves the dtype int8, and no other
    compiles: bool = False  # compiled code hides its products from the FLOP counter

    def impl_for(self, strategy: Strategy) -> str | None:
        """The strategy's impl that this backend uses, or None: a backend never falls back to another."""
        if self.impl in strategy.impls:
            return self.impl
        without_attention = set(strategy.impls) <= {"eager", "triton"}
        return "eager" if self.transforms and without_attention else None


def source(strategy: Strategy, backend: Backend) -> str:
    """A hash of the code that decides what such a job measures: the strategy's, and the kernels' where they run."""
    if not backend.impl.startswith("triton"):
        return strategy.source
    return hashlib.blake2b((strategy.source + kernels_source()).encode(), digest_size=8).hexdigest()


@functools.cache
def kernels_source() -> str:
    """A hash of the package fusionbench_kernels: its code and the table of its configurations."""
    import fusionbench_kernels

    digest = hashlib.blake2b(digest_size=8)
    folder = Path(fusionbench_kernels.__file__).parent
    for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def refusal(strategy: Strategy, backend: Backend, case: Case) -> str | None:
    """Why this combination makes no sense on any machine, or None."""
    if backend.impl_for(strategy) is None:
        has = ", ".join(strategy.impls)
        return f"backend '{backend.name}' skips '{strategy.name}': it has no '{backend.impl}' impl (has: {has})"
    shape = case.shape
    if shape.width % shape.heads:
        return f"width {shape.width} is not a multiple of {shape.heads} heads"
    if case.design.kv_heads and shape.heads % case.design.kv_heads:
        return f"{shape.heads} heads cannot share {case.design.kv_heads} key heads evenly"
    reason = _dtype_refusal(backend, case) or backend.refuses(case) or strategy.refusal(case)
    quantises_linears_alone = backend.int8 and backend.impl not in ("triton_int8", "sage")
    if reason is None and quantises_linears_alone and strategy.costs(case, "eager").params == 0:
        return f"'{strategy.name}' has no weights to quantise"
    if reason is None and case.adapt != "full":
        reason = _adapt_refusal(backend, backend.impl_for(strategy) or "", strategy)
    return reason


def _adapt_refusal(backend: Backend, impl: str, strategy: Strategy) -> str | None:
    """Kernels that take a Linear's weight with them, and int8's, see no adapter beside it."""
    takes_weights = impl.startswith("triton_") or (impl == "triton" and "sdpa" not in strategy.impls)
    if backend.int8 or takes_weights:
        return f"backend '{backend.name}' reads the weights of Linear layers itself, and no adapters beside them"
    return None


def _dtype_refusal(backend: Backend, case: Case) -> str | None:
    if case.dtype == "tf32" and case.device == "cpu":
        return "tf32 is a format of NVIDIA's tensor cores; a CPU has none"
    if case.dtype == "int8" and not backend.int8:
        return f"backend '{backend.name}' has no int8 kernels (use backend 'int8')"
    if case.dtype != "int8" and backend.int8:
        return f"backend '{backend.name}' computes in int8, not in {case.dtype} (use dtype 'int8')"
    return None


def _needs_cuda(case: Case) -> str | None:
    return "PyTorch has this attention kernel for CUDA only" if case.device == "cpu" else None


def _half_on_cuda(case: Case) -> str | None:
    if case.device != "cpu" and case.dtype not in ("fp16", "bf16"):
        return f"this attention kernel computes in fp16 and bf16 on CUDA, not in {case.dtype}"
    return None


def _flash_refuses(case: Case) -> str | None:
    if case.device != "cpu" and case.padding:
        return "PyTorch's flash attention takes no key-padding mask on CUDA"
    return _half_on_cuda(case)


def _cudnn_refuses(case: Case) -> str | None:
    return _needs_cuda(case) or _half_on_cuda(case)


@functools.cache
def missing_compiler() -> str | None:
    """What torch.compile lacks on this machine, with the remedy, or None."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        return "torch.compile needs a C++ compiler and found none (install g++ or set CXX)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "torch.compile needs Python's C headers and found none (install python3-dev)"
    return None


def _compile_refuses(case: Case) -> str | None:
    return missing_compiler()


def _flex_refuses(case: Case) -> str | None:
    if case.device == "cpu" and case.training:
        return "flex_attention has no backward pass on the CPU"
    return missing_compiler()


def _int8_refuses(case: Case) -> str | None:
    return "int8 products have no backward pass" if case.training else None


def _triton_refuses(case: Case) -> str | None:
    if case.device == "cpu":
        return "Triton kernels need a GPU (on a CPU there is only Triton's interpreter, which is no backend)"
    head_dim = case.shape.width // case.shape.heads
    if head_dim > 256:
        return f"fusionbench_kernels takes head dims up to 256, not {head_dim}"
    if case.design.causal and case.mode != "decode":  # one new token sees all that there is
        return "fusionbench_kernels has no causal attention"
    return None


def _projected_refuses(case: Case) -> str | None:
    d = case.design
    if d.kv_heads or d.qk_norm or not (d.qkv_bias and d.out_bias):
        return "attention with its projections inside takes no shared key heads, no norms of heads, and has biases"
    return _triton_refuses(case)


def _absorbed_refuses(case: Case) -> str | None:
    if case.training:
        return "absorbed attention is for inference: its products of weights have no gradients"
    if case.dtype not in ("fp16", "bf16"):
        return f"absorbed attention has kernels for fp16 and bf16, not for {case.dtype}"
    return _projected_refuses(case)


def _sage_refuses(case: Case) -> str | None:
    if case.device == "cpu":
        return "sageattention has kernels for CUDA only"
    if case.design.causal:
        return "causal attention is not offered to sageattention here"
    if case.training or case.padding:
        return "sageattention has no backward pass" if case.training else "sageattention takes no padding mask"
    if case.shape.width // case.shape.heads > 128:
        return f"sageattention takes head dims up to 128, not {case.shape.width // case.shape.heads}"
    if importlib.util.find_spec("sageattention") is None:
        return "needs the package sageattention, which is not installed here (pip install sageattention==1.0.6)"
    return None


def _triton_int8_refuses(case: Case) -> str | None:
    return _int8_refuses(case) or _triton_refuses(case)


def _sparse_refuses(case: Case) -> str | None:
    if case.prune != prune.TWO_OF_FOUR:
        return f"backend 'sparse' reads weights pruned to 2:4, not '{case.prune}' (use prune '2:4')"
    if case.device == "cpu" or case.dtype not in ("fp16", "bf16"):
        return "sparse tensor cores are NVIDIA's (sm_80 and newer) and compute in fp16 and bf16"
    return "packed weights are not trained" if case.training or case.adapt != "full" else None


def _compress(module: nn.Module) -> nn.Module:
    if prune.compress(module) == 0:
        raise FusionbenchError("backend 'sparse' found no Linear layer to pack")
    return module


def _compile(module: nn.Module) -> nn.Module:
    # Static shapes: a job has one shape, and a dynamic kernel would answer another question.
    return torch.compile(module, dynamic=False)  # type: ignore[return-value]


def _quantize(module: nn.Module) -> nn.Module:
    if quantize_linears(module) == 0:
        raise FusionbenchError("backend 'int8' found no Linear layer to quantise")
    return module


def _quantize_for_triton(module: nn.Module) -> nn.Module:
    quantize_linears(module, TritonInt8Linear)
    return module


def _pinned(kernel: SDPBackend) -> Callable[[], AbstractContextManager[object]]:
    return lambda: sdpa_kernel(kernel)


_ALL = (
    Backend("eager", "eager", "plain matmul and softmax; the yardstick for errors"),
    Backend("sdpa", "sdpa", "scaled_dot_product_attention, PyTorch picks the kernel (recorded)"),
    Backend("sdpa-flash", "sdpa", "SDPA pinned to flash attention", _flash_refuses,
            context=_pinned(SDPBackend.FLASH_ATTENTION)),
    Backend("sdpa-efficient", "sdpa", "SDPA pinned to memory-efficient attention", _needs_cuda,
            context=_pinned(SDPBackend.EFFICIENT_ATTENTION)),
    Backend("sdpa-cudnn", "sdpa", "SDPA pinned to cuDNN's attention", _cudnn_refuses,
            context=_pinned(SDPBackend.CUDNN_ATTENTION)),
    Backend("sdpa-math", "sdpa", "SDPA pinned to the unfused math path", context=_pinned(SDPBackend.MATH)),
    Backend("flex", "flex", "flex_attention under torch.compile", _flex_refuses, compiles=True),
    Backend("compile", "sdpa", "the whole module under torch.compile, static shapes", _compile_refuses, _compile,
            transforms=True, compiles=True),
    Backend("int8", "sdpa", "W8A8 dynamic: every Linear over int8 products, attention as in sdpa", _int8_refuses,
            _quantize, transforms=True, int8=True),
    Backend("sparse", "sdpa", "weights pruned to 2:4 on sparse tensor cores, attention as in sdpa", _sparse_refuses,
            _compress, transforms=True),
    Backend("triton", "triton", "hand-written Triton kernels", _triton_refuses),
    Backend("triton-projected", "triton_projected", "Triton: attention with its query and output projections inside",
            _projected_refuses),
    Backend("triton-absorbed", "triton_absorbed", "Triton: projections multiplied into keys and values, in every call",
            _absorbed_refuses),
    Backend("triton-int8", "triton_int8", "Triton: W8A8 as in int8, attention scores in int8, too",
            _triton_int8_refuses, _quantize_for_triton, transforms=True, int8=True),
    Backend("sage", "sage", "SageAttention's int8 scores, from the package sageattention (1.0.6) where it is installed",
            _sage_refuses, int8=True),
)  # fmt: skip

BACKENDS = {backend.name: backend for backend in _ALL}


def get(name: str) -> Backend:
    """The backend called ``name``; raises UnknownNameError with the nearest one."""
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, BACKENDS)
    return BACKENDS[name]
