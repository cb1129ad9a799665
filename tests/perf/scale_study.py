"""How far one sweep scales, by simulation from costs measured here:

    python -m tests.perf.scale_study results/scale/epyc-2core.json docs/pictures

writes costs, curves, machine and commit into the file, and the plot of it into the folder. It needs ray, and a Chromium
for the plot. `python -m tests.perf.scale_study jobs RUN...` prints what results/scale/jobs.json is: the measured jobs that
sweeps are drawn from.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from os import getloadavg
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from fusionbench import present, suite
from fusionbench.environment import capture
from fusionbench.record import Record
from fusionbench.rounds import rounds_of
from fusionbench.slices import Slices
from fusionbench.spec import Budget
from tests.perf import scale_costs, scale_model
from tests.perf.scale_model import Costs, Curve, Job, Outcome

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "results" / "scale" / "jobs.json"
RECORDS = ROOT / "results" / "epyc-2core" / "lengths.parquet"  # what the driver is timed with

COUNTS = (1_000, 10_000, 100_000)  # jobs of a sweep
SLOTS = (1, 3, 10, 30, 100, 300, 1_000, 3_000)
SEEDS = 5
DRIVER, SLICES = "one driver", "slices"

# What the store is timed under: 5,000 visits a second are asked of it. The best of some tries: the disk has other users.
THREADS, VISITS, LENGTH_S, TRIES = 100, 40, 0.02, 5

Jobs = dict[str, list[list[Job]]]  # by sweep: questions
Way = Callable[[Sequence[Sequence[Job]], int, Costs, np.random.Generator], Outcome]

WAYS: dict[str, Way] = {
    DRIVER: scale_model.by_driver,
    SLICES: scale_model.by_slices,
}


# --- what is measured ------------------------------------------------------------------------------------------------


def jobs_of(paths: Sequence[Path]) -> dict[str, Any]:
    """The measured jobs of runs, as jobs.json keeps them."""
    found = {}
    for path in paths:
        run = present.read(path, path.parent)
        budget = run.manifest.budget if run.manifest else _budget(path.stem, run.records)
        name = run.manifest.suite_name if run.manifest else path.stem
        questions = scale_costs.questions_of(run.records, budget)
        (environment,) = run.environments.values()
        found[name] = {
            "run": run.path.name,
            "machine": f"{environment.cpu}, {environment.cores} cores",
            "commit": environment.commit[:12],
            "questions": [
                [[round(job.estimate_s, 4), *(round(visit, 4) for visit in job.visits_s)] for job in each]
                for each in questions
            ],
        }
    return found


def _budget(name: str, records: Sequence[Record]) -> Budget:
    """That of a shipped suite, in as many rounds as were measured: a sealed file has no manifest."""
    rounds = max(rounds_of(record) for record in records)
    return msgspec.structs.replace(suite.read(name).budget, rounds=rounds)


def load(path: Path = JOBS) -> Jobs:
    """The questions of each measured sweep; the first number of a job is what was expected, the others its visits."""
    return {
        name: [[Job(job[0], tuple(job[1:])) for job in question] for question in each["questions"]]
        for name, each in json.loads(path.read_text()).items()
    }


def measure() -> tuple[Costs, dict[str, Any]]:
    """The costs of this machine, and what a page tells of them; raises RuntimeError where Ray cannot be measured."""
    records = present.read(RECORDS, RECORDS.parent).records
    ray = scale_costs.ray_costs(1_000, 2_500)
    (ROOT / "build").mkdir(exist_ok=True)  # on a disk, as results are; a folder for temporary files may be in memory
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        python_s = scale_costs.python_s(records, Path(folder) / "python")
        stores_s = min((_stores_s(records, Path(folder) / f"store{number}") for number in range(TRIES)), key=sum)
        scale_costs.planning_s(Path(folder) / "warm")
        plan_s, make_s = scale_costs.planning_s(Path(folder) / "plan")
        cut_s, _ = scale_costs.planning_s(Path(folder) / "cut", Slices(of=2_048, numbers=(7,)))
    isolation_s = scale_costs.isolation_s()
    start_s = scale_costs.start_s()
    costs = Costs(
        python_s=python_s,
        ray_s=ray.calls_s,
        store_s=stores_s,
        trip_s=ray.trip_s,
        look_s=ray.look_s,
        create_s=ray.create_s,
        start_s=[*start_s, *ray.start_s],
        plan_s=plan_s,
        make_s=make_s,
        cut_s=cut_s,
    )
    told = {
        "driver computes for a visit": _told(python_s),
        "Ray's calls for a visit, computing": _told(ray.calls_s),
        "a record is stored, of many threads": _told(stores_s),
        "the rest of a round trip to an actor": _told(ray.trip_s),
        "looking for an answer in vain": {"median_s": ray.look_s},
        "an actor is created": {"median_s": ray.create_s},
        "a worker is there": _told(costs.start_s),
        "planning a job before the first is measured": {"median_s": plan_s},
        "making a job when it is its turn": {"median_s": make_s},
        "cutting the plan, for each job of the sweep": {"median_s": cut_s},
        "a process for a visit": {"median_s": isolation_s},
        "ray": ray.version,
    }
    return costs, told


def _stores_s(records: Sequence[Record], folder: Path) -> list[float]:
    return scale_costs.together(records, folder, THREADS, VISITS, LENGTH_S).stores_s


def _told(values: Sequence[float]) -> dict[str, float]:
    low, high = np.percentile(values, [10, 90])
    return {"p10_s": float(low), "median_s": median(values), "p90_s": float(high)}


def isolated(questions: Sequence[Sequence[Job]], isolation_s: float) -> list[list[Job]]:
    """The same jobs with the process that each visit has: any slot takes that, however the sweep is shared out."""
    return [[Job(job.estimate_s, tuple(v + isolation_s for v in job.visits_s)) for job in each] for each in questions]


# --- what is simulated -------------------------------------------------------------------------------------------------


def simulate(
    questions: Sequence[Sequence[Job]],
    costs: Costs,
    *,
    counts: Sequence[int] = COUNTS,
    slots: Sequence[int] = SLOTS,
    seeds: int = SEEDS,
    ways: Mapping[str, Way] = WAYS,
) -> dict[str, dict[int, Curve]]:
    """Curves by way and number of jobs. Each seed draws another sweep, the same for all ways."""
    found: dict[str, dict[int, Curve]] = {name: {} for name in ways}
    for count in counts:
        sweeps = [scale_model.draw(questions, count, np.random.default_rng(seed)) for seed in range(seeds)]
        for name, way in ways.items():
            outcomes = {
                number: [way(sweep, number, costs, np.random.default_rng(seed)) for seed, sweep in enumerate(sweeps)]
                for number in slots
            }
            found[name][count] = Curve(outcomes)
    return found


def told(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Any]:
    """Curves as the page and the plot read them."""
    return {
        way: {
            str(count): {
                "efficiency": {str(slots): list(asdict(band).values()) for slots, band in curve.efficiency().items()},
                "hours": {str(slots): _median(each.makespan_s / 3600 for each in found) for slots, found in curve.outcomes.items()},
                "lost": {str(slots): _medians([each.shares for each in found]) for slots, found in curve.outcomes.items()},
                "busy": {str(slots): _medians([each.busy for each in found]) for slots, found in curve.outcomes.items()},
                "knee": _knee(curve),
            }
            for count, curve in by_count.items()
        }
        for way, by_count in curves.items()
    }  # fmt: skip


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: _median(each[name] for each in found) for name in found[0]}


def _knee(curve: Curve) -> dict[str, Any]:
    """Where a seed in the middle falls below one half, and what most seeds name as the reason."""
    knees = curve.knees()
    slots = sorted(each.slots or np.inf for each in knees)
    names = [each.bottleneck for each in knees]
    ends = (slots[0], slots[len(slots) // 2], slots[-1])
    return {
        "slots": [None if end == np.inf else end for end in ends],
        "bottleneck": max(set(names), key=names.count),
        "agree": names.count(max(set(names), key=names.count)),
        "seeds": len(names),
    }


# --- the command -------------------------------------------------------------------------------------------------------


def study() -> dict[str, Any]:
    """Everything: costs measured, sweeps drawn, curves."""
    load_before, environment = getloadavg()[0], capture()
    costs, said = measure()
    isolation_s = said["a process for a visit"]["median_s"]
    sweeps = {name: isolated(questions, isolation_s) for name, questions in load().items()}
    return {
        "machine": f"{environment.cpu}, {environment.cores} cores",
        "commit": environment.commit[:12] + ("+" if environment.dirty else ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": shlex.join(["python", "-m", "tests.perf.scale_study", *sys.argv[1:]]),
        "load": load_before,
        "costs": said,
        "sweeps": {name: _sweep(questions, costs) for name, questions in sweeps.items()},
        "curves": {name: told(simulate(questions, costs)) for name, questions in sweeps.items()},
    }


def _sweep(questions: Sequence[Sequence[Job]], costs: Costs) -> dict[str, Any]:
    """What the jobs of a sweep are like, and how long 1,000 of them take one machine."""
    jobs = [job for question in questions for job in question]
    whole = [sum(job.visits_s) for job in jobs]
    off = np.log([sum(job.visits_s) / job.estimate_s for job in jobs])
    hours = [
        scale_model.alone(scale_model.draw(questions, 1_000, rng), costs, rng).makespan_s / 3600
        for rng in map(np.random.default_rng, range(SEEDS))
    ]
    return {
        "jobs": len(jobs),
        "visits": max(len(job.visits_s) for job in jobs),
        "seconds": [min(whole), median(whole), max(whole)],
        "mean_s": float(np.mean(whole)),
        "estimate_off": float(np.exp(np.std(off))),  # a factor: as far as one standard deviation
        "hours_of_1000": median(hours),
    }


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == "jobs":
        sys.stdout.write(json.dumps(jobs_of([Path(each) for each in arguments[1:]]), separators=(",", ":")) + "\n")
        return
    from tests.perf import scale_plot

    path, pictures = map(Path, arguments)
    found = study()
    path.write_text(json.dumps(found, indent=1) + "\n")
    scale_plot.draw(found, pictures)


if __name__ == "__main__":
    main(sys.argv[1:])
