"""The pages for everyone: axe-core finds nothing, the keyboard reaches everything, motion and paper are respected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusionbench.report import history, page
from fusionbench.report.frame import frame
from tests.browser import Visit, browser, chromium
from tests.synthetic import ENVIRONMENTS, records
from tests.test_history_page import past

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium on the path (set FUSIONBENCH_CHROMIUM)"),
]

PAGES = ("report", "history")


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed (pip install fusionbench[dev])")
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    table = frame(records(5000), ENVIRONMENTS)
    return {
        "report": page.write(folder / "report.html", table, ENVIRONMENTS, ["a shard was cut short"]),
        "history": history.write(folder / "history.html", past(), title="runs"),
    }


def violations(visit: Visit) -> list[str]:
    """What axe-core finds on the page as it is, each with the first places; its script is put in by the debugger."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install fusionbench[dev]")
    found = axe.Axe().run(visit.page).response["violations"]
    return [f"{each['id']}: {[place['target'] for place in each['nodes'][:3]]}" for each in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(started: Any, written: dict[str, Path], name: str, scheme: str) -> None:
    visit = Visit(started, written[name], color_scheme=scheme, reduced_motion="reduce")
    assert violations(visit) == []
    if name == "report":
        visit.click('[data-chip="dtype=bf16"]')
        visit.click("#failed summary >> nth=0")
        visit.click(".rows .body .row >> nth=0")
    else:
        visit.click(".job > summary >> nth=0")
        visit.click(".job .values > summary >> nth=0")
    assert violations(visit) == []
    assert visit.trouble == []
    visit.context.close()


def test_axe_would_find_something(started: Any, written: dict[str, Path]) -> None:
    visit = Visit(started, written["report"])
    visit.page.evaluate("document.querySelector('#csv').replaceChildren()")
    assert [each.partition(":")[0] for each in violations(visit)] == ["button-name"]
    visit.context.close()


def test_axe_finds_nothing_on_a_narrow_screen(started: Any, written: dict[str, Path]) -> None:
    for name in PAGES:
        visit = Visit(started, written[name], viewport={"width": 390, "height": 844})
        assert violations(visit) == []
        visit.context.close()


def test_the_keyboard_goes_from_the_first_link_to_the_table_and_into_a_row(
    started: Any, written: dict[str, Path]
) -> None:
    visit = Visit(started, written["report"])
    focused = "document.activeElement.className"
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate(focused) == "skip"
    assert visit.page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate(focused) == "rows"
    visit.page.keyboard.press("ArrowDown")
    assert visit.page.get_attribute(".rows", "aria-activedescendant") == "row-1"
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.querySelector('#detail').open")
    visit.page.keyboard.press("Escape")
    assert visit.page.evaluate(focused) == "rows"
    visit.context.close()


def test_every_control_is_reached_by_tab_and_shows_that_it_is(started: Any, written: dict[str, Path]) -> None:
    visit = Visit(started, written["report"])
    controls = "button:not(:disabled), select, input, a[href], summary, [tabindex]"
    reached = "e.tabIndex >= 0 || e.parentElement.closest('[tabindex=\"0\"]')"  # in the latter arrow keys move
    assert visit.page.evaluate(f"[...document.querySelectorAll('{controls}')].every((e) => {reached})")
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.id") == "theme"
    assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    visit.page.focus('[data-chip="dtype=bf16"]')
    visit.page.keyboard.press("Space")
    visit.wait()
    assert visit.page.get_attribute('[data-chip="dtype=bf16"]', "aria-pressed") == "true"
    assert visit.page.evaluate("document.activeElement.dataset.chip") == "dtype=bf16"
    visit.context.close()


def test_who_asked_for_less_motion_gets_none(started: Any, written: dict[str, Path]) -> None:
    moving = """[...document.querySelectorAll('*')].map((e) => getComputedStyle(e)).filter((s) => s.scrollBehavior === 'smooth'
        || s.animationName !== 'none' || parseFloat(s.transitionDuration) > 0).length"""
    for name in PAGES:
        visit = Visit(started, written[name], reduced_motion="reduce")
        assert visit.page.evaluate(moving) == 0
        visit.context.close()


@pytest.mark.parametrize("name", PAGES)
def test_paper_gets_the_results_in_light_without_controls(started: Any, written: dict[str, Path], name: str) -> None:
    visit = Visit(started, written[name], color_scheme="dark")
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    visit.page.emulate_media(media="print", color_scheme="dark")
    visit.wait()
    shown = "[...document.querySelectorAll('.side, .controls, #theme, #find, #csv, #json, #sort')]"
    assert visit.page.evaluate(f"{shown}.filter((e) => e.checkVisibility()).length") == 0
    assert visit.page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert visit.page.is_visible("#headline")
    if name == "report":
        assert visit.page.locator(".chart .main-svg").first.is_visible()
    visit.page.emulate_media(media="screen", color_scheme="dark")
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    visit.wait()
    assert visit.page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    visit.context.close()
