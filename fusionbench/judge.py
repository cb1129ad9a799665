"""What the gates make of a comparison: passed, failed, or not judged and why, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from . import exits
from .compare import MIN_ROUNDS, TOLERANCE
from .delta import GATES, Comparison, Delta, Gate, Judgement, Ruling, Side
from .errors import FusionbenchError, StoppedError, counted
from .facts import told

Confirm = Callable[[Sequence[str]], Mapping[str, Delta]]
"""Measures jobs of these keys again, against the commit of the base and in fresh pairs; raises FusionbenchError where
that cannot be done. What it settles has ``stage`` "confirm"."""

# A job whose noise hides even this much is not judged by its being unclear.
COARSEST = 0.25

RENEW = 'fusionbench baseline update --reason "…"'


def judge(comparison: Comparison, gates: Sequence[Gate] = GATES, confirm: Confirm | None = None) -> Judgement:
    """Let the gates judge. What a stored base calls slower is only suspect: ``confirm`` decides."""
    timing: list[Ruling] = []
    if "timing" in gates:
        comparison, ruling = _timing(comparison, confirm)
        timing.append(ruling)
    rulings = [_deterministic(comparison)] if "deterministic" in gates else []
    return concluded(replace(comparison, notes=comparison.notes + _worth_knowing(comparison)), rulings + timing)


def concluded(comparison: Comparison, rulings: Sequence[Ruling]) -> Judgement:
    """The judgement that these rulings make: one failure fails, and what could not be judged is no pass."""
    outcomes = {ruling.outcome for ruling in rulings}
    unfailed = 0 if outcomes == {"passed"} else exits.NOTHING
    code = exits.REGRESSION if "failed" in outcomes else unfailed
    return Judgement(comparison=comparison, rulings=tuple(rulings), exit_code=code)


def of_kernels(name: str, judged: Sequence[str], grown: Sequence[tuple[str, str]], unable: str = "") -> Ruling:
    """The deterministic gate on the kernels of the profile ``name``: what has ``grown``, or why nobody can tell."""
    if unable or not judged:
        return Ruling(gate="deterministic", outcome="not judged", reason=f"kernels of {name}: {unable or 'none'}")
    return Ruling(
        gate="deterministic",
        outcome="failed" if grown else "passed",
        judged=len(judged),
        reason=f"kernels of {name}",
        failures=tuple(grown),
    )


def kernels_alone(name: str, rows: int) -> Comparison:
    """The comparison beside which kernels alone are judged: it has no jobs."""
    return Comparison(method="stored", base=Side(name=name, jobs=rows), head=Side(name="compiled now", jobs=rows))


# --- the deterministic gate ----------------------------------------------------------------------------------------


def _deterministic(comparison: Comparison) -> Ruling:
    failures = [(delta.key, line) for delta in comparison.deltas for line in _worse(delta)]
    judged = sum(map(_has_facts, comparison.deltas))
    if not judged and not failures:
        return Ruling(gate="deterministic", outcome="not judged", reason="no job is ok on both sides")
    outcome = "failed" if failures else "passed"
    return Ruling(gate="deterministic", outcome=outcome, judged=judged, failures=tuple(failures))  # type: ignore[arg-type]


def _has_facts(delta: Delta) -> bool:
    return delta.facts > 0 or delta.verdict in ("broken", "missing")


def _worse(delta: Delta) -> list[str]:
    if delta.verdict in ("broken", "missing"):
        return [f"{delta.verdict}: {delta.reason}" if delta.reason else delta.verdict]
    return [told(change) for change in delta.changes if change.worse]


def _worth_knowing(comparison: Comparison) -> tuple[str, ...]:
    """What fails nothing, and makes the base stale."""
    new, fixed = (sum(delta.verdict == verdict for delta in comparison.deltas) for verdict in ("new", "fixed"))
    better = sum(any(not change.worse for change in delta.changes) for delta in comparison.deltas)
    counts = {"new": new, "fixed": fixed, "cheaper in some fact": better}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return (f"of the jobs, {told}: renew the baseline with {RENEW}",) if told and comparison.method == "stored" else ()


# --- the timing gate -----------------------------------------------------------------------------------------------


def _timing(comparison: Comparison, confirm: Confirm | None) -> tuple[Comparison, Ruling]:
    if comparison.differences:
        return comparison, _not_timed(f"times are not compared: {'; '.join(comparison.differences)}")
    timed = {delta.key for delta in comparison.deltas if delta.ratio is not None}
    if not timed:
        return comparison, _not_timed("no job has times on both sides")
    unsettled: list[str] = []
    if comparison.method == "stored":
        if all(delta.rounds < MIN_ROUNDS for delta in comparison.deltas if delta.key in timed):
            return comparison, _not_timed(f"no job has {MIN_ROUNDS} rounds on both sides; measure with more rounds")
        comparison, unsettled = _confirmed(comparison, confirm)
    judged = sum(delta.key in timed and _shows(delta) for delta in comparison.deltas)
    slower = tuple((delta.key, _slower(delta)) for delta in comparison.deltas if delta.verdict == "slower")
    if unsettled and not slower:
        return comparison, _not_timed(
            f"{counted(len(unsettled), 'job')} may be slower, unconfirmed: {unsettled[0]}", judged
        )
    if not judged:
        return comparison, _not_timed(_too_noisy(comparison))
    outcome = "failed" if slower else "passed"
    return comparison, Ruling(gate="timing", outcome=outcome, judged=judged, failures=slower)  # type: ignore[arg-type]


def _not_timed(reason: str, judged: int = 0) -> Ruling:
    return Ruling(gate="timing", outcome="not judged", judged=judged, reason=reason)


def _shows(delta: Delta) -> bool:
    """Whether a slow-down that matters would have been seen in these times."""
    fine = delta.detectable is not None and delta.detectable <= COARSEST
    return delta.verdict != "unclear" or delta.stage == "confirm" or fine


def _too_noisy(comparison: Comparison) -> str:
    least = min((delta.detectable for delta in comparison.deltas if delta.detectable is not None), default=None)
    seen = f" (at best {least:+.0%} would have been seen)" if least is not None else ""
    return f"every job is unclear{seen}; measure on a quieter machine, with more rounds, or in pairs with --paired"


def _confirmed(comparison: Comparison, confirm: Confirm | None) -> tuple[Comparison, list[str]]:
    """The comparison with what fresh pairs say of the jobs that looked slower, and why where they say nothing."""
    slower = [delta.key for delta in comparison.deltas if delta.verdict == "slower"]
    suspects = [delta.key for delta in comparison.deltas if delta.verdict == "slower" or _suspect(delta)]
    able = confirm is not None and comparison.base.commit and not comparison.base.dirty
    if not (suspects if able else slower):
        return comparison, []
    fresh, why = _measured_again(comparison.base, suspects, confirm)
    unsettled = {key: why for key in slower if key not in fresh}
    deltas = tuple(
        replace(fresh[delta.key], changes=delta.changes, facts=delta.facts) if delta.key in fresh
        else replace(delta, verdict="unclear", reason=why) if delta.key in unsettled
        else delta
        for delta in comparison.deltas
    )  # fmt: skip
    return replace(comparison, deltas=deltas), list(unsettled.values())


def _suspect(delta: Delta) -> bool:
    """Whether a job that is not called slower deserves a second look: it costs time, and no false alarm."""
    return delta.verdict == "unclear" and delta.ratio is not None and delta.ratio > 1 + TOLERANCE


def _measured_again(base: Side, keys: Sequence[str], confirm: Confirm | None) -> tuple[dict[str, Delta], str]:
    """The deltas of these jobs that are settled, and why the others are not."""
    looked = "it looked slower than a stored baseline, which proves nothing by itself"
    if not base.commit:
        return {}, f"{looked}; the baseline does not say its commit: renew it from a clean checkout with {RENEW}"
    if base.dirty:
        return {}, f"{looked}; the baseline is of uncommitted changes: renew it from a clean checkout with {RENEW}"
    if confirm is None:
        return {}, f"{looked}; measure both in pairs with: fusionbench check --paired {base.commit[:12]}"
    try:
        found = confirm(keys)
    except StoppedError:
        raise
    except FusionbenchError as error:
        return {}, f"{looked}, and could not be measured again: {error}"
    settled = {key: delta for key, delta in found.items() if delta.stage == "confirm" or delta.verdict == "broken"}
    return settled, f"{looked}, and the second measurement did not come to its end"


def _slower(delta: Delta) -> str:
    ratio, low, high = delta.ratio or 0.0, delta.low or 0.0, delta.high or 0.0
    return f"{ratio - 1:+.1%} (95 %: {low - 1:+.1%} to {high - 1:+.1%})"
