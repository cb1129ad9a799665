"""The report's charts in a real browser: each one draws what its records say, and says in words what it cannot draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fusionbench.record import Accuracy, Costs, Deviation, Memory, Record, Roofline, Timing
from fusionbench.report import page
from fusionbench.report.frame import frame
from fusionbench.spec import Case, Job, Shape
from tests.browser import Visit, browser, chromium
from tests.synthetic import ENVIRONMENTS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium on the path (set FUSIONBENCH_CHROMIUM)"),
]

ROOF = Roofline(
    device="cuda",
    dtype="bf16",
    threads=1,
    environment="h100-a",
    flops_per_s=8e14,
    bytes_per_s=((1 << 24, 8e12), (1 << 28, 2e12)),
    measured_at="2026-03-02T10:00:00Z",
)


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed (pip install fusionbench[dev])")
    with browser() as running:
        yield running


@pytest.fixture
def opened(started: Any, tmp_path: Path) -> Iterator[Any]:
    visits: list[Visit] = []

    def see(items: Sequence[Record], fragment: str = "", roofs: Sequence[Roofline] = (), **options: Any) -> Visit:
        path = tmp_path / "page.html"
        page.write(path, frame(items, ENVIRONMENTS, roofs), ENVIRONMENTS, rooflines=roofs)
        visits.append(Visit(started, path, fragment, **options))
        return visits[-1]

    yield see
    for visit in visits:
        assert visit.trouble == []
        visit.context.close()


def timed(strategy: str, us: float, *, backend: str = "sdpa", kernel_us: float = 0, **shape: int) -> Record:
    """A bf16 forward pass on a GPU that takes ``us``, within 0.1 %."""
    sizes = {"batch": 1, "image": 64, "text": 64, "width": 512, "heads": 8, "image_width": 768, "text_width": 768}
    case = Case(shape=Shape(**(sizes | shape)), dtype="bf16", device="cuda")
    return Record(
        job=Job(strategy=strategy, backend=backend, case=case),
        status="ok",
        time=_timing("cuda_event", "cold", us),
        timers=(_timing("kernel", "hot", kernel_us), _timing("cuda_event", "hot", us)) if kernel_us else (),
        environment="h100-a",
        started_at="2026-03-02T10:00:00Z",
    )


def _timing(timer: Any, cache: Any, us: float) -> Timing:
    samples = tuple(round(us * 1000 * (1 + 0.001 * math.sin(i))) for i in range(24))
    return Timing(
        timer=timer,
        cache=cache,
        loops=1,
        samples_ns=samples,
        stop="precise",
        first_call_ns=1,
        warmup_calls=1,
        threads=1,
    )


def costing(item: Record, **costs: int) -> Record:
    return replace(
        item, costs=Costs(**({"flops": 10**9, "params": 0, "min_bytes": 10**6, "activation_bytes": 0} | costs))
    )


def holding(item: Record, mib: int, error: float | None = None) -> Record:
    deviation = Deviation(max_abs=error, mean_abs=error, rel_l2=error, cosine=1.0)
    return replace(
        item,
        memory=Memory(peak_bytes=mib << 20, resting_bytes=1, meter="cuda_allocator"),
        accuracy=Accuracy(reference="fp64", samples=1, output=deviation, yardstick=deviation) if error else None,
    )


def traces(visit: Visit, chart: str) -> dict[str, dict[str, Any]]:
    """What plotly really drew, by name; the bands of a chart share one."""
    found: list[dict[str, Any]] = visit.page.evaluate(
        f"(document.querySelector('#{chart} .chart')._fullData || [])"
        ".map(t => ({type: t.type, mode: t.mode, name: t.name, fill: t.fill, x: Array.from(t.x), y: Array.from(t.y)}))"
    )
    assert {t["type"] for t in found} <= {"scatter"}
    return {t["name"]: t for t in found}


# --- the answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "told"),
    [(1000, "at equal parameters"), (2100, "with 0.48 × the parameters"), (0, "")],
)
def test_the_headline_says_shape_dtype_hardware_and_what_the_parameters_are(
    opened: Any, params: int, told: str
) -> None:
    one = costing(timed("cross_attention", 100, image=576), params=1000)
    visit = opened([one, costing(timed("concat_attention", 180, image=576), params=params)])
    headline = visit.text("#headline").replace("\xa0", " ")
    assert headline.startswith("For image 576 × text 64, bf16, NVIDIA H100 80GB HBM3: cross_attention · sdpa is 1.80 ×")
    assert "faster than concat_attention · sdpa [1.80, 1.80]" in headline or "[1.80, 1.81]" in headline
    assert headline.endswith("100 µs against 180 µs.")
    assert told in headline
    assert ("parameters" in headline) == bool(told)


# --- curves --------------------------------------------------------------------------------------------------------


def test_the_power_is_fitted_on_the_straight_end_and_says_from_where(opened: Any) -> None:
    lengths = (32, 64, 128, 256, 512, 1024)
    wobble = dict(zip(lengths[2:], (1.01, 0.992, 1.004, 0.998), strict=True))
    us = {n: 40.0 if n < 128 else 40 * (n / 128) ** 1.5 * wobble[n] for n in lengths}
    visit = opened([timed("cross_attention", us[n], text=n) for n in lengths])
    expected = np.polyfit(np.log(lengths[2:]), np.log([us[n] for n in lengths[2:]]), 1)[0]
    assert f"∝\xa0n^{expected:.2f} [" in visit.text("#latency .legend")
    assert "from 128" in visit.text("#latency .legend")
    assert "fitted on 128, 256, 512, 1,024" in visit.text("#latency .summary")
    band = traces(visit, "latency")["band"]
    assert band["fill"] == "toself"
    assert (min(band["x"]), max(band["x"])) == pytest.approx((128, 1024))
    middle = [y for x, y in zip(band["x"], band["y"], strict=True) if x == pytest.approx(1024)]
    assert min(middle) < us[1024] / 1000 < max(middle)


def test_a_curve_that_bends_gets_no_power_but_the_one_of_its_last_step(opened: Any) -> None:
    visit = opened([timed("cross_attention", n + n * n / 256, text=n) for n in (64, 256, 1024, 4096)])
    last = math.log((4096 + 4096**2 / 256) / (1024 + 1024**2 / 256)) / math.log(4)
    assert f"not straight; n^{last:.2f} over the last step" in visit.text("#latency .legend")
    assert "band" not in traces(visit, "latency")


def test_of_two_lengths_no_power_is_said(opened: Any) -> None:
    visit = opened([timed("cross_attention", n, text=n) for n in (64, 256)])
    assert len(traces(visit, "latency")) == 1
    text = visit.text("#latency")
    assert not {"∝", "not straight", "power"} & set(text.split())
    assert "n^" not in text


@pytest.mark.parametrize(
    ("axis", "shapes", "told"),
    [
        ("width", [{"width": 64 * h, "heads": h} for h in (2, 4, 8, 16)], "head size fixed at 64"),
        ("batch", [{"batch": b} for b in (1, 4, 16, 64)], "From batch size 1 to 64"),
    ],
)
def test_a_run_over_sizes_draws_its_curve_against_them(
    opened: Any, axis: str, shapes: list[dict[str, int]], told: str
) -> None:
    visit = opened([timed("cross_attention", 10 * shape[axis], **shape) for shape in shapes])
    assert visit.page.input_value("#axis") == axis
    drawn = traces(visit, "latency")["cross_attention"]
    assert drawn["x"] == [shape[axis] for shape in shapes]
    assert told in visit.text("#latency .summary")
    assert "∝\xa0n^1.00" in visit.text("#latency .legend")
    assert visit.page.eval_on_selector_all("#axis option:not([disabled])", "all => all.map(o => o.value)") == [axis]


# --- the winner map ------------------------------------------------------------------------------------------------


@pytest.fixture
def winners(opened: Any) -> Visit:
    """64 x 64 a clear win, 64 x 128 a tie, 128 x 64 out of memory, 128 x 128 not run."""
    items = [timed("film", 100), timed("gated", 150), timed("film", 100, text=128), timed("gated", 100, text=128)]
    lost = replace(timed("film", 100, image=128), status="oom", time=None)
    visit: Visit = opened([*items, lost])
    return visit


def test_the_map_shows_margin_tie_failure_and_gap_each_in_its_own_way(winners: Visit) -> None:
    cells = winners.page.locator("#winners .cell")
    classes = cells.evaluate_all("all => all.map(c => c.className)")
    assert classes == ["cell", "cell tie", "cell none", "cell none"]
    texts = [" ".join(text.replace("\xa0", " ").split()) for text in cells.all_inner_texts()]
    assert texts == ["film 1.50 ×", texts[1], "failed oom 1", "not run"]
    assert texts[1].endswith("≈ 1 tie")
    assert cells.first.locator("svg").count() == 1  # a symbol, not colour alone
    assert "hatched" in winners.text("#winners .legend")
    assert "grey: failed or skipped" in winners.text("#winners .legend")
    assert "all failed at 1" in winners.text("#winners .summary")


def test_the_map_is_one_stop_and_the_arrows_move_in_it(winners: Visit) -> None:
    assert winners.page.locator('#winners .cell[tabindex="0"]').count() == 1
    winners.page.focus('#winners .cell[tabindex="0"]')
    focused = "document.activeElement.innerText.split('\\n')[0]"
    winners.page.keyboard.press("Home")
    winners.page.keyboard.press("ArrowDown")
    assert winners.page.evaluate(focused) == "failed"
    winners.page.keyboard.press("ArrowRight")
    winners.page.keyboard.press("ArrowRight")
    assert winners.page.evaluate(focused) == "not run"
    winners.page.keyboard.press("ArrowUp")
    winners.page.keyboard.press("ArrowLeft")
    winners.page.keyboard.press("Enter")
    winners.wait()
    assert winners.page.input_value("#shape") == "64x64"
    assert winners.page.evaluate("document.activeElement.matches('#winners .cell[aria-pressed=true]')")


# --- crossing over -------------------------------------------------------------------------------------------------


def test_where_two_families_change_places_is_said_and_marked(opened: Any) -> None:
    concat, cross = {n: 10.0 + n for n in (32, 128, 512)}, {n: 120 + n / 4 for n in (32, 128, 512)}
    slower = [timed("concat_attention", 5000, text=n, backend="eager") for n in concat]
    visit = opened([
        *slower,
        *(timed("concat_attention", us, text=n) for n, us in concat.items()),
        *(timed("cross_attention:image_to_text", us, text=n) for n, us in cross.items()),
        *(timed("late:vote", 10_000, text=n) for n in cross),
    ])  # fmt: skip
    before, after = (math.log(concat[n] / cross[n]) for n in (128, 512))
    crossing = 128 * 4 ** (before / (before - after))
    summary = visit.text("#crossover .summary")
    assert (
        f"concat_attention is faster than cross_attention:image_to_text below {crossing:.0f} text tokens [" in summary
    )
    assert "concat_attention is faster than late:vote at every length tried from 32 to 512 text tokens" in summary
    drawn = traces(visit, "crossover")
    assert drawn["crossings"]["x"] == pytest.approx([crossing], rel=1e-3)
    assert {"concat_attention", "cross_attention:image_to_text", "late:vote", "span"} <= set(drawn)
    assert drawn["concat_attention"]["y"] == pytest.approx([us / 1000 for us in concat.values()], rel=1e-2)


def test_a_tie_between_two_sure_lengths_widens_the_span_of_the_crossing(opened: Any) -> None:
    us = {32: (100, 200), 128: (200, 200), 512: (400, 200)}
    visit = opened([
        timed(name, each, text=n)
        for n, pair in us.items()
        for name, each in zip(("concat_attention", "cross_attention"), pair, strict=True)
    ])  # fmt: skip
    span = traces(visit, "crossover")["span"]["x"]
    assert min(span) <= 128 <= max(span)
    assert "below 128 text tokens" in visit.text("#crossover .summary")


def test_families_that_were_filtered_away_are_named(opened: Any) -> None:
    items = [timed(name, n, text=n) for name in ("concat_attention", "cross_attention") for n in (32, 64)]
    visit = opened(items, "#strategy=cross_attention")
    assert "This needs two of concat_attention, cross_attention, late" in visit.text("#crossover .summary")
    assert visit.page.is_hidden("#crossover .chart")
    other = opened([timed("film", n, text=n) for n in (32, 64)])
    assert other.page.is_hidden("#crossover")


# --- trade-offs ----------------------------------------------------------------------------------------------------


FRONT = [
    holding(timed("film", 100), 40, 1e-3),
    holding(timed("gated", 200), 10, 2e-3),
    holding(timed("late", 300), 50, 1e-4),
    holding(timed("early", 100.02), 40, 3e-3),
]


def test_the_front_is_told_from_what_is_dominated_and_from_what_noise_keeps_off_it(opened: Any) -> None:
    visit = opened(FRONT)
    drawn = traces(visit, "pareto")
    assert drawn["front"]["y"] == [40, 10]
    assert drawn["dominated"]["y"] == [50]
    assert drawn["near"]["y"] == [40]
    legend = visit.text("#pareto .legend").replace("\xa0", " ")
    assert "film · sdpa 100 µs, 40 MiB" in legend
    assert "early · sdpa ≈ 100 µs, 40 MiB" in legend
    assert "late 1 dominated" in legend
    assert "of 4 candidates in all. Counting latency, memory, error together, 3 are beaten by none" in visit.text(
        "#pareto .summary"
    )


def test_the_front_is_that_of_the_chosen_measures_and_the_choice_is_in_the_fragment(opened: Any) -> None:
    visit = opened(FRONT)
    visit.page.select_option("#front", "memory-error")
    visit.wait()
    drawn = traces(visit, "pareto")
    points = sorted(zip(drawn["front"]["x"], drawn["front"]["y"], strict=True))
    assert sum(points, ()) == pytest.approx(
        (10, 2e-3, 40, 1e-3, 50, 1e-4), rel=2**-18
    )  # the page keeps 17 bits of a float
    assert "front=memory-error" in visit.page.evaluate("location.hash")


def test_a_measure_that_nobody_took_is_named(opened: Any) -> None:
    visit = opened([holding(timed("film", 100), 40), holding(timed("gated", 200), 10)], "#front=latency-error")
    assert visit.text("#pareto .summary") == "No error was measured at this shape under these filters."
    assert visit.page.is_hidden("#pareto .chart")


# --- the roofline --------------------------------------------------------------------------------------------------


def test_the_roofline_draws_ceilings_ridge_and_what_bounds_each(opened: Any) -> None:
    items = [
        costing(timed("concat_attention", 50), flops=10**10, min_bytes=10**6),  # 10,000 FLOP/byte, 200 TFLOP/s
        costing(timed("film", 50), flops=10**9, min_bytes=5 * 10**7),  # 20 FLOP/byte, 20 TFLOP/s
        costing(timed("gated", 60, kernel_us=12), flops=10**9, min_bytes=10**6),
        costing(timed("concat", 9), flops=0),
    ]
    visit = opened(items, roofs=[ROOF])
    drawn = traces(visit, "roofline")
    ridge = 8e14 / 2e12
    assert drawn["ridge"]["x"] == [ridge, ridge]
    assert max(drawn["memory"]["y"]) == pytest.approx(8e14)
    assert ridge in drawn["memory"]["x"]
    assert "caches to 16 MiB" not in drawn  # the caches are flushed
    points = sorted(zip(drawn["candidates"]["x"], drawn["candidates"]["y"], strict=True))
    assert points[0] == pytest.approx((20, 2e13), rel=0.01)
    assert points[-1] == pytest.approx((1e4, 2e14), rel=0.01)
    legend = visit.text("#roofline .legend").replace("\xa0", " ")
    assert "concat_attention · sdpa compute bound, 25.0 % of its roof" in legend
    assert "film · sdpa memory bound, 50.0 % of its roof" in legend
    assert "gated · sdpa launch bound: no kernel runs for 80.0 % of the time" in legend
    summary = visit.text("#roofline .summary")
    assert "800 TFLOP/s and 2 TB/s of memory, which meet at 400 FLOP/byte" in summary
    assert "1 compute bound, 1 memory bound, 1 launch bound" in summary
    assert "1 without matrix products are not drawn" in summary


def test_without_a_measured_ceiling_the_points_have_no_roof_and_the_page_says_so(opened: Any) -> None:
    visit = opened([costing(timed("film", 50)), costing(timed("gated", 60))], roofs=[replace(ROOF, threads=2)])
    assert set(traces(visit, "roofline")) == {"candidates"}
    assert "No ceiling was measured for bf16 on cuda with 1 thread" in visit.text("#roofline .summary")
    assert "bound" not in visit.text("#roofline .legend")


def test_what_has_no_products_has_no_roofline(opened: Any) -> None:
    visit = opened([costing(timed("concat", 9), flops=0)], roofs=[ROOF])
    assert "no matrix products" in visit.text("#roofline .summary")
    assert visit.page.is_hidden("#roofline .chart")
