"""What the report's views are given: samples that come back, a comparison as it was judged, systems, kernels, notices."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from fusionbench import comparison, fitness, notices
from fusionbench.cli import app
from fusionbench.delta import Comparison
from fusionbench.errors import StoreError
from fusionbench.record import Timing
from fusionbench.report import samples
from fusionbench.report.document import LONGEST
from tests import comparing, viewing
from tests.synthetic import ENVIRONMENTS, records, smoke
from tests.test_notes import NOTES, made_by
from tests.test_report import payload


def page(path: Path) -> dict[str, Any]:
    return payload(path.read_text("utf-8"))


def unpacked(found: dict[str, Any]) -> list[list[float]]:
    """The samples of each row in ns, as drawer.js has them."""
    low, high = (np.frombuffer(base64.b64decode(found[name]), np.uint8).astype(np.int64) for name in ("low", "high"))
    zigzag = low | high << 8
    apart = np.split((zigzag >> 1) ^ -(zigzag & 1), np.cumsum(found["count"])[:-1])
    return [
        np.exp(found["step"] * (middle + each)).tolist() for middle, each in zip(found["middle"], apart, strict=True)
    ]


def timed(*ns: int, **changes: Any) -> Timing:
    return replace(
        comparing.timing(rounds=1, samples=1), **({"samples_ns": ns, "rounds": (), "control_ns": ()} | changes)
    )


def packed(times: Sequence[Timing | None]) -> dict[str, Any]:
    return samples.payload(times, np.array([np.median(time.calls_ns) if time else np.nan for time in times]))


class TestSamples:
    def test_come_back_in_order_to_a_hundredth_of_a_percent(self) -> None:
        times = [r.time for r in records(300)]
        for time, back in zip(times, unpacked(packed(times)), strict=True):
            assert back == pytest.approx(time.calls_ns if time else [], rel=1e-4)

    def test_are_of_one_call_and_without_the_wait_for_a_core(self) -> None:
        time = timed(1000, 2000, loops=10, run_delay_ns=(0, 500))
        assert unpacked(packed([time]))[0] == pytest.approx([100, 150], rel=1e-4)

    def test_keep_their_order_beside_an_outlier_that_has_no_room(self) -> None:
        back = unpacked(packed([timed(100, 101, 10**9, 102, 99)]))[0]
        assert back[:2] + back[3:] == pytest.approx([100, 101, 102, 99], rel=1e-4)
        assert back[2] > 50_000

    def test_are_thinned_evenly_where_the_page_would_hold_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(samples, "MOST", 40)
        times = [timed(*range(100, 200), rounds=(50, 50)), None, timed(*range(1, 9))]
        found = packed(times)
        assert found["count"] == [32, 0, 8]
        assert [found["rounds"][at] for at in found["round"]] == [[16, 16], [], [8]]
        first, none, whole = unpacked(found)
        assert first == pytest.approx([100 + k * 100 // 32 for k in range(32)], rel=1e-4)
        assert none == []
        assert whole == pytest.approx(range(1, 9), rel=1e-4)

    def test_are_left_out_where_hardly_any_would_remain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(samples, "MOST", 10)
        assert packed([timed(*range(1, 9))] * 3) == {}

    @pytest.mark.parametrize("times", [[], [None], [None, None]])
    def test_of_nothing_are_nothing(self, times: list[None]) -> None:
        assert packed(times) == {}

    def test_of_the_newest_record_stand_at_the_row_that_the_table_keeps(self, tmp_path: Path) -> None:
        items = [comparing.record(1, 9.0), comparing.record(2, 2.0), comparing.record(1, 1.0)]
        items = [replace(r, environment="h100-a", started_at=f"2026-11-2{i}") for i, r in enumerate(items)]
        found = page(viewing.write(tmp_path / "r.html", items))
        assert [round(each[0], -5) for each in unpacked(found["samples"])] == [2e6, 1e6]


class TestTheDifferenceOfTwoRuns:
    def test_has_every_job_with_the_verdict_and_ratio_of_compare(self, tmp_path: Path) -> None:
        base, head = viewing.two_runs(tmp_path)
        view = page(viewing.compared(tmp_path / "r.html", base, head))["difference"]
        wanted = comparison.of(base, head).deltas
        assert view["verdict"] == [delta.verdict for delta in wanted]
        assert {*view["verdict"]} == {"slower", "faster", "broken", "fixed", "missing", "new", "same", "unclear"}
        for name in ("ratio", "low", "high", "base_ns", "head_ns"):
            for got, delta in zip(view[name], wanted, strict=True):
                value = getattr(delta, name)
                assert got is None if value is None else got == pytest.approx(value, rel=1e-5)

    def test_names_what_a_fact_was_and_is(self, tmp_path: Path) -> None:
        view = page(viewing.compared(tmp_path / "r.html", *viewing.two_runs(tmp_path)))["difference"]
        assert [c for c in view["changes"] if c] == [[["flops 1,000 → 1,200 (+20.00%)", True]]]

    def test_of_runs_without_a_job_in_common_is_nothing(self, tmp_path: Path) -> None:
        base = comparing.run(tmp_path / "a", comparing.record(1))
        head = comparing.run(tmp_path / "b", comparing.record(2))
        assert page(viewing.compared(tmp_path / "r.html", base, head))["difference"] == {}

    def test_of_two_machines_says_what_forbids_it(self, tmp_path: Path) -> None:
        base = comparing.run(tmp_path / "a", comparing.record(1))
        head = comparing.run(tmp_path / "b", comparing.record(1), where=comparing.here(torch="2.14.0"))
        data = page(viewing.compared(tmp_path / "r.html", base, head))
        assert data["difference"]["differences"] == ["torch 2.13.0 → 2.14.0"]
        assert data["difference"]["ratio"] == [None]
        assert data["moves"] == [[], ["torch 2.13.0 → 2.14.0"]]

    def test_is_made_by_the_report_of_two_runs_and_the_history_by_that_of_three(self, tmp_path: Path) -> None:
        runs = [
            comparing.run(tmp_path / name, comparing.record(1, started_at=f"2026-11-2{day}T00:00:00+00:00"))
            for day, name in enumerate("abc")
        ]
        path = tmp_path / "r.html"
        for count in (1, 2, 3):
            done = CliRunner().invoke(app, ["report", *(str(run.path) for run in runs[:count]), "-o", str(path)])
            assert done.exit_code == 0, done.output
            data = page(path)
            assert bool(data["difference"]) == (count == 2)
            assert bool(data["trends"]) == (count == 3)
        assert [len(series["at"]) for series in data["trends"]["series"]] == [3]


def test_the_history_leaves_out_jobs_of_a_single_run(tmp_path: Path) -> None:
    runs = [
        comparing.run(tmp_path / name, *(comparing.record(n, started_at=f"2026-11-2{day}T00:00:00+00:00") for n in ns))
        for day, (name, ns) in enumerate({"a": (1, 2), "b": (1, 3), "c": (1, 4)}.items())
    ]
    path = tmp_path / "r.html"
    assert CliRunner().invoke(app, ["report", *(str(run.path) for run in runs), "-o", str(path)]).exit_code == 0
    data = page(path)
    assert [series["key"] for series in data["trends"]["series"]] == [runs[0].records[0].job.key]
    assert data["trends"]["row"] == [2]  # its newest record, after those of jobs 2 and 3


class TestSystems:
    def test_have_a_title_their_own_sizes_and_what_departs_from_the_preset(self, tmp_path: Path) -> None:
        found = page(viewing.write(tmp_path / "r.html", viewing.systems()))["systems"]
        at = found["labels"].index("llava-1.5-7b")
        assert found["titles"][at] == "LLaVA-1.5 7B"
        lengths = [text for label, text in zip(found["label"], found["lengths"], strict=True) if label == at]
        assert Counter(lengths) == {"": 2, "image=4": 2, "image=16": 2, "image=256": 2}
        assert {*found["departs"]} == {"", "projector=mlp"}
        assert found["sizes"][found["label"].index(at)]["width"] == 512

    def test_of_a_run_without_presets_are_nothing(self, tmp_path: Path) -> None:
        assert page(viewing.write(tmp_path / "r.html", smoke()))["systems"] == {}

    def test_that_this_version_does_not_know_keep_their_label(self, tmp_path: Path) -> None:
        items = [
            replace(r, job=replace(r.job, case=replace(r.job.case, preset="of-tomorrow:big"))) for r in smoke()[:1]
        ]
        found = page(viewing.write(tmp_path / "r.html", items))["systems"]
        assert (found["labels"], found["titles"], found["departs"]) == (["of-tomorrow:big"], [""], [""])


class TestKernels:
    def test_every_row_that_a_kernel_may_have_had_and_no_other(self, tmp_path: Path) -> None:
        items, inspected = viewing.on_triton()
        found = page(viewing.write(tmp_path / "r.html", items, inspection=inspected))["kernels"]
        had = [[found["profiles"][at]["registers"] for at in found["lists"][code]] for code in found["list"]]
        assert had == [[167, 255, 40], [], [], []]

    def test_of_a_chip_that_the_profile_does_not_have_there_are_none(self, tmp_path: Path) -> None:
        items, inspected = viewing.on_triton()
        there = {"h100-a": replace(ENVIRONMENTS["h100-a"], capability="10.0")}
        found = page(viewing.write(tmp_path / "r.html", items, there, inspection=inspected))["kernels"]
        assert found["lists"] == [[]]

    def test_a_file_that_is_no_profile_is_refused_in_a_line(self, tmp_path: Path) -> None:
        run = comparing.run(tmp_path, comparing.record(1))
        (tmp_path / "k.json").write_text("{}")
        done = CliRunner().invoke(app, ["report", str(run.path), "--kernels", str(tmp_path / "k.json")])
        assert isinstance(done.exception, StoreError)
        assert "is not what 'fusionbench inspect --json' writes" in str(done.exception)


def test_every_note_that_fusionbench_makes_has_a_cause_and_a_remedy() -> None:
    made = [
        *(note for make in NOTES.values() for note in made_by(make)),
        fitness.crowded(1, "'cuda'"),
        "no timer 'graph': cudaErrorStreamCaptureUnsupported; the others stand (--timer says which are tried)",
        "FlopCounterMode counts 12 FLOPs, the closed form says 14; mend the strategy's cost",
    ]
    found = [notices.kind_of(note) for note in made]
    assert [note for note, kind in zip(made, found, strict=True) if kind is None] == []
    assert {kind.title for kind in found if kind} == {kind.title for kind in notices.KINDS}
    assert notices.kind_of("a plugin has something to say") is None


def test_hostile_texts_of_a_comparison_are_bounded_and_without_control_characters(tmp_path: Path) -> None:
    found: Comparison = viewing.hostile_comparison()
    view = page(viewing.write(tmp_path / "r.html", smoke(), comparison=found))["difference"]
    texts = [*view["key"], *view["reason"], *view["differences"], *view["notes"], view["base"]["name"]]
    assert max(map(len, texts)) <= LONGEST + len("…")
    assert not set("\x00\x07\x1b\u202e\u2066") & set("".join(texts))
