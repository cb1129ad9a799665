"""A fixed piece of work, timed beside the samples: what it gains or loses, the machine did and not the subject."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter_ns

import torch

from .cuda_time import event_pair

REPEATS = 5
# On one thread of a CPU 0.2 ms of arithmetic and 0.05 ms of memory (an EPYC); on a GPU as much as a few kernels take.
CPU_WIDTH, CPU_FLOATS = 192, 1 << 20
CUDA_WIDTH, CUDA_FLOATS = 2048, 1 << 24


@torch.no_grad()
def control_ns(device: torch.device) -> int:
    """Nanoseconds of a product and of a pass over a buffer: the median of five, after one untimed.

    fp32 on the CPU and fp16 on CUDA, whose products no setting of the job changes. Threads are those of the process.
    """
    cuda = device.type == "cuda"
    width, floats, dtype = (CUDA_WIDTH, CUDA_FLOATS, torch.float16) if cuda else (CPU_WIDTH, CPU_FLOATS, torch.float32)
    # Random, as like numbers cost a GPU less power, and of a generator of its own: the job's numbers stay the same.
    random = torch.Generator(device).manual_seed(0)
    x = torch.rand(width, width, dtype=dtype, device=device, generator=random)
    buffer = torch.ones(floats, device=device, dtype=torch.float32)

    def work() -> None:
        torch.mm(x, x)
        buffer.neg_()

    work()
    return round(median((_device_ns if cuda else _wall_ns)(work, device) for _ in range(REPEATS)))


def _wall_ns(work: Callable[[], None], device: torch.device) -> float:
    start = perf_counter_ns()
    work()
    return perf_counter_ns() - start


def _device_ns(work: Callable[[], None], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    begin, end = event_pair()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) * 1e6
