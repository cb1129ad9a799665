"""Settings of the whole process that decide what a timing means: noticed when a job changes them, and put back."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.backends import cuda, cudnn


@dataclass(frozen=True)
class Setting:
    """One global, by the name under which a user knows it."""

    read: Callable[[], object]
    write: Callable[..., object]


def _attribute(owner: object, name: str) -> Setting:
    return Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _autocast(device: str) -> Setting:
    return Setting(
        lambda: torch.is_autocast_enabled(device), lambda enabled: torch.set_autocast_enabled(device, enabled)
    )


def _set_default_device(device: torch.device) -> None:
    # "cpu" is the state without a default, and setting it would put a mode around every call.
    torch.set_default_device(None if device == torch.device("cpu") else device)


MEASURED: Mapping[str, Setting] = {
    "torch.set_num_threads": Setting(torch.get_num_threads, torch.set_num_threads),
    "torch.set_default_dtype": Setting(torch.get_default_dtype, torch.set_default_dtype),
    "torch.set_default_device": Setting(torch.get_default_device, _set_default_device),
    "torch.set_grad_enabled": Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.autocast('cpu')": _autocast("cpu"),
    "torch.autocast('cuda')": _autocast("cuda"),
    "torch.set_float32_matmul_precision": Setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "torch.backends.cuda.matmul.allow_tf32": _attribute(cuda.matmul, "allow_tf32"),
    "torch.backends.cudnn.allow_tf32": _attribute(cudnn, "allow_tf32"),
    "torch.backends.cudnn.benchmark": _attribute(cudnn, "benchmark"),
    "torch.backends.cudnn.deterministic": _attribute(cudnn, "deterministic"),
    "torch.use_deterministic_algorithms": Setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms
    ),
    "torch.backends.cuda.enable_flash_sdp": Setting(cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    "torch.backends.cuda.enable_mem_efficient_sdp": Setting(
        cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp
    ),
    "torch.backends.cuda.enable_math_sdp": Setting(cuda.math_sdp_enabled, cuda.enable_math_sdp),
    "torch.backends.cuda.enable_cudnn_sdp": Setting(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
}


def _handler(number: int) -> Setting:
    return Setting(lambda: signal.getsignal(number), lambda handler: signal.signal(number, handler))


# What a job may change without making its timing another one, but not for those who come after it.
HOUSEHOLD: Mapping[str, Setting] = {
    "the working directory": Setting(os.getcwd, os.chdir),
    "the handler of SIGINT": _handler(signal.SIGINT),
    "the handler of SIGTERM": _handler(signal.SIGTERM),
}


@dataclass(frozen=True)
class Kept:
    """The values that the settings had."""

    measured: Mapping[str, object]
    household: Mapping[str, object]

    def changed(self) -> str | None:
        """The reason why what was measured was not what the suite declares; None: the settings are as they were."""
        now = _read(MEASURED)
        for name, value in self.measured.items():
            if now[name] != value:
                return f"changed {name} from {value} to {now[name]} while it was measured"
        return None

    def notes(self) -> tuple[str, ...]:
        """What else the job changed, and that it is put back."""
        now = _read(HOUSEHOLD)
        return tuple(
            f"changed {name}; it is put back, the strategy should leave it alone"
            for name in now
            if now[name] != self.household[name]
        )


@contextlib.contextmanager
def kept() -> Iterator[Kept]:
    """Put back behind the block what it changes of the settings, and of the filters of warnings."""
    before = Kept(_read(MEASURED), _read(HOUSEHOLD))
    try:
        with warnings.catch_warnings():
            yield before
    finally:
        _restore(MEASURED, before.measured)
        _restore(HOUSEHOLD, before.household)


def _read(settings: Mapping[str, Setting]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, setting in settings.items():
        try:
            found[name] = setting.read()
        except (RuntimeError, OSError) as error:  # torch will not name a precision that was set in two ways
            found[name] = f"something that cannot be read ({type(error).__name__})"
    return found


def _restore(settings: Mapping[str, Setting], values: Mapping[str, object]) -> None:
    for name, value in _read(settings).items():
        if value != values[name]:
            # A handler that was set from C cannot be, nor a folder that is gone.
            with contextlib.suppress(RuntimeError, OSError, TypeError, ValueError):
                settings[name].write(values[name])
