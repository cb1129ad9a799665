"""Inside the process that profiles: find the job, see that it is right, hand it to the profiler."""

from __future__ import annotations

import traceback
from pathlib import Path

import msgspec
import torch

from .. import measuring, registry, suite
from ..errors import FusionbenchError, nearest, printable
from ..plan import Plan
from ..spec import Budget, Job, Skip
from ..subject import build, resolve
from .proton import proton
from .request import (
    Answer,
    Failure,
    JobFailedError,
    Profile,
    Request,
    SeveralJobsError,
    folder_of,
    refuse_existing,
    safe_name,
)
from .tracing import profiled

SHOWN = 5  # jobs to choose from


def answer(request: Request) -> Answer:
    """The profile, or why there is none."""
    try:
        return Answer(profile=_profile(request))
    except JobFailedError as error:
        return Answer(failure=Failure(reason=str(error), usage=False))
    except SeveralJobsError as error:
        return Answer(failure=Failure(reason=str(error), usage=True, keys=error.keys))
    except FusionbenchError as error:
        return Answer(failure=Failure(reason=str(error), usage=True))
    except Exception as error:
        traceback.print_exc()
        what = printable(" ".join(str(error).split()), 300)
        return Answer(failure=Failure(reason=f"the profile failed: {type(error).__name__}: {what}", usage=False))


def _profile(request: Request) -> Profile:
    chosen = suite.read(request.suite)
    for plugin in request.plugins:
        registry.load_plugin(Path(plugin))
    job = one_job(suite.narrow(chosen, request.only), request.job)
    if request.proton and job.case.device == "cpu":
        raise FusionbenchError("proton needs a CUDA device: it sees what Triton launches (leave --proton away)")
    if request.proton and request.meter == "proton":
        return _with_proton(job, shortest(chosen.budget), request.calls, Path(request.proton))
    trace = Path(request.output) if request.output else folder_of(request) / f"{safe_name(job.key)}.json.gz"
    refuse_existing(trace)
    # The sweep's own way through the job, with the fewest samples, says whether it is right, and sets up torch.
    budget = shortest(chosen.budget)
    record = measuring.measure(job, budget)
    if record.status != "ok":
        where = f" in {record.phase}" if record.phase else ""
        raise JobFailedError(f"job '{job.key}' is {record.status}{where}: {record.reason}")
    backend, impl, _ = resolve(job)
    with torch.set_grad_enabled(job.case.training), backend.context():
        subject = build(job, impl or "", backend, budget.seed)
        found = profiled(job, subject, request.calls, trace, shapes=request.shapes)
    return msgspec.structs.replace(found, parts=record.parts)


def _with_proton(job: Job, budget: Budget, calls: int, path: Path) -> Profile:
    """An otherwise empty profile with Proton's file; the job was found to be right before."""
    measuring._set_up(job.case, budget)
    backend, impl, _ = resolve(job)
    with torch.set_grad_enabled(job.case.training), backend.context():
        subject = build(job, impl or "", backend, budget.seed)
        for _ in range(3):  # compilation is no part of the profile
            subject.call()
        written = proton(subject.call, calls, path)
    return Profile(
        job=job.key, device=job.case.device, calls=calls, plain_ns=0, profiled_ns=0, rows=(), trace="", events=0,
        proton=written,
    )  # fmt: skip


def shortest(budget: Budget) -> Budget:
    """The budget with no more sampling than a record needs."""
    return msgspec.structs.replace(budget, measure_s=0.001, warmup_s=0.0, min_samples=6, energy_s=0.0, rounds=1)


def one_job(chosen: suite.Suite, key: str | None) -> Job:
    """The job called ``key``, or the only one there is; raises with what to choose from, or why it is skipped."""
    plan = Plan(chosen)
    plan.check()
    if key is not None:
        item = next(iter(Plan(chosen, None, key)), None)
        if item is None:
            keys = [(each.job if isinstance(each, Skip) else each).key for each in plan]
            close = nearest(key, keys) if len(keys) <= 20_000 else ""
            close = close if close.startswith(";") else ""
            raise FusionbenchError(
                f"suite '{chosen.name}' has no job '{printable(key)}'{close} (see: fusionbench plan {chosen.name})"
            )
        if isinstance(item, Skip):
            raise JobFailedError(f"job '{item.job.key}' is skipped: {item.reason}")
        return item
    jobs = [item for item in plan if not isinstance(item, Skip)]
    if len(jobs) == 1:
        return jobs[0]
    if not jobs:
        raise JobFailedError(f"suite '{chosen.name}' has no job to run here (see: fusionbench plan {chosen.name})")
    raise SeveralJobsError(
        f"suite '{chosen.name}' has {len(jobs)} jobs; choose one with --job KEY (see: fusionbench plan {chosen.name})",
        [job.key for job in jobs[:SHOWN]],
    )
