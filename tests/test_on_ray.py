"""A sweep on a real Ray cluster of this machine: the records are those of one machine, and whatever dies ends as said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fusionbench import store
from fusionbench.record import Record

pytest.importorskip("ray", reason="pip install fusionbench[ray]")

SUITE = """
title = "Small"
[budget]
measure_s = 0.01
rounds = 2
[[sweep]]
strategies = ["concat", "cross_attention"]
backends = ["eager", "triton"]
image = [4, 8, 16]
text = [4, 8]
image_width = [16]
text_width = [16]
width = [16]
heads = [2]
projectors = ["identity"]
"""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # at Ray's own 15 they starve beside other tests
TOKEN = "ab" * 32
# A process of its own: the cluster's processes are its children, and no test process has Ray's threads.
KEEPER = """
import json, sys
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "node_ip_address": "127.0.0.2", "include_dashboard": False})
nodes = [cluster.add_node(**small, node_ip_address=f"127.0.0.{3 + n}", resources={"slot": 1}) for n in range(int(sys.argv[1]))]
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    if line.strip() == "node":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    elif line.strip() == "head":
        cluster.head_node.kill_gcs_server()
    print(json.dumps("done"), flush=True)
cluster.shutdown()
"""


class Cluster:
    """A head and some nodes with a slot each, and how to hurt them."""

    def __init__(self, nodes: int, **variables: str) -> None:
        environment = {**os.environ, **QUIET, **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(nodes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, start_new_session=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self._answer()

    def kill(self, what: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        self._answer()

    def close(self) -> None:
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    def _answer(self) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith('"'):
                return str(json.loads(line))
        raise AssertionError("the cluster did not start")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    started = Cluster(2)
    yield started
    started.close()


@pytest.fixture(scope="module")
def mortal() -> Iterator[Cluster]:
    """A cluster whose node one test kills, and whose head the next."""
    started = Cluster(1)
    yield started
    started.close()


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


class Driver:
    """`fusionbench run` in a process of its own."""

    def __init__(self, *arguments: object, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fusionbench", *map(str, arguments)], text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **QUIET, **variables},
        )  # fmt: skip
        self.lines: list[str] = []

    def until(self, pattern: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return
        raise AssertionError(f"no {pattern!r} in:\n{self.text}")

    def end(self, limit_s: float = 240) -> int:
        out, _ = self.process.communicate(timeout=limit_s)
        self.lines.append(out)
        return self.process.returncode

    @property
    def text(self) -> str:
        return "".join(self.lines)


def on_ray(suite: Path, cluster: Cluster, results: Path, *more: object, **variables: str) -> Driver:
    return Driver(
        "run", suite, "--engine", "ray", "--address", cluster.address, "--results", results, *more, **variables
    )


# Each slot's process and fork server import torch: 8 s of CPU. The head has a CPU but no such resource, and stays out.
TWO = ("--resource", "slot")


def only_run(results: Path) -> store.Run:
    (path,) = store.runs(results)
    return store.read(path)


def outcomes(records: list[Record]) -> set[tuple[Any, ...]]:
    return {(r.identity, r.status, len(r.time.round_sizes) if r.time else 0) for r in records}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    """The same sweep on this machine alone."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "small.toml").write_text(SUITE)
    driver = Driver("run", folder / "small.toml", "--results", folder / "runs", "-q")
    assert driver.end() == 0, driver.text
    return only_run(folder / "runs")


def test_the_records_are_those_of_one_machine(suite: Path, cluster: Cluster, alone: store.Run, tmp_path: Path) -> None:
    driver = on_ray(suite, cluster, tmp_path / "runs", *TWO)
    assert driver.end() == 0, driver.text
    run = only_run(tmp_path / "runs")
    assert outcomes(run.records) == outcomes(alone.records)
    assert store.complete(run)
    assert not run.problems
    assert {r.environment for r in run.records} <= set(run.environments)
    assert "2 slots of" in driver.text
    again = Driver("resume", run.path, "--engine", "ray", "--address", cluster.address, *TWO, "-q")
    assert again.end() == 0, again.text
    assert outcomes(store.read(run.path).records) == outcomes(alone.records)


@pytest.mark.parametrize("option", [("--resource", "moon"), ("--accelerator", "H900")])
def test_what_no_node_has_is_told_with_what_there_is(
    suite: Path, cluster: Cluster, tmp_path: Path, option: tuple[str, str]
) -> None:
    driver = on_ray(suite, cluster, tmp_path / "runs", *option)
    assert driver.end() == 4
    assert re.search(r"nothing to measure on: cpu, .*(moon|H900).*127\.0\.0\.2: CPU 1", driver.text)
    assert not (tmp_path / "runs").exists()


def test_a_node_killed_amid_the_sweep_costs_nothing_finished(
    suite: Path, mortal: Cluster, alone: store.Run, tmp_path: Path
) -> None:
    driver = on_ray(suite, mortal, tmp_path / "runs")
    driver.until(r"\[[1-9]/")
    mortal.kill("node")
    code = driver.end()
    run = only_run(tmp_path / "runs")
    assert code == 3, driver.text  # a slot was lost
    assert "127.0.0.3" in driver.text
    assert outcomes(run.records) == outcomes(alone.records)


def test_a_lost_head_ends_the_run_with_all_that_is_finished(suite: Path, mortal: Cluster, tmp_path: Path) -> None:
    driver = on_ray(suite, mortal, tmp_path / "runs", "--rounds", "60")  # slots go on without a head, for a while
    driver.until(r"\] round \d")  # every ten seconds there is such a line
    mortal.kill("head")
    begun = time.monotonic()
    code = driver.end()
    assert code == 3, driver.text
    assert time.monotonic() - begun < 120
    assert (
        "the head of the ray cluster is gone; everything finished is saved. Go on with: fusionbench resume"
        in driver.text
    )
    assert any(r.status == "ok" for r in only_run(tmp_path / "runs").records)


def measurers() -> list[psutil.Process]:
    """The actors' processes."""
    return [p for p in psutil.process_iter(["cmdline"]) if "ray::Measurer" in " ".join(p.info["cmdline"] or [])]


def wait_for_no_measurer() -> None:
    for _ in range(300):
        if not measurers():
            return
        time.sleep(0.2)
    raise AssertionError("the driver's actors live on")


def test_ctrl_c_saves_all_and_a_worker_killed_after_resuming_is_begun_again(
    suite: Path, cluster: Cluster, alone: store.Run, tmp_path: Path
) -> None:
    driver = on_ray(
        suite, cluster, tmp_path / "runs", *TWO, "--rounds", "8"
    )  # so many that the slot which dies is not done
    driver.until(r"\[[1-9]/")
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 130, driver.text
    assert "everything finished is saved. Go on with: fusionbench resume" in driver.text
    assert "Traceback" not in driver.text
    run = only_run(tmp_path / "runs")
    assert any(r.status == "ok" for r in run.records)
    wait_for_no_measurer()
    again = Driver("resume", run.path, "--engine", "ray", "--address", cluster.address, *TWO)
    again.until(r"\[[1-9]/")
    measurers()[0].kill()
    assert again.end() == 0, again.text
    assert "jobs go to others" in again.text
    found = only_run(tmp_path / "runs").records
    assert {(r.identity, r.status) for r in found} == {(r.identity, r.status) for r in alone.records}


def test_a_killed_driver_leaves_no_process_and_is_resumed(
    suite: Path, cluster: Cluster, alone: store.Run, tmp_path: Path
) -> None:
    driver = on_ray(suite, cluster, tmp_path / "runs", *TWO)
    driver.until(r"\[[3-9]/")
    driver.process.kill()
    driver.end()
    finished = outcomes([r for r in only_run(tmp_path / "runs").records if r.status == "ok"])
    wait_for_no_measurer()
    again = on_ray(suite, cluster, tmp_path / "runs", *TWO)
    assert again.end() == 0, again.text
    run = only_run(tmp_path / "runs")
    assert outcomes(run.records) == outcomes(alone.records)
    assert {each for each in finished if each[2] == 2} <= outcomes(run.records)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    started = Cluster(0, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    yield started
    started.close()


def test_a_wrong_token_is_refused_in_one_line_and_the_right_one_works(
    suite: Path, guarded: Cluster, tmp_path: Path
) -> None:
    wrong = on_ray(suite, guarded, tmp_path / "a", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="cd" * 32)
    assert wrong.end() == 2, wrong.text
    assert wrong.text.count("\n") == 1
    assert "refuses the token; set its RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token" in wrong.text
    assert "Traceback" not in wrong.text
    assert TOKEN not in wrong.text
    right = on_ray(suite, guarded, tmp_path / "b", "--limit", "2", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert right.end() == 0, right.text


def test_what_jobs_of_a_plugin_do_wrong_is_recorded_as_on_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    """The plugin's file is sent to the nodes; crashes, hangs and memory cost one job each and no slot."""
    plugin = Path(__file__).with_name("faulty.py")
    names = ["fine", "raises", "segfaults", "hangs", "killed", "hoards"]
    path = tmp_path / "faulty.toml"
    lines = SUITE.replace("rounds = 2", "rounds = 1\ntimeout_s = 6").replace('"triton"', '"sdpa"').splitlines()
    path.write_text("\n".join(f"strategies = {json.dumps(names)}" if "strategies" in line else line for line in lines))
    more = (*TWO, "--plugin", plugin, "--only", "image=4", "--only", "text=4", "--only", "backends=eager")
    driver = on_ray(path, cluster, tmp_path / "runs", *more)
    assert driver.end() == 3, driver.text
    found = {r.job.strategy: r.status for r in only_run(tmp_path / "runs").records}
    assert found == {
        "fine": "ok", "raises": "error", "segfaults": "crash", "hangs": "timeout", "killed": "crash", "hoards": "oom",
    }  # fmt: skip
    assert "go to others" not in driver.text


def test_a_cluster_elsewhere_needs_a_token_or_a_word(suite: Path, tmp_path: Path) -> None:
    driver = Driver(
        "run", suite, "--engine", "ray", "--address", "ray://example.org:10001", "--results", tmp_path / "r"
    )
    assert driver.end() == 2
    assert "is reached without a token" in driver.text
    assert "or say --insecure" in driver.text


def test_no_cluster_is_one_line(suite: Path, tmp_path: Path) -> None:
    driver = Driver("run", suite, "--engine", "ray", "--address", "127.0.0.1:1", "--results", tmp_path / "r")
    assert driver.end() == 2, driver.text
    assert "no ray cluster at '127.0.0.1:1'" in driver.text
    assert "Traceback" not in driver.text


@pytest.mark.parametrize("option", ["--address", "--resource", "--accelerator"])
def test_options_of_a_cluster_need_the_engine(suite: Path, tmp_path: Path, option: str) -> None:
    driver = Driver("run", suite, option, "x", "--results", tmp_path / "r")
    assert driver.end() == 2
    assert driver.text == f"fusionbench: {option} is for --engine ray\n"
