"""What is told while a run goes on: how long it takes, how far it is, and each job's time as the tables have it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from rich.console import Console

from fusionbench.progress import START_S, Display, Outline, outcome, outline_box, span
from fusionbench.record import Record, Timing
from fusionbench.report.frame import frame
from fusionbench.session import _no_timers
from fusionbench.spec import Budget, Case, Job, Shape, Visit

CASE = Case(shape=Shape(batch=1, image=3, text=2, image_width=8, text_width=8, width=8, heads=1))


def outline(todo: dict[str, int], rounds: int = 6, begun: Sequence[int] = (), energy_s: float = 0.0) -> Outline:
    return Outline(
        title="Smoke",
        question="",
        todo=Counter(todo),
        done=0,
        skips=Counter(),
        devices=("cpu",),
        machine="m",
        folder="f",
        budget=Budget(rounds=rounds, energy_s=energy_s),
        begun=tuple(begun),
    )


def record(backend: str = "eager", loops: int = 1) -> Record:
    time = Timing(
        timer="wall",
        cache="hot",
        samples_ns=tuple(loops * ns for ns in (1_000_000, 2_000_000, 3_000_000)),
        loops=loops,
        stop="samples",
        threads=1,
        first_call_ns=1,
        warmup_calls=1,
    )
    return Record(job=Job(strategy="early", backend=backend, case=CASE), status="ok", time=time)


@pytest.mark.parametrize("loops", [1, 12])
def test_a_line_has_the_time_of_one_call_as_the_tables_do(loops: int) -> None:
    found = record(loops=loops)
    assert frame([found], {})["median_ms"].tolist() == [2.0]
    assert outcome(found) == "2 ms [1, 3]"


def shown(display: Display, visits: Sequence[tuple[str, int, bool]]) -> None:
    for backend, number, last in visits:
        found = record(backend)
        display.started(found.job)
        display.visited(Visit(job=found.job, round=number), found, last)


@pytest.mark.parametrize(
    ("planned", "visits"),
    [
        (outline({"eager": 2}, rounds=2), [("eager", 0, False)] * 2 + [("eager", 1, True)] * 2),
        (outline({"eager": 1}, begun=[4], energy_s=1.0), [("eager", 4, False), ("eager", 5, True)]),
        (outline({"eager": 1}), [("eager", 0, False), ("eager", 1, True)]),  # failed
        (outline({"compile": 1, "sdpa": 1}, rounds=2), [("compile", 0, True), ("sdpa", 0, False), ("sdpa", 1, True)]),
        (outline({"compile": 1}, rounds=2), [("compile", 0, False), ("compile", 1, True)]),  # sooner than thought
    ],
    ids=["two rounds", "resumed", "failed", "compiled", "compiled soon"],
)
def test_the_bar_is_full_when_the_last_job_is_done(planned: Outline, visits: Sequence[tuple[str, int, bool]]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Display(console, planned) as display:
        shown(display, visits[:-1])
        assert display.worked < display.expected - 0.1
        shown(display, visits[-1:])
    assert display.worked == pytest.approx(display.expected)


def test_rounds_that_are_there_take_no_time_again() -> None:
    fresh, resumed = outline({"eager": 3}), outline({"eager": 3}, begun=[5, 5])
    assert resumed.estimate_s()[1] < 0.6 * fresh.estimate_s()[1]
    assert outline({"eager": 3}, begun=[1] * 3).estimate_s()[0] > START_S


def test_the_plan_says_what_was_begun_and_one_time_where_both_ends_read_alike() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(outline_box(outline({"eager": 1}, begun=[5])))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1 to measure on cpu, 1 of them begun" in text
    assert span(1.2, 1.4, " to ") == "1 s"
    assert span(62, 400, " to ") == "62 s to 7 min"


def test_timers_that_a_cpu_has_not_are_told() -> None:
    planned = outline({"eager": 1})
    asked = replace(planned.budget, timers=("graph", "cold"))
    assert "(graph, cold) are for CUDA" in str(_no_timers(asked, planned))
    assert _no_timers(planned.budget, planned) is None


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_the_bar_is_one_line_in_any_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=5)  # too low for the best so far
    planned = outline({"eager": 500})
    with Display(console, planned) as display:
        shown(display, [("eager", 0, False)] * 5)
        assert display.bar is not None
        line = console.render_lines(display.bar.get_renderable())
    assert len(line) == 1
