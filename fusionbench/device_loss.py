"""What an error says about the device that it came from: gone, or only dead for the process that it came to."""

from __future__ import annotations

from typing import Literal

Loss = Literal["gone", "poisoned"]

# CUDA reports most errors at some later call and through whatever library made it (torch, cuBLAS, Triton), so that the
# words are all that they have in common; a record keeps them too. Codes are those of cudaError_t.
GONE = (
    "DeviceLostError",  # NVML's word, see nvml.py
    "GPU is lost",
    "no CUDA-capable device",  # 100
    "No CUDA GPUs are available",
    "invalid device ordinal",  # 101
    "busy or unavailable",  # 46; an exclusive device that someone else has, or one that no longer answers
    "system not yet initialized",  # 802
    "CUDA unknown error",  # 999 at the first call
    "Found no NVIDIA driver",
)
POISONED = (
    "unspecified launch failure",  # 719
    "illegal memory access",  # 700
    "launch timed out",  # 702
    "device-side assert",  # 710
    "hardware stack error",  # 714
    "illegal instruction",  # 715
    "misaligned address",  # 716
    "operation not supported on global/shared address space",  # 717
    "invalid program counter",  # 718
    "uncorrectable ECC error",  # 214
    "uncorrectable NVLink error",  # 220
    "context is destroyed",  # 709
    "CUDA error: unknown error",  # 999 later on
)
_GONE_CODES = {46, 100, 101, 802}
_POISONED_CODES = {214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999}


def loss(error: BaseException | str) -> Loss | None:
    """``gone``: no process can use the device now, so nothing more is given to it. ``poisoned``: every later call of
    this process fails as well, and a new one is fine. None: neither, as for every error that is not the device's.

    Takes an exception or its text, as a record's reason.
    """
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    code = getattr(error, "error_code", None) if type(error).__name__ == "AcceleratorError" else None
    if code in _GONE_CODES or any(words in text for words in GONE):
        return "gone"
    if code in _POISONED_CODES or any(words in text for words in POISONED):
        return "poisoned"
    return None
