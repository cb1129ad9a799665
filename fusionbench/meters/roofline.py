"""What a device does at best: its rate of matrix products in one dtype, and of moving bytes by working set.

The best of several tries counts: a ceiling is what nothing disturbed, so that a busy machine costs tries and not truth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from time import perf_counter

import torch
from torch import Tensor

from ..record import Roofline
from ..spec import Dtype
from ..stats import median

Call = Callable[[], object]

# [N, N] x [N, N], grown until a product takes LONG_S. On M1 fp32 is within 3 % of its best from 256 on, which takes
# 0.3 ms: short enough to fall into one time slice beside other processes.
SQUARES = {"cpu": (128, 256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
SKINNY = {"cpu": (32, 1024, 1024), "cuda": (128, 4096, 4096)}  # few rows through a wide layer: rows, inputs, outputs
LONG_S = 5e-3
TRY_S = 0.04  # for the tries of one size, of which there are at least 2
MOST_TRIES = 30

WORKING_SETS = (256 << 10, 2 << 20, 16 << 20, 256 << 20)  # on the CPU: in L2, about L2, in L3, in memory
IN_L2 = (0.5, 2.0, 8.0)  # on CUDA, in sizes of its L2: a launch outlasts the copy of anything smaller
PIECE = 8 << 20  # bytes that are timed at once on the CPU: 0.1 to 0.3 ms on M1
QUEUED = 10  # operations between two CUDA events, whose own microseconds then weigh little
FLOAT = 4  # bytes of an fp32


def measure(device: str, dtype: Dtype, threads: int, environment: str) -> Roofline:
    """The roofline of ``device`` for jobs in ``dtype`` with ``threads``; ``environment`` is an id, and only noted.

    FLOP/s are the best of square products and a skinny one, 2 per multiply-add, over every way in which a job of the
    dtype may compute them (see ``_ways``). Bytes/s are the better of a copy and a triad (a = b + s·c) of fp32, counted
    as read plus written: that a CPU reads a line before it writes it is not counted, and jobs pay the same. What was
    measured for one dtype is not measured again for the next. Threads and precision are as before afterwards.
    Raises RuntimeError where the device has no such product or too little memory.
    """
    place = torch.device(device)
    return Roofline(
        device=device,
        dtype=dtype,
        threads=threads,
        environment=environment,
        flops_per_s=max(_products(device, way, threads) for way in _ways(dtype, place)),
        bytes_per_s=_bandwidth(device, threads),
        measured_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _ways(dtype: Dtype, place: torch.device) -> tuple[Dtype, ...]:
    """The dtypes in which a job of ``dtype`` may compute: its own, and the one that carries it where that is faster.

    int8 jobs compute attention in their carrier, and halves that a CPU emulates are faster as fp32: on M1 attention
    reaches 29 GFLOP/s in fp16, whose matmul reaches 23.
    """
    if dtype == "int8":
        return ("int8", "fp32") if place.type == "cpu" else ("int8", "bf16")
    return (dtype, "fp32") if dtype in ("fp16", "bf16") else (dtype,)


@functools.cache
def _products(device: str, dtype: Dtype, threads: int) -> float:
    """FLOP/s of the fastest product."""
    place, best = torch.device(device), 0.0
    with _settings(place, dtype, threads):
        for size in SQUARES[place.type]:
            seconds = _fastest([_product(place, dtype, size, size, size)], place)
            best = max(best, 2 * size**3 / seconds)
            if seconds >= LONG_S:
                break
        rows, inputs, outputs = SKINNY[place.type]
        seconds = _fastest([_product(place, dtype, rows, inputs, outputs)], place)
        return max(best, 2 * rows * inputs * outputs / seconds)


def _product(place: torch.device, dtype: Dtype, rows: int, inputs: int, outputs: int) -> Call:
    """x Wᵀ as a Linear computes it, [rows, inputs] and [outputs, inputs], of random numbers."""
    if dtype == "int8":
        x, w = (torch.randint(-127, 128, (n, inputs), dtype=torch.int8, device=place) for n in (rows, outputs))
        return lambda: torch._int_mm(x, w.t())
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(dtype, torch.float32)
    x, w = (torch.randn(n, inputs, device=place).to(kind) for n in (rows, outputs))
    return lambda: torch.nn.functional.linear(x, w)


@functools.cache
def _bandwidth(device: str, threads: int) -> tuple[tuple[int, float], ...]:
    """(bytes of the working set, bytes/s), smallest first.

    A smaller set is no slower than a larger one: where it was, starting the operations took the time.
    """
    place, best, curve = torch.device(device), 0.0, []
    with _settings(place, "fp32", threads):
        for size in reversed(_working_sets(place)):
            best = max(best, _rate(_copy, 2, size, place), _rate(_triad, 3, size, place))
            curve.append((size, best))
    return tuple(reversed(curve))


def _working_sets(place: torch.device) -> Sequence[int]:
    if place.type == "cpu":
        return WORKING_SETS
    cache = torch.cuda.get_device_properties(place).L2_cache_size or 4 << 20  # unknown to some drivers
    return [int(times * cache) for times in IN_L2]


def _rate(operation: Callable[..., object], arrays: int, size: int, place: torch.device) -> float:
    """Bytes/s of an operation over ``arrays`` arrays that take ``size`` bytes together.

    A pass over a large set on the CPU outlasts a time slice (8 ms for 256 MB on M1, where slices are 3 ms), so it is
    timed in pieces, and its median piece stands for all of them.
    """
    count = size // (FLOAT * arrays)
    held = [_numbers(count, place) for _ in range(arrays)]
    pieces = max(1, size // PIECE) if place.type == "cpu" else 1
    parts: list[tuple[Tensor, ...]] = list(zip(*(array.chunk(pieces) for array in held), strict=True))
    calls = max(1, PIECE // size) if place.type == "cpu" else QUEUED

    def call(part: Sequence[Tensor]) -> None:
        for _ in range(calls):
            operation(*part)

    seconds = _fastest([functools.partial(call, part) for part in parts], place)
    return calls * arrays * FLOAT * parts[0][0].numel() / seconds


def _copy(a: Tensor, b: Tensor) -> None:
    a.copy_(b)


def _triad(a: Tensor, b: Tensor, c: Tensor) -> None:
    torch.add(b, c, alpha=3.0, out=a)


def _numbers(count: int, place: torch.device) -> Tensor:
    """``count`` random fp32; all of them drawn would take 1 s for 256 MB on M1."""
    drawn = torch.randn(min(count, 1 << 16), device=place)
    return drawn.repeat(-(-count // len(drawn)))[:count]


def _fastest(calls: Sequence[Call], place: torch.device) -> float:
    """Seconds of the median call of the fastest of several passes over ``calls``, after one that is not timed."""
    elapsed = _on_gpu if place.type == "cuda" else _on_cpu
    passes: list[float] = []
    for call in calls:
        call()
    end = perf_counter() + TRY_S
    while len(passes) < 2 or (len(passes) < MOST_TRIES and perf_counter() < end):
        passes.append(median(sorted(elapsed(call) for call in calls)))
    return min(passes)


def _on_cpu(call: Call) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _on_gpu(call: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


@contextmanager
def _settings(place: torch.device, dtype: Dtype, threads: int) -> Iterator[None]:
    """As a worker computes ``dtype``; afterwards as before."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if dtype == "tf32" and place.type == "cuda" else "highest")
    try:
        with torch.inference_mode(), torch.cuda.device(place) if place.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
