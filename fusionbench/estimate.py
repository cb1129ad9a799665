"""How long a job of ordinary size takes, before anything was measured."""

from __future__ import annotations

from .spec import Budget

# Beside sampling and warm-up a CPU job takes about this long in its first round and in a later one, for building,
# checking and its process (cross-attention in smoke, M1: 0.43 and 0.13 s on the core without the process); compiling
# takes far longer.
BESIDE_S = {"compile": 10.0, "flex": 10.0}
BESIDE_FIRST_S, BESIDE_LATER_S = 0.5, 0.2
EASY = 0.2  # of its budget for sampling, a job takes at least about this much


def rounds(backend: str, budget: Budget) -> int:
    """How many rounds a job is expected to have; what is compiled is visited once (rounds.py)."""
    return 1 if backend in BESIDE_S else budget.rounds


def visit_s(backend: str, number: int, budget: Budget) -> tuple[float, float]:
    """What round ``number`` (from 0) of a job takes: from being precise at once to using up the budget."""
    beside = budget.warmup_s + (BESIDE_LATER_S if number else BESIDE_S.get(backend, BESIDE_FIRST_S))
    sampling = budget.measure_s / rounds(backend, budget)
    return beside + EASY * sampling, beside + sampling + (0 if number else budget.energy_s)
