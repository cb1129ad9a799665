"""The history of a folder: in order of time, cut where machines differ, changes at the right commit, damage told."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from fusionbench import archive, change_points, sealed, store, timeline, wording
from fusionbench.cli import app
from fusionbench.record import VERSION
from tests.hostile import hostile_environments, hostile_records
from tests.past import (
    BEGIN,
    commit,
    environment,
    failed,
    history,
    measured,
    noisy,
    read,
    run,
    sealed_history,
    store_run,
)

STEP = noisy([1e6] * 12 + [1.2e6] * 12)


def invoke(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, ["history", *map(str, arguments)], **options)


@pytest.fixture
def stepped(tmp_path: Path) -> Path:
    pytest.importorskip("ruptures", reason="ruptures is not installed (pip install fusionbench[history])")
    for day, ns in enumerate(STEP):
        store_run(tmp_path / "runs", day, measured(day, ns))
    return tmp_path / "runs"


def test_a_step_is_told_with_its_size_between_its_two_commits(stepped: Path) -> None:
    (series,) = read(stepped)[0].series
    (shift,) = series.shifts
    assert (shift.since, shift.at) == (11, 12)
    assert shift.low < 1.2 < shift.high
    assert wording.shift(series, shift).startswith("+20 % [")
    assert wording.shift(series, shift).endswith(f" at {commit(11)[:7]}..{commit(12)[:7]}, 2026-03-14")


def test_points_are_ordered_by_time_whatever_the_files_are_called(tmp_path: Path) -> None:
    days = list(range(12))
    random.Random(1).shuffle(days)
    for name, day in enumerate(days):
        store_run(tmp_path, day, measured(day, 1e6 + day), name=f"{name:02d}.parquet")
    found, told = read(tmp_path)
    (series,) = found.series
    assert [point.commit for point in series.points] == [commit(day) for day in range(12)]
    assert [point.run for point in series.points] == list(range(12))
    assert [each.commit for each in found.runs] == [commit(day) for day in range(12)]
    assert told == []


def test_times_of_day_are_compared_in_utc() -> None:
    early = msgspec.structs.replace(measured(0, 1e6), started_at="2026-03-02T01:00:00.5+05:00")
    late = msgspec.structs.replace(measured(0, 2e6), started_at="2026-03-01T21:00:00Z")
    (series,) = timeline.build([run(1, late), run(0, early)]).series
    assert [point.ns[0] for point in series.points if point.ns] == [1e6, 2e6]
    assert series.points[0].at == "2026-03-01T20:00:00.500000+00:00"


@pytest.mark.parametrize("text", ["", "yesterday", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_record_without_a_date_is_left_out_and_that_is_told(text: str) -> None:
    bad = msgspec.structs.replace(measured(0, 1e6), started_at=text)
    found = timeline.build([run(0, bad), run(1, measured(1, 1e6))])
    assert len(found.series[0].points) == 1
    assert "1 records do not say when they were measured" in found.problems[0]


def test_another_environment_begins_a_segment_and_says_what_differs() -> None:
    days = [run(day, measured(day, 1e6)) for day in range(3)]
    days += [run(day, measured(day, 2e6), id="e2", torch="3") for day in range(3, 6)]
    (series,) = timeline.build(days).series
    first, second = series.segments
    assert (first.points, second.points) == ((0, 1, 2), (3, 4, 5))
    assert (first.differences, second.differences) == ((), ("torch 2 → 3",))
    assert series.shifts == []
    assert series.since_first == 1.0  # in this environment


def test_environments_that_take_turns_are_two_lines_and_not_a_line_of_jumps() -> None:
    pytest.importorskip("ruptures", reason="ruptures is not installed")
    levels, peaks = (1e6, 2e6), (1 << 20, 1 << 21)
    facts: tuple[dict[str, Any], ...] = ({}, {"id": "e2", "torch": "3"})
    days = [run(day, measured(day, levels[day % 2], peak=peaks[day % 2]), **facts[day % 2]) for day in range(48)]
    (series,) = timeline.build(days).series
    assert [len(segment.points) for segment in series.segments] == [24, 24]
    assert series.shifts == []
    assert [(step.fact, step.at) for step in series.steps] == [("peak_bytes", 1)]  # where the second one was new


def test_machines_are_never_on_one_line_unless_that_is_asked_for() -> None:
    days = [run(day, measured(day, 1e6), machine=f"runner-{day}") for day in range(3)]
    assert [series.machine for series in timeline.build(days).series] == ["runner-0", "runner-1", "runner-2"]
    (series,) = timeline.build(days, any_machine=True).series
    assert len(series.points) == 3
    assert len(series.segments) == 1


def test_a_machine_that_was_slow_for_a_while_is_not_code() -> None:
    pytest.importorskip("ruptures", reason="ruptures is not installed")
    times = noisy([1e6] * 30)
    days = [run(day, measured(day, ns, pace=1.3 if day >= 15 else 1.0)) for day, ns in enumerate(times)]
    (series,) = timeline.build(days).series
    assert series.points[-1].ns[0] > 1.25e6  # type: ignore[index]
    assert series.judged(series.segments[0])[-1][0] == pytest.approx(1.15e6, rel=0.05)  # at the pace of the middle
    assert series.shifts == []


def test_without_controls_the_plain_times_are_judged() -> None:
    pytest.importorskip("ruptures", reason="ruptures is not installed")
    days = []
    for day, ns in enumerate(STEP):
        plain = measured(day, ns)
        assert plain.time
        time = msgspec.structs.replace(plain.time, control_ns=() if day == 3 else plain.time.control_ns)
        days.append(run(day, msgspec.structs.replace(plain, time=time)))
    (series,) = timeline.build(days).series
    assert series.segments[0].even_ns is None
    assert [shift.at for shift in series.shifts] == [12]


@pytest.mark.parametrize("values", [[1e6] * 30, noisy([1e6] * 30, 0.1)], ids=["constant", "noise"])
def test_what_did_not_change_has_no_change(values: list[float]) -> None:
    (series,) = history(values).series
    assert series.shifts == []
    assert series.steps == ()


def test_two_runs_have_no_change_points_and_say_why() -> None:
    (series,) = history([1e6, 9e6]).series
    assert series.shifts == []
    assert series.segments[0].reason == (
        "change points need 10 runs before and 10 after in one environment; here are 2 in all"
    )


def test_facts_that_no_noise_moves_change_between_two_commits() -> None:
    days = [measured(0, 1e6), measured(1, 1e6, peak=1 << 21), measured(2, 1e6, peak=1 << 21, kernels=("math",))]
    (series,) = timeline.build([run(day, each) for day, each in enumerate(days)]).series
    assert [(step.fact, step.since, step.at) for step in series.steps] == [("peak_bytes", 0, 1), ("kernels", 1, 2)]
    texts = [wording.step(series, step) for step in series.steps]
    assert texts[0].startswith(
        "peak memory 1.00 MiB (1,048,576 bytes) → 2.00 MiB (2,097,152 bytes) at 0000ccc..0001ccc"
    )
    assert texts[1].startswith("kernels flash → math at 0001ccc..0002ccc, 2026-03-04")


def test_a_failure_is_a_change_and_hides_no_other() -> None:
    days = [measured(0, 1e6), failed(1), measured(2, 1e6, peak=1 << 21)]
    (series,) = timeline.build([run(day, each) for day, each in enumerate(days)]).series
    found = [(step.fact, step.since, step.at, step.base, step.head) for step in series.steps]
    assert found == [
        ("status", 0, 1, "ok", "oom"),
        ("status", 1, 2, "oom", "ok"),
        ("peak_bytes", 0, 2, 1 << 20, 1 << 21),
    ]


def test_what_fails_now_comes_first_and_then_what_changed_most() -> None:
    pytest.importorskip("ruptures", reason="ruptures is not installed")
    steps = {1: 1.0, 2: 1.1, 3: 0.6, 4: 1.3}
    days = [
        run(day, *(measured(day, 1e6 * (size if day >= 12 else 1), job=job) for job, size in steps.items()))
        for day in range(24)
    ]
    days.append(run(24, measured(24, 1, job=1, status="crash", time=None)))
    order = [series.key.split("/b")[1][0] for series in timeline.build(days).series]
    assert order == ["1", "3", "4", "2"]


def test_a_job_that_was_only_skipped_has_no_series() -> None:
    skipped = measured(0, 1, status="skipped", time=None, memory=None, costs=None, kernels=())
    assert timeline.build([run(0, skipped)]).series == ()


def test_a_run_and_its_sealed_copy_count_once(tmp_path: Path) -> None:
    manifest = store.new_manifest(suite_name="quick", suite_hash="h")
    folder = store.create(tmp_path, manifest, "text")
    with store.Writer(folder, environment(0)) as writer:
        writer.append(measured(0, 1e6))
    sealed.seal_run(folder, tmp_path / "copy.parquet")
    sealed.seal_run(folder, folder / "records.parquet")  # as `run` leaves it
    found, told = read(tmp_path)
    assert [len(series.points) for series in found.series] == [1]
    assert len(found.runs) == 1
    assert told == []


def test_runs_are_found_one_level_deep_and_links_are_not_followed(tmp_path: Path) -> None:
    store_run(tmp_path, 0, measured(0, 1e6))
    store_run(tmp_path / "host", 1, measured(1, 1e6))
    store_run(tmp_path / "host" / "deep", 2, measured(2, 1e6))
    outside = store_run(tmp_path.parent / f"{tmp_path.name}-outside", 3, measured(3, 1e6))
    (tmp_path / "link.parquet").symlink_to(outside)
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "notes.txt").write_text("no run")
    assert [each.commit for each in read(tmp_path)[0].runs] == [commit(0), commit(1)]


def test_an_unfinished_run_is_told_as_such(tmp_path: Path) -> None:
    manifest = store.new_manifest(suite_name="quick", suite_hash="h", planned=3)
    with store.Writer(store.create(tmp_path, manifest, "text"), environment(0)) as writer:
        writer.append(measured(0, 1e6))
    (found,) = read(tmp_path)[0].runs
    assert (found.unfinished, found.jobs, found.planned) == (True, 1, 3)
    assert f"{manifest.id} is unfinished: jobs or rounds are missing (1 of 3 jobs begun)" in " ".join(
        invoke(tmp_path).output.split()
    )


def test_a_damaged_file_is_named_and_the_others_are_shown(stepped: Path) -> None:
    (stepped / "cut.parquet").write_bytes((stepped / "day-3.parquet").read_bytes()[:-100])
    done = invoke(stepped)
    assert done.exit_code == 6
    assert "cut.parquet' cannot be read as a sealed run" in done.stderr
    assert "1 of 1 job changed" in done.stdout


def test_a_parquet_file_of_someone_else_is_named_and_harms_nothing(stepped: Path) -> None:
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(stepped / "table.parquet")
    done = invoke(stepped)
    assert done.exit_code == 0
    assert "table.parquet' is a Parquet file, but no sealed run of fusionbench" in done.stderr
    assert invoke(stepped, "--json").exit_code == 0
    for path in stepped.glob("day-*"):
        path.unlink()
    assert invoke(stepped).exit_code == 5


def test_a_run_of_a_newer_version_is_refused_and_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "VERSION", VERSION + 1)
    store_run(tmp_path, 0, measured(0, 1e6))
    monkeypatch.undo()
    done = invoke(tmp_path)
    assert done.exit_code == 6
    assert "is newer than this fusionbench" in done.stderr
    assert "could be read" in done.stderr


def test_only_what_a_point_is_made_of_is_read(tmp_path: Path) -> None:
    path = store_run(tmp_path, 0, measured(0, 1e6, notes=("long",), phases_s={"build": 1.0}))
    (narrow,) = sealed.unseal(path, timeline.FIELDS).records
    (whole,) = sealed.unseal(path).records
    assert (whole.notes, narrow.notes, narrow.phases_s) == (("long",), (), {})
    assert msgspec.structs.replace(whole, notes=(), phases_s={}, source="") == narrow


@pytest.mark.parametrize("missing", [False, True])
def test_a_folder_without_runs_ends_with_5_and_a_remedy(tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "none" if missing else tmp_path
    done = invoke(folder)
    assert done.exit_code == 5
    assert "name a folder of runs, or measure one with: fusionbench run smoke" in done.stderr


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    from fusionbench.errors import StoreError

    with pytest.raises(StoreError, match=r"cannot list .*: not a directory; choose a folder, not a file"):
        list(archive.runs(tmp_path / "a.txt", left_out=print))


def test_a_filter_that_no_job_passes_ends_with_5(stepped: Path) -> None:
    done = invoke(stepped, "--job", "nothing")
    assert done.exit_code == 5
    assert "no job in" in done.stderr
    assert invoke(stepped, "--job", "concat/eager").exit_code == 0


def test_the_terminal_names_the_change_at_every_width(stepped: Path) -> None:
    for columns in (40, 60, 120):
        done = invoke(stepped, env={"COLUMNS": str(columns)})
        assert done.exit_code == 0
        assert max(map(len, done.output.splitlines())) <= columns
        text = " ".join(done.output.split())
        assert "1 of 1 job changed" in text
        assert "▲ +20 % [" in text
        assert f"{commit(11)[:7]}..{commit(12)[:7]}" in text.replace(" ", "")
        assert "24 runs" in text


def test_the_limit_keeps_what_changed_most_and_says_what_is_left(tmp_path: Path) -> None:
    done = invoke(sealed_history(tmp_path, runs=24, jobs=20), "--limit", 2)
    assert done.output.count("since first") == 2
    assert "18 more jobs that changed less" in done.output


def test_json_is_whole_and_has_a_version(stepped: Path) -> None:
    found = json.loads(invoke(stepped, "--json").stdout)
    assert found["v"] == 1
    (series,) = found["series"]
    assert len(series["points"]) == len(found["runs"]) == 24
    assert [each["at"] for each in series["segments"][0]["shifts"]] == [12]


def test_without_ruptures_there_is_a_trend_and_one_line_on_how_to_get_them(
    stepped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_points, "installed", lambda: False)
    done = invoke(stepped)
    assert done.exit_code == 0
    assert done.output.count("pip install 'fusionbench[history]'") == 1
    assert "0 of 1 job changed" in done.output
    assert "24 runs" in done.output


def test_machines_met_once_are_told_what_helps(tmp_path: Path) -> None:
    for day in range(2):
        store_run(tmp_path, day, measured(day, 1e6), machine=f"runner-{day}")
    assert "try --any-machine" in invoke(tmp_path).output
    assert "try --any-machine" not in invoke(tmp_path, "--any-machine").output


def test_hostile_texts_reach_the_terminal_without_their_teeth(tmp_path: Path) -> None:
    known = hostile_environments()["h100-a"]
    items = [msgspec.structs.replace(r, started_at=BEGIN.isoformat()) for r in hostile_records()]
    found = timeline.build([store.Run(tmp_path / "x", None, items, {"h100-a": known}, [], [], 0)])
    from rich.console import Console

    from fusionbench.trend import show

    out = Console(width=80, file=(tmp_path / "out").open("w"), force_terminal=False)
    out.print(show(found, width=80, limit=100))
    out.file.close()
    text = (tmp_path / "out").read_text()
    assert not set("\x00\x07\x1b\u202e\u2066\r") & set(text)
    assert "[red]x" in text  # shown, not obeyed
    assert max(map(len, text.splitlines())) <= 80


def test_runs_of_every_version_are_read(tmp_path: Path) -> None:
    golden = Path(__file__).with_name("golden")
    for path in golden.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    found, told = read(tmp_path)
    assert told == []
    assert found.series
