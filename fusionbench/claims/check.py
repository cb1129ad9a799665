"""What a check is given and what it answers, and the one rule by which verdicts follow from what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..ledger import Figure, Verdict


@dataclass(frozen=True)
class Lab:
    """The seed of weights and inputs, and the seconds that one comparison of two times may take."""

    seed: int = 0
    seconds: float = 1.5


@dataclass(frozen=True)
class Answer:
    """A finding without its claim."""

    verdict: Verdict
    figures: tuple[Figure, ...] = ()
    condition: str = ""
    note: str = ""


Check = Callable[[Lab], Answer]


def judged(holds: Iterable[bool]) -> Verdict:
    """A claim that holds in every case tried is exact, in some it holds under conditions, in none it is refuted."""
    found = list(holds)
    if not found:
        raise ValueError("a claim that was tried in no case has no verdict")
    return "exact" if all(found) else "holds under conditions" if any(found) else "refuted"


def runs(call: Callable[[], object]) -> bool:
    """Whether ``call`` takes the shapes it is given, where PyTorch raises RuntimeError if not."""
    try:
        call()
    except RuntimeError:
        return False
    return True


def times(what: str, value: float) -> Figure:
    """An exact ratio."""
    return Figure(what=what, value=value, unit="×")
