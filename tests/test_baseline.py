"""Baselines: what is kept comes back, a changed job is a changed line, and whatever is no whole baseline is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from pathlib import Path

import pytest
from msgspec.structs import force_setattr, replace

from fusionbench import baseline, facts, suite
from fusionbench.baseline import load, pace_of, place
from fusionbench.compare import compare
from fusionbench.disk import NewerSchemaError
from fusionbench.errors import DamagedError, FusionbenchError, NothingError, StoreError
from fusionbench.export.tables import to_parquet
from fusionbench.record import latest
from fusionbench.report.frame import frame
from tests.comparing import BUDGET, HASH, failed, here, kept, record, run, timing

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    kept(run(tmp_path / "runs", record(1), record(2), record(3, status="skipped", time=None)), tmp_path / "b.json")
    return tmp_path / "b.json"


def test_a_baseline_knows_why_where_and_how_it_was_measured(tmp_path: Path) -> None:
    measured = run(tmp_path, record(2), record(1), only={"devices": ["cpu"]}, limit=9, plugins=["/home/me/gated.py"])
    made = kept(measured, tmp_path / "b.json", "  the first\none ")
    assert (made.suite_name, made.suite_hash, made.reason) == ("smoke", HASH, "the first one")
    assert (made.only, made.limit, made.plugins) == ({"devices": ["cpu"]}, 9, ("gated.py",))
    assert made.environment == here()
    assert made.budget == replace(BUDGET, rounds=1)
    assert [job.key for job in made.jobs] == sorted(item.job.key for item in measured.records)
    assert made.jobs[0].facts.flops == 1000


def test_a_timing_becomes_a_number_per_round_and_compares_as_before() -> None:
    whole = timing(rounds=7, run_delay_ns=(100_000,) * 105)  # of 1 ms, a tenth of which it waited
    brief = pace_of(whole)
    assert len(brief.samples_ns) == len(brief.control_ns) == 7
    assert brief.samples_ns[0] == pytest.approx(0.9e6, rel=0.01)
    assert compare(brief.timing, whole).ratio == pytest.approx(1, abs=0.001)
    assert compare(brief.timing, timing(1.2, run_delay_ns=(100_000,) * 105)).verdict == "slower"


def test_a_short_call_keeps_its_precision() -> None:
    whole = timing(rounds=7, loops=1000)  # 1 µs a call
    assert compare(pace_of(whole).timing, whole).ratio == pytest.approx(1, abs=0.001)


def test_the_file_has_a_line_for_each_job_and_a_change_of_one_changes_one(tmp_path: Path) -> None:
    first = run(tmp_path, *(record(number) for number in range(1, 6)))
    made = kept(first, tmp_path / "b.json")
    jobs = (*made.jobs[:2], replace(made.jobs[2], facts=replace(made.jobs[2].facts, launches=43)), *made.jobs[3:])
    before, after = (baseline.encode(each).decode().splitlines() for each in (made, replace(made, jobs=jobs)))
    changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert len(changed) == 2
    assert [other.partition(":")[0] for _, other in changed] == ['{"key"', '"checksum"']
    assert all(len(line) < 700 for line in before if line.startswith('{"key"'))


def test_of_a_skip_only_that_it_is_one_is_kept(file: Path) -> None:
    (skip,) = (job for job in load(file).jobs if job.status == "skipped")
    assert (skip.facts, skip.time, skip.source) == (baseline.Facts(), None, "")


def test_the_latest_record_of_a_key_counts() -> None:
    old, new = (record(1, source=source, started_at=f"2026-11-2{day}T00:00") for source, day in (("a", 1), ("b", 2)))
    assert latest([old, new])[old.job.key].source == latest([new, old])[old.job.key].source == "b"
    assert latest([old, replace(old, source="c")])[old.job.key].source == "c"


# --- which runs make none ------------------------------------------------------------------------------------------


def refused(match: str, *arguments: object, code: int = 2) -> None:
    with pytest.raises(FusionbenchError, match=match) as caught:
        baseline.of(*arguments)  # type: ignore[arg-type]
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reason", ["", " \n"])
def test_a_reason_is_needed(tmp_path: Path, reason: str) -> None:
    refused("needs a reason", run(tmp_path, record()), reason)


def test_a_run_with_failures_makes_none(tmp_path: Path) -> None:
    refused(
        r"has failures and is no baseline \(concat.*: oom, none left, and 1 more\)",
        run(tmp_path, failed(1, "oom", "none left"), failed(2), record(3)),
        "why",
    )


def test_an_unfinished_run_makes_none(tmp_path: Path) -> None:
    refused(r"not complete; finish it with: fusionbench resume", run(tmp_path, record(), planned=2), "why")


def test_a_run_of_skips_alone_makes_none(tmp_path: Path) -> None:
    skips = run(tmp_path, record(status="skipped", time=None))
    refused("every job was skipped", skips, "why", code=5)


def test_a_damaged_run_makes_none(tmp_path: Path) -> None:
    whole = run(tmp_path, record(1), record(2))
    refused("is damaged", replace_run(whole, damage=["shard:3: damaged"]), "why", code=6)


def test_a_run_without_a_suite_makes_none(tmp_path: Path) -> None:
    refused("does not say which suite", replace_run(run(tmp_path, record()), manifest=None), "why")


def test_a_run_of_two_environments_makes_none(tmp_path: Path) -> None:
    whole = run(tmp_path, record(1), record(2))
    mixed = [whole.records[0], replace(whole.records[1], environment="other")]
    refused("in 2 environments", replace_run(whole, records=mixed), "why")
    lost = [replace(item, environment="") for item in whole.records]
    refused("does not say where", replace_run(whole, records=lost), "why")


def replace_run(found: object, **changes: object) -> object:
    return dataclasses.replace(found, **changes)  # type: ignore[type-var]


# --- what is no baseline -------------------------------------------------------------------------------------------


def told(path: Path, kind: type[FusionbenchError], code: int, match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        load(path)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", " \r\n "])
def test_an_empty_file_is_nothing_to_compare_with(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    told(tmp_path / "b.json", NothingError, 5, "is empty")


def test_a_baseline_without_a_job_is_nothing_to_compare_with(file: Path) -> None:
    made = load(file)
    for jobs in ((), tuple(job for job in made.jobs if job.status == "skipped")):
        file.write_bytes(baseline.encode(replace(made, jobs=jobs)))
        told(file, NothingError, 5, "holds no job that was measured")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_file_cut_short_is_damaged(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    told(file, DamagedError, 6, "its end is missing; restore it")


def test_a_number_edited_by_hand_is_damage(file: Path) -> None:
    text = file.read_text()
    assert '"flops":1000' in text
    file.write_text(text.replace('"flops":1000', '"flops":9000', 1))
    told(file, DamagedError, 6, r"its checksum does not match \(edited by hand\?\); restore it")


def test_a_line_that_was_removed_is_damage(file: Path) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith('{"key"')))
    told(file, DamagedError, 6, "its checksum")


def test_the_marks_of_a_merge_are_damage(file: Path) -> None:
    lines = file.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith('{"key"'))
    merged = [*lines[:at], "<<<<<<< HEAD", lines[at], "=======", lines[at], ">>>>>>> other", *lines[at + 1 :]]
    file.write_text("\n".join(merged) + "\n")
    told(file, DamagedError, 6, "marks of a merge conflict")


def test_any_flipped_bit_is_told_or_changes_nothing(file: Path) -> None:
    data, whole = file.read_bytes(), load(file)
    for at in range(0, len(data), 7):
        file.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with contextlib.suppress(StoreError):
            assert load(file) == whole, at


def test_line_ends_that_git_changed_are_no_damage(file: Path) -> None:
    whole = load(file)
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert load(file) == whole


def test_a_newer_schema_is_refused_with_its_number(file: Path) -> None:
    file.write_text(file.read_text().replace('"v":1', '"v":2', 1))
    told(file, NewerSchemaError, 2, r"schema 2 is newer than this fusionbench \(1\); upgrade")


@pytest.mark.parametrize("jobs", ["twice", "unsorted"])
def test_jobs_out_of_order_or_there_twice_are_refused(file: Path, jobs: str) -> None:
    made = load(file)
    wrong = (made.jobs[0], made.jobs[0]) if jobs == "twice" else made.jobs[::-1]
    body = baseline._body(_forced(made, wrong))
    file.write_bytes(body + b'\n"checksum":"%s"}\n' % baseline._checksum(body))
    told(file, DamagedError, 6, "order of their keys")


def _forced(made: baseline.Baseline, jobs: tuple[baseline.Kept, ...]) -> baseline.Baseline:
    """With jobs that no constructor would take."""
    copy = replace(made)
    force_setattr(copy, "jobs", jobs)
    return copy


@pytest.mark.parametrize("what", ["kernels", "shard", "manifest", "sealed", "parquet", "text", "nested", "binary"])
def test_something_else_is_refused_by_name(tmp_path: Path, what: str) -> None:
    measured = run(tmp_path / "runs", record())
    path = tmp_path / "b.json"
    match what:
        case "kernels":
            shutil.copy(ROOT / "results" / "baseline" / "kernels.json", path)
        case "shard":
            shutil.copy(next((measured.path / "shards").iterdir()), path)
        case "manifest":
            shutil.copy(measured.path / "manifest.json", path)
        case "sealed":
            shutil.copy(ROOT / "tests" / "golden" / "v1" / "records.parquet", path)
        case "parquet":
            to_parquet(frame(measured.records, measured.environments), path)
        case "text":
            path.write_text("# results\n")
        case "nested":
            path.write_text("[" * 100_000)
        case "binary":
            path.write_bytes(os.urandom(10_000))
    told(path, StoreError, 2, r"'.*b\.json' is no baseline; give what 'fusionbench baseline update' wrote")


def test_a_folder_or_a_run_in_its_place_is_refused(tmp_path: Path) -> None:
    told(tmp_path, StoreError, 2, "is a folder, no baseline; give its file")
    told(run(tmp_path / "runs", record()).path, StoreError, 2, "is a folder")


def test_a_file_that_is_not_there_is_answered_with_how_to_write_one(tmp_path: Path) -> None:
    told(tmp_path / "none.json", StoreError, 2, "no baseline at .*; write one with: fusionbench baseline update")


def test_a_file_larger_than_any_baseline_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(1 << 30)  # sparse: it takes no space
    told(tmp_path / "b.json", StoreError, 2, r"1,073,741,824 bytes, more than the limit of 67,108,864; is it the right")


def test_a_link_a_pipe_and_a_file_nobody_may_read_are_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(file)
    told(tmp_path / "link.json", StoreError, 2, "no link to it")
    os.mkfifo(tmp_path / "pipe.json")
    told(tmp_path / "pipe.json", StoreError, 2, "not a regular file")


def test_control_characters_of_a_path_do_not_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        load(tmp_path / "\x1b[31m.json")
    assert str(caught.value).isprintable()


def test_what_is_too_large_to_be_read_again_is_not_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load(file)
    monkeypatch.setattr(baseline, "MAX_BYTES", 100)
    with pytest.raises(StoreError, match="more than the limit"):
        baseline.encode(made)
    with pytest.raises(StoreError, match="cannot be stored"):
        baseline.encode(replace(made, environment=replace(made.environment, machine="\ud800")))


# --- those that are committed ---------------------------------------------------------------------------------------


COMMITTED = sorted((ROOT / "results" / "baseline").glob("*/*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_baseline_is_whole_and_of_todays_suite(path: Path) -> None:
    made = load(path)
    assert path == place(ROOT / "results" / "baseline", made.environment.machine, made.suite_name)
    assert made.suite_hash == suite.read(str(suite.shipped()[made.suite_name])).hash
    assert not made.environment.dirty
    known = [job.facts for job in made.jobs if job.status == "ok"]
    assert {name for each in known for name in facts.NAMES if getattr(each, name) is None} <= set(facts.UNSEEN)
    assert made.command[0] == "fusionbench"


def test_ci_has_a_baseline() -> None:
    assert ROOT / "results" / "baseline" / "ci" / "smoke.json" in COMMITTED


def test_a_baseline_tells_how_it_was_measured_and_not_where_the_program_lay(tmp_path: Path) -> None:
    found = run(tmp_path / "run", record(), command=("/home/me/.venv/bin/fusionbench", "run", "smoke"))
    assert kept(found, tmp_path / "b.json").command == ("fusionbench", "run", "smoke")


# --- where it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "folder"),
    [
        ("ci", "ci"),
        ("h200-a.example", "h200-a.example"),
        ("../../etc", r"_.._etc-\w{6}"),
        ("", r"unnamed-\w{6}"),
        ("a/b", r"a_b-\w{6}"),
        (".git", r"git-\w{6}"),
        ("rechner\x00ä", r"rechner__-\w{6}"),
        ("x" * 300, r"x{64}-\w{6}"),
    ],
)
def test_a_machine_of_any_name_has_a_safe_folder(machine: str, folder: str) -> None:
    path = place(Path("base"), machine, "smoke")
    assert (path.parent.parent, path.name) == (Path("base"), "smoke.json")
    assert re.fullmatch(folder, path.parent.name)


def test_machines_whose_names_look_alike_when_made_safe_keep_apart() -> None:
    assert len({place(Path(), name, "smoke") for name in ("a/b", "a_b", "a b", "a:b")}) == 4


def test_a_run_can_be_kept_under_another_name(tmp_path: Path) -> None:
    assert baseline.of(run(tmp_path, record()), "why", "ci").environment.machine == "ci"
