"""Every format alike: whole files, no number for what was not measured, and nothing hostile on the way out."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from msgspec.structs import replace

from fusionbench.cli import app
from fusionbench.errors import FusionbenchError, StoreError, UnknownNameError
from fusionbench.export import formats, streaming
from fusionbench.export.formats import FORMATS, Format
from tests.command import call
from tests.exporting import COMMIT, failed, run_of, untimed
from tests.hostile import TEXTS, hostile_environments, hostile_records
from tests.storing import ENVIRONMENT, RECORDS, create, write
from tests.synthetic import ENVIRONMENTS, records, smoke

NUMBERS_ALONE = {"pytest-benchmark", "github-smaller", "github-bigger", "bencher"}
KNOWN_COMMIT = {key: replace(environment, commit=COMMIT) for key, environment in ENVIRONMENTS.items()}
every_format = pytest.mark.parametrize("chosen", FORMATS.values(), ids=list(FORMATS))


def files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def values(path: Path) -> Iterator[Any]:
    """Everything in a file or folder that a reader would see: keys and values at any depth."""
    for file in files(path):
        if path.name == "csv":
            yield from pd.read_csv(file, keep_default_na=False).to_numpy().ravel()
        elif path.name == "parquet":
            yield from pd.read_parquet(file).to_numpy().ravel()
        else:
            yield from _flat(json.loads(file.read_text("utf-8")))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _flat(each)
    elif isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


@every_format
def test_a_run_of_nothing_is_a_valid_file(chosen: Format, tmp_path: Path) -> None:
    found = formats.export(run_of([]), chosen, tmp_path / chosen.name)
    assert found.jobs == 0
    if chosen.name not in ("csv", "parquet"):
        list(values(tmp_path / chosen.name))


@every_format
def test_what_a_tool_reads_is_strict_json_but_for_asv(chosen: Format, tmp_path: Path) -> None:
    if chosen.name in ("csv", "parquet"):
        pytest.skip("a table")
    formats.export(run_of(smoke(), KNOWN_COMMIT), chosen, tmp_path / chosen.name)
    texts = [file.read_text("utf-8") for file in files(tmp_path / chosen.name)]
    for text in texts:
        json.loads(text, parse_constant=None if chosen.name == "asv" else pytest.fail)
    assert texts


@every_format
def test_jobs_that_failed_have_no_number(chosen: Format, tmp_path: Path) -> None:
    found = formats.export(run_of(failed(), KNOWN_COMMIT), chosen, tmp_path / chosen.name)
    if chosen.name in NUMBERS_ALONE:
        assert found.jobs == 0
        assert found.notes[0].startswith("3 jobs are not in the file, which holds numbers alone: ")
        assert {"1 oom", "1 skipped", "1 timeout"} == set(found.notes[0].partition(": ")[2].split(", "))
    else:
        assert found.jobs == 3


@every_format
def test_jobs_without_a_timing_have_no_time(chosen: Format, tmp_path: Path) -> None:
    found = formats.export(run_of(untimed(), KNOWN_COMMIT), chosen, tmp_path / chosen.name)
    seen = [value for value in values(tmp_path / chosen.name) if isinstance(value, str)]
    assert not [value for value in seen if value.endswith(("[time]", "[rate]")) or value in ("latency", "median_ns")]
    expected = 0 if chosen.name in ("pytest-benchmark", "github-bigger") else len(untimed())
    assert found.jobs == expected


@every_format
def test_hostile_texts_arrive_without_control_characters(chosen: Format, tmp_path: Path) -> None:
    environments = {key: replace(value, commit=COMMIT) for key, value in hostile_environments().items()}
    found = formats.export(run_of(hostile_records(), environments), chosen, tmp_path / chosen.name)
    assert found.jobs > 10
    if chosen.name in ("csv", "json", "parquet"):  # whole records: their readers escape (see test_export_tables.py)
        return
    texts = [value for value in values(tmp_path / chosen.name) if isinstance(value, str)]
    assert len(texts) > 10
    for text in texts:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e\u2066]", text)
        assert len(text) <= 1200
    inside = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert inside == {chosen.name}


@every_format
def test_a_name_stands_for_one_job_however_hostile(chosen: Format, tmp_path: Path) -> None:
    measured = [record for record in hostile_records() if record.status == "ok"]
    names = [f"{a}{b}" for a in TEXTS[:5] for b in ("\x07", "\x1b", "\u202e", "y" * 2000, "z" * 2000)]
    pool = [replace(measured[0], job=replace(measured[0].job, strategy=name)) for name in names]
    found = formats.export(run_of(pool, KNOWN_COMMIT), chosen, tmp_path / chosen.name)
    assert found.jobs == len(names)
    written = json.loads((tmp_path / chosen.name).read_text()) if chosen.name in NUMBERS_ALONE else None
    if chosen.name == "bencher":
        assert len(written) == len(names)
        assert max(len(name.encode()) for name in written) <= 1024
    elif chosen.name == "pytest-benchmark":
        assert len({each["fullname"] for each in written["benchmarks"]}) == len(names)
    elif chosen.name == "github-bigger":
        assert len({each["name"] for each in written}) == len(names)
    elif chosen.name == "asv":
        listed = json.loads((tmp_path / "asv/results/benchmarks.json").read_text())
        assert len([name for name in listed if name.startswith("time.")]) == len(names)


@every_format
def test_a_full_disk_leaves_the_old_files(chosen: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    formats.export(run_of(smoke()[:9], KNOWN_COMMIT), chosen, path)
    before = {file: file.read_bytes() for file in files(tmp_path)}

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*: no space left on device; free some space"):
        formats.export(run_of(smoke(), KNOWN_COMMIT), chosen, path)
    assert {file: file.read_bytes() for file in files(tmp_path)} == before


def test_a_stream_that_breaks_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        streaming.write(path, streaming.elements(items()))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@every_format
def test_standard_output_gets_the_bytes_of_the_file(
    chosen: Format, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = run_of(smoke(), KNOWN_COMMIT)
    if chosen.folder:
        with pytest.raises(FusionbenchError, match="is a folder, which has no place on the standard output"):
            formats.export(run, chosen, Path("-"))
        return
    formats.export(run, chosen, tmp_path / "out")
    formats.export(run, chosen, Path("-"))
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == (tmp_path / "out").read_bytes()


@every_format
def test_a_file_is_no_folder_and_a_folder_no_file(chosen: Format, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("") if chosen.folder else taken.mkdir()
    with pytest.raises(FusionbenchError, match="name a f"):
        formats.export(run_of(smoke(), KNOWN_COMMIT), chosen, taken)


@every_format
def test_a_thousand_jobs_take_about_a_second(chosen: Format, tmp_path: Path) -> None:
    run = run_of(records(1000), KNOWN_COMMIT)
    formats.export(run_of(smoke(), KNOWN_COMMIT), chosen, tmp_path / "warm")  # imports
    begun = time.process_time()
    formats.export(run, chosen, tmp_path / chosen.name)
    assert time.process_time() - begun < 3


def test_only_tables_need_pandas() -> None:
    code = "import sys, fusionbench.present, fusionbench.export.formats; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"pandas", "pyarrow", "plotly", "scipy", "torch", "rich"} & set(done.stdout.split())


def test_of_a_job_measured_twice_the_newer_result_is_told() -> None:
    old = smoke()[3]
    new = replace(old, source="another", started_at="2027-01-01T00:00:00Z", memory=replace(old.memory, peak_bytes=7))
    for pair in ([old, new], [new, old]):
        found = FORMATS["bencher"].write(run_of(pair), Path("/dev/null"))
        assert found.jobs == 1
        assert found.notes == ("1 older results of the same jobs, by other code or elsewhere, are left out",)


def test_jobs_of_two_environments_are_told_from_each_other() -> None:
    first, second = smoke()[3:5]
    found = FORMATS["bencher"].write(run_of([first, replace(second, environment="other")]), Path("/dev/null"))
    assert found.notes == ("the jobs were measured in 2 environments; their times are not to be compared",)


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no format named 'pytest'; did you mean 'pytest-benchmark'"):
        formats.find("pytest")


def test_help_and_readme_name_every_format() -> None:
    verb = next(command for command in app.registered_commands if command.name == "export")
    assert verb.callback
    text = str(verb.callback.__annotations__["name"])
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in FORMATS:
        assert re.search(rf"[ ']{name}[ ,.]", text), name
        assert f"| `{name}` |" in readme


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def stored(tmp_path: Path, *items: Any) -> None:
    write(create(tmp_path / "results" / "runs"), *items)


def test_the_newest_run_is_exported_and_the_path_told(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    stored(tmp_path, *(replace(record, environment=ENVIRONMENT.id) for record in smoke()))
    assert cli("export", "--format", "bencher", "--output", "b.json")[:2] == (0, "b.json\n")
    assert json.loads(Path("b.json").read_text())


def test_what_is_left_out_is_told_on_stderr(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    good = [record for record in smoke() if record.status == "ok"]
    stored(tmp_path, *(replace(record, environment=ENVIRONMENT.id) for record in (*good[5:], *failed())))
    code, out, err = cli("export", "-f", "bencher", "-o", "-")
    assert (code, len(json.loads(out))) == (0, len(good) - 5)
    assert "3 jobs are not in the file, which holds numbers alone: " in err


def test_a_damaged_run_is_exported_and_what_is_lost_told(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    stored(tmp_path, *smoke())  # whose environment no shard describes
    code, out, err = cli("export", "-f", "bencher", "-o", "-")
    assert (code, len(json.loads(out)) > 20) == (6, True)
    assert "environment 'h100-a' is named by records, and no shard describes it" in err


def test_of_many_problems_the_first_are_told(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "damaged.jsonl").write_text("no record\n" * 50)
    code, _, err = cli("export", "damaged.jsonl", "-f", "bencher", "-o", "b.json")
    assert (code, len(err.splitlines())) == (6, 11)
    assert err.endswith("40 more of these; see: fusionbench show\n")


def test_what_holds_no_record_makes_no_file(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "baseline.json").write_text('{"kind":"fusionbench-baseline"}\n' * 50)
    code, out, err = cli("export", "baseline.json", "-f", "csv", "-o", "x.csv")
    assert (code, out) == (2, "")
    assert err == (
        "fusionbench: 'baseline.json' is no run; give a run folder, a shard (.jsonl) or a sealed run (.parquet)\n"
    )
    (tmp_path / "empty.jsonl").write_text("")
    assert cli("export", "empty.jsonl", "-f", "csv", "-o", "x.csv")[:2] == (5, "")
    assert not Path("x.csv").exists()


def test_an_export_without_a_job_is_no_pass(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    stored(tmp_path, *RECORDS)  # ok, and neither timed nor weighed
    code, _, err = cli("export", "-f", "bencher", "-o", "b.json")
    assert code == 5
    assert "3 not timed" in err
    assert json.loads(Path("b.json").read_text()) == {}


def test_wrong_arguments_are_a_line_and_code_2(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = cli("export", "-f", "bencer", "-o", "b.json")
    assert (code, err) == (2, "fusionbench: no format named 'bencer'; did you mean 'bencher'?\n")
    code, _, err = cli("export", "-f", "bencher", "-o", "b.json")
    assert (code, "no run in" in err) == (2, True)
    stored(tmp_path, *RECORDS)
    code, _, err = cli("export", "-f", "asv", "-o", "folder")
    assert (code, "does not say which commit it measured" in err) == (2, True)
    code, _, err = cli("export", "-f", "bencher", "-o", str(tmp_path))
    assert (code, "is a file, and" in err) == (2, True)
    assert not Path("b.json").exists()


def test_show_and_export_write_the_same_tables(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    stored(tmp_path, *(replace(record, environment=ENVIRONMENT.id) for record in smoke()))
    for name in ("csv", "json", "parquet"):
        assert cli("show", f"--{name}", f"shown.{name}")[0] == 0
        assert cli("export", "-f", name, "-o", f"exported.{name}")[0] == 0
        assert Path(f"shown.{name}").read_bytes() == Path(f"exported.{name}").read_bytes()
