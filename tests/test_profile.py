"""`fusionbench profile`: the trace is one, the table adds up, and what cannot be profiled says so in one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from rich.console import Console

from fusionbench import breakdown, profiling, suite
from fusionbench.cli import main
from fusionbench.errors import FusionbenchError
from fusionbench.profiling import JobFailedError, Profile, Request, Row, SeveralJobsError, job, proton, request, tracing
from fusionbench.record import Parts

FAULTY = str(Path(__file__).with_name("faulty.py"))
TINY = """
title = "Tiny"
question = "Where does the time go?"
[[sweep]]
strategies = ["cross_attention", "concat_attention"]
backends = ["eager", "sdpa", "triton"]
image = [7]
text = [5]
image_width = [16]
text_width = [8]
width = [16]
heads = [2]
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    return "tiny.toml"


def only(**axes: str) -> dict[str, list[str]]:
    return {axis: [value] for axis, value in axes.items()}


ONE = only(strategies="cross_attention", backends="sdpa")


def answered(asking: Request) -> Profile:
    """The profile as the process would send it, made here."""
    found = job.answer(asking)
    assert found.profile is not None, found.failure
    return found.profile


def test_the_trace_has_the_op_that_ran_and_the_rows_add_up(tiny: str) -> None:
    profile = answered(Request(suite=tiny, only=ONE, calls=5))
    events = json.loads(gzip.decompress(Path(profile.trace).read_bytes()))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == profile.events
    assert sum(span["name"] == tracing.CALL for span in spans) == 5
    assert any(span["name"] == "aten::scaled_dot_product_attention" and span["dur"] > 0 for span in spans)
    assert Path(profile.trace).parent == request.FOLDER
    names = {row.name: row for row in profile.of("host")}
    assert names["aten::scaled_dot_product_attention"].calls == 5
    # Self times of all rows are the time of all spans: nothing is counted twice, nothing is left out. A span's
    # duration in the trace is rounded to ns.
    whole_us = sum(span["dur"] for span in spans if span["name"] == tracing.CALL)
    assert sum(row.self_ns for row in profile.rows) == pytest.approx(1e3 * whole_us, rel=0.01)
    assert profile.of("device") == []


def test_with_shapes_an_op_has_a_row_for_each_of_them(tiny: str) -> None:
    profile = answered(Request(suite=tiny, only=ONE, calls=2, shapes=True, output="shapes.json.gz"))
    linear = {row.shapes for row in profile.rows if row.name == "aten::addmm"}
    assert len(linear) > 1
    assert any("7×16" in shapes for shapes in linear)


def test_a_profile_overwrites_nothing(tiny: str) -> None:
    Path("there.json.gz").write_bytes(b"mine")
    with pytest.raises(FusionbenchError, match=r"'there.json.gz' is there already; name another file with -o FILE"):
        profiling.run(Request(suite=tiny, only=ONE, output="there.json.gz"))
    assert Path("there.json.gz").read_bytes() == b"mine"


def test_a_wrong_key_is_answered_with_the_nearest(tiny: str) -> None:
    chosen = suite.read(tiny)
    key = job.one_job(suite.narrow(chosen, ONE), None).key
    with pytest.raises(FusionbenchError, match="did you mean '") as caught:
        job.one_job(chosen, key.replace("sdpa", "sdpaa"))
    assert key in str(caught.value)


def test_without_a_key_the_jobs_to_choose_from_are_named(tiny: str) -> None:
    with pytest.raises(SeveralJobsError, match=r"'tiny' has 4 jobs; choose one with --job KEY") as caught:
        job.one_job(suite.read(tiny), None)
    assert len(caught.value.keys) == 4
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("strategy", "backend", "reason"),
    [
        ("concat_features", "triton", "has no job to run here"),
        ("raises", "eager", "is error in first call: "),
        ("lies", "sdpa", "is wrong in accuracy: "),
    ],
)
def test_what_does_not_run_is_one_line_and_leaves_no_trace(tiny: str, strategy: str, backend: str, reason: str) -> None:
    text = TINY.replace('["cross_attention", "concat_attention"]', f'["{strategy}"]')
    text = text.replace("text_width = [8]", "text_width = [16]")  # the faulty ones have no projectors
    Path(tiny).write_text(text.replace('["eager", "sdpa", "triton"]', f'["{backend}"]'))
    found = job.answer(Request(suite=tiny, plugins=(FAULTY,), output="t.json.gz"))
    assert found.failure is not None
    assert reason in found.failure.reason
    assert "\n" not in found.failure.reason
    assert not found.failure.usage
    assert [path.name for path in Path().iterdir()] == ["tiny.toml"]


def test_a_skipped_job_says_why(tiny: str) -> None:
    key = job.one_job(suite.narrow(suite.read(tiny), ONE), None).key.replace("/sdpa/", "/triton/")
    with pytest.raises(JobFailedError, match="is skipped: Triton kernels need a GPU"):
        job.one_job(suite.read(tiny), key)


def test_proton_is_refused_without_a_gpu(tiny: str) -> None:
    found = job.answer(Request(suite=tiny, only=ONE, proton="p.hatchet"))
    assert found.failure is not None
    assert found.failure.reason.startswith("proton needs a CUDA device")


def test_proton_writes_where_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import triton.profiler

    said: list[object] = []

    def finalize(session: int, output_format: str) -> None:
        said.append((session, output_format))

    monkeypatch.setattr(triton.profiler, "start", lambda name, hook: said.append((name, hook)) or 7)
    monkeypatch.setattr(triton.profiler, "finalize", finalize)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("waited"))
    path = tmp_path / "deep" / "p.hatchet"
    assert proton.proton(lambda: said.append("call"), 2, path) == str(path)
    assert said == [(str(path.with_suffix("")), "triton"), "call", "call", "waited", (7, "hatchet")]


def test_proton_has_a_process_of_its_own(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, str]] = []

    def answer(asking: Request, limit_s: float) -> request.Answer:
        asked.append((asking.job, asking.meter))
        written = "p.hatchet" if asking.meter == "proton" else ""
        rows = () if written else (row("gemm", 5, "device"),)
        return request.Answer(profile=Profile(
            job="a/job", device="cuda", calls=1, plain_ns=1, profiled_ns=2, rows=rows, trace="t", events=1, proton=written
        ))  # fmt: skip

    monkeypatch.setattr(profiling, "_asked", answer)
    found = profiling.run(Request(suite=tiny, proton="p.hatchet"))
    assert asked == [(None, "torch"), ("a/job", "proton")]
    assert (found.proton, len(found.rows)) == ("p.hatchet", 1)


def test_protons_pass_runs_the_job_and_its_calls(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def record(call: Callable[[], object], count: int, path: Path) -> str:
        call()
        calls.append(count)
        return str(path)

    monkeypatch.setattr(job, "proton", record)
    found = job.one_job(suite.narrow(suite.read(tiny), ONE), None)
    budget = job.shortest(suite.read(tiny).budget)
    assert job._with_proton(found, budget, 7, Path("p.hatchet")).proton == "p.hatchet"
    assert calls == [7]


class Average:
    """What torch.profiler says of one op or kernel."""

    def __init__(self, key: str, place: str, cpu_us: float, device_us: float) -> None:
        self.key, self.count, self.input_shapes = key, 3, [[2, 4], [], [4]]
        self.device_type = type("Place", (), {"name": place})
        self.self_cpu_time_total, self.self_device_time_total = cpu_us, device_us
        self.self_cpu_memory_usage, self.self_device_memory_usage = 0, 64


def test_a_kernels_time_is_counted_once_and_our_span_is_no_kernel() -> None:
    averages = [
        Average("aten::mm", "CPU", 10, 90),  # its kernel's time, too
        Average("gemm_kernel", "CUDA", 0, 90),
        Average(tracing.CALL, "CPU", 5, 0),
        Average(tracing.CALL, "CUDA", 0, 120),
    ]
    rows = list(tracing._rows(averages, shapes=True))
    assert [(row.name, row.place, row.self_ns) for row in rows] == [
        ("aten::mm", "host", 10_000),
        ("gemm_kernel", "device", 90_000),
        (tracing.PYTHON, "host", 5_000),
    ]
    assert rows[0].shapes == "2×4, 4"
    assert rows[2].shapes == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"[]", mtime=0),
        gzip.compress(b'{"traceEvents": []}', mtime=0),
        gzip.compress(b'{"traceEvents": [{"ph": "X", "name": "a", "ts": 1}]}', mtime=0),
        gzip.compress(b'{"traceEvents": [{"ph": "X", "name": "a", "ts": 1, "dur": 2}]}', mtime=0)[:-12],
    ],
)
def test_what_is_no_trace_is_refused_and_removed(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(FusionbenchError, match="the profiler wrote"):
        tracing.write_trace(lambda path: Path(path).write_bytes(content), tmp_path / "t.json.gz")
    assert list(tmp_path.iterdir()) == []


def shown(profile: Profile, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(breakdown.show(profile, width), crop=False)
    return console.export_text().splitlines()


def row(name: str, self_ns: int, place: str = "host") -> Row:
    return Row(name=name, place=place, calls=10, self_ns=self_ns, memory_bytes=10 << 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_fits_and_its_shares_add_up(width: int) -> None:
    rows = [row(f"aten::an_op_with_quite_a_long_name_indeed_{i}", 1_000 * (40 - i)) for i in range(40)]
    rows += [row("void at::native::vectorized_elementwise_kernel<4, …>(int, float*)", 10**6, "device")]
    profile = Profile(
        job="cross_attention/sdpa/b1-i7x16", device="cuda:0", calls=10, plain_ns=100, profiled_ns=150, rows=tuple(rows),
        trace="results/profiles/a_file_name_that_is_longer_than_sixty_columns_and_is_shown_whole.json.gz", events=7,
    )  # fmt: skip
    lines = shown(profile, width)
    assert [line for line in lines if len(line) > width and "results/profiles" not in line] == []
    assert any(line.strip() == profile.trace for line in lines)
    assert any("1.50×" in line for line in lines)
    start = next(i for i, line in enumerate(lines) if line.startswith("ops on the host"))
    shares = [float(word.rstrip("%")) for line in lines[start:] for word in line.split() if word.endswith("%")]
    assert len(shares) == breakdown.TOP + 2
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.05 * len(shares))  # each is rounded to 0.1
    assert any("(20 more)" in line for line in lines)
    assert lines[start - 2].startswith("all")


def test_the_parts_of_a_call_are_told_largest_first_and_only_where_they_are_known() -> None:
    profile = Profile(job="j", device="cpu", calls=1, plain_ns=1, profiled_ns=1, rows=(), trace="t", events=1)
    assert not any("by part" in line for line in shown(profile, 80))
    found = shown(msgspec.structs.replace(profile, parts=Parts(other_ns=1, feed_forward_ns=600, attention_ns=399)), 80)
    assert "by part: feed-forward 60.0%, attention 39.9%, other 0.1%" in found


def test_names_of_files_are_safe() -> None:
    assert request.safe_name("late:vote/sdpa/../x y/$(rm)") == "late_vote_sdpa_.._x_y_rm"
    assert "/" not in request.safe_name("a/" * 500)
    assert len(request.safe_name("a" * 500)) == 150


def test_the_verb_prints_the_table_and_keeps_the_profilers_own_words_away(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["profile", tiny, "--only", "strategies=cross_attention", "--only", "backends=sdpa", "--calls", "3"]
    monkeypatch.setattr(sys, "argv", ["fusionbench", *arguments])
    main_exits(0)
    out, err = capfd.readouterr()
    assert "aten::addmm" in out
    assert "3 calls on cpu" in out
    assert "by part: " in out
    assert "USDT" not in out + err
    assert err == ""
    assert len(list(request.FOLDER.iterdir())) == 1


def main_exits(code: int) -> None:
    try:
        main()
    except SystemExit as leaving:
        assert (leaving.code or 0) == code  # noqa: PT017
    else:
        assert code == 0


def test_a_process_that_dies_is_one_line(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dies.py").write_text("import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos.abort()\n")
    with pytest.raises(JobFailedError, match=r"the job's process was killed by SIGABRT: .*last words"):
        profiling.run(Request(suite=tiny, only=ONE, plugins=("dies.py",)))


def test_ctrl_c_ends_it_at_once_with_nothing_left_behind(tiny: str) -> None:
    Path("hangs.py").write_text("import time, pathlib\npathlib.Path('began').touch()\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "fusionbench", "profile", tiny, "--plugin", "hangs.py"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not Path("began").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert sorted(path.name for path in Path().iterdir()) == ["began", "hangs.py", "tiny.toml"]
