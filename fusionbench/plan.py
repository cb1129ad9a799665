"""From a suite to jobs, one at a time: each is either worth running or a skip with its reason."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch

from . import backends, footprint, registry
from .errors import SuiteError
from .matching import matched
from .presets import parts
from .slices import Slices
from .slicing import cut
from .spec import Job, Skip
from .suite import Suite, jobs

DEFAULT_LIMIT = 100_000


class Devices(Protocol):
    """What there is to measure on, where that is not this machine."""

    def missing(self, device: str) -> str | None:
        """Why ``device`` is not there, or None."""

    def memory(self, device: str) -> int | None:
        """Its bytes, or None where nobody knows."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a suite, made when they are asked for; beyond DEFAULT_LIMIT cases they are not kept.

    ``limit`` is how many cases may be looked at, ``only_job`` the key of the one job that is wanted, ``slices`` which
    slices of all that belong to this plan.
    """

    suite: Suite
    limit: int | None = None
    only_job: str | None = None
    slices: Slices | None = None
    devices: Devices | None = None  # None: those of this machine

    @property
    def count(self) -> int:
        """How many cases the suite spans, counted without making them."""
        return self.suite.count

    def check(self) -> None:
        """Raise for names that nobody registered, and for a suite too large to run without a limit."""
        for sweep in self.suite.sweeps:
            for name in sweep.strategies or (part.strategy for _, part in parts(sweep.presets)):
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
        return iter(self._kept) if min(self.count, self.limit or self.count) <= DEFAULT_LIMIT else self._made()

    @functools.cached_property
    def _kept(self) -> list[Job | Skip]:
        """A launch walks its plan five times, at 0.4 ms a job; 10,000 jobs kept take 3 MB."""
        return list(self._made())

    def _made(self) -> Iterator[Job | Skip]:
        return (settled(job, self.devices) for job in self._cases() if self._ours(job))

    @functools.cached_property
    def _ours(self) -> Callable[[Job], bool]:
        """Whether a job is in the slices of this plan."""
        if self.slices is None:
            return lambda job: True
        place, numbers = cut(self._cases(), self.slices.of, self.suite.budget), frozenset(self.slices.numbers)
        return lambda job: place(job) in numbers

    def _cases(self) -> Iterator[Job]:
        seen: set[str] = set()
        for job in itertools.islice(jobs(self.suite), self.limit):
            key = "" if job is None else job.key
            if job is None or key in seen or self.only_job not in (None, key):
                continue
            seen.add(key)
            yield job


def settled(job: Job, devices: Devices | None = None) -> Job | Skip:
    """The job as it can run, matched where it asks for that, or the reason why it cannot, there or anywhere."""
    missing, memory = (devices.missing, devices.memory) if devices else (missing_device, None)
    reason = missing(job.case.device) or _refusal(job) or _depth_refusal(job)
    if reason is not None:
        return Skip(job=job, reason=reason)
    asked = matched(job)
    if isinstance(asked, str):
        return Skip(job=job, reason=asked)
    reason = (_refusal(asked) if asked != job else None) or footprint.refusal(asked, memory)
    return asked if reason is None else Skip(job=asked, reason=reason)


def _refusal(job: Job) -> str | None:
    return backends.refusal(registry.get(job.strategy), backends.get(job.backend), job.case)


def _depth_refusal(job: Job) -> str | None:
    """Why the strategy cannot be as deep as the case says: it stacks nothing, and one layer would pass for many."""
    case, strategy = job.case, registry.get(job.strategy)
    if case.shape.depth <= 1:
        return None
    once = msgspec.structs.replace(case, shape=msgspec.structs.replace(case.shape, depth=1))
    if strategy.costs(once, "eager") != strategy.costs(case, "eager"):
        return None
    return f"'{job.strategy}' has one layer, not {case.shape.depth} (use depth 1, of presets extent 'layer')"


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
