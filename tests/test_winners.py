"""Who wins: over how many cases, by what ratio with which interval, and against a reference of one's choice."""

from __future__ import annotations

import io
import random

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from fusionbench.errors import FusionbenchError
from fusionbench.record import Record, Timing
from fusionbench.report.frame import frame
from fusionbench.report.rank import latest, pooled, ranked, runners_up
from fusionbench.report.table import show
from fusionbench.report.winners import referred
from fusionbench.spec import Case, Job, Shape
from tests.synthetic import ENVIRONMENTS, records

_ROUNDS = 6


def timed(strategy: str, backend: str, text: int, ms: float, noise: float = 0.001, dtype: str = "fp32") -> Record:
    """A record with a round of one sample each around ``ms``."""
    shape = Shape(batch=1, image=64, text=text, image_width=64, text_width=64, width=64, heads=1)
    spread = [1 + noise * (2 * step / (_ROUNDS - 1) - 1) for step in range(_ROUNDS)]
    timing = Timing(
        timer="wall", cache="hot", loops=1, samples_ns=tuple(round(ms * 1e6 * each) for each in spread), stop="precise",
        first_call_ns=1, warmup_calls=1, threads=1, rounds=(1,) * _ROUNDS,
    )  # fmt: skip
    job = Job(strategy=strategy, backend=backend, case=Case(shape=shape, dtype=dtype))  # type: ignore[arg-type]
    return Record(job=job, status="ok", time=timing, environment="h100-a", started_at="2026-01-01")


RUN = [
    *(timed("fast", "sdpa", text, 1.0) for text in (1, 2, 3)),
    *(timed("slow", "sdpa", text, ms) for text, ms in ((1, 2.0), (2, 8.0), (3, 1.0005))),
    timed("fast", "sdpa", 1, 3.0, dtype="bf16"),
    timed("slow", "sdpa", 1, 1.5, dtype="bf16"),
    timed("fast", "eager", 1, 4.0),
    timed("alone", "sdpa", 9, 1.0),
]


def ranks(items: list[Record]) -> pd.DataFrame:
    return ranked(latest(frame(items, ENVIRONMENTS)))


def printed(items: list[Record], width: int = 100, reference: str = "", rows: int = 12) -> list[str]:
    out = io.StringIO()
    parts = show(frame(items, ENVIRONMENTS), {}, width=width, command="c", reference=reference, rows=rows)
    Console(file=out, width=width, color_system=None).print(parts, crop=False)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def section(lines: list[str], title: str) -> list[str]:
    start = lines.index(title)
    return lines[start + 1 : lines.index("", start) if "" in lines[start:] else None]


def test_wins_are_counted_by_dtype_with_the_geometric_mean_of_the_leads() -> None:
    lines = printed(RUN)
    fp32 = [line.split() for line in section(lines, "wins  fp32 · cpu · forward · 3 cases")]
    assert fp32[1] == ["fast", "sdpa", "2", "4.00", "×", "3.99", "to", "4.01"]
    assert fp32[2] == ["no", "clear", "winner", "1"]
    bf16 = [line.split() for line in section(lines, "wins  bf16 · cpu · forward · 1 case")]
    assert bf16[1:] == [["slow", "sdpa", "1", "2.00", "×", "2.00", "to", "2.00"]]


def test_one_candidate_alone_wins_nothing() -> None:
    assert not any(line.startswith("wins") for line in printed([timed("alone", "sdpa", 9, 1.0)]))


def test_a_reference_is_taken_by_its_fastest_backend_in_each_case() -> None:
    found = referred(ranks(RUN), "fast").set_index(["strategy", "backend", "dtype", "text"])["of_reference"]
    assert found["fast", "eager", "fp32", 1] == pytest.approx(4)
    assert found["slow", "sdpa", "bf16", 1] == pytest.approx(0.5)
    assert np.isnan(found["alone", "sdpa", "fp32", 9])
    eager = referred(ranks(RUN), "fast/eager").set_index(["strategy", "backend", "dtype", "text"])["of_reference"]
    assert eager["fast", "sdpa", "fp32", 1] == pytest.approx(0.25)
    assert np.isnan(eager["slow", "sdpa", "fp32", 2])


def test_all_are_held_against_the_reference_case_by_case_and_in_the_mean() -> None:
    lines = printed(RUN, reference="slow/sdpa")
    fp32 = [line.split() for line in section(lines, "against slow/sdpa  fp32 · cpu · forward · 3 cases")]
    assert fp32[0] == ["strategy", "backend", "takes", "95", "%", "cases", "faster", "in", "slower", "in"]
    assert fp32[1][:4] == ["fast", "sdpa", "0.40", "×"]  # the cube root of 1 / 2 / 8
    assert fp32[1][-3:] == ["3", "2", "0"]
    assert fp32[2][:4] == ["fast", "eager", "2.00", "×"]
    assert any(line.split()[:5] == ["fast", "sdpa", "1.00", "0.50", "[0.50,"] for line in lines)


def test_a_mean_ratio_whose_interval_holds_1_is_no_difference() -> None:
    close = [timed("a", "sdpa", 1, 1.0, noise=0.2), timed("b", "sdpa", 1, 1.01, noise=0.2)]
    assert any(line.split()[:4] == ["b", "sdpa", "≈", "1.01"] for line in printed(close, reference="a"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("fsat", "no strategy named 'fsat'; did you mean 'fast'?"),
        ("fast/spda", "no backend named 'spda'; did you mean 'sdpa'?"),
        ("alone/eager", "'alone' was not timed with backend 'eager' in this run"),
    ],
)
def test_a_reference_that_was_not_timed_is_refused_with_what_was(reference: str, message: str) -> None:
    with pytest.raises(FusionbenchError) as refused:
        referred(ranks(RUN), reference)
    assert str(refused.value) == message


@pytest.mark.parametrize("width", [30, 40, 60, 80, 140])
def test_no_row_is_wider_than_the_terminal_or_on_two_lines(width: int) -> None:
    lines = printed(records(600), width, reference="cross_attention/sdpa")
    wide = [line for line in lines if cell_len(line) > width and not line.startswith("    c --job")]
    assert wide == []
    assert sum(line.startswith("against ") for line in lines) > 0


def test_more_winners_than_asked_for_are_counted() -> None:
    cases = [timed(f"s{n}", "sdpa", n, 1.0) for n in range(5)] + [timed("slow", "sdpa", n, 2.0) for n in range(5)]
    lines = section(printed(cases, rows=3), "wins  fp32 · cpu · forward · 5 cases")
    assert lines[-1].split() == ["2", "others", "2"]


def test_the_interval_of_a_mean_holds_the_true_ratio_at_least_95_times_in_100() -> None:
    """Five cases whose true ratio is 1.5, each side a median of six rounds with noise of its own."""
    rng = random.Random(3)

    def side(ms: float) -> list[float]:
        rounds = sorted(ms * rng.lognormvariate(0, 0.05) for _ in range(_ROUNDS))
        return [(rounds[2] + rounds[3]) / 2, rounds[0], rounds[-1]]

    held, trials = 0, 400
    for _ in range(trials):
        sides = [(side(1.0), side(1.5)) for _ in range(5)]
        ratios = pd.DataFrame({
            "who": "a",
            "ratio": [b[0] / a[0] for a, b in sides],
            "ratio_low": [b[1] / a[2] for a, b in sides],
            "ratio_high": [b[2] / a[1] for a, b in sides],
        })  # fmt: skip
        found = pooled(ratios, ["who"]).iloc[0]
        held += bool(found["ratio_low"] <= 1.5 <= found["ratio_high"])
    assert held / trials >= 0.95


def test_a_tie_with_a_third_is_no_clear_winner_either() -> None:
    three = [timed("a", "x", 1, 1.0), timed("b", "x", 1, 1.1), timed("c", "x", 1, 1.2, noise=0.3)]
    assert runners_up(ranks(three))["tie"].tolist() == [True]
