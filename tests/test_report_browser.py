"""The report in a real browser: every view draws, filters link, state returns, hostile text stays text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fusionbench.record import Parts, Record
from fusionbench.report import page
from fusionbench.report.frame import frame
from tests.browser import Visit, browser, chromium
from tests.hostile import TEXTS, hostile_environments, hostile_records
from tests.synthetic import ENVIRONMENTS, records, smoke

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium on the path (set FUSIONBENCH_CHROMIUM)"),
]

CHARTS = ("latency", "ranking", "crossover", "pareto", "roofline", "error")


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed (pip install fusionbench[dev])")
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def report(folder: Path, name: str, items: list[Record], **options: Any) -> Path:
    path = folder / f"{name}.html"
    return path if path.exists() else page.write(path, frame(items, ENVIRONMENTS), ENVIRONMENTS, **options)


@pytest.fixture
def visit(started: Any, folder: Path) -> Iterator[Visit]:
    opened = Visit(started, report(folder, "large", records(5000), command="fusionbench run s.toml"))
    yield opened
    assert opened.trouble == []
    opened.context.close()


def drawn(visit: Visit, chart: str) -> list[str]:
    """The types that plotly really drew: a bundle without one silently draws another."""
    found: list[str] = visit.page.evaluate(f"document.querySelector('#{chart} .chart')._fullData.map(t => t.type)")
    return found


def curves(visit: Visit) -> int:
    """Of candidates: the bands of fitted powers are drawn behind them."""
    return int(visit.page.evaluate("document.querySelectorAll('#latency .scatterlayer .points:has(.point)').length"))


def shown_rows(visit: Visit, column: int) -> list[str]:
    cells: list[str] = visit.page.eval_on_selector_all(
        f".rows .body .row > :nth-child({column})", "all => all.map(e => e.textContent)"
    )
    return cells


@pytest.mark.parametrize("by", ["strategy", "backend"])
def test_every_chart_draws_what_was_asked_for(visit: Visit, by: str) -> None:
    visit.page.select_option("#by", by)
    visit.wait()
    for chart in CHARTS:
        types = drawn(visit, chart)
        assert types, chart
        assert set(types) == {"scatter"}
        label = visit.page.get_attribute(f"#{chart} .chart", "aria-label")
        assert label
        assert len(label) > 40
    assert curves(visit) == (10 if by == "strategy" else 37)


def test_the_answer_names_a_winner_with_its_interval_or_says_that_there_is_none(visit: Visit) -> None:
    headline = visit.text("#headline")
    assert "No clear winner" in headline or " faster than " in headline
    visit.page.select_option("#shape", "128x1024")
    visit.wait()
    assert visit.text("#headline") != headline


def test_the_winner_map_has_a_cell_per_shape_and_chooses_the_shape(visit: Visit) -> None:
    assert visit.page.locator("#winners td").count() == 36
    assert "≈" in visit.text("#winners .grid")
    visit.click("#winners tbody tr:nth-child(2) td:nth-of-type(3) button")
    assert visit.page.input_value("#shape") == "64x128"
    assert "64 image × 128 text tokens" in visit.text("#ranking .summary")


def test_a_chip_filters_every_view_and_the_counts(visit: Visit) -> None:
    visit.click('[data-chip="strategy=gated"]')
    assert visit.text("#shown") == "500 of 5,000 jobs"
    assert visit.text("#table .summary") == "500 jobs of 5,000."
    assert curves(visit) == 1
    assert set(shown_rows(visit, 1)) == {"gated"}
    assert visit.text('[data-chip="backend=sdpa"] .count') == "125"
    assert visit.text('[data-chip="strategy=film"] .count') == "500"  # what a click would add
    visit.click('[data-chip="dtype=bf16"]')
    assert "bf16" in visit.text("#subline")
    visit.click("#reset")
    assert visit.text("#shown") == "5,000 jobs"


def test_the_table_sorts_by_number_with_missing_values_last(visit: Visit) -> None:
    visit.page.click('[data-sort="median_ms"]')
    first = shown_rows(visit, 7)
    assert first[0].endswith("µs")
    assert visit.page.get_attribute(".head [aria-sort=ascending]", "class") == "right"
    visit.page.click('[data-sort="median_ms"]')
    assert shown_rows(visit, 7)[0] != first[0]
    assert "–" not in shown_rows(visit, 7)[:10]


def test_the_table_draws_only_what_is_in_sight_and_reaches_the_last_row(visit: Visit) -> None:
    assert visit.page.locator(".rows .body .row").count() < 60
    visit.page.focus(".rows")
    visit.page.keyboard.press("End")
    visit.page.wait_for_selector("#row-4999")
    visit.page.keyboard.press("Enter")
    assert "fusionbench run s.toml --job " in visit.text("#detail .command")


def test_find_searches_names_and_reasons(visit: Visit) -> None:
    visit.page.fill("#find", "sigsegv")
    visit.page.wait_for_timeout(300)
    assert set(shown_rows(visit, 6)) == {"crash"}


def test_the_fragment_restores_the_state(visit: Visit, started: Any, folder: Path) -> None:
    visit.click('[data-chip="dtype=int8"]')
    visit.click('[data-chip="strategy=film"]')
    visit.page.select_option("#axis", "total")
    visit.page.click('[data-sort="rel_l2"]')
    fragment = visit.page.evaluate("location.hash")
    again = Visit(started, folder / "large.html", fragment)
    assert again.text("#shown") == visit.text("#shown") == "144 of 5,000 jobs"
    assert again.page.input_value("#axis") == "total"
    assert again.page.get_attribute('[data-chip="dtype=int8"]', "aria-pressed") == "true"
    assert shown_rows(again, 10) == shown_rows(visit, 10)
    assert again.trouble == []
    again.context.close()


@pytest.mark.parametrize("fragment", ["#dtype=%00&x=<b>&sort=zzz&condition=none", "#%", "#shape=__proto__&theme=pink"])
def test_a_strange_fragment_is_ignored(started: Any, folder: Path, visit: Visit, fragment: str) -> None:
    again = Visit(started, folder / "large.html", fragment)
    assert again.text("#shown") == "5,000 jobs"
    assert again.trouble == []
    again.context.close()


def test_the_csv_holds_the_filtered_rows(visit: Visit, tmp_path: Path) -> None:
    visit.click('[data-chip="status=oom"]')
    with visit.page.expect_download() as download:
        visit.page.click("#csv")
    download.value.save_as(tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text("utf-8").splitlines()))
    assert {row["status"] for row in rows} == {"oom"}
    assert f"{len(rows)} jobs of 5,000." == visit.text("#table .summary")
    assert {row["key"] for row in rows} <= {r.job.key for r in records(5000)}


def test_the_json_holds_the_same_rows_with_numbers_as_numbers(visit: Visit, tmp_path: Path) -> None:
    visit.click('[data-chip="strategy=film"]')
    with visit.page.expect_download() as download:
        visit.page.click("#json")
    download.value.save_as(tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text("utf-8"))
    given = {r.job.key: r for r in records(5000) if r.job.strategy == "film"}
    assert {row["key"] for row in rows} == set(given)
    for row in rows:
        timing = given[row["key"]].time
        assert row["samples"] == (len(timing.samples_ns) if timing else None)
        assert (row["median_ms"] is None) == (timing is None)
        assert row["started_at"] == "2026-03-02T10:00:00Z"


def test_every_column_sorts_both_ways_with_what_is_missing_last(visit: Visit) -> None:
    order = "[...document.querySelectorAll('.rows .body .row')].map((e) => e.children[%d].textContent)"
    heads = visit.page.eval_on_selector_all(".head [data-sort]", "all => all.map((e) => e.dataset.sort)")
    for name in ("text", "dtype", "samples", "peak_mib"):
        column = order % heads.index(name)
        visit.page.click(f'[data-sort="{name}"]')
        up = visit.page.evaluate(column)
        visit.page.click(f'[data-sort="{name}"]')
        down = visit.page.evaluate(column)
        assert up[0] != "–" != down[0]
        read = (lambda v: v) if name == "dtype" else (lambda v: float(v.replace(",", "")))
        assert up == sorted(up, key=read)
        assert down == sorted(down, key=read, reverse=True)
        assert read(up[0]) < read(down[0])


def test_an_axis_of_thousands_of_values_is_cut_and_searched(started: Any, folder: Path) -> None:
    table = frame(records(3000), ENVIRONMENTS)
    path = page.write(folder / "axis.html", table.assign(text=range(1, 3001)), ENVIRONMENTS)
    long = Visit(started, path)
    chips = '[data-facet="text"] .chip'
    assert long.page.locator(chips).count() == 60
    assert "and 2,940 more" in long.text('[data-facet="text"]')
    long.page.fill('[data-facet="text"] input', "2999")
    assert long.page.locator(chips).count() == 1
    long.click('[data-chip="text=2999"]')
    assert long.text("#shown") == "1 of 3,000 jobs"
    long.page.fill('[data-facet="text"] input', "nothing like it")
    assert long.page.locator(chips).count() == 1  # what is chosen stays in sight
    assert long.page.evaluate("document.activeElement.type") == "search"
    assert long.page.locator("#shape option").count() <= 501
    assert long.trouble == []
    long.context.close()


def test_plotly_is_carried_once_and_read_after_the_results(visit: Visit) -> None:
    assert visit.page.evaluate("Plotly.version") == "4.1.1"
    assert visit.page.locator("#plotly, #data").count() == 0  # unpacked and let go
    assert visit.page.evaluate("document.head.querySelectorAll('script').length") == 1


def test_failures_and_skips_are_told_with_reason_and_count(visit: Visit) -> None:
    assert "worker died of SIGSEGV" in visit.text("#failed")
    assert "375 jobs made no sense and were not run" in visit.text("#skipped")
    visit.page.click("#failed summary >> nth=0")
    assert visit.text("#failed .command >> nth=0").startswith("fusionbench run s.toml --job ")
    assert visit.page.is_hidden("#damage")
    assert "gpu-node-07" in visit.text("#machines")


def test_dark_and_light_follow_the_system_and_the_switch(started: Any, folder: Path, visit: Visit) -> None:
    dark = Visit(started, folder / "large.html", color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    at_first = dark.page.evaluate(colour)
    assert at_first != visit.page.evaluate(colour)
    dark.click("#theme")
    assert dark.page.evaluate(colour) == visit.page.evaluate(colour)
    dark.context.close()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_overflows_the_page(started: Any, folder: Path, visit: Visit, width: int) -> None:
    sized = Visit(started, folder / "large.html", viewport={"width": width, "height": 844})
    assert sized.page.evaluate("document.documentElement.scrollWidth") <= width
    sized.context.close()


def test_one_length_is_ranked_and_not_drawn_as_a_curve(started: Any, folder: Path) -> None:
    one = Visit(started, report(folder, "one", [r for r in smoke() if r.job.case.shape.text == 64]))
    assert one.page.is_hidden("#latency")
    assert one.page.is_hidden("#winners")
    assert drawn(one, "ranking") == ["scatter", "scatter"]  # the dots, and the ratios beside them
    assert one.trouble == []
    one.context.close()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_rows_make_a_page_without_errors(started: Any, folder: Path, count: int) -> None:
    few = Visit(started, report(folder, f"few{count}", smoke()[:count]))
    assert few.trouble == []
    assert ("No job" in few.text("#headline")) == (count == 0)
    few.context.close()


def test_a_run_where_everything_failed_makes_a_page_without_errors(started: Any, folder: Path) -> None:
    failed = [r for r in records(5000) if r.status not in ("ok", "skipped")]
    sad = Visit(started, report(folder, "sad", failed))
    assert "Nothing was timed" in sad.text("#headline")
    assert sad.trouble == []
    sad.context.close()


def test_the_parts_of_each_candidate_are_stacked_to_the_whole(started: Any, folder: Path) -> None:
    spent = Parts(attention_ns=300, projections_ns=500, other_ns=200)
    known = [msgspec.structs.replace(r, parts=scaled(spent, r)) if r.status == "ok" else r for r in smoke()]
    stacked = Visit(started, report(folder, "parts", known), "#by=backend")
    bars = stacked.page.evaluate(
        "document.querySelector('#parts .chart')._fullData.map(t => [t.type, t.name, Array.from(t.x), Array.from(t.text)])"
    )
    assert {kind for kind, *_ in bars} == {"bar"}
    assert [name for _, name, *_ in bars] == ["attention", "projections", "everything else"]
    assert [sum(values) for values in zip(*(x for _, _, x, _ in bars), strict=True)] == pytest.approx(
        [100] * len(bars[0][2])
    )
    assert bars[0][3][0] == "attention 30 %"
    assert "attention 30 %, everything else 20 %" in stacked.text("#parts .summary")
    assert stacked.text("#parts .legend .key >> nth=0") == "attention"
    assert stacked.trouble == []
    stacked.context.close()
    unknown = Visit(started, report(folder, "no-parts", smoke()))
    assert unknown.page.is_hidden("#parts")
    unknown.context.close()


def scaled(parts: Parts, record: Record) -> Parts:
    """The parts of a call that takes longer than any sample, so that there are no gaps."""
    longest = 1 + max(record.time.samples_ns if record.time else (1,))
    return Parts(**{name: ns * longest for name, ns in msgspec.structs.asdict(parts).items()})


@pytest.mark.parametrize("by", ["strategy", "backend"])
def test_hostile_text_stays_inert(started: Any, folder: Path, by: str) -> None:
    environments = hostile_environments()
    path = page.write(
        folder / "hostile.html",
        frame(hostile_records(), environments),
        environments,
        list(TEXTS),
        title=TEXTS[0],
        command=TEXTS[1],
    )
    bad = Visit(started, path, f"#by={by}")
    assert TEXTS[0] in bad.page.title()
    for text in TEXTS[:5]:
        assert text in bad.page.evaluate("document.body.textContent")
    for box in bad.page.locator("#ranking .point, #pareto .point, #roofline .point").all()[:12]:
        box.hover(force=True)
    bad.page.focus(".rows")
    for _ in range(4):
        bad.page.keyboard.press("ArrowDown")
        bad.page.keyboard.press("Enter")
        bad.page.keyboard.press("Escape")
    assert bad.page.evaluate("window.pwned") is None
    assert bad.page.locator("img, a[href^=javascript], main svg a").count() == 0
    shown = bad.page.evaluate("document.body.textContent")
    assert not set("\x00\x07\x1b\u202e\u2066") & set(shown)
    assert bad.page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert bad.trouble == []
    bad.context.close()
