"""What the views of the report are shown with, without measuring: two runs, many runs, systems, warnings, kernels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fusionbench import comparison, presets, timeline
from fusionbench.delta import Comparison
from fusionbench.history import History
from fusionbench.inspection import Inspected, Inspection
from fusionbench.record import Accuracy, Costs, Deviation, DeviceState, Environment, Memory, Record, Timing
from fusionbench.report import page
from fusionbench.report.frame import frame
from fusionbench.report.views import Views
from fusionbench.spec import Job
from fusionbench.store import Run
from tests import comparing, past
from tests.hostile import TEXTS
from tests.synthetic import ENVIRONMENTS, records, smoke

NOTES = (
    "waited 14% of the time for a core; close other programs or use fewer threads",
    "bf16 is emulated on this CPU (no avx512_bf16 or amx_bf16 or bf16); its time says nothing about hardware with it",
    "'cuda' throttled (SwPowerCap) while samples were taken, and no better ones came",
    "two calls on the same inputs differ by 1.2e-07 (relative L2)",
    "a plugin has 3 things to say",
)


def write(path: Path, items: list[Record], environments: dict[str, Environment] = ENVIRONMENTS, **beside: Any) -> Path:
    """A page with every view that ``items`` and ``beside`` have something for."""
    options = {name: beside.pop(name) for name in ("title", "command") if name in beside}
    return page.write(path, frame(items, environments), environments, beside=Views(items, **beside), **options)


def two_runs(folder: Path) -> tuple[Run, Run]:
    """Base and head of 14 jobs: 1 slower, 2 faster, 3 crashes, 4 is fixed, 5 has more FLOPs, 6 is gone, 7 is new, 8 has
    too few rounds, the others as they were."""
    same = range(9, 15)
    base = [
        *(comparing.record(n) for n in (1, 2, 3, 5, 6, *same)),
        comparing.failed(4),
        comparing.record(8, time=comparing.timing(rounds=3)),
    ]
    more = replace(comparing.COSTS, flops=1200)
    head = [
        comparing.record(1, 1.24, seed=1),
        comparing.record(2, 0.8, seed=1),
        comparing.failed(3),
        comparing.record(4, seed=1),
        comparing.record(5, 1.001, seed=1, costs=more),
        comparing.record(7, seed=1),
        comparing.record(8, seed=1, time=comparing.timing(1.02, rounds=3)),
        *(comparing.record(n, 1.002, seed=1) for n in same),
    ]
    later = {"started_at": "2026-11-22T00:00:00.000+00:00"}
    return comparing.run(folder / "base", *base), comparing.run(folder / "head", *(replace(r, **later) for r in head))


def compared(path: Path, base: Run, head: Run, **options: Any) -> Path:
    """The page of two runs."""
    found = comparison.of(base, head, ("main", "branch"))
    return write(
        path, base.records + head.records, {**base.environments, **head.environments}, comparison=found, **options
    )


def hostile_comparison() -> Comparison:
    """Two runs whose every text tries to break out, of jobs that the page's table does not have."""
    from tests import deltas

    return deltas.hostile().comparison


def days(count: int = 40) -> list[Run]:
    """Runs of six jobs: 1 is slower from day 12 on, 2 has more memory from day 20 on."""
    times = {job: past.noisy([1e6] * count, 0.02, job) for job in range(1, 7)}
    return [
        past.run(
            day,
            *(
                past.measured(
                    day,
                    each[day] * (1.3 if job == 1 and day >= 12 else 1),
                    job=job,
                    peak=1 << (21 if job == 2 and day >= 20 else 20),
                )
                for job, each in times.items()
            ),
        )
        for day in range(count)
    ]


def followed(path: Path, runs: list[Run], **options: Any) -> Path:
    """The page of three or more runs."""
    found: History = timeline.build(runs)
    environments = {key: each for run in runs for key, each in run.environments.items()}
    return write(path, [r for run in runs for r in run.records], environments, history=found, **options)


def systems(scale: int = 8, seed: int = 0) -> list[Record]:
    """Each preset's parts at a share of their size, with times and costs made up from their sizes; one runs out of
    memory, one is changed, one was swept over lengths."""
    rng = random.Random(seed)
    found = []
    for label, part in presets.parts(presets.presets()):
        whole = replace(part.case(), preset=label)
        cases = [presets.shrunk(whole, scale)]
        if label == "llava-1.5-7b":
            cases += [replace(cases[0], shape=replace(cases[0].shape, image=n)) for n in (4, 16, 256)]
        if label == "fuyu-8b":
            cases += [replace(cases[0], projector="mlp")]
        found += [
            _system(Job(strategy=part.strategy, backend=b, case=c), rng) for c in cases for b in ("sdpa", "eager")
        ]
    oom = replace(
        found[-1], status="oom", reason="CUDA out of memory", phase="time", time=None, memory=None, costs=None
    )
    return [*found[:-1], oom]


def _system(job: Job, rng: random.Random) -> Record:
    s = job.case.shape
    tokens, params = s.image + s.text, 12 * s.width**2 * max(1, s.depth)
    ns = 2e4 + tokens * params / 4e3 * (1.3 if job.backend == "eager" else 1)
    samples = tuple(round(ns * rng.lognormvariate(0, 0.02)) for _ in range(60))
    error = rng.uniform(1e-7, 9e-7)
    off = Deviation(max_abs=error, mean_abs=error, rel_l2=error, cosine=1 - error)
    return Record(
        job=job,
        status="ok",
        time=Timing(
            timer="wall", cache="hot", loops=1, samples_ns=samples, stop="budget", first_call_ns=round(ns * 9),
            warmup_calls=3, threads=1, rounds=(10,) * 6,
        ),
        memory=Memory(peak_bytes=4 * tokens * s.width * 7, resting_bytes=4 * params, meter="cpu_profiler"),
        accuracy=Accuracy(reference="fp64", samples=1, output=off, yardstick=off),
        costs=Costs(flops=2 * tokens * params, params=params, min_bytes=4 * params, activation_bytes=1000),
        source="s1",
        environment="h100-a",
        started_at="2026-11-21T00:00:00.000+00:00",
    )  # fmt: skip


def warned() -> list[Record]:
    """A small run in which every third job carries warnings, and one the state of a device."""
    items = smoke()
    for index, note in enumerate(NOTES):
        items[3 * index] = replace(items[3 * index], notes=(note, *NOTES[:1]) if index == 2 else (note,))
    state = DeviceState(sm_mhz=(1200, 1755, 1980), power_watts=640.5, temperature_c=71, throttle=("SwPowerCap",))
    items[6] = replace(items[6], device=state)
    return items


def on_triton() -> tuple[list[Record], Inspection]:
    """One job that ran two kernels on a GPU, and the static profile of them: one has two rows that it may have had."""
    ok = [r for r in records(200) if r.status == "ok" and r.job.case.device == "cuda"]
    job = replace(ok[0].job, backend="triton")
    head_dim = job.case.shape.width // job.case.shape.heads
    ran = replace(ok[0], job=job, kernels=("triton:streaming_forward", "triton:combine", "flash"))
    row = Inspected(
        "streaming_forward", "sm_90", {"head_dim": head_dim, "bytes": 2, "queries": 64}, {"BLOCK_Q": 64}, 167, 0, 65536,
        232448, 29824, {"all": 1864, "HGMMA": 8},
    )  # fmt: skip
    rows = [
        replace(row, where={"head_dim": head_dim // 2}, registers=11),  # another head dim: not this one
        replace(row, arch="sm_80", registers=12),
        row,
        replace(row, where={"head_dim": head_dim, "bytes": 2}, registers=255, spill_bytes=8),
        replace(row, where={"bytes": 2}, registers=13),  # the row before surely holds
        replace(row, kernel="combine", where={}, registers=40, shared_bytes=0),
    ]
    return [ran, *ok[1:4]], Inspection("3.7.1", rows)


def hostile_inspection(name: str = TEXTS[0]) -> Inspection:
    rows = [
        Inspected(
            name, "sm_90", {text[:90]: 1}, {text[:90]: 1}, 1, 1, 1, 0, 1, {text[:90]: 1}, error=text * (number % 2)
        )
        for number, text in enumerate(TEXTS)
    ]  # fmt: skip
    return Inspection(TEXTS[1], rows)
