"""The best so far of a run: it agrees with the tables, fits its terminal, and is there only where it is of use."""

from __future__ import annotations

import io
import threading
from collections import Counter

import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from fusionbench.live import NARROWEST, Board, board
from fusionbench.progress import Display
from fusionbench.record import Record
from fusionbench.report.frame import frame
from fusionbench.report.rank import latest, ranked
from fusionbench.spec import Visit
from fusionbench.standings import Standings
from tests.hostile import hostile_records
from tests.synthetic import records, smoke
from tests.test_progress import outline, record


def standings(items: list[Record]) -> Standings:
    found = Standings()
    for item in items:
        found.add(item)
    return found


def lines(items: list[Record], width: int = 120, height: int = 40) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False, color_system=None)
    drawn = board(standings(items), width, height)
    if drawn is not None:
        console.print(drawn)
    return out.getvalue().splitlines()


def test_leaders_and_their_leads_are_those_of_the_tables() -> None:
    near = {"film", "late:vote"}  # as fast as each other
    items = [item for item in records(800) if item.job.case.shape.text > 64 or item.job.strategy not in near]
    ranks = ranked(latest(frame(items, {})))
    leaders, more = standings(items).top(1000)
    assert more == 0
    assert len(leaders) == ranks["group"].nunique()
    by_case = {row["case"]: row for _, row in ranks[ranks["rank"] == 0].iterrows()}
    seconds = ranks[ranks["rank"] == 1].set_index("case")["ratio"]
    ties = ranks.groupby("case")["tie"].any()
    assert 0 < sum(not each.clear for each in leaders) < len(leaders)
    for each in leaders:
        row = by_case[each.case.key]
        assert each.who == f"{row['candidate']}/{row['backend']}"
        assert each.ms == pytest.approx(row["median_ms"])
        assert each.lead == pytest.approx(seconds[each.case.key])
        assert each.clear == (not ties[each.case.key])


def test_a_later_record_of_a_candidate_takes_the_place_of_its_earlier_one_and_a_failure_takes_it_out() -> None:
    first = next(item for item in smoke() if item.status == "ok" and item.time)
    assert first.time is not None
    timing = replace(first.time, run_delay_ns=())
    first, samples = replace(first, time=timing), tuple(9 * ns for ns in timing.samples_ns)
    slower = replace(first, time=replace(timing, samples_ns=samples))
    (before,), _ = standings([first]).top(9)
    (after,), _ = standings([first, slower]).top(9)
    assert after.ms == pytest.approx(9 * before.ms)
    assert standings([first, replace(first, status="wrong", time=None)]).top(9) == ([], 0)


def test_undecided_cases_are_kept_before_decided_ones_and_rows_stay_in_their_order() -> None:
    items = records(1200)
    found = standings(items)
    everything, _ = found.top(1000)
    kept, more = found.top(8)
    assert more == len(everything) - 8
    assert all(each.undecided for each in kept) or sum(each.undecided for each in everything) < 8
    order = [each.case for each in everything]
    assert [each.case for each in kept] == sorted((each.case for each in kept), key=order.index)


@pytest.mark.parametrize("width", [NARROWEST, 80, 100, 140])
@pytest.mark.parametrize("height", [10, 24, 50])
def test_the_board_fits_its_terminal(width: int, height: int) -> None:
    shown = lines(records(1200), width, height)
    assert 3 < len(shown) <= height - 2
    assert all(cell_len(line) <= width for line in shown)
    assert shown[0].startswith("best so far")
    assert {"winner", "ms"} <= set(shown[1].split())
    assert shown[-1].startswith("… and ")


def test_what_all_cases_share_stands_in_the_title_and_the_rest_in_their_rows() -> None:
    title, headings, *rows = lines(smoke())
    assert "64x16" not in title
    assert "fp32 cpu fwd b4" in title
    assert headings.split()[:3] == ["case", "winner", "ms"]
    assert [row.split()[0] for row in rows] == ["64x16", "64x64"]


def test_a_candidate_alone_has_no_lead() -> None:
    title, headings, row = lines([next(item for item in smoke() if item.status == "ok")])
    assert "next takes" not in headings
    assert len(row.split()) == 4
    assert "64x16" in title


@pytest.mark.parametrize(("width", "height"), [(NARROWEST - 1, 40), (120, 7)])
def test_in_a_small_terminal_there_is_no_board(width: int, height: int) -> None:
    assert lines(smoke(), width, height) == []


def test_hostile_names_reach_no_terminal() -> None:
    text = "\n".join(lines([item for item in hostile_records() if item.time]))
    assert not {c for c in text if not c.isprintable() and c != "\n"}


def drawn(display: Display, items: list[Record]) -> str:
    with display:
        for item in items:
            display.started(item.job)
            display.visited(Visit(job=item.job), item, True)
        if display.bar is not None:
            display.bar.refresh()
    assert isinstance(display.console.file, io.StringIO)
    return display.console.file.getvalue()


def test_a_run_shows_the_board_on_a_terminal_alone_and_never_when_quiet() -> None:
    def console(terminal: bool) -> Console:
        return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30)

    planned = outline(dict(Counter(item.job.backend for item in smoke())), rounds=1)
    assert "best so far" in drawn(Display(console(True), planned), smoke())
    assert "best so far" not in drawn(Display(console(False), planned), smoke())
    assert "best so far" not in drawn(Display(console(True), planned, quiet=True), smoke())


def test_a_resumed_run_begins_with_what_was_measured_before() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    display = Display(console, outline({"eager": 1}), earlier=[record("sdpa")])
    assert "early/sdpa" in drawn(display, [])


def test_the_board_is_made_anew_only_for_a_new_record_or_size() -> None:
    found = standings(smoke())
    shown = Board(found)
    first = shown(100, 30)
    assert shown(100, 30) is first
    assert shown(90, 30) is not first
    again = shown(90, 30)
    found.add(smoke()[0])
    assert shown(90, 30) is not again


def test_one_thread_may_draw_while_another_adds() -> None:
    items, found, failed = records(4000), Standings(), []

    def draw() -> None:
        try:
            while found.version < len(items):
                board(found, 120, 40)
        except Exception as error:  # what a thread raises is lost
            failed.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    for item in items:
        found.add(item)
    thread.join(60)
    assert failed == []
    assert not thread.is_alive()
