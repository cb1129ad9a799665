"""Everything that only a GPU can say, in one command under a time limit: ``make gpu``.

Tests, the suite ``kernels`` backend by backend, which facts of it are the same twice, pairs of this very code, the
kernels' targets, the tuner. A step that fails or overruns does not stop the others; the exit code says that one did.
Needs torch, triton, numpy, pytest, msgspec and psutil alone.

Where its 520 s go, on 16 cores. Compiling is most of it: a kernel at the table's sizes takes one core 1 to 2 s, in fp32
3 to 4 s, at the tests' 0.5 and 1 s (on an EPYC; no step has been timed on a GPU's machine yet). So

- tests run in SHARDS processes, and ``tests.shard`` keeps CASES cases of each parametrised test, none of fp32 where there
  are others: all 1600 cases compile 1200 kernels and more, these half as many, 500 to 700 s of one core or 50 s of 14.
  The interpreter runs all of them in ``make test``;
- the suite's kernels, about 250, are compiled by 12 processes before they are timed, and a job then takes 0.5 to 0.7 s:
  0.15 s of samples, the rest its process and its inputs; one round each, as there is no time for six processes;
- the tuner's 563 candidates are some 1200 s of one core, 80 s of 16: what is not compiled in time is not tried;
- a round of a pair is two processes and 2 to 3 s, new hosts for it 4 s: seven rounds of three jobs are 60 to 80 s. What
  does not come in time is missing; ``tests/gpu_pairs.py`` by itself does all eight jobs in some 3 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionbench.spec import Job

ROOT = Path(__file__).parents[1]
SUITE = "kernels"
GRACE_S = 10.0  # from the polite signal to the other one
INTERRUPTED = 130  # a measurement that reached its limit: what it has is saved, and counts
NOTHING_COLLECTED = 5  # pytest's exit code of a shard without a test
PYTEST = ("-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-p", "tests.shard")
SHARDS, CASES = 14, 8
HARNESS = ("tests/test_gpu.py", "tests/test_costs.py", "tests/perf/test_timer_agreement.py")


@dataclass(frozen=True)
class Step:
    """A command, how many seconds it may take, and whether reaching that limit is fine."""

    name: str
    seconds: float
    arguments: tuple[str, ...]
    may_stop: bool = False


def steps(out: Path, seconds: float) -> list[Step]:
    """The steps in order; their shares, in units of 1/540, add up to ``seconds``."""
    share = seconds / 540
    tests = ("tests/gpu.py", "--tests")
    pairs = ("tests/gpu_pairs.py", "--jobs", "3", "--seconds", f"{56 * share:.0f}", "--out", str(out))
    others = ("--cases", str(CASES), "-m", "not slow", "tests/kernels", "--ignore", "tests/kernels/test_gpu_only.py")
    # Jobs: 58 of triton, 49 to 57 of each of the next five, 34 of the last seven together.
    backends = {"triton": 36, "sdpa-cudnn": 26, "sdpa-flash": 22, "sdpa-efficient": 24, "sdpa": 22, "flex": 28}
    backends |= {"compile,triton-projected,triton-absorbed,eager,int8,triton-int8,sage": 22}
    measuring = [
        Step(
            f"measure {name.replace(',', ' ')}", s * share, ("tests/gpu.py", "--measure", name, "--out", str(out)),
            may_stop=True,
        )
        for name, s in backends.items()
    ]  # fmt: skip
    events = ("tests/gpu.py", "--measure", "triton,sdpa-cudnn,sdpa-efficient", "--timer", "cold", "--out", str(out))
    tuner = ("-m", "fusionbench_kernels.tune", "--seconds", f"{27 * share:.0f}")
    tuner += ("--write", str(out / "configs.json"), "--log", str(out / "tune.jsonl"))
    compiled = "triton,flex,compile,triton-projected,triton-absorbed,triton-int8"
    return [
        Step("tests for the GPU alone", 68 * share, (*tests, "--chunk", "1", "tests/kernels/test_gpu_only.py")),
        Step("tests of the kernels", 72 * share, (*tests, *others)),
        Step("doctor", 10 * share, ("tests/gpu.py", "--doctor", "--out", str(out))),
        Step("tests of the harness", 46 * share, (*tests, "-m", "gpu", *HARNESS)),
        Step(
            "compile what is measured", 46 * share, ("tests/gpu.py", "--compile", compiled, "--out", str(out)),
            may_stop=True,
        ),
        *measuring,
        Step("measure launches too", 16 * share, events, may_stop=True),
        Step("facts", 4 * share, ("tests/gpu_facts.py", str(out / "runs"))),
        Step("pairs", 52 * share, pairs, may_stop=True),
        Step("tune", 36 * share, tuner),
        Step("targets", 10 * share, ("tests/perf/kernel_targets.py", str(out / "runs"))),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """All steps; 0 only if each did its work. With ``--measure``, ``--compile``, ``--doctor`` or ``--tests`` one of them."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--tests"]:
        return run_tests(given[1:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/h200"), help="where logs, runs and the table go")
    parser.add_argument("--seconds", type=float, default=520.0, help="for everything (default 520)")
    parser.add_argument("--bundle", type=Path, metavar="FILE.tar.gz", help="pack all of it into one file too")
    parser.add_argument("--measure", metavar="BACKENDS", help="only measure the suite with these backends")
    parser.add_argument("--doctor", action="store_true", help="only say whether the machine is fit to measure")
    parser.add_argument("--compile", metavar="BACKENDS", help="only compile what measuring these would")
    parser.add_argument("--timer", default="graph", choices=["cold", "hot", "graph", "kernel", "host"])
    options = parser.parse_args(given)
    options.out = options.out.resolve()
    if options.doctor:
        return doctor(options.out)
    if options.measure:
        return measure(options.measure.split(","), options.timer, options.out / "runs")
    if options.compile:
        return compile_jobs(options.compile.split(","))
    import torch

    if torch.cuda.device_count() == 0:
        sys.stderr.write("gpu: no CUDA device here; make test runs the kernels in Triton's interpreter\n")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.pop("TRITON_INTERPRET", None)
    begun, codes = monotonic(), dict[str, int]()
    for step in steps(options.out, options.seconds):
        left = begun + options.seconds - monotonic()
        codes[step.name] = perform(step, min(step.seconds * 1.2, left), options.out)
    say("\n" + "\n".join(f"{'ok    ' if code == 0 else f'FAILED {code}'}  {name}" for name, code in codes.items()))
    say(f"{monotonic() - begun:.0f} s; logs, runs, tune.jsonl and, where a row changed, configs.json: {options.out}")
    if options.bundle:
        with tarfile.open(options.bundle, "w:gz") as bundle:
            bundle.add(options.out, arcname=options.out.name)
        say(f"the same in one file: {options.bundle}")
    return 1 if any(codes.values()) else 0


def perform(step: Step, seconds: float, out: Path) -> int:
    """Run a step with its output in a log, whose end is shown; returns 0 where it did its work."""
    if seconds < 5:
        say(f"--- {step.name}: not begun, the time is over")
        return 0 if step.may_stop else 124
    log, begun = out / f"{step.name.replace(' ', '-')}.log", monotonic()
    say(f"--- {step.name} (at most {seconds:.0f} s)")
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *step.arguments], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        code = _within(process, seconds)
    lines = log.read_text(errors="replace").splitlines()
    say("\n".join(lines[-200 if step.name in ("targets", "facts") else -6 :]))
    say(f"    {monotonic() - begun:.0f} s, exit code {code}")
    return 0 if step.may_stop and code in (INTERRUPTED, 124) else code


def _within(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code, 124 if the time was not enough: then the process is asked to end, and its group ended."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return 124


# --- tests in many processes without pytest-xdist ------------------------------------------------------------------


def run_tests(arguments: Sequence[str], shards: int = SHARDS) -> int:
    """pytest with these arguments in ``shards`` processes; prints what each said and returns the worst exit code."""
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context(tempfile.TemporaryFile()) for _ in range(shards)]
        processes = [
            subprocess.Popen(
                [sys.executable, *PYTEST, "--shard", f"{number}/{shards}", *arguments], cwd=ROOT, stdout=output,
                stderr=subprocess.STDOUT,
            )
            for number, output in enumerate(outputs, 1)
        ]  # fmt: skip
        interrupted = False
        try:
            codes = [process.wait() for process in processes]
        except KeyboardInterrupt:  # the time is over: each shard says how far it came
            interrupted = True
            for process in processes:
                process.send_signal(signal.SIGINT)
            codes = [process.wait() for process in processes]
        for output in outputs:
            output.seek(0)
            sys.stdout.write(output.read().decode(errors="replace"))
    counts = {code: codes.count(code) for code in sorted(set(codes))}
    say(f"{shards} shards; exit codes: " + ", ".join(f"{count} times {code}" for code, count in counts.items()))
    if interrupted:
        return INTERRUPTED
    return max((abs(code) for code in codes if code != NOTHING_COLLECTED), default=NOTHING_COLLECTED)


# --- measuring without the command line's libraries ----------------------------------------------------------------


class Lines:
    """A listener that prints a line per record."""

    def started(self, job: object) -> None:
        pass

    def visited(self, visit: object, record: object, last: bool) -> None:
        from fusionbench.record import Record
        from fusionbench.stats import median

        assert isinstance(record, Record)
        time = record.time
        shown = f"{median(sorted(time.calls_ns)) / 1e6:.4f} ms" if time else record.reason
        say(f"{record.status} {shown}  {record.job.key}  ({record.wall_s:.1f} s)")

    def interrupted(self, signal_name: str) -> None:
        say(f"{signal_name}: finishing the running sample")


def measure(backends: Sequence[str], timer: str, results: Path) -> int:
    """The suite with these backends, as a run in ``results``; 130 where SIGINT ended it early, 3 where a job failed."""
    from fusionbench import launch, suite
    from fusionbench.engines import local
    from fusionbench.record import FAILED
    from fusionbench.spec import replace_budget

    chosen = suite.read(SUITE)
    local.start_server()
    prepared = launch.new(
        chosen, results, budget=replace_budget(chosen.budget, timers=[timer], rounds=1), only={"backends": backends},
        fresh=True, command=sys.argv, warn=say,
    )  # fmt: skip
    outcome = launch.execute(prepared, local.run, Lines(), local.probe, say)
    say(f"{dict(outcome.statuses)} in {prepared.folder}")
    if outcome.signal:
        return 128 + outcome.signal
    return 3 if any(outcome.statuses[status] for status in FAILED) else 0


def doctor(out: Path) -> int:
    """What `fusionbench doctor` finds, without the library that makes it pretty; 3 where a check failed."""
    from fusionbench.doctor import examine

    checks = list(examine(["cuda:0"], out, quick=True))
    for check in checks:
        say(f"{check.status:4}  {check.name}: {check.found}" + (f" ({check.remedy})" if check.remedy else ""))
    return 3 if any(check.status == "fail" for check in checks) else 0


def compile_jobs(backends: Sequence[str], processes: int = 12) -> int:
    """Run every job once, many at a time: Triton and Inductor then find their kernels in their caches on disk."""
    from fusionbench import suite
    from fusionbench.plan import Plan
    from fusionbench.spec import Job

    jobs = [item for item in Plan(suite.narrow(suite.read(SUITE), {"backends": backends})) if isinstance(item, Job)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for job, outcome in zip(jobs, pool.map(compile_job, jobs), strict=True):
            say(f"{outcome}  {job.key}")
    return 0


def compile_job(job: Job) -> str:
    """The status of one quick measurement, with the reason where there is one."""
    from fusionbench.measuring import measure
    from fusionbench.spec import Budget

    budget = Budget(measure_s=0.001, warmup_s=0.0, min_samples=6, max_samples=6, rounds=1, timers=("hot",))
    record = measure(job, budget)
    return f"{record.status} {record.reason}".strip()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
