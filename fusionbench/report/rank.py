"""Who is fastest: candidates of one case in order, with ties where their intervals overlap."""

from __future__ import annotations

import numpy as np
import pandas as pd

# Timings are compared only where all of these agree: another machine or timer answers another question.
GROUP = ["question", "environment", "timer", "cache", "threads"]
CONDITION = ["device", "dtype", "mode", *GROUP[1:]]  # what cases are counted together by


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """The newest record of each job in each environment: code that was measured twice counts once.

    A job that was timed in several ways (threads, timer, cache) keeps the newest of each, unless it failed since.
    """
    order = frame.sort_values("started_at", kind="stable")
    newest = order.drop_duplicates(["key", "environment"], keep="last")
    each_way = order.drop_duplicates(["key", *GROUP[1:]], keep="last")
    timed = pd.MultiIndex.from_frame(newest.loc[newest["timer"].notna(), ["key", "environment"]])
    also = each_way["timer"].notna() & pd.MultiIndex.from_frame(each_way[["key", "environment"]]).isin(timed)
    return order.loc[newest.index.union(each_way.index[also])].sort_index()


def ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """The timed rows, group by group and fastest first, in the order in which the groups were met.

    Adds ``group`` (0, 1, …), ``rank``, ``ratio`` to the group's fastest median, ``tie`` (another one's interval
    reaches the fastest's), and ``ratio_low``/``ratio_high``: the widest ratio that both intervals allow, which is
    at least 95 % sure.
    """
    timed = frame[(frame["status"] == "ok") & frame["median_ms"].notna()].copy()
    timed["group"] = timed.groupby(GROUP, sort=False, dropna=False, observed=True).ngroup()
    timed = timed.sort_values(["group", "median_ms"], kind="stable")
    by_group = timed.groupby("group", sort=False)
    timed["rank"] = by_group.cumcount()
    first = by_group[["median_ms", "low_ms", "high_ms"]].transform("first")
    timed["ratio"] = timed["median_ms"] / first["median_ms"]
    timed["ratio_low"] = timed["low_ms"] / first["high_ms"]
    timed["ratio_high"] = timed["high_ms"] / first["low_ms"]
    timed["tie"] = (timed["rank"] > 0) & (timed["low_ms"] <= first["high_ms"])
    return timed


def runners_up(ranks: pd.DataFrame) -> pd.DataFrame:
    """The fastest of each group that has a second, with the ratios to it: ``tie`` says that there is no clear winner,
    as the interval of some other candidate reaches the fastest's."""
    ties = ranks.groupby("group")["tie"].any()
    second = ranks[ranks["rank"] == 1].set_index("group")
    first = ranks[ranks["rank"] == 0].set_index("group").loc[second.index]
    taken = ("ratio", "ratio_low", "ratio_high")
    return first.assign(tie=ties.loc[second.index], **{each: second[each] for each in taken})


def pooled(ratios: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The geometric mean of ``ratio`` over the ``cases`` of each combination of ``by``, with its interval, and in how
    many of them the whole interval is ``below`` 1 or ``above``.

    The interval is about these cases and no others: the errors of the single ratios alone, which are of different
    jobs and so add up as squares, at 95 %.
    """
    low, high = ratios["ratio_low"], ratios["ratio_high"]
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.log(ratios["ratio"])
        down, up = (middle - np.log(low)) ** 2, (np.log(high) - middle) ** 2
    logs = ratios[by].assign(middle=middle, down=down, up=up, below=high < 1, above=low > 1)
    groups = logs.groupby(by, sort=False, observed=True)
    cases, found = groups.size(), groups[["middle", "down", "up", "below", "above"]].sum(min_count=1)
    mean = found["middle"] / cases
    return pd.DataFrame({
        "ratio": np.exp(mean),
        "ratio_low": np.exp(mean - np.sqrt(found["down"]) / cases),
        "ratio_high": np.exp(mean + np.sqrt(found["up"]) / cases),
        "cases": cases,
        "below": found["below"].astype(int),
        "above": found["above"].astype(int),
    }).reset_index()  # fmt: skip
