"""What a comparison says: two sides, a delta for every job, and what the gates make of them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Verdict = Literal["same", "faster", "slower", "unclear", "broken", "fixed", "new", "missing"]
Gate = Literal["deterministic", "timing"]
GATES: tuple[Gate, ...] = ("deterministic", "timing")

VERSION = 1  # of a comparison as JSON; a reader refuses a newer one

Text = Annotated[str, Meta(max_length=10_000)]


class Change(Struct, frozen=True, kw_only=True, gc=False):
    """A fact that no noise moves and that is not what it was; ``worse`` fails the deterministic gate."""

    fact: Text  # one of facts.NAMES
    base: int | Text
    head: int | Text
    worse: bool


class Delta(Struct, frozen=True, kw_only=True, gc=False):
    """One job on both sides. Times are of one call; ``ratio`` is head over base, ``low`` and ``high`` bound it at 95 %.

    ``detectable`` is the relative change that so many rounds of such noise show 80 times in 100. What was not
    measured or is not compared is None, and ``reason`` says why.
    """

    key: Text  # of the job
    verdict: Verdict  # of status and time; the facts are in ``changes``
    base_ns: float | None = None
    head_ns: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    rounds: int = 0  # of the side that has fewer; of pairs
    stage: Literal["", "screen", "confirm"] = ""  # which data the verdict of a paired measurement rests on
    p: float | None = None  # of the confirm stage: how often chance alone slows as much
    reason: Text = ""
    facts: int = 0  # how many were compared
    changes: tuple[Change, ...] = ()


class Side(Struct, frozen=True, kw_only=True, gc=False):
    """Who was measured, where and when."""

    name: Text  # the path or the revision as the user gave it
    machine: Text = ""
    environment: Text = ""  # id
    commit: Text = ""
    dirty: bool = False
    suite: Text = ""
    suite_hash: Text = ""
    measured_at: Text = ""  # UTC, ISO 8601
    jobs: int = 0


class Comparison(Struct, frozen=True, kw_only=True, gc=False):
    """Two sides job by job. Where ``differences`` names any, timings are not compared."""

    v: int = VERSION
    method: Literal["stored", "paired"]
    base: Side
    head: Side
    differences: tuple[Text, ...] = ()  # of machine and environment, as "torch 2.11.0 → 2.13.0"
    notes: tuple[Text, ...] = ()
    deltas: tuple[Delta, ...] = ()


class Ruling(Struct, frozen=True, kw_only=True, gc=False):
    """What one gate found: how many jobs it judged, and a line for each failure."""

    gate: Gate
    outcome: Literal["passed", "failed", "not judged"]
    judged: int = 0
    reason: Text = ""  # why it was not judged; of kernels, whose
    failures: tuple[tuple[Text, Text], ...] = ()  # key of the job (or name of the kernel), and what is worse


class Judgement(Struct, frozen=True, kw_only=True, gc=False):
    """What `check` found, and its exit code."""

    comparison: Comparison
    rulings: tuple[Ruling, ...]
    exit_code: int
