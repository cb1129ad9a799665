"""A job's call in this process, for tools that measure what a test calls, as CodSpeed does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

from .. import settings
from ..spec import Budget, Job
from ..subject import build, resolve
from ..verify import check
from .measure import JobFailedError


@contextlib.contextmanager
def call(job: Job, budget: Budget) -> Iterator[Callable[[], object]]:
    """The call, made once and found right. Raises JobFailedError where it is not."""
    backend, impl, reason = resolve(job)
    if impl is None or reason is not None:
        pytest.skip(reason or f"'{job.strategy}' has no impl for backend '{job.backend}'")
    with settings.kept(), torch.set_grad_enabled(job.case.training), backend.context():
        torch.set_num_threads(budget.threads)
        subject = build(job, impl, backend, budget.seed, budget.seed)
        subject.call()
        problem = check(job, subject, budget)[1]
        if problem is not None:
            raise JobFailedError(f"wrong (accuracy): {problem}")
        yield subject.call
