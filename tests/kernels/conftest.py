"""Where the kernels run in these tests: natively on a GPU, else in Triton's interpreter, in a process of its own.

`make test` starts that process with TRITON_INTERPRET=1, which Triton reads at import.
"""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch

from fusionbench_kernels import runtime

NATIVE = torch.cuda.device_count() > 0


def pytest_configure() -> None:
    if not NATIVE and not runtime.INTERPRETED:
        raise pytest.UsageError("no CUDA device: set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter")
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if runtime.INTERPRETED and triton < (3, 7) and numpy >= (2, 4):
        raise pytest.UsageError(
            f"the interpreter of triton {version('triton')} breaks with numpy {version('numpy')}; use numpy below 2.4"
        )


@pytest.fixture
def device() -> str:
    return "cuda" if NATIVE else "cpu"


needs_gpu = pytest.mark.skipif(not NATIVE, reason="bf16 and fp8 are wrong in Triton's interpreter; needs a GPU")
