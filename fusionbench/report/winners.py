"""Who wins in how many cases of a device, a dtype and a mode, by how much, and how all stand to one reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from ..errors import FusionbenchError, printable, refuse_unknown
from ..fitting import NOTHING, Column, fitted, name
from .rank import CONDITION, pooled, runners_up

MODES = {
    "fwd": "forward",
    "fwd_bwd": "forward + backward",
    "step": "training step",
    "decode": "decode, cached",
    "decode_uncached": "decode without the image's cache",
    "cached": "forward, context cached",
}

_WHO = ["candidate", "backend"]


def winners(ranks: pd.DataFrame, *, rows: int, width: int) -> list[RenderableType]:
    """A table per condition: who wins how many of its cases, and how much longer the next one takes in those."""
    parts: list[RenderableType] = []
    duels, several = runners_up(ranks), ranks["environment"].nunique() > 1
    for _, group in duels.groupby(CONDITION, sort=False, dropna=False, observed=True):
        won = group[~group["tie"]]
        each = pooled(won, _WHO).sort_values(["cases", "ratio"], ascending=False, kind="stable")
        parts += [Text(), _heading("wins", group.iloc[0], len(group), several)]
        shown, undecided = each.head(rows), int(group["tie"].sum())
        rest, others = int(each["cases"][rows:].sum()), len(each) - rows
        more = [(f"{others} others", str(rest))] if others > 0 else []
        more += [("no clear winner", str(undecided))] if undecided else []
        parts += fitted(_wins(shown, more), width)
    return parts


def against(ranks: pd.DataFrame, reference: str, *, rows: int, width: int) -> list[RenderableType]:
    """A table per condition: how long every candidate takes in the reference's time, over the cases that have both."""
    parts: list[RenderableType] = []
    several = ranks["environment"].nunique() > 1
    others = ranks[ranks["of_reference"].notna() & ~ranks["is_reference"]]
    for _, group in others.groupby(CONDITION, sort=False, dropna=False, observed=True):
        ratios = group.assign(ratio=group["of_reference"], ratio_low=group["of_low"], ratio_high=group["of_high"])
        each = pooled(ratios, _WHO).sort_values("ratio", kind="stable")
        parts += [Text(), _heading(f"against {reference}", group.iloc[0], group["group"].nunique(), several)]
        parts += fitted(_stand(each.head(rows)), width)
        if len(each) > rows:
            parts.append(Text(f"… {len(each) - rows:,} more candidates (see them with --rows N)", style="dim"))
    return parts


def referred(ranks: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The ranks with each one's time as a share of the reference's in its case: ``of_reference`` with ``of_low`` and
    ``of_high``, the widest that both intervals allow; NA where the case has no such reference.

    A reference is a strategy, by its fastest backend in each case, or one backend of it: ``late:vote/sdpa``. Raises
    FusionbenchError where nothing of that name was timed.
    """
    found = ranks[_called(ranks, reference)].drop_duplicates("group")  # the fastest, as ranks are in order
    found = found.set_index("group")
    middle, low, high = (ranks["group"].map(found[each]) for each in ("median_ms", "low_ms", "high_ms"))
    return ranks.assign(
        of_reference=ranks["median_ms"] / middle,
        of_low=ranks["low_ms"] / high,
        of_high=ranks["high_ms"] / low,
        is_reference=ranks["rank"] == ranks["group"].map(found["rank"]),
    )


def _called(ranks: pd.DataFrame, reference: str) -> pd.Series:
    """Which rows are the reference's, of whichever case."""
    strategy, slash, backend = reference.rpartition("/")
    known, backends = {*ranks["candidate"], *ranks["strategy"]}, set(ranks["backend"])
    if not slash or reference in known:
        strategy, backend = reference, ""
    refuse_unknown("strategy", [strategy], known)
    refuse_unknown("backend", [backend] if slash and backend else [], backends)
    chosen = (ranks["candidate"] == strategy) | (ranks["strategy"] == strategy)
    if backend:
        chosen &= ranks["backend"] == backend
    if not chosen.any():
        raise FusionbenchError(f"'{printable(strategy)}' was not timed with backend '{printable(backend)}' in this run")
    return chosen


def _heading(what: str, row: pd.Series, cases: int, several: bool) -> Text:
    facts = [str(row["dtype"]), str(row["device"]), MODES.get(row["mode"], str(row["mode"]))]
    facts += [f"{row['threads']} threads"] if row["threads"] > 1 else []
    facts += [str(row["machine"])] if several else []
    facts += [f"{cases:,} cases" if cases != 1 else "1 case"]
    heading = Text(printable(what, 200), style="bold")
    return heading.append(printable(f"  {' · '.join(facts)}", 500), style="not bold dim")


def _wins(each: pd.DataFrame, more: list[tuple[str, str]]) -> list[Column]:
    lines = [row for _, row in each.iterrows()]
    blank = [Text() for _ in more]
    return [
        ("strategy", False, [name(r["candidate"]) for r in lines] + [Text(label, style="dim") for label, _ in more]),
        ("backend", False, [name(r["backend"]) for r in lines] + blank),
        ("wins", True, [Text(str(r["cases"])) for r in lines] + [Text(count) for _, count in more]),
        ("next takes", True, [_times(r) for r in lines] + blank),
        ("95 %", True, [_interval(r) for r in lines] + blank),
    ]


def _stand(each: pd.DataFrame) -> list[Column]:
    lines = [row for _, row in each.iterrows()]
    return [
        ("strategy", False, [name(r["candidate"]) for r in lines]),
        ("backend", False, [name(r["backend"]) for r in lines]),
        ("takes", True, [_times(r) for r in lines]),
        ("95 %", True, [_interval(r) for r in lines]),
        ("cases", True, [Text(str(r["cases"])) for r in lines]),
        ("faster in", True, [Text(str(r["below"])) for r in lines]),
        ("slower in", True, [Text(str(r["above"])) for r in lines]),
    ]


def _times(row: pd.Series) -> Text:
    if not np.isfinite(row["ratio"]):
        return Text(NOTHING)
    sure = not row["ratio_low"] <= 1 <= row["ratio_high"]
    return Text(f"{factor(row['ratio'])} ×" if sure else f"≈ {factor(row['ratio'])}")


def _interval(row: pd.Series) -> Text:
    if not np.isfinite(row["ratio"]):
        return Text(NOTHING)
    return Text(f"{factor(row['ratio_low'])} to {factor(row['ratio_high'])}")


def factor(ratio: float) -> str:
    """A ratio in three digits or so."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"
