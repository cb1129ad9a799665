"""The history page in a real browser: charts are drawn when opened, changes are marked, hostile text stays text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fusionbench import store, timeline
from fusionbench.cli import app
from fusionbench.history import History
from fusionbench.report import history as page
from tests.browser import Visit, browser, chromium
from tests.hostile import TEXTS, hostile_environments, hostile_records
from tests.past import BEGIN, commit, failed, measured, noisy, run, store_run

pytest.importorskip("ruptures", reason="ruptures is not installed (pip install fusionbench[history])")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium on the path (set FUSIONBENCH_CHROMIUM)"),
]


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed (pip install fusionbench[dev])")
    with browser() as running:
        yield running


def past() -> History:
    """40 runs: job 1 slower from 12 on, 2 faster, 3 with more memory from 20 on, 4 failing in the end, 5 to 9 alike; another torch
    from 30 on."""
    days = []
    steps = {1: 1.2, 2: 0.8}
    times = {job: noisy([1e6] * 40, 0.02, job) for job in range(1, 10)}
    for day in range(40):
        items = [
            measured(
                day,
                times[job][day] * (steps.get(job, 1) if day >= 12 else 1),
                job=job,
                peak=1 << (21 if job == 3 and day >= 20 else 20),
            )
            for job in times
        ]
        if day == 39:
            items[3] = msgspec.structs.replace(failed(day), job=items[3].job)
        days.append(run(day, *items, **({"id": "e2", "torch": "3"} if day >= 30 else {})))
    return timeline.build(days)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write(tmp_path_factory.mktemp("pages") / "history.html", past(), title="runs")


@pytest.fixture
def visit(started: Any, path: Path) -> Iterator[Visit]:
    opened = Visit(started, path)
    yield opened
    assert opened.trouble == []
    opened.context.close()


def opened(visit: Visit, number: int) -> str:
    """Open a job of the list; returns the selector of its body."""
    visit.click(f".job:nth-of-type({number + 1}) > summary")
    return f".job:nth-of-type({number + 1}) .body"


def test_the_overview_says_what_changed_and_lists_that_first(visit: Visit) -> None:
    assert visit.text("#headline") == "2 of 9 jobs took another time from some commit on."
    assert "1 slower, 1 faster" in visit.text("#subline")
    assert "1 job failed in the last run" in visit.text("#subline")
    rows = visit.page.locator(".job > summary").all_inner_texts()
    assert len(rows) == 9
    assert "oom" in rows[0]
    assert "▼ -20 % 2026-03-14" in rows[1].replace("\n", " ").replace("▼-", "▼ -")
    assert "▲" in rows[2]
    assert "● memory" in rows[3].replace("\n", " ").replace("●m", "● m")


def test_a_chart_is_drawn_when_its_job_is_opened_and_not_before(visit: Visit) -> None:
    assert visit.page.locator(".chart").count() == 0
    body = opened(visit, 2)
    types = visit.page.evaluate(f"document.querySelector('{body} .chart')._fullData.map(t => t.type)")
    assert types
    assert set(types) == {"scatter"}
    visit.click(".job:nth-of-type(3) > summary")
    assert visit.page.locator(".chart").count() == 0


def test_a_change_point_is_a_line_with_a_label_at_its_run(visit: Visit) -> None:
    body = opened(visit, 2)
    marks = visit.page.evaluate(
        f"(({{layout}}) => layout.shapes.map((s, i) => [s.x0, s.line.dash]))(document.querySelector('{body} .chart'))"
    )
    assert sorted(marks) == [[11.5, "solid"], [29.5, "dashdot"]]
    labels = visit.page.evaluate(f"document.querySelector('{body} .chart').layout.annotations.map(a => a.text)")
    assert labels[0].startswith("▲ +")
    assert labels[1] == "⌂ torch"
    text = visit.text(body)
    assert f"at {commit(11)[:7]}..{commit(12)[:7]}, 2026-03-14" in text
    assert "another environment from 2026-04-01 on: torch 2 → 3" in text
    label = visit.page.get_attribute(f"{body} .chart", "aria-label")
    assert label
    assert "1 change point" in label


def test_the_values_are_there_as_a_table(visit: Visit) -> None:
    body = opened(visit, 0)
    visit.click(f"{body} .values > summary")
    rows = visit.page.locator(f"{body} .values tbody tr").all_inner_texts()
    assert len(rows) == 40
    assert commit(0)[:7] in rows[0]
    assert "oom" in rows[39]


def test_find_and_sort_and_the_fragment_keep_their_state(visit: Visit, started: Any, path: Path) -> None:
    visit.page.fill("#find", "b7-")
    visit.page.wait_for_timeout(300)
    assert visit.text("#jobs .summary") == "1 job of 9."
    visit.page.fill("#find", "")
    visit.page.select_option("#sort", "key")
    visit.wait()
    opened(visit, 4)
    again = Visit(started, path, visit.page.evaluate("location.hash"))
    assert again.page.input_value("#sort") == "key"
    assert "/b5-" in again.text(".job[open] .name").replace("\u200b", "")
    assert again.page.locator(".chart .main-svg").count() > 0
    assert again.trouble == []
    again.context.close()


@pytest.mark.parametrize("fragment", ["#job=<b>&sort=zzz&find=%00", "#%", "#theme=pink&job=__proto__"])
def test_a_strange_fragment_is_ignored(started: Any, path: Path, fragment: str) -> None:
    odd = Visit(started, path, fragment)
    assert odd.page.locator(".job[open]").count() == 0
    assert odd.trouble == []
    odd.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 768, 1400])
def test_nothing_overflows_the_page(started: Any, path: Path, width: int, scheme: str) -> None:
    sized = Visit(started, path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened(sized, 2)
    opened(sized, 0)
    assert sized.page.evaluate("document.documentElement.scrollWidth") <= width
    assert sized.trouble == []
    sized.context.close()


def test_the_theme_switch_draws_open_charts_again(visit: Visit) -> None:
    body = opened(visit, 1)
    colour = f"document.querySelector('{body} .chart')._fullLayout.font.color"
    before = visit.page.evaluate(colour)
    visit.click("#theme")
    assert visit.page.evaluate(colour) != before


def test_damage_and_unfinished_runs_are_on_the_page(started: Any, tmp_path: Path) -> None:
    manifest = store.new_manifest(suite_name="quick", suite_hash="h", planned=3)
    with store.Writer(store.create(tmp_path / "runs", manifest, "text"), run(0).environments["e1"]) as writer:
        writer.append(measured(0, 1e6))
    store_run(tmp_path / "runs", 1, measured(1, 1e6))
    (tmp_path / "runs" / "cut.parquet").write_bytes(b"PAR1 and no more")
    done = CliRunner().invoke(app, ["history", str(tmp_path / "runs"), "--report", str(tmp_path / "h.html")])
    assert done.exit_code == 6
    assert done.stdout.strip() == str(tmp_path / "h.html")
    shown = Visit(started, tmp_path / "h.html")
    assert "cut.parquet" in shown.text("#damage")
    assert "1 of 3 jobs begun, unfinished" in shown.text("#runs")
    assert shown.text("#headline") == "Too few runs to tell a change of time from noise."
    opened(shown, 0)
    assert "Change points need 10 runs before and 10 after" in shown.text(".job .summary")
    assert shown.trouble == []
    shown.context.close()


def test_hostile_text_stays_inert(started: Any, tmp_path: Path) -> None:
    known = msgspec.structs.replace(hostile_environments()["h100-a"], commit=TEXTS[1], torch=TEXTS[2])
    old = msgspec.structs.replace(known, id="old", torch=TEXTS[0])
    items = [msgspec.structs.replace(r, started_at=BEGIN.isoformat()) for r in hostile_records()]
    early = [
        msgspec.structs.replace(r, environment="old", kernels=(TEXTS[7],), started_at="2025-01-01T00:00:00")
        for r in items
    ]
    runs = [
        store.Run(tmp_path / TEXTS[4].replace("/", ""), None, part, {e.id: e}, [], [], 0)
        for part, e in ((items, known), (early, old))
    ]
    path = page.write(tmp_path / "hostile.html", timeline.build(runs, problems=TEXTS), title=TEXTS[0])
    bad = Visit(started, path)
    assert TEXTS[0] in bad.page.title()
    for number in (0, 1, 2, bad.page.locator(".job").count() - 1):
        body = opened(bad, number)
        for box in bad.page.locator(f"{body} .point").all()[:4]:
            box.hover(force=True)
        if bad.page.locator(f"{body} .values > summary").count():
            bad.click(f"{body} .values > summary")
    shown = bad.page.evaluate("document.body.textContent")
    for text in TEXTS[:5]:
        assert text in shown
    assert bad.page.evaluate("window.pwned") is None
    assert bad.page.locator("img, a[href^=javascript], main svg a").count() == 0
    assert not set("\x00\x07\x1b\u202e\u2066") & set(shown)
    assert bad.page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert bad.trouble == []
    bad.context.close()
