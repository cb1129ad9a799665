"""The pytest plugin as its users meet it: suites as tests, pytest-benchmark's report, ``fusion_job``, and no cost at all."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from fusionbench import registry
from fusionbench.errors import FusionbenchError
from fusionbench.record import FAILED, Record
from fusionbench.testing import collect, here, measure
from fusionbench.testing.fusion_job import BUDGET, FusionJob

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
FAULTY = Path(__file__).with_name("faulty.py")
INSTALLED = bool(importlib.metadata.entry_points(group="pytest11", name="fusionbench"))
LOADED = () if INSTALLED else ("-p", "fusionbench.pytest_plugin")  # a plugin cannot be registered under two names
TINY = """
title = "Tiny"
[budget]
measure_s = 0.02
warmup_s = 0.0
min_samples = 6
max_samples = 20
rounds = 2
[[sweep]]
strategies = ["cross_attention", "concat"]
backends = ["eager", "sdpa"]
projectors = ["identity"]
image = [7]
text = [3]
image_width = [16]
text_width = [16]
width = [16]
heads = [2]
"""
CASE = "b1-i7x16-t3x16-w16-h2-n1-f4/identity/fp32/cpu/fwd"
SDPA, CONCAT = f"tiny.toml::cross_attention/sdpa/{CASE}", f"tiny.toml::concat/eager/{CASE}"


@pytest.fixture(scope="module")
def template() -> Record:
    return FusionJob((FAULTY,))("cross_attention", image=7, text=3, width=16, measure_s=0.02)


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported(template: Record) -> None:
    """pytester takes away what was imported since it came, and no class of those modules would be found again."""
    registry.strategies()
    with here.call(template.job, BUDGET) as call:
        call()


@pytest.fixture
def tiny(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    path = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (pytester.path / "tiny.toml").write_text(TINY)
    return pytester


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    without = (
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
    )  # the latter takes 2 s to say that it was not used
    return pytester.runpytest_inprocess(*LOADED, *without, "-W", "error", *arguments)


def plain(result: pytest.RunResult) -> str:
    return result.stdout.str() + result.stderr.str()


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, template: Record) -> dict[str, Any]:
    """What a job's record is to say, instead of measuring it."""
    said: dict[str, Any] = {"status": "ok", "ns": [1_000_000, 3_000_000, 2_000_000, 4_000_000], "loops": 2}

    def measured(job: Any, budget: Any, plugins: Any = ()) -> Record:
        said["budget"] = budget
        assert template.time
        timing = replace(
            template.time, samples_ns=tuple(said["ns"]), run_delay_ns=(), rounds=(), loops=said["loops"],
        )  # fmt: skip
        found = replace(template, job=job, status=said["status"])
        if said["status"] == "ok":
            return replace(found, time=timing)
        return replace(found, time=None, reason="the cat is out", phase="build")

    monkeypatch.setattr(measure, "measure", measured)
    return said


def test_the_plugin_imports_nothing_but_pytest_until_it_is_asked(tiny: pytest.Pytester) -> None:
    tiny.makepyprojecttoml("[tool.pytest.ini_options]\n")
    tiny.makepyfile(
        """
        import sys

        def test_nothing_heavy_is_there():
            assert "fusionbench.pytest_plugin" in sys.modules
            mine = {name for name in sys.modules if name.partition(".")[0] == "fusionbench"}
            assert mine == {"fusionbench", "fusionbench.pytest_plugin"}
            assert not {"torch", "numpy", "pandas", "msgspec", "psutil"} & set(sys.modules)
        """
    )
    result = tiny.runpytest_subprocess(*LOADED, "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)


def test_only_suites_that_are_named_are_collected(tiny: pytest.Pytester) -> None:
    (tiny.path / "suites").mkdir()
    (tiny.path / "suites" / "ours.toml").write_text(TINY)
    tiny.makepyprojecttoml("[tool.other]\nkey = 1\n")
    assert "no tests collected" in plain(run(tiny, "--collect-only", "."))
    assert SDPA in plain(run(tiny, "--collect-only", "-q", "tiny.toml"))
    named = plain(run(tiny, "--collect-only", "-q", "-o", "fusionbench_suites=suites/*.toml other.toml", "."))
    assert "suites/ours.toml::concat/eager" in named
    assert "tiny.toml" not in named


def test_jobs_are_chosen_as_tests_are(tiny: pytest.Pytester) -> None:
    def chosen(*arguments: str) -> list[str]:
        return [line for line in run(tiny, "--collect-only", "-q", *arguments).outlines if "::" in line]

    assert len(chosen("tiny.toml")) == 4
    assert chosen("tiny.toml", "-k", "cross_attention and sdpa") == [SDPA]
    assert chosen(SDPA) == [SDPA]
    assert SDPA not in chosen("tiny.toml", "--deselect", SDPA)


def test_a_suite_is_measured_in_workers_and_reported_by_pytest_benchmark(tiny: pytest.Pytester) -> None:
    result = run(tiny, "tiny.toml", "--benchmark-only", "--benchmark-json=out.json", "-rs", "--import-mode=importlib")
    result.assert_outcomes(passed=3, skipped=1)
    assert "backend 'sdpa' skips 'concat'" in plain(result)
    found = {each["fullname"]: each for each in json.loads((tiny.path / "out.json").read_text())["benchmarks"]}
    assert set(found) == {CONCAT, SDPA, SDPA.replace("sdpa", "eager")}
    one = found[SDPA]
    assert one["group"] == CASE
    assert one["options"]["timer"] == "fusionbench_samples"
    assert one["params"]["strategy"] == "cross_attention"
    assert one["params"]["dtype"] == "fp32"
    info = one["extra_info"]
    assert info["rounds"] in (1, 2)  # one, where the machine is so busy that a worker takes seconds to begin
    assert (info["timer"], info["cache"], info["device"]) == ("wall", "hot", "cpu")
    low, high = info["ci95_s"]
    assert low * 0.999 <= one["stats"]["median"] <= high * 1.001
    assert info["flops"] > 0
    assert info["machine"]
    assert 1e-6 < one["stats"]["min"] < 1e-2
    assert len(one["stats"]["data"]) == one["stats"]["rounds"] >= 6


def test_pytest_benchmark_has_every_sample_per_call_in_seconds(tiny: pytest.Pytester, made_up: dict[str, Any]) -> None:
    run(tiny, "tiny.toml", "--benchmark-only", "--benchmark-json=out.json").assert_outcomes(passed=3, skipped=1)
    for each in json.loads((tiny.path / "out.json").read_text())["benchmarks"]:
        assert each["stats"]["data"] == [0.0005, 0.0015, 0.001, 0.002]
    assert made_up["budget"].rounds == 2


def test_a_slower_head_fails_pytest_benchmarks_own_comparison(tiny: pytest.Pytester, made_up: dict[str, Any]) -> None:
    base = ("tiny.toml", "--benchmark-only", "--benchmark-storage=stored")
    assert run(tiny, *base, "--benchmark-autosave").ret == 0
    judged = (*base, "--benchmark-compare", "--benchmark-compare-fail=median:10%")
    assert run(tiny, *judged).ret == 0
    made_up["ns"] = [ns * 1.2 for ns in made_up["ns"]]
    result = run(tiny, *judged)
    assert result.ret != 0
    assert "Performance has regressed" in plain(result)


@pytest.mark.parametrize("status", FAILED)
def test_a_job_that_fails_fails_its_test_with_the_reason(
    tiny: pytest.Pytester, made_up: dict[str, Any], status: str
) -> None:
    made_up["status"] = status
    result = run(tiny, "tiny.toml", "--benchmark-only", "--benchmark-json=out.json", "-k", "sdpa and cross")
    result.assert_outcomes(failed=1, deselected=3)
    assert f"{status} (build): the cat is out" in plain(result)
    assert f"repeat it with: fusionbench run tiny.toml --job 'cross_attention/sdpa/{CASE}'" in plain(result)
    assert "Traceback" not in plain(result)
    assert json.loads((tiny.path / "out.json").read_text())["benchmarks"] == []


def test_a_crash_of_ones_own_strategy_is_one_failed_test(tiny: pytest.Pytester) -> None:
    ours = TINY.replace('"cross_attention", "concat"', '"fine", "segfaults"').replace(', "sdpa"', "")
    (tiny.path / "tiny.toml").write_text(ours)
    result = run(tiny, "tiny.toml", "-o", f"fusionbench_plugins={FAULTY}")
    result.assert_outcomes(passed=1, failed=1)
    assert "crash (run): worker was killed by SIGSEGV" in plain(result)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('title = "x"\n[[sweep]]\nstrategies = ["concatt"]', "sweep 1: object missing required field `backends`"),
        (TINY.replace('"concat"', '"concatt"'), "no strategy named 'concatt'; did you mean 'concat'?"),
        ("[project]\nname = 'x'\n", "suite has unknown key 'project'"),
        ("\x00", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_suite_is_an_error_in_one_line(tiny: pytest.Pytester, text: str, told: str) -> None:
    (tiny.path / "tiny.toml").write_text(text)
    result = run(tiny, "tiny.toml")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert told.lower() in plain(result).lower()
    assert "Traceback" not in plain(result)


def test_without_pytest_benchmark_a_suite_is_plain_tests(tiny: pytest.Pytester, made_up: dict[str, Any]) -> None:
    run(tiny, "tiny.toml", "-p", "no:benchmark").assert_outcomes(passed=3, skipped=1)
    made_up["status"] = "wrong"
    run(tiny, "tiny.toml", "-p", "no:benchmark").assert_outcomes(failed=3, skipped=1)
    result = run(tiny, "tiny.toml", "-p", "no:benchmark", "--benchmark-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_disabled_benchmarks_are_measured_once_and_still_fail(tiny: pytest.Pytester, made_up: dict[str, Any]) -> None:
    result = run(tiny, "tiny.toml", "--benchmark-disable")
    result.assert_outcomes(passed=3, skipped=1)
    assert made_up["budget"].rounds == 1
    made_up["status"] = "wrong"
    run(tiny, "tiny.toml", "--benchmark-disable").assert_outcomes(failed=3, skipped=1)


def test_users_measure_a_job_in_a_test_of_their_own(tiny: pytest.Pytester) -> None:
    tiny.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module")
        def record(fusion_job):
            return fusion_job("cross_attention", backend="sdpa", image=7, text=3, width=16, measure_s=0.02)

        def test_right(record):
            assert record.status == "ok"
            assert record.job.key == "cross_attention/sdpa/b1-i7x16-t3x16-w16-h1-n1-f4/linear/fp32/cpu/fwd"

        def test_small(record):
            assert 0 < record.memory.peak_bytes < 1e6
            assert record.costs.flops > 0
            assert len(record.time.rounds) == 1

        def test_of_what_makes_no_sense_there_is_a_reason(fusion_job):
            record = fusion_job("concat", backend="sdpa", projector="identity")
            assert (record.status, record.time) == ("skipped", None)
            assert "no 'sdpa' impl" in record.reason
        """
    )
    run(tiny).assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtpye": "fp32"}, "no option of fusion_job named 'dtpye'; did you mean 'dtype'?"),
        ({"strategy": "cross_atention"}, "no strategy named 'cross_atention'; did you mean 'cross_attention'?"),
        ({"backend": "spda"}, "no backend named 'spda'; did you mean 'sdpa'?"),
        ({"dtype": "fp33"}, "fusion_job: dtypes: no dtype named 'fp33'; did you mean 'fp32'?"),
        ({"image": 0}, "fusion_job: image: expected `int` >= 1; got '0'"),
        ({"rounds": 0}, "--rounds: expected `int` >= 1; got '0'"),
        ({"strategy": "", "preset": "flamingoo"}, "did you mean"),
        ({"strategy": ""}, "fusion_job names no 'strategies'"),
        ({"device": "cuda; rm"}, "use cpu, cuda or cuda:N"),
        ({"mode": "fwd", "extent": "layer"}, "has 'extent' but no presets"),
    ],
)
def test_a_wrong_option_is_told_with_the_nearest_right_one(options: dict[str, Any], told: str) -> None:
    with pytest.raises(FusionbenchError) as caught:
        FusionJob()(**{"strategy": "cross_attention", **options})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_readmes_test_passes(tiny: pytest.Pytester) -> None:
    found = re.search(r"```python\n(# test_adapter\.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    tiny.makepyfile(found[1])
    run(tiny).assert_outcomes(passed=1)


def test_a_preset_is_a_job_where_it_has_one_part(made_up: dict[str, Any]) -> None:
    case = FusionJob()(preset="lxmert", scale="1/8", backend="sdpa").job.case
    assert (case.preset, case.shrink) == ("lxmert", 8)


def test_a_test_of_ones_own_is_reported_by_pytest_benchmark(tiny: pytest.Pytester, made_up: dict[str, Any]) -> None:
    tiny.makepyfile(
        """
        import time
        import pytest

        @pytest.mark.benchmark(group="mine")
        def test_fed(fusion_job, benchmark):
            assert fusion_job("cross_attention", benchmark=benchmark).status == "ok"
            assert benchmark.stats.stats.max == 0.002

        def test_own_call(fusion_job, benchmark):
            benchmark.pedantic(time.sleep, args=(0.01,), rounds=2)

        def test_failed(fusion_job, benchmark):
            assert fusion_job("cross_attention", backend="flex", benchmark=benchmark).status == "ok"

        def test_hidden(fusion_job, request):
            fusion_job("cross_attention", benchmark=request.getfixturevalue("benchmark"))
        """
    )
    (tests,) = tiny.path.glob("test_*.py")
    result = run(tiny, "--benchmark-json=out.json", f"--deselect={tests.name}::test_failed")
    result.assert_outcomes(passed=2, failed=1, deselected=1)
    assert "let the test name both fixtures" in plain(result)
    fed, own = json.loads((tiny.path / "out.json").read_text())["benchmarks"]
    assert (fed["group"], fed["stats"]["data"]) == ("mine", [0.0005, 0.0015, 0.001, 0.002])
    assert own["stats"]["min"] >= 0.01
    made_up["status"] = "oom"
    run(tiny, "--benchmark-json=none.json", f"{tests.name}::test_failed").assert_outcomes(failed=1)
    assert json.loads((tiny.path / "none.json").read_text())["benchmarks"] == []


def test_a_tool_that_measures_calls_gets_the_call(tiny: pytest.Pytester) -> None:
    """As pytest-codspeed 5.0.4: another ``benchmark``, told by the plugin object that says it is enabled."""
    tiny.makeconftest(
        """
        import types
        import pytest

        def pytest_configure(config):
            config.pluginmanager.register(types.SimpleNamespace(is_codspeed_enabled=True), "codspeed_plugin")

        @pytest.fixture
        def benchmark(request):
            def measured(call):
                assert request.node.get_closest_marker("benchmark") is None  # CodSpeed's has no "timer"
                (output,) = call()
                print("measured", output.shape[-1])
            return measured
        """
    )
    tiny.makepyfile("def test_one(fusion_job, benchmark): fusion_job('concat', projector='identity', measure_s=0.01, benchmark=benchmark)")  # fmt: skip
    result = run(tiny, "tiny.toml", "test_a_tool_that_measures_calls_gets_the_call.py", "-p", "no:benchmark", "-s")
    result.assert_outcomes(passed=4, skipped=1)
    assert plain(result).count("measured 16") == 3
    assert plain(result).count("measured 128") == 1


def test_a_call_in_this_process_is_checked_first_and_leaves_no_setting(
    monkeypatch: pytest.MonkeyPatch, template: Record
) -> None:
    import torch

    job, threads = template.job, torch.get_num_threads()
    with here.call(job, replace(BUDGET, threads=threads + 1)) as call:
        assert torch.get_num_threads() == threads + 1
        call()
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(here, "check", lambda *arguments: (None, "it is somebody else's"))
    with pytest.raises(measure.JobFailedError, match="it is somebody else"), here.call(job, BUDGET):  # fmt: skip
        pass


def test_ctrl_c_ends_the_job_and_leaves_no_process(tiny: pytest.Pytester) -> None:
    (tiny.path / "tiny.toml").write_text(TINY.replace('"cross_attention", "concat"', '"hangs"').replace(', "sdpa"', ""))
    options = ("-p", "no:hypothesispytest", "-o", f"fusionbench_plugins={FAULTY}", "-W", "error", "-v")
    command = [sys.executable, "-m", "pytest", *LOADED, "tiny.toml", *options]
    process = subprocess.Popen(
        command, cwd=tiny.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 90
    while len(family) < 3 and time.monotonic() < deadline:  # the fork server, the resource tracker, the worker
        family = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(0.5)  # until the job hangs
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "KeyboardInterrupt" in output
    assert "Benchmark fixture was not used" not in output
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert len(gone) >= 3


def test_a_job_item_is_a_function_with_the_fixture_benchmark(tiny: pytest.Pytester) -> None:
    """What tools look for that select benchmarks by their fixture."""
    items = tiny.inline_genitems("tiny.toml", *LOADED)[0]
    assert {type(item) for item in items} == {collect.JobItem}
    assert all("benchmark" in item.fixturenames for item in items)
