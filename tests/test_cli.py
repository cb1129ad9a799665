"""The command line as a user meets it: verbs, messages, exit codes, interruptions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pandas as pd
import psutil
import pytest

from fusionbench import store
from tests.command import call

PLUGIN = str(Path(__file__).with_name("faulty.py"))
TINY = """
title = "Tiny"
question = "Does it run?"
[budget]
measure_s = 0.02
warmup_s = 0.0
min_samples = 6
max_samples = 20
[[sweep]]
strategies = ["cross_attention", "concat_attention"]
backends = ["eager", "sdpa", "triton"]
image = [7]
text = [3, 5]
image_width = [16]
text_width = [8]
width = [16]
heads = [2]
"""
SLOW = TINY.replace("image_width", "projectors = ['identity']\nimage_width").replace(
    'strategies = ["cross_attention", "concat_attention"]', 'strategies = ["slow"]'
).replace("text_width = [8]", "text_width = [16]").replace("text = [3, 5]", f"text = {list(range(1, 41))}")  # fmt: skip


@pytest.fixture
def fusionbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return lambda *arguments: call(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command line in a process and a process group of its own."""
    command = [sys.executable, "-m", "fusionbench", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def records_in(folder: Path, wanted: int, timeout_s: float = 60) -> Path:
    """Wait until a run below ``folder`` has at least ``wanted`` measured records; returns the run."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for run in folder.glob("*/"):
            if (run / "manifest.json").exists() and sum(r.status == "ok" for r in store.read(run).records) >= wanted:
                return run
        time.sleep(0.05)
    raise AssertionError(f"no run with {wanted} records after {timeout_s} s")


def test_a_run_is_measured_shown_exported_and_reported(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = fusionbench("run", "tiny.toml", "--report")
    assert code == 0
    assert "8 to measure on cpu" in err
    assert "4: Triton kernels need a GPU" in err
    assert "[8/8]" in err
    run = next((tmp_path / "results" / "runs").iterdir())
    assert out.rstrip().endswith(f"report: results/runs/{run.name}/report.html")
    assert {record.status for record in store.read(run).records} == {"ok", "skipped"}

    code, out, _ = fusionbench("show")
    assert code == 0
    assert "cross_attention" in out
    assert "Triton kernels need a GPU" in out

    code, out, _ = fusionbench("show", str(run), "--csv", "t.csv", "--json", "t.json", "--parquet", "t.parquet")
    assert (code, out.split()) == (0, ["t.csv", "t.json", "t.parquet"])
    assert (
        len(pd.read_csv("t.csv"))
        == len(pd.read_parquet("t.parquet"))
        == len(json.loads(Path("t.json").read_text()))
        == 12
    )

    code, out, _ = fusionbench("report", str(run), "-o", "page.html")
    assert (code, out) == (0, "page.html\n")
    assert Path("page.html").stat().st_size > 500_000


def test_the_same_command_again_starts_a_new_run_once_the_last_is_complete(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ("run", "tiny.toml", "--only", "text=3", "--only", "backends=eager", "-q")
    fusionbench(*arguments)
    fusionbench(*arguments)
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 2


def test_failed_jobs_leave_with_3_and_a_command_that_runs_each_again(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Path("faulty.toml").write_text(SLOW.replace('"slow"', '"fine", "raises"').replace(str(list(range(1, 41))), "[2]"))
    code, out, _ = fusionbench("run", "faulty.toml", "--plugin", PLUGIN)
    assert code == 3
    assert "ValueError: the cat is out" in out
    again = re.search(r"fusionbench (run .*raises/eager\S*)", out.replace("\n    ", " "))
    assert again
    code, out, err = fusionbench(*again[1].split())
    assert code == 3
    assert "1 to measure" in err
    assert "ValueError: the cat is out" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "smok"), "fusionbench: no suite named 'smok'; did you mean 'smoke'?"),
        (("run", "no/such.toml"), "fusionbench: no/such.toml: no such suite file (shipped suites: backends, batch,"),
        (
            ("run", "smoke", "--only", "dtype=bf16"),
            "fusionbench: --only: no axis named 'dtype'; did you mean 'dtypes'?",
        ),
        (("run", "smoke", "--only", "dtypes=bf61"), "fusionbench: --only: suite 'smoke' has no dtypes 'bf61'"),
        (("run", "smoke", "--only", "dtypes"), "fusionbench: --only 'dtypes' is not of the form AXIS=VALUE,VALUE"),
        (("run", "smoke", "--job", "x/y"), "fusionbench: suite 'smoke' has no job 'x/y' (see: fusionbench plan smoke)"),
        (("run", "tiny.toml", "--plugin", "no.py"), "fusionbench: plugin 'no.py' is not a file"),
        (("run", "tiny.toml", "--timer", "gaph"), "fusionbench: no timer named 'gaph'; did you mean 'graph'?"),
        (("run", "tiny.toml", "--measure-s", "-1"), "fusionbench: --measure-s: expected `float` > 0.0"),
        (("show",), "fusionbench: no run in 'results/runs' yet; measure one with: fusionbench run smoke"),
        (("show", "nowhere"), "fusionbench: no run at 'nowhere'; give a run folder or a .jsonl shard"),
        (("run", "tiny.toml", "--results", "/proc/nowhere"), "fusionbench: cannot create run '/proc/nowhere/"),
        (("list", "strategy"), "'strategy' is not one of 'strategies', 'backends', 'suites'"),
        (("rn",), "No such command 'rn'"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(fusionbench, arguments: tuple[str, ...], message: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = fusionbench(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("what", ["strategies", "backends", "suites"])
def test_what_there_is_can_be_listed_for_people_and_scripts(fusionbench, what: str) -> None:  # type: ignore[no-untyped-def]
    code, text, _ = fusionbench("list", what)
    assert code == 0
    _, out, _ = fusionbench("list", what, "--json")
    rows = json.loads(out)
    assert all(row["name"] in text and row["summary"] for row in rows)


def test_a_plan_names_every_job_and_every_skip(fusionbench) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = fusionbench("plan", "tiny.toml")
    assert out.startswith("Tiny: 8 jobs, 4 skipped")
    assert "4 skipped: Triton kernels need a GPU" in out
    _, out, _ = fusionbench("plan", "tiny.toml", "--json")
    plan = json.loads(out)
    assert (plan["cases"], len(plan["jobs"]), len(plan["skips"])) == (12, 8, 4)
    assert plan["jobs"][0]["case"]["shape"]["image"] == 7
    _, out, _ = fusionbench("plan", "tiny.toml", "--count", "--only", "text=3")
    assert out == "6\n"


def test_a_run_where_nothing_can_be_measured_is_no_success(fusionbench) -> None:  # type: ignore[no-untyped-def]
    code, _, err = fusionbench("run", "tiny.toml", "--only", "backends=triton")
    assert code == 5
    assert "nothing was measured: every job was skipped" in err


def test_a_damaged_line_is_reported_and_the_rest_read(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fusionbench("run", "tiny.toml", "-q")
    (shard,) = (tmp_path / "results" / "runs").glob("*/shards/*.jsonl")
    lines = shard.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:50] + b"#" + lines[3][51:]
    shard.write_bytes(b"".join(lines))
    code, out, _ = fusionbench("show")
    assert code == 6
    assert "cross_attention" in out
    assert f"{shard.name}:4" in out


def test_ctrl_c_saves_what_is_finished_and_the_printed_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(SLOW)
    process = started("run", "slow.toml", "--plugin", PLUGIN, "--results", "r", cwd=tmp_path)
    run = records_in(tmp_path / "r", 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody in the group gets it
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGINT: finishing the running sample; once more to stop at once" in err
    assert f"Go on with: fusionbench resume r/{run.name}" in err
    before = {record.job.key for record in store.read(run).records if record.status == "ok"}
    assert 2 <= len(before) < 40

    again = started("resume", f"r/{run.name}", "--plugin", PLUGIN, "--retry-failed", "-q", cwd=tmp_path)
    records_in(tmp_path / "r", len(before) + 2)
    os.kill(again.pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(again.pid, signal.SIGINT)  # twice: at once
    begun = time.monotonic()
    again.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert again.returncode == 130
    found = store.read(run)
    assert found.duplicates == 0
    assert before < {record.job.key for record in found.records if record.status == "ok"}


@pytest.mark.parametrize("moment", range(3))
def test_sigkill_of_the_runner_loses_no_finished_record_and_leaves_no_process(tmp_path: Path, moment: int) -> None:
    (tmp_path / "slow.toml").write_text(SLOW)
    process = started("run", "slow.toml", "--plugin", PLUGIN, "--results", "r", cwd=tmp_path)
    run = records_in(tmp_path / "r", 1 + moment)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, err = process.communicate(timeout=10)
    said = len(re.findall(r"^\[\d+/40\]", err, re.MULTILINE))
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    found = store.read(run)
    assert not found.damaged
    assert sum(record.status == "ok" for record in found.records) >= max(said, 1 + moment)


def test_without_a_terminal_there_are_plain_lines_without_colour(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    environment = {**os.environ, "FORCE_COLOR": "", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fusionbench", "run", "tiny.toml", "--only", "backends=eager"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stderr
    # On a busy machine a line in between says that it goes on.
    assert len(re.findall(r"^\[\d/4\] (?!round )", done.stderr, re.MULTILINE)) == 4


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m fusionbench plan lengths --head 0 | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("Sequence lengths:")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bare_image_without_pandas_and_pyarrow_measures_and_says_what_it_could_not_show(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    blocked = "import sys; sys.modules.update(pandas=None, pyarrow=None); from fusionbench.cli import main; main()"
    arguments = ["run", "tiny.toml", "--only", "backends=eager", "--report"]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "results" / "runs").iterdir()
    assert f"the results are saved in results/runs/{run.name}, but could not all be shown: " in done.stderr
    assert sum(record.status == "ok" for record in store.read(run).records) == 4
    done = subprocess.run(
        [sys.executable, "-c", blocked, "report"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.startswith("fusionbench: this needs the package 'pandas")


def test_a_run_folder_is_not_trusted_to_name_code(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Path("fine.toml").write_text(SLOW.replace('"slow"', '"fine"').replace(str(list(range(1, 41))), "[2]"))
    fusionbench("run", "fine.toml", "--plugin", PLUGIN, "-q")
    (run,) = (tmp_path / "results" / "runs").iterdir()
    code, _, err = fusionbench("resume", str(run))
    assert code == 2
    assert f"used the plugin '{PLUGIN}'; to run its code again add --plugin {PLUGIN}" in err


def test_two_runs_do_not_share_a_folder(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from fusionbench.disk import locked

    fusionbench("run", "tiny.toml", "-q", "--only", "backends=eager")
    (run,) = (tmp_path / "results" / "runs").iterdir()
    with locked(run):
        code, _, err = fusionbench("resume", str(run), "-q")
    assert code == 2
    assert "is being measured by another process; wait, or use --fresh" in err


def test_an_export_follows_links_and_leaves_devices_alone(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fusionbench("run", "tiny.toml", "-q", "--only", "backends=eager")
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    assert fusionbench("show", "--csv", str(link))[0] == 0
    assert link.is_symlink()
    assert target.read_text().startswith("key,")
    assert fusionbench("show", "--csv", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()
    code, _, err = fusionbench("show", "--csv", str(tmp_path))
    assert (code, "cannot write" in err, "Traceback" in err) == (2, True, False)


def test_a_line_with_absurd_numbers_is_damage_and_the_rest_is_read(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fusionbench("run", "tiny.toml", "-q", "--only", "backends=eager")
    (shard,) = (tmp_path / "results" / "runs").glob("*/shards/*.jsonl")
    lines = shard.read_bytes().splitlines()
    records = [number for number, line in enumerate(lines) if b'"record"' in line][-2:]  # of two jobs
    absurd = ((rb'"loops":\d+', b'"loops":0'), (rb'"peak_bytes":\d+', b'"peak_bytes":' + b"9" * 400))
    for number, (pattern, value) in zip(records, absurd, strict=True):
        body = re.sub(pattern, value, lines[number].rpartition(b"\t")[0])
        lines[number] = body + b"\t" + f"{zlib.crc32(body):08x}".encode()
    shard.write_bytes(b"\n".join(lines) + b"\n")
    code, out, _ = fusionbench("show")
    assert code == 6
    for number in records:
        assert f"{shard.name}:{number + 1}: damaged" in out
    assert "concat_attention" in out


def test_a_plan_of_nothing_but_skips_says_so_in_its_exit_code(fusionbench) -> None:  # type: ignore[no-untyped-def]
    assert fusionbench("plan", "tiny.toml", "--only", "backends=triton")[0] == 5


def test_ctrl_c_while_the_workers_are_being_prepared_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(SLOW)
    process = started("run", "slow.toml", "--plugin", PLUGIN, "--results", "r", cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "r").glob("*/shards/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "Go on with: fusionbench resume" in err
