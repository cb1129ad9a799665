"""Which slice of a plan a job is in: each machine finds the same answer without asking the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heapreplace

from . import backends, registry
from .estimate import rounds, visit_s
from .spec import Budget, Job

# Of large jobs the work itself: a first round computes the call and its reference about so many times, a later one
# so many, at so many FLOP/s of a thread or a GPU.
FIRST_CALLS, LATER_CALLS = 30, 8
FLOP_PER_S = {"cpu": 8e10, "cuda": 1e14}


def cut(jobs: Iterable[Job], of: int, budget: Budget) -> Callable[[Job], int]:
    """Which of ``of`` slices, from 1, has a job of ``jobs``.

    Candidates of one question stay together, since their times are compared only where one machine took them; a
    question that costs more than a slice's share is split job by job. The dearest goes first, to the slice that has
    the least so far (Graham 1969: the longest slice is at most 4/3 of the best that these pieces allow).
    """
    costs: dict[str, dict[str, float]] = {}
    for job in jobs:
        costs.setdefault(job.case.question, {})[job.key] = cost_s(job, budget)
    fair = sum(sum(each.values()) for each in costs.values()) / of
    pieces: list[tuple[float, str]] = []
    for question, each in costs.items():
        whole = sum(each.values())
        pieces += [(-cost, key) for key, cost in each.items()] if whole > fair else [(-whole, question)]
    loads = [(0.0, number) for number in range(1, of + 1)]
    heapify(loads)
    places: dict[str, int] = {}
    for cost, name in sorted(pieces):
        load, number = loads[0]
        heapreplace(loads, (load - cost, number))
        places[name] = number
    return lambda job: places.get(job.case.question) or places[job.key]


def cost_s(job: Job, budget: Budget) -> float:
    """About how long all rounds of the job take; 0 for what no machine runs. Asks nothing of this machine."""
    strategy, backend = registry.get(job.strategy), backends.get(job.backend)
    impl, case = backend.impl_for(strategy), job.case
    if impl is None or case.shape.width % case.shape.heads or strategy.refusal(case):
        return 0.0
    cost = strategy.costs(case, impl)
    call_s = (cost.flops + (cost.backward_flops if case.training else 0)) / FLOP_PER_S[case.device.partition(":")[0]]
    later = rounds(job.backend, budget) - 1
    beside = visit_s(job.backend, 0, budget)[1] + later * visit_s(job.backend, 1, budget)[1]
    return beside + call_s * (FIRST_CALLS + later * LATER_CALLS)
