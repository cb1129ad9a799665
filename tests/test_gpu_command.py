"""`make gpu` where there is no GPU: its steps, its time, what it refuses, and that measuring needs no shown library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionbench import backends, facts, store, suite, trial
from fusionbench.plan import Plan
from fusionbench.spec import Skip
from tests import gpu, gpu_facts, gpu_pairs, shard
from tests.comparing import failed, record, run
from tests.perf import kernel_targets

# Of what python imports at its start: the libraries of the verbs that show things are not found.
BARE = """
from importlib.machinery import PathFinder
shown, find = {"typer", "rich", "pandas", "pyarrow", "plotly", "scipy", "jinja2", "pynvml"}, PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in shown else find(name, *rest)
"""
SAYS = "import sys; print('done'); sys.exit({code})"
HANGS = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"


def test_the_steps_fit_into_their_time_and_name_what_exists(tmp_path: Path) -> None:
    steps = gpu.steps(tmp_path, 520)
    assert sum(step.seconds for step in steps) <= 520 * 1.05
    *measured, _ = (step.arguments[2] for step in steps if "--measure" in step.arguments)
    names = [name for several in measured for name in several.split(",")]
    assert sorted(names) == sorted({name for sweep in suite.read("kernels").sweeps for name in sweep.backends})
    assert set(names) <= set(backends.BACKENDS)
    files = [Path(a) for step in steps for a in step.arguments if a.startswith("tests/")]
    assert all((gpu.ROOT / file).exists() for file in files)


def test_without_a_gpu_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.device_count():
        pytest.skip("there is a CUDA device")
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("gpu: no CUDA device here")


@pytest.mark.parametrize(
    ("script", "may_stop", "code"),
    [(SAYS.format(code=0), False, 0), (SAYS.format(code=3), False, 3), (SAYS.format(code=130), True, 0),
     (HANGS, False, 124), (HANGS, True, 0)],
    ids=["well", "failing", "interrupted", "hanging", "allowed to hang"],
)  # fmt: skip
def test_a_step_is_logged_and_ended_at_its_limit(
    script: str, may_stop: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE_S", 0.2)
    step = gpu.Step("a step", 6, ("-c", script), may_stop)
    monkeypatch.setattr(gpu.subprocess.Popen, "wait", _sooner(subprocess.Popen.wait))
    assert gpu.perform(step, 6, tmp_path) == code
    assert (tmp_path / "a-step.log").exists()


def _sooner(wait):  # type: ignore[no-untyped-def]
    """Waiting that gives up after a second: a hanging step's limit need not be sat out."""
    return lambda process, timeout=None: wait(process, None if timeout is None else min(timeout, 1.0))


def test_shards_run_every_test_once_and_tell_of_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "test_numbers.py"
    body = "@pytest.mark.parametrize('n', range(10))\ndef test_n(n):\n    print(f'ran {n}.')\n    assert n != 7\n"
    file.write_text("import pytest\n" + body)
    command = ["-s", "--chunk", "2", "-c", "/dev/null", "--rootdir", str(tmp_path), str(file)]
    code = gpu.run_tests(command, shards=3)
    out = capsys.readouterr().out
    assert sorted(int(n) for n in re.findall(r"ran (\d)\.", out)) == list(range(10)), out
    assert "3 shards; exit codes: 2 times 0, 1 times 1" in out
    assert code == 1
    assert gpu.run_tests([*command, "--cases", "3"], shards=3) == 0
    assert "exit codes: 2 times 0, 1 times 5" in capsys.readouterr().out


def test_of_a_long_grid_a_few_cases_are_kept_and_none_in_fp32() -> None:
    def case(name: str, **params: object) -> pytest.Item:
        return SimpleNamespace(nodeid=name, callspec=SimpleNamespace(params=params))  # type: ignore[return-value]

    grid = [case(f"a[{n}]", n=n, dtype=torch.float32 if n % 2 else torch.float16) for n in range(20)]
    alone = [case("b[0]", dtype=torch.float32), SimpleNamespace(nodeid="c")]
    kept = shard.brief([*grid, *alone], 4)  # type: ignore[list-item]
    assert [item.nodeid for item in kept] == ["a[0]", "a[6]", "a[12]", "a[18]", "b[0]", "c"]
    assert shard.brief(grid, 0) == grid


def test_a_step_that_has_no_time_left_is_told_as_failed(tmp_path: Path) -> None:
    assert gpu.perform(gpu.Step("late", 6, ()), 1, tmp_path) == 124
    assert gpu.perform(gpu.Step("late", 6, (), may_stop=True), 1, tmp_path) == 0


def bare(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A step in a process of its own, as on a bare image without a GPU."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    environment = {
        "PYTHONPATH": f"{tmp_path}:{gpu.ROOT}:{gpu.ROOT / 'kernels'}",
        "PATH": "/usr/bin",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=gpu.ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_pair_of_this_code_is_a_line_for_each_round_and_one_for_all(tmp_path: Path) -> None:
    command = ("--out", str(tmp_path), "--device", "cpu", "--jobs", "1", "--rounds", "1")
    done = bare(tmp_path, "tests/gpu_pairs.py", *command)
    assert done.returncode == 0, done.stderr
    round_, of_job, of_all = (json.loads(line) for line in (tmp_path / "paired.jsonl").read_text().splitlines())
    assert (round_["round"], round_["base"]["status"], round_["head"]["status"]) == (0, "ok", "ok")
    assert of_job["effects"] == [round_["effect"]]
    assert (of_job["facts"], of_job["facts_changed"], of_job["failed"]) == (len(facts.NAMES), [], "")
    assert (of_all["all"]["timed"], of_all["all"]["failed"]) == (1, 0)


def test_pairs_that_have_no_time_say_what_is_missing(tmp_path: Path) -> None:
    done = bare(tmp_path, "tests/gpu_pairs.py", "--out", str(tmp_path), "--device", "cpu", "--seconds", "0")
    assert done.returncode == 130, done.stderr
    assert json.loads((tmp_path / "paired.jsonl").read_text().splitlines()[-1])["all"]["timed"] == 0


def test_the_jobs_of_pairs_are_among_those_that_are_compiled_and_measured_before() -> None:
    known = {(item.job if isinstance(item, Skip) else item).key for item in Plan(suite.read("kernels"))}
    planned = {gpu_pairs.job("eager").key}  # plain attention, beside which the others are read
    assert {job.key for job in gpu_pairs.JOBS} - known == planned


def test_a_slow_down_on_paper_is_found_in_rounds_that_agree() -> None:
    def found(job: int, *effects: float) -> trial.Found:
        return trial.Found(gpu_pairs.JOBS[job], effects=list(effects))

    steady = [found(0, *(0.001 * (n % 3 - 1) for n in range(7))), found(1, *(0.002 * (n % 2) for n in range(7)))]
    wild = found(2, -0.3, 0.2, -0.1, 0.3, -0.2, 0.1, 0.0)
    assert [gpu_pairs.slower([*steady, wild], factor) for factor in gpu_pairs.FACTORS] == [0, 2, 2]
    assert not gpu_pairs.suspected(steady[0], 1.0)


def test_what_two_runs_do_not_agree_on_is_no_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for launches in (3, 3, 4):
        run(tmp_path / "runs", record(1, launches=launches), record(2), failed(3))
    assert gpu_facts.main([str(tmp_path / "runs")]) == 1
    told = capsys.readouterr().out
    assert "launches: 3 of 4 the same\n" in told
    assert f"    {record(1).job.key}: launches 3 → 4 (+33.33%)" in told
    assert "flops: 4 of 4 the same\n" in told
    run(tmp_path / "alone", record(1))
    assert gpu_facts.main([str(tmp_path / "alone")]) == 5
    assert gpu_facts.main([str(tmp_path / "nowhere")]) == 5


def test_measuring_leaves_a_run_that_the_targets_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, as in a step, on a bare image; without a GPU every job is a skip, and so the targets say."""
    done = bare(tmp_path, "tests/gpu.py", "--measure", "sdpa-flash", "--timer", "cold", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = kernel_targets.run_folders(tmp_path / "runs")
    run = store.read(path)
    assert run.manifest
    assert run.manifest.budget.timers == ("cold",)
    assert {record.status for record in run.records} == {"skipped"}
    assert kernel_targets.main([str(tmp_path / "runs")]) == 5
    assert "0 hit, 0 MISS" in capsys.readouterr().out
