"""Strategies on equal terms: the feed-forward width at which one costs as much as another."""

from __future__ import annotations

import msgspec

from . import backends, registry
from .spec import Case, Job

TOLERANCE = 0.02  # of the parameters or FLOPs that are matched


def matched(job: Job) -> Job | str:
    """The job with the feed-forward width that its ``match`` asks for, or the reason why there is none.

    Both parameters and FLOPs grow linearly with that width, so two evaluations give it; it is the multiple of 8
    that comes nearest where that is within 2 %, else the nearest number.
    """
    terms, _, anchor = job.case.match.partition("=")
    if not terms or job.strategy == anchor:
        return job
    reason = registry.get(anchor).refusal(job.case)
    if reason is not None:
        return f"cannot be matched with '{anchor}', which skips this case: {reason}"
    target = _amount(terms, anchor, job.backend, job.case)
    bare, more = (_amount(terms, job.strategy, job.backend, _wide(job.case, units)) for units in (1, 2))
    per_unit = more - bare
    if per_unit <= 0:
        return f"'{job.strategy}' has no feed-forward width that could match the {terms} of '{anchor}'"
    exact = 1 + (target - bare) / per_unit
    for units in (8 * round(exact / 8), round(exact)):
        found = _amount(terms, job.strategy, job.backend, _wide(job.case, units)) if units >= 1 else 0
        if abs(found - target) <= TOLERANCE * target:
            return msgspec.structs.replace(job, case=_wide(job.case, units))
    if exact < 1:
        return f"'{job.strategy}' has more {terms} than '{anchor}' however narrow its feed-forward layers are"
    return f"'{job.strategy}' has no feed-forward width within {TOLERANCE:.0%} of the {terms} of '{anchor}'"


def _wide(case: Case, units: int) -> Case:
    return msgspec.structs.replace(case, shape=msgspec.structs.replace(case.shape, hidden=units))


def _amount(terms: str, name: str, backend: str, case: Case) -> int:
    strategy = registry.get(name)
    cost = strategy.costs(case, backends.get(backend).impl_for(strategy) or "eager")
    if terms == "params":
        return cost.params
    return cost.flops + (cost.backward_flops if case.training else 0)
