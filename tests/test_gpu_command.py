"""`make gpu` where there is no GPU: its steps, its time, what it refuses, and that measuring needs no shown library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionbench import backends, store, suite
from tests import gpu, shard
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


def test_measuring_leaves_a_run_that_the_targets_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, as in a step, on a bare image; without a GPU every job is a skip, and so the targets say."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    command = [sys.executable, "tests/gpu.py", "--measure", "sdpa-flash", "--timer", "cold", "--out", str(tmp_path)]
    environment = {
        "PYTHONPATH": f"{tmp_path}:{gpu.ROOT}:{gpu.ROOT / 'kernels'}",
        "PATH": "/usr/bin",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=gpu.ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (path,) = kernel_targets.run_folders(tmp_path / "runs")
    run = store.read(path)
    assert run.manifest
    assert run.manifest.budget.timers == ("cold",)
    assert {record.status for record in run.records} == {"skipped"}
    assert kernel_targets.main([str(tmp_path / "runs")]) == 5
    assert "0 hit, 0 MISS" in capsys.readouterr().out
