"""Calls under Proton, Triton's own profiler."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import FusionbenchError, printable
from .request import refuse_existing


def proton(call: Callable[[], object], calls: int, path: Path) -> str:
    """Profile ``call`` with Triton's own profiler into ``path`` (.hatchet); returns the path. Needs a CUDA device."""
    try:
        profiler = importlib.import_module("triton.profiler")
    except ImportError as error:
        raise FusionbenchError(f"proton is not in this triton: {printable(str(error))}") from error
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    session = profiler.start(str(path.with_suffix("")), hook="triton")  # it adds the suffix itself
    try:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    finally:
        profiler.finalize(session, output_format="hatchet")
    return str(path)
