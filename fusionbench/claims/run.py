"""Run checks one after another, each from the same seed and on one thread, and bring back a finding for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from time import perf_counter

import torch

from .. import environment
from ..errors import printable
from ..ledger import Claim, Finding, Ledger
from . import costs, functions, quality, shapes, systems, timings, training
from .check import Check, Lab

CHECKS: Mapping[str, Check] = {
    **costs.CHECKS,
    **functions.CHECKS,
    **quality.CHECKS,
    **shapes.CHECKS,
    **systems.CHECKS,
    **timings.CHECKS,
    **training.CHECKS,
}

THREADS = 1


def run(claims: Sequence[Claim], lab: Lab, checks: Mapping[str, Check] = CHECKS) -> Iterator[Finding]:
    """The findings in the order of ``claims``; a check that raises becomes a finding with its error."""
    for claim in claims:
        yield _finding(claim.id, checks[claim.id], lab)


def _finding(name: str, check: Check, lab: Lab) -> Finding:
    begun = perf_counter()
    try:
        with _alike(lab.seed):
            answer = check(lab)
    except Exception as error:
        what = printable(" ".join(f"{type(error).__name__}: {error}".split()), 1000)
        return Finding(id=name, error=what, seconds=perf_counter() - begun)
    return Finding(
        id=name,
        verdict=answer.verdict,
        figures=answer.figures,
        condition=answer.condition,
        note=answer.note,
        seconds=round(perf_counter() - begun, 3),
    )


@contextmanager
def _alike(seed: int) -> Iterator[None]:
    """One thread and a fresh random state inside; afterwards as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def ledger(claims: Sequence[Claim], findings: Sequence[Finding], lab: Lab) -> Ledger:
    """The findings with the claims that they are about and the facts of this machine."""
    answered = {finding.id for finding in findings}
    return Ledger(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=lab.seed,
        threads=THREADS,
        environment=environment.capture(),
        claims=tuple(claim for claim in claims if claim.id in answered),
        findings=tuple(findings),
    )
