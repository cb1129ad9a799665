"""The report's views beside the charts in a real browser: each shows what it says, filters reach it, hostile text is inert."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fusionbench import timeline
from fusionbench.report import trends
from tests import viewing
from tests.browser import Visit, browser, chromium
from tests.hostile import TEXTS, hostile_environments, hostile_records
from tests.past import run as past_run
from tests.synthetic import ENVIRONMENTS, records

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium on the path (set FUSIONBENCH_CHROMIUM)"),
]


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed (pip install fusionbench[dev])")
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("views")
    other = msgspec.structs.replace(ENVIRONMENTS["h100-a"], id="l4", machine="ci-l4", torch="2.12.0")
    few = records(40)
    items, inspected = viewing.on_triton()
    return {
        "diff": viewing.compared(folder / "d.html", *viewing.two_runs(folder), command="fusionbench run smoke"),
        "trend": viewing.followed(folder / "t.html", viewing.days(24)),
        "systems": viewing.write(folder / "s.html", viewing.systems()),
        "warned": viewing.write(folder / "w.html", viewing.warned(), command="fusionbench run smoke"),
        "triton": viewing.write(folder / "k.html", items, inspection=inspected),
        "two": viewing.write(
            folder / "e.html",
            [*few, *(msgspec.structs.replace(r, environment="l4") for r in few)],
            {**ENVIRONMENTS, "l4": other},
        ),
    }


@pytest.fixture(scope="module")
def visits(started: Any, pages: dict[str, Path]) -> Iterator[dict[str, Visit]]:
    """The pages that are open: a page takes longer to open than most of what is tried on it."""
    found: dict[str, Visit] = {}
    yield found
    for each in found.values():
        each.context.close()


@pytest.fixture
def visit(
    started: Any, pages: dict[str, Path], visits: dict[str, Visit], request: pytest.FixtureRequest
) -> Iterator[Visit]:
    name = request.param
    if name not in visits:
        visits[name] = Visit(started, pages[name], viewport={"width": 1400, "height": 1000})
    found = visits[name]
    found.page.evaluate(
        "document.querySelector('#detail').close(); window.fusionbenchDrawn = 0; location.hash = '#n=' + Math.random()"
    )
    found.wait()
    yield found
    assert found.trouble == []


def on(page: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("visit", [page], indirect=True)


def texts(visit: Visit, selector: str) -> list[str]:
    found: list[str] = visit.page.locator(selector).all_inner_texts()
    return found


class TestTheDifference:
    @on("diff")
    def test_is_told_in_its_heading_and_lists_the_worst_first(self, visit: Visit) -> None:
        assert visit.text("#difference h2") == "Head against base: 4 jobs got worse"
        assert "▲\u00a01\u00a0slower" in visit.page.text_content("#difference .summary")
        verdicts = [text.split("\n")[0] for text in texts(visit, "#difference .forest-wrap .verdict")]
        assert verdicts[:4] == ["✗ broken", "− missing", "▲ slower", "? unclear"]
        assert len(verdicts) == 14

    @on("diff")
    def test_draws_each_ratio_where_it_is_on_one_scale(self, visit: Visit) -> None:
        """Slower right of 1, faster left of it, and the text beside it says the same number."""
        rows = visit.page.eval_on_selector_all(
            "#difference tbody tr:has(.forest-row)",
            "all => all.map(r => [r.querySelector('.forest-row').dataset.verdict,"
            " Number(r.querySelector('.ratio strong').textContent),"
            " parseFloat(r.querySelector('.forest-row > svg').getAttribute('x'))])",
        )
        assert [row[0] for row in rows if row[2] > 60] == ["slower"]
        assert [row[0] for row in rows if row[2] < 40] == ["faster"]
        assert all(x <= other + 0.2 for (*_, x), (*_, other) in itertools.pairwise(sorted(rows, key=itemgetter(1))))

    @on("diff")
    @pytest.mark.parametrize(
        ("kind", "verdicts"),
        [
            ("changed", {"slower", "faster", "broken", "fixed", "missing", "new", "same"}),  # the same time, more FLOPs
            ("slower", {"slower", "broken", "missing", "same"}),
            ("faster", {"faster", "fixed"}),
        ],
    )
    def test_filters_by_what_changed_and_keeps_that_in_the_fragment(
        self, visit: Visit, kind: str, verdicts: set[str]
    ) -> None:
        visit.page.click(f'[data-diff="{kind}"]')
        shown = [text.split("\n")[0].split(" ")[1] for text in texts(visit, "#difference .forest-wrap .verdict")]
        assert set(shown) == verdicts
        assert visit.text(f'[data-diff="{kind}"] .count') == str(len(shown))
        assert f"diff={kind}" in visit.page.evaluate("location.hash")
        assert visit.page.evaluate("document.activeElement.dataset.diff") == kind

    @on("diff")
    def test_follows_the_page_s_filters(self, visit: Visit) -> None:
        visit.click('[data-chip="batch=1"]')
        assert visit.text("#difference h2") == "Head against base: 1 job got worse"
        assert len(texts(visit, "#difference .forest-wrap tbody tr")) == 1

    @on("diff")
    def test_says_why_some_are_not_sure_and_opens_a_job(self, visit: Visit) -> None:
        assert "fewer rounds than 5" in visit.text("#difference .uncompared")
        visit.page.click("#difference tbody .link >> nth=2")
        assert "fusionbench run smoke --job concat/eager/b1-" in visit.text("#detail .command")


class TestTheDrawer:
    @on("diff")
    def test_draws_samples_with_their_rounds_and_their_spread(self, visit: Visit) -> None:
        visit.page.click("#difference tbody .link >> nth=2")
        visit.page.wait_for_selector("#detail .chart .violins", state="attached")
        chart = "document.querySelector('#detail .chart')"
        assert visit.page.evaluate(f"{chart}._fullData.map(t => t.type)") == ["scatter", "violin"]
        assert visit.page.evaluate(f"{chart}._fullData[0].y.length") == 105
        assert visit.page.evaluate(f"{chart}.layout.annotations.map(a => a.text)") == [
            f"round {n}" for n in range(1, 8)
        ]
        assert "105 samples in 7 rounds" in (visit.page.get_attribute("#detail .chart", "aria-label") or "")
        middle = visit.page.evaluate(f"[...{chart}._fullData[0].y].sort((a, b) => a - b)[52]")
        assert middle == pytest.approx(1.24, rel=2e-3)

    @on("warned")
    def test_groups_what_is_known_with_units_and_the_warnings_first(self, visit: Visit) -> None:
        visit.page.fill("#find", "throttled")
        visit.page.wait_for_selector("#row-1", state="detached")
        visit.page.click("#row-0")
        assert "throttled (SwPowerCap)" in visit.text("#detail .noted")
        drawer = visit.text("#detail .sections")
        for heading in (
            "What was measured",
            "Time per call",
            "Memory",
            "Accuracy",
            "Costs",
            "Conditions",
            "Provenance",
        ):
            assert heading in drawer
        for fact in ("1,755 MHz", "641 W", "71.0 °C", "bytes)", "µs"):
            assert fact in drawer
        assert "undefined" not in drawer
        assert "NaN" not in drawer

    @on("triton")
    def test_has_the_static_profile_of_the_kernels_that_ran(self, visit: Visit) -> None:
        visit.page.click("#row-0")
        rows = texts(visit, "#detail .profile tbody tr")
        assert len(rows) == 3
        assert "167" in rows[0]
        assert "⚠ 8 B" in rows[1]
        assert "combine" in rows[2]
        visit.page.keyboard.press("Escape")
        visit.page.click("#row-1")
        assert visit.page.locator("#detail .profile").count() == 0

    @on("systems")
    def test_knows_the_sizes_of_a_system(self, visit: Visit) -> None:
        visit.page.fill("#find", "llava-1.5-13b")
        visit.page.wait_for_selector("#row-2", state="detached")
        visit.page.click("#row-0")
        drawer = visit.text("#detail .sections").replace("\n", " ")
        assert "Preset llava-1.5-13b" in drawer
        assert "Inner width 640" in drawer

    def test_of_a_page_with_too_many_jobs_says_that_it_has_no_samples(
        self, started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fusionbench.report.samples.MOST", 3)
        bare = Visit(started, viewing.write(tmp_path / "r.html", records(20)))
        bare.page.click("#row-0")
        assert "too many jobs to carry their samples" in bare.text("#detail")
        assert bare.page.locator("#detail .chart").count() == 0
        assert bare.trouble == []
        bare.context.close()


class TestSystems:
    @on("systems")
    def test_stand_side_by_side_fastest_first(self, visit: Visit) -> None:
        assert visit.text("#systems .summary").startswith("44 systems, 1/8 of their size")
        latencies = [row.split("\n") for row in texts(visit, "#systems tbody tr")]
        assert len(latencies) == 45  # one of them is changed, and stands beside what it departs from
        assert sum("departs from the preset: projector=mlp" in row for row in latencies) == 1
        places = visit.page.eval_on_selector_all(
            "#systems tbody td:nth-of-type(1) circle", "all => all.map(c => parseFloat(c.getAttribute('cx')))"
        )
        assert places == sorted(places)
        assert (places[0], places[-1]) == (4, 96)

    @on("systems")
    def test_sort_by_any_fact_and_keep_that_in_the_fragment(self, visit: Visit) -> None:
        visit.page.click('[data-systems="params"]')
        visit.page.click('[data-systems="params"]')
        assert visit.page.get_attribute("#systems [aria-sort=descending]", "scope") == "col"
        assert "sortSystems=-params" in visit.page.evaluate("location.hash")
        assert "Qwen2.5-VL 72B" in texts(visit, "#systems tbody tr")[0]

    @on("systems")
    def test_at_other_lengths_come_when_asked_for(self, visit: Visit) -> None:
        visit.page.check("#systems-lengths")
        rows = texts(visit, "#systems tbody tr")
        assert len(rows) == 48
        assert sum("image=256" in row for row in rows) == 1

    @on("systems")
    def test_every_backend_stands_for_itself_where_that_is_asked_and_a_failure_says_so(self, visit: Visit) -> None:
        visit.page.select_option("#by", "backend")
        visit.wait()
        rows = texts(visit, "#systems tbody tr")
        assert len(rows) == 90
        assert "oom: CUDA out of memory" in rows[-1]

    @on("diff")
    def test_are_not_shown_where_there_are_none(self, visit: Visit) -> None:
        for section in ("#systems", "#trends", "#notices"):
            assert visit.page.is_hidden(section)


class TestTrends:
    @on("trend")
    def test_say_what_changed_and_draw_a_job_when_it_is_opened(self, visit: Visit) -> None:
        assert "24 runs" in visit.text("#trends .summary")
        assert "Status, memory, FLOPs or kernels changed in 1." in visit.text("#trends .summary")
        assert visit.page.locator("#trends .job").count() == 6
        visit.click("#trends .job:nth-of-type(1) > summary")
        types = visit.page.evaluate("document.querySelector('#trends .chart')._fullData.map(t => t.type)")
        assert set(types) == {"scatter"}
        assert "trend=" in visit.page.evaluate("location.hash")

    @on("trend")
    def test_follow_the_page_s_filters(self, visit: Visit) -> None:
        visit.click('[data-chip="batch=2"]')
        assert visit.page.locator("#trends .job").count() == 1

    def test_beyond_what_a_page_holds_are_counted(
        self, started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trends, "MOST", 4)
        some = Visit(started, viewing.followed(tmp_path / "t.html", viewing.days(4)))
        assert "The 4 that changed most of 6." in some.text("#trends .caption")
        assert some.trouble == []
        some.context.close()


class TestWarnings:
    @on("warned")
    def test_of_a_kind_are_told_together_with_cause_and_remedy(self, visit: Visit) -> None:
        assert visit.text("#notices .summary").startswith("5 jobs carry 5 kinds of warning")
        first = visit.page.locator("#notices details").first
        assert "waited for a core" in first.inner_text()
        assert "2 jobs" in first.inner_text()
        first.locator("summary").click()
        assert "Remedy: close other programs" in first.inner_text()
        assert "fusionbench run smoke --job " in first.inner_text()

    @on("warned")
    def test_follow_the_page_s_filters(self, visit: Visit) -> None:
        visit.click('[data-chip="strategy=concat_attention"]')
        assert visit.text("#notices .summary").startswith("1 job carries one kind of warning")


@on("two")
def test_environments_are_told_with_what_differs(visit: Visit) -> None:
    assert "ci-l4 against gpu-node-07" in visit.text("#machines")
    assert texts(visit, "#machines .moves li") == ["torch 2.13.0 → 2.12.0"]
    assert visit.page.locator("#machines dl").count() == 2


@on("warned")
def test_the_json_holds_the_filtered_rows_with_nulls_for_what_is_not_known(visit: Visit, tmp_path: Path) -> None:
    visit.click('[data-chip="backend=sdpa"]')
    with visit.page.expect_download() as download:
        visit.page.click("#json")
    download.value.save_as(tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert f"{len(rows)} jobs of 30." == visit.text("#table .summary")
    assert {row["backend"] for row in rows} == {"sdpa"}
    assert all(row["median_ms"] > 0 and row["of_bound"] is None for row in rows if "of_bound" in row)
    assert {row["key"] for row in rows} <= {r.job.key for r in viewing.warned()}


@pytest.mark.parametrize("visit", ["diff", "trend", "systems", "warned", "triton", "two"], indirect=True)
def test_nothing_overflows_the_page(visit: Visit) -> None:
    for width in (390, 700, 1400):
        visit.page.set_viewport_size({"width": width, "height": 1000})
        visit.page.wait_for_timeout(100)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.page.evaluate("document.querySelector('#row-0').click()")
        assert visit.page.evaluate("document.querySelector('#detail').scrollWidth") <= width
        visit.page.keyboard.press("Escape")
    visit.wait()


@pytest.mark.parametrize("visit", ["diff", "systems"], indirect=True)
def test_a_strange_fragment_is_ignored(visit: Visit) -> None:
    visit.page.evaluate(
        "window.fusionbenchDrawn = 0;"
        "location.hash = '#diff=__proto__&system=%00&sortSystems=constructor&trend=<b>&lengths'"
    )
    visit.wait()
    assert visit.page.locator(".forest-wrap tbody tr, .systems-wrap tbody tr").count() > 10


def hostile_systems() -> list[Any]:
    """Systems whose preset, strategy and notes all try to break out."""
    found = viewing.systems()[: 2 * len(TEXTS)]
    for at, text in enumerate(TEXTS):
        case = msgspec.structs.replace(found[at].job.case, preset=text)
        job = msgspec.structs.replace(found[at].job, strategy=text, case=case)
        found[at] = msgspec.structs.replace(
            found[at], job=job, notes=(text, "waited 99% of the time for a core" + text)
        )
    return found


def hostile_page(path: Path) -> Path:
    items = [*hostile_records(), *hostile_systems()]
    kernels = tuple(f"triton:{text}" for text in TEXTS)
    items[0] = msgspec.structs.replace(
        items[0],
        kernels=kernels,
        job=msgspec.structs.replace(items[0].job, case=msgspec.structs.replace(items[0].job.case, device="cuda")),
    )
    environments = {**hostile_environments(), "b": msgspec.structs.replace(hostile_environments()["h100-a"], id="b")}
    runs = [
        past_run(
            day,
            *(msgspec.structs.replace(r, started_at=f"2026-03-0{day + 1}T00:00:00.000001+00:00") for r in items),
            machine=TEXTS[0],
            cpu=TEXTS[1],
            torch=TEXTS[2],
        )
        for day in range(3)
    ]
    return viewing.write(
        path,
        items,
        environments,
        comparison=viewing.hostile_comparison(),
        history=timeline.build(runs),
        inspection=viewing.hostile_inspection(),
        title=TEXTS[0],
        command=TEXTS[1],
    )


def test_hostile_text_stays_inert_in_every_view(started: Any, tmp_path: Path) -> None:
    bad = Visit(started, hostile_page(tmp_path / "hostile.html"), "#by=backend")
    for section in ("#difference", "#trends", "#systems", "#notices", "#machines"):
        assert bad.page.is_visible(section), section
    for more in bad.page.locator("main .more:visible").all():
        more.click()
    bad.page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true; })")
    bad.wait()
    rows = bad.page.locator(".rows .body .row").count()
    for row in range(min(rows, 24)):
        bad.page.evaluate(f"document.querySelector('#row-{row}').click()")
        bad.page.keyboard.press("Escape")
    assert bad.page.evaluate("window.pwned") is None
    assert bad.page.locator("img, a[href^=javascript], main svg a").count() == 0
    shown = bad.page.evaluate("document.body.textContent")
    assert not set("\x00\x07\x1b\u202e\u2066") & set(shown)
    assert TEXTS[0] in shown
    assert bad.page.evaluate("document.documentElement.scrollWidth") <= 1280
    with bad.page.expect_download() as download:
        bad.page.click("#json")
    download.value.save_as(tmp_path / "t.json")
    assert len(json.loads((tmp_path / "t.json").read_text("utf-8"))) > 40
    assert bad.trouble == []
    bad.context.close()
