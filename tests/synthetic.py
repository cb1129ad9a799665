"""Plausible records without measuring anything: the same ones for the same seed."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np

from fusionbench.record import Accuracy, Costs, Deviation, Energy, Environment, Memory, Record, Timing
from fusionbench.spec import Case, Job, Shape

STRATEGIES = {  # work per token relative to cross-attention, quadratic share, constant share
    "concat": (0.55, 0.0, 0.45),
    "concat_attention": (1.6, 2.2, 1.0),
    "cross_attention": (1.0, 1.0, 1.0),
    "cross_attention:image_to_text": (1.05, 1.0, 1.0),
    "co_attention": (2.1, 2.0, 1.8),
    "gated": (1.1, 1.0, 1.2),
    "late:vote": (0.3, 0.0, 0.75),
    "film": (0.302, 0.0, 0.745),
    "perceiver": (0.25, 0.0, 1.7),
    "bilinear": (0.8, 0.0, 0.9),
}
BACKENDS = {"eager": 1.0, "sdpa": 0.62, "compile": 0.6, "flex": 0.7}
LENGTHS = (32, 64, 128, 256, 577, 1024)
ERROR = {"fp32": 3e-7, "tf32": 4e-4, "fp16": 5e-4, "bf16": 4e-3, "int8": 1.5e-2}
SPEED = {"fp32": 1.0, "tf32": 0.45, "fp16": 0.3, "bf16": 0.3, "int8": 0.22}
FAILURES = {
    "oom": ("time", "CUDA out of memory: tried to allocate 12.00 GiB (GPU 0 has 3.10 GiB free)"),
    "error": ("build", "RuntimeError: expected head_dim to be a multiple of 8, got 12"),
    "wrong": ("accuracy", "relative error 0.41 is 97 × that of eager PyTorch (allowed: 2 ×)"),
    "crash": ("warm-up", "worker died of SIGSEGV"),
    "timeout": ("time", "no answer within 300 s"),
}

ENVIRONMENTS = {
    "h100-a": Environment(
        id="h100-a",
        machine="gpu-node-07",
        system="Linux 6.8.0 x86_64",
        python="3.12.4",
        torch="2.13.0",
        triton="3.7.1",
        cpu="Intel Xeon Platinum 8481C",
        cores=26,
        memory_bytes=234 * 2**30,
        cpu_flags=("avx512f", "amx_bf16"),
        gpu="NVIDIA H100 80GB HBM3",
        gpu_count=1,
        capability="9.0",
        driver="575.57",
        cuda="13.0",
        power_limit_w=700.0,
        commit="9964717d2c",
        fusionbench="0.1.0",
    )
}


def records(n: int, seed: int = 0) -> list[Record]:
    """``n`` records; the number of lengths and conditions grows with ``n``, so that a small set is a small run."""
    lengths = LENGTHS if n > 2000 else LENGTHS[1::2] if n > 100 else LENGTHS[2:4]
    return list(itertools.islice(_endless(lengths, seed), n))


def smoke(seed: int = 0) -> list[Record]:
    """A 30-job run: five strategies, three backends, two text lengths, one image length."""
    rng = random.Random(seed)
    names = ("concat", "concat_attention", "cross_attention", "gated", "late:vote")
    return [
        record(Job(strategy=s, backend=b, case=_case(64, text)), rng)
        for text in (16, 64)
        for s in names
        for b in ("eager", "sdpa", "compile")
    ]


def _case(image: int, text: int, *, batch: int = 4, width: int = 512, **conditions: object) -> Case:
    shape = Shape(batch=batch, image=image, text=text, image_width=768, text_width=768, width=width, heads=width // 64)
    return Case(shape=shape, **conditions)  # type: ignore[arg-type]


def _endless(lengths: tuple[int, ...], seed: int) -> Iterator[Record]:
    rng = random.Random(seed)
    for batch in itertools.count(1):
        for width, mode, device, dtype in itertools.product(
            (512, 1024), ("fwd", "fwd_bwd"), ("cuda", "cpu"), ("bf16", "fp32", "int8", "fp16")
        ):
            conditions = {"batch": 4 * batch, "width": width, "mode": mode, "device": device, "dtype": dtype}
            for image, text in itertools.product(lengths, lengths):
                case = _case(image, text, **conditions)
                for strategy, backend in itertools.product(STRATEGIES, BACKENDS):
                    yield record(Job(strategy=strategy, backend=backend, case=case), rng)


def record(job: Job, rng: random.Random) -> Record:
    """One outcome: mostly ok, now and then a failure, and a skip where a strategy has no such backend."""
    common = {"source": "5f3a0c11d2e4b677", "environment": "h100-a", "started_at": "2026-03-02T10:00:00Z"}
    if job.strategy == "concat" and job.backend != "eager":
        reason = f"backend '{job.backend}' skips 'concat': it has no '{job.backend}' impl (has: eager)"
        return Record(job=job, status="skipped", reason=reason, **common)
    if job.case.dtype == "int8" and job.case.mode == "fwd_bwd":
        return Record(job=job, status="skipped", reason="int8 is inference only", **common)
    if rng.random() < 0.012:
        status = rng.choice(sorted(FAILURES))
        phase, reason = FAILURES[status]
        return Record(job=job, status=status, phase=phase, reason=reason, wall_s=2.0, **common)  # type: ignore[arg-type]
    return _measured(job, rng, common)


def _measured(job: Job, rng: random.Random, common: dict[str, str]) -> Record:
    case, s = job.case, job.case.shape
    linear, quadratic, constant = STRATEGIES[job.strategy]
    tokens = s.image + s.text
    flops = int(s.batch * (linear * tokens * 8 * s.width**2 + quadratic * 4 * s.image * s.text * s.width)) * 2
    mode = 3 if case.mode == "fwd_bwd" else 1
    slow = 40 if case.device == "cpu" else 1
    overhead_ns = 28_000 * constant * (1 if case.device == "cuda" else 0.4) * (0.5 if job.backend == "compile" else 1)
    work_ns = flops / 150_000 * SPEED[case.dtype] * slow * (1 if linear < 0.5 else BACKENDS[job.backend])
    centre = (overhead_ns + work_ns) * mode * (1 + 0.02 * rng.random())
    count = rng.randint(20, 50)
    noise = np.random.default_rng(rng.getrandbits(32)).lognormal(0, 0.02, count)
    samples = (centre * noise).astype(np.int64) + 1
    error = ERROR[case.dtype] * (1 + 0.4 * rng.random()) * (1 + 0.08 * math.log2(tokens))
    scores = 2 * s.batch * s.heads * s.image * s.text if job.backend == "eager" and quadratic else 0
    peak = int((s.batch * tokens * s.width * 4 * (1 + 3 * linear) + scores) * mode)
    return Record(
        job=job,
        status="ok",
        time=Timing(
            timer="cuda_event" if case.device == "cuda" else "wall",
            cache="cold" if case.device == "cuda" else "hot",
            loops=1,
            samples_ns=tuple(samples.tolist()),
            run_delay_ns=tuple((samples // 200).tolist()) if case.device == "cpu" else (),
            stop="precise" if count < 45 else "budget",
            first_call_ns=int(centre * 40),
            warmup_calls=5,
            threads=1,
        ),
        memory=Memory(
            peak_bytes=peak,
            resting_bytes=12 * s.width**2,
            meter="cuda_allocator" if case.device == "cuda" else "cpu_profiler",
        ),
        energy=Energy(joules=3.5, calls=100, window_s=0.5, meter="nvml") if rng.random() < 0.1 else None,
        accuracy=Accuracy(
            reference="fp64", samples=s.batch, output=_deviation(error), yardstick=_deviation(error * 0.9)
        ),
        costs=Costs(
            flops=flops * mode,
            params=int(linear * 12 * s.width**2),
            min_bytes=peak,
            activation_bytes=peak // 2,
            counted_flops=None if job.backend == "compile" else flops * mode,
        ),
        kernels=() if job.backend == "eager" else ("aten::_scaled_dot_product_flash_attention",),
        wall_s=round(0.4 + rng.random(), 3),
        phases_s={"build": 0.1, "time": 0.3},
        **common,
    )


def _deviation(error: float) -> Deviation:
    return Deviation(max_abs=error * 8, mean_abs=error * 0.7, rel_l2=error, cosine=1 - error**2 / 2)
