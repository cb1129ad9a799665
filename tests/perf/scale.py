"""Runs of a million records for the store's speed tests, as a GPU leaves them: every measured figure is its own."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from fusionbench import store
from fusionbench.record import Accuracy, Costs, Deviation, DeviceState, Memory, Record, Timing, encode_line
from fusionbench.spec import Case, Job, Shape
from tests.synthetic import BACKENDS, ENVIRONMENTS, STRATEGIES

SAMPLES, ROUNDS = 30, 6
LENGTHS = (32, 64, 77, 128, 256, 577, 1024, 2048)
MARK = 123456789  # stands for what differs from record to record
PHASES = ("build", "first call", "accuracy", "time", "memory")


def write_run(results: Path, count: int, *, shards: int = 8) -> Path:
    """A run of ``count`` jobs measured in 6 rounds, 5 samples each, in ``shards`` shards of equal size."""
    run = store.create(results, store.new_manifest(suite_name="scale", suite_hash="h"), "")
    (environment,) = ENVIRONMENTS.values()
    lines = _lines(environment.id)
    for number in range(shards):
        with (run / store.SHARDS / f"scale-1-{number}.jsonl").open("wb") as file:
            file.write(_seal(encode_line(environment)))
            file.writelines(itertools.islice(lines, count // shards))
    return run


def _lines(environment: str) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    jobs = enumerate(_jobs())
    while chosen := list(itertools.islice(jobs, 10_000)):
        count = len(chosen)
        centre = rng.uniform(50_000, 5_000_000, (count, 1))
        samples = _lists((centre * rng.lognormal(0, 0.01, (count, SAMPLES))).astype(int))
        control = _lists((1e6 * rng.lognormal(0, 0.01, (count, ROUNDS))).astype(int))
        figures = (rng.lognormal(0, 1, (count, 8)) * 1e-4).tolist()
        seconds = rng.uniform(0, 1, (count, len(PHASES))).tolist()
        watts = rng.uniform(200, 700, count).tolist()
        first = (centre[:, 0] * rng.uniform(10, 50, count)).astype(int).tolist()
        for row, (number, job) in enumerate(chosen):
            template = _template(job, environment)
            moment = f"2026-03-{number // 86_400 % 28 + 1:02d}T{number // 3600 % 24:02d}:{number // 60 % 60:02d}"
            values = (
                *(samples[row], first[row], control[row], watts[row], *figures[row]),
                *(f"{moment}:{number % 60:02d}.{number % 997:03d}+00:00", sum(seconds[row]), *seconds[row]),
            )
            yield _seal((template % values).encode())


def _jobs() -> Iterator[Job]:
    for batch in itertools.count(1):
        for mode, dtype, image, text in itertools.product(("fwd", "step"), ("bf16", "fp16", "fp32"), LENGTHS, LENGTHS):
            shape = Shape(batch=batch, image=image, text=text, image_width=768, text_width=768, width=768, heads=12)
            case = Case(shape=shape, dtype=dtype, device="cuda", mode=mode)  # type: ignore[arg-type]
            for strategy, backend in itertools.product(STRATEGIES, BACKENDS):
                yield Job(strategy=strategy, backend=backend, case=case)


def _template(job: Job, environment: str) -> str:
    """The line of a job's record, with a %s for each measured value."""
    tokens = job.case.shape.batch * (job.case.shape.image + job.case.shape.text)
    costs = Costs(flops=tokens * 10**7, params=10**7, min_bytes=tokens * 3072, activation_bytes=tokens * 6144)
    peak = Memory(peak_bytes=tokens * 9216, resting_bytes=4 * 10**7, meter="cuda_allocator")
    text = encode_line(replace(_RECORD, job=job, costs=costs, memory=peak, environment=environment)).decode()
    rounds = [SAMPLES // ROUNDS] * ROUNDS  # of the samples that are not there yet
    for mark, slot in ((f"[{MARK}]", "%s"), (f'"{MARK}"', '"%s"'), (f"{MARK}.0", "%r"), (f"{MARK}", "%d")):
        text = text.replace(mark, slot)
    return text.replace('"rounds":[]', f'"rounds":{rounds}')


def _lists(rows: np.ndarray) -> list[str]:
    return ["[" + ",".join(map(str, row)) + "]" for row in rows.tolist()]


def _seal(body: bytes) -> bytes:
    return body + b"\t%08x\n" % zlib.crc32(body)


_FIGURE = Deviation(max_abs=float(MARK), mean_abs=float(MARK), rel_l2=float(MARK), cosine=float(MARK))
_RECORD = Record(
    job=next(_jobs()),
    status="ok",
    time=Timing(
        timer="cuda_event",
        cache="cold",
        loops=1,
        samples_ns=(MARK,),
        stop="budget",
        first_call_ns=MARK,
        warmup_calls=9,
        threads=1,
        seeds=tuple(range(ROUNDS)),
        control_ns=(MARK,),
    ),
    device=DeviceState(
        sm_mhz=(1755, 1980, 1980), memory_mhz=(2619, 2619, 2619), power_watts=float(MARK), temperature_c=45
    ),
    accuracy=Accuracy(reference="fp64", samples=2, output=_FIGURE, yardstick=_FIGURE),
    kernels=("aten::_scaled_dot_product_flash_attention",),
    source="5f3a0c11d2e4b677",
    started_at=str(MARK),
    wall_s=float(MARK),
    phases_s=dict.fromkeys(PHASES, float(MARK)),
)
