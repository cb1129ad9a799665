"""The kernels of several products once each, at sizes with tails: the program that compute-sanitizer watches."""

from __future__ import annotations

import sys

import torch

from tests.kernels.gpu_calls import CALLS, SANITIZED

if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:] or SANITIZED:
        for result in CALLS[name].make(True)():
            if not bool(result.isfinite().all()):
                sys.exit(f"{name}: not finite")
    torch.cuda.synchronize()
