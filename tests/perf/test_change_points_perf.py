"""Change points: none in noise but for 15 of 1,000 series, steps beyond the noise are found, a page of 10,000 points is small."""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from fusionbench import archive, timeline
from fusionbench.history import History
from fusionbench.report import history as page
from tests.browser import Visit, browser, chromium
from tests.past import sealed_history
from tests.perf.change_point_study import BUSY, CORRELATION, LENGTHS, QUIET, false_alarms, found, ours


def test_noise_alone_is_called_a_change_in_at_most_15_of_1000_series(benchmark: BenchmarkFixture) -> None:
    alarms = benchmark.pedantic(lambda: {n: false_alarms(ours, n, CORRELATION) for n in LENGTHS}, rounds=1)
    benchmark.extra_info["false_alarms_of_1000"] = alarms
    assert max(alarms.values()) <= 15


def test_a_step_that_stands_out_of_the_noise_is_found(benchmark: BenchmarkFixture) -> None:
    def study() -> dict[str, float]:
        cases = {"5 %": (1.05, QUIET), "10 %": (1.1, QUIET), "20 %": (1.2, BUSY)}
        return {name: found(step, 20, noise, CORRELATION, count=300)[0] for name, (step, noise) in cases.items()}

    shares = benchmark.pedantic(study, rounds=1)
    benchmark.extra_info["found"] = shares
    assert shares["5 %"] > 0.8
    assert shares["10 %"] > 0.95
    assert shares["20 %"] > 0.5


def test_a_hundred_runs_of_a_hundred_jobs_are_read_and_shown(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    folder = sealed_history(tmp_path / "runs", runs=100, jobs=100)

    def build() -> History:
        return timeline.build(archive.runs(folder, timeline.FIELDS, left_out=lambda *_: None))

    history = benchmark.pedantic(build, rounds=2)
    assert len(history.series) == 100
    assert benchmark.stats.stats.min < 5
    path = page.write(tmp_path / "history.html", history)
    empty = page.write(tmp_path / "none.html", History(runs=(), environments={}, series=()))
    benchmark.extra_info["megabytes"] = megabytes = (path.stat().st_size - empty.stat().st_size) / 1e6
    assert megabytes < 2
    if chromium():
        with browser() as running:
            visit = Visit(running, path)
            benchmark.extra_info["open_ms"] = visit.page.evaluate("window.fusionbenchDrawn")
            assert visit.trouble == []
