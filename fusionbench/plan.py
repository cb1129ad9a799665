"""From a suite to jobs, one at a time: each is either worth running or a skip with its reason."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import backends, registry
from .errors import FusionbenchError, SuiteError
from .spec import Job, Skip
from .suite import Suite, jobs

DEFAULT_LIMIT = 100_000


@dataclass(frozen=True)
class Plan:
    """The jobs of a suite, made while they are asked for. ``limit`` is how many cases may be looked at."""

    suite: Suite
    limit: int | None = None

    @property
    def count(self) -> int:
        """How many cases the suite spans, counted without making them."""
        return self.suite.count

    def check(self) -> None:
        """Raise for names that nobody registered, and for a suite too large to run without a limit."""
        for sweep in self.suite.sweeps:
            for name in sweep.strategies:
                registry.get(name)
            for name in sweep.backends:
                backends.get(name)
        if self.limit is None and self.count > DEFAULT_LIMIT:
            raise SuiteError(
                f"suite '{self.suite.name}' spans {self.count:,} cases, more than {DEFAULT_LIMIT:,}; "
                "narrow it with --only AXIS=VALUES or take the first N with --limit N"
            )

    def __iter__(self) -> Iterator[Job | Skip]:
        """Every job once, in the suite's order."""
        seen: set[str] = set()
        for job in itertools.islice(jobs(self.suite), self.limit):
            if job is None or job.key in seen:
                continue
            seen.add(job.key)
            reason = refusal(job)
            yield job if reason is None else Skip(job=job, reason=reason)


def refusal(job: Job) -> str | None:
    """Why ``job`` cannot run, here or anywhere, or None."""
    reason = missing_device(job.case.device)
    return reason or backends.refusal(registry.get(job.strategy), backends.get(job.backend), job.case)


@functools.cache
def missing_device(device: str) -> str | None:
    """Why ``device`` is not there, or None. Asks the driver for a count and creates no CUDA context."""
    if device == "cpu":
        return None
    present = torch.cuda.device_count()
    index = int(device.partition(":")[2] or 0)
    if index < present:
        return None
    return f"device '{device}' is not available: torch {torch.__version__} sees {present} CUDA devices"


def find(suite: Suite, key: str) -> Job:
    """The job of ``suite`` with this key; raises FusionbenchError when there is none."""
    for job in jobs(suite):
        if job is not None and job.key == key:
            return job
    raise FusionbenchError(f"suite '{suite.name}' has no job '{key}' (see: fusionbench plan {suite.name})")
