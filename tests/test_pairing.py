"""Two revisions of a real repository: what only one of them has, what became slower, what is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusionbench import baseline, pairing, registry, suite, trial
from fusionbench.cli import app
from fusionbench.delta import Delta, Judgement
from fusionbench.errors import FusionbenchError
from fusionbench.pairing import Outcome, Request
from fusionbench.spec import Budget, Job
from fusionbench.summary import as_json

BUDGET = Budget(measure_s=0.1, warmup_s=0.0, min_samples=6, max_samples=20, timeout_s=60, rounds=1)

PLUGIN = '''
import torch
from torch import nn
from fusionbench.cost import Cost
from fusionbench.registry import strategy

def nothing(case, impl):
    return Cost()

@strategy("{name}", impls=("eager",), cost=nothing)
class Mine(nn.Module):
    """Multiply both modalities, {times} times."""

    def __init__(self, case, impl):
        super().__init__()

    def forward(self, image, text, image_mask=None, text_mask=None):
        for _ in range({times}):
            out = torch.cat([image @ image.mT @ image, text @ text.mT @ text], dim=1)
        return out
'''

SUITE = """
title = "Mine"
[[sweep]]
strategies = [{names}]
backends = ["eager"]
image = [128]
text = [64]
image_width = [64]
text_width = [64]
width = [64]
heads = [1]
projectors = ["identity"]
devices = ["cpu"]
"""


TIMES = """
[budget]
measure_s = 0.1
warmup_s = 0.0
min_samples = 6
"""


class Silent:
    def __init__(self) -> None:
        self.stages: list[str] = []

    def measured(self, job: Job, stage: str, number: int, rounds: int) -> None:
        self.stages.append(stage)

    def suspected(self, jobs: int, rounds: int) -> None:
        self.stages.append(f"{jobs} suspects")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose strategy 'mine' does its work once in the first commit and four times in the working tree."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry.strategies()))
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    (repo / "mine.py").write_text(PLUGIN.format(name="mine", times=1))
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    (repo / "mine.py").write_text(PLUGIN.format(name="mine", times=4))
    return repo


def request(repo: Path, *names: str, **changes: object) -> Request:
    text = SUITE.format(names=", ".join(f'"{name}"' for name in names))
    for plugin in changes.get("plugins", (repo / "mine.py",)):  # type: ignore[attr-defined]
        registry.load_plugin(plugin)
    asked = {
        "base": "main",
        "suite": suite.parse(text, "mine", "mine.toml"),
        "budget": BUDGET,
        "where": repo,
        "rounds": 3,
    }
    return Request(**({**asked, "plugins": (repo / "mine.py",)} | changes))  # type: ignore[arg-type]


def run(asked: Request, listener: Silent | None = None) -> Outcome:
    return pairing.run(asked, pairing.jobs(asked), listener or Silent(), lambda: False)


def by_strategy(outcome: Outcome) -> dict[str, Delta]:
    return {delta.key.partition("/")[0]: delta for delta in outcome.comparison.deltas}


def test_what_became_slower_is_told_and_what_did_not_is_not(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CONFIRM_ROUNDS", 5)  # 2^-5 is below 0.05
    monkeypatch.setattr(trial, "MOST_CONFIRM_ROUNDS", 5)
    listener = Silent()
    outcome = run(request(mine, "mine", "concat"), listener)
    found = by_strategy(outcome)
    assert found["mine"].verdict == "slower", found
    assert found["mine"].ratio is not None
    assert 2.5 < found["mine"].ratio < 6
    assert found["concat"].verdict in ("same", "unclear")
    assert listener.stages.count("screen") == 6
    comparison = outcome.comparison
    assert (comparison.base.name, comparison.head.name) == ("main", "working tree")
    assert comparison.base.commit == comparison.head.commit == git(mine, "rev-parse", "HEAD").strip()
    assert (comparison.base.dirty, comparison.head.dirty) == (False, True)
    assert comparison.method == "paired"
    assert git(mine, "worktree", "list").count("\n") == 1  # the checkout is gone


def test_a_strategy_that_is_new_in_the_head_and_one_that_is_gone(mine: Path) -> None:
    (mine / "other.py").write_text(PLUGIN.format(name="other", times=1))
    outcome = run(request(mine, "mine", "other", rounds=1, plugins=(mine / "mine.py", mine / "other.py")))
    assert by_strategy(outcome)["other"].verdict == "new"


def test_one_commit_on_both_sides_is_refused(mine: Path) -> None:
    git(mine, "checkout", "-q", "--", ".")
    with pytest.raises(FusionbenchError, match="base 'main' and head 'working tree' are the same commit"):
        run(request(mine, "mine"))


def test_revisions_of_which_nothing_is_measured_are_refused(mine: Path) -> None:
    with pytest.raises(FusionbenchError, match="both revisions would run the same code; name a plugin in it"):
        run(request(mine, "concat", plugins=()))


def test_a_suite_without_a_job_for_this_machine_is_refused(mine: Path) -> None:
    with pytest.raises(FusionbenchError, match="no job that can run here"):
        pairing.jobs(request(mine, "mine", only_jobs=frozenset({"none"})))


def test_changed_requirements_are_noted_where_both_share_an_environment(mine: Path) -> None:
    (mine / "requirements.txt").write_text("torch\n")
    (note,) = run(request(mine, "concat", rounds=1)).comparison.notes
    assert "requirements.txt differ between the revisions" in note
    assert "--setup and --python" in note


def test_jobs_named_by_another_screen_are_confirmed_in_fresh_pairs_alone(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "confirm_rounds", lambda found, suspects: 5)
    listener = Silent()
    asked = request(mine, "mine", "concat")
    (key,) = (job.key for job in pairing.jobs(asked) if job.strategy == "mine")
    asked = request(mine, "mine", "concat", only_jobs=frozenset({key}))
    found = pairing.confirm(asked, pairing.jobs(asked), listener, lambda: False)
    assert set(found) == {key}
    assert (found[key].verdict, found[key].stage, found[key].rounds) == ("slower", "confirm", 5)
    assert set(listener.stages) == {"1 suspects", "confirm"}


def arguments(repo: Path, *more: str) -> list[str]:
    (repo / "mine.toml").write_text(SUITE.format(names='"mine"') + TIMES)
    return ["check", "--paired", "main", "--suite", str(repo / "mine.toml"), "--plugin", str(repo / "mine.py"), *more]


def test_the_command_line_fails_with_1_and_writes_what_it_found(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CONFIRM_ROUNDS", 5)
    monkeypatch.setattr(trial, "MOST_CONFIRM_ROUNDS", 5)
    monkeypatch.chdir(mine)
    done = CliRunner().invoke(app, arguments(mine, "--rounds", "3", "--json", "found.json", "--junit", "found.xml"))
    assert done.exit_code == 1, done.output
    assert "slower" in done.stdout
    assert "1 job looked slower: measured again in fresh pairs, 5 rounds in all" in done.stderr
    found = as_json.load(mine / "found.json")
    assert isinstance(found, Judgement)
    assert [delta.verdict for delta in found.comparison.deltas] == ["slower"]
    assert 'failures="1"' in (mine / "found.xml").read_text()


def test_a_stored_baseline_only_suspects_and_pairs_with_its_commit_decide(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "confirm_rounds", lambda found, suspects: 5)
    monkeypatch.chdir(mine)
    git(mine, "checkout", "-q", "--", ".")
    arguments(mine)
    told = [str(mine / "mine.toml"), "--plugin", str(mine / "mine.py")]
    assert CliRunner().invoke(app, ["run", *told, "-q"]).exit_code == 0
    done = CliRunner().invoke(app, ["baseline", "update", "--reason", "the first", "-o", "base.json"])
    assert done.exit_code == 0, done.output
    kept = baseline.load(mine / "base.json")
    assert (kept.commit, kept.dirty) == (git(mine, "rev-parse", "HEAD").strip(), False)

    (mine / "mine.py").write_text(PLUGIN.format(name="mine", times=6))
    judge = ["check", "--baseline", "base.json", "--suite", *told, "--gate", "timing", "--json", "found.json", "-q"]
    done = CliRunner().invoke(app, judge)
    assert done.exit_code == 1, (done.output, done.exception)
    found = as_json.load(mine / "found.json")
    ((delta),) = found.comparison.deltas
    assert (delta.verdict, delta.stage, delta.rounds) == ("slower", "confirm", 5)
    assert found.comparison.head.dirty


def test_ctrl_c_before_the_first_round_leaves_nothing_behind_either(mine: Path) -> None:
    command = [sys.executable, "-m", "fusionbench", *arguments(mine)]
    with subprocess.Popen(command, cwd=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while git(mine, "worktree", "list").count("\n") == 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 143, err
    assert "Traceback" not in err
    assert git(mine, "worktree", "list").count("\n") == 1


def test_ctrl_c_shows_what_is_known_and_leaves_nothing_behind(mine: Path) -> None:
    command = [sys.executable, "-m", "fusionbench", *arguments(mine, "--rounds", "200")]
    with subprocess.Popen(command, cwd=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while git(mine, "worktree", "list").count("\n") == 1 and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "SIGINT: stopping" in err
    assert "interrupted: nothing is said of the jobs that are missing" in err
    assert "not judged" in out
    assert "Traceback" not in out + err
    assert git(mine, "worktree", "list").count("\n") == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--baseline", "base.json"], "no baseline at"),
        (["results/run"], "--paired measures both sides now; leave 'results/run' out"),
        (["--rounds", "0"], "Invalid value for '--rounds'"),
        (["--head", "nowhere"], "no revision 'nowhere' in"),
        (
            ["--python", "bin/python"],
            "no interpreter 'bin/python' in the checkout of 'main'; name a setup that makes it",
        ),
    ],
)
def test_what_makes_no_sense_beside_paired_is_told_in_one_line(
    mine: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    monkeypatch.chdir(mine)
    done = CliRunner().invoke(app, arguments(mine, *more))
    error = done.exception
    code, told = (error.exit_code, str(error)) if isinstance(error, FusionbenchError) else (done.exit_code, done.stderr)
    assert code == 2
    assert words in " ".join(told.split())


def test_the_user_may_stop_it_and_the_checkouts_are_removed(mine: Path) -> None:
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) > 30

    endless = request(mine, "mine", rounds=50)
    outcome = pairing.run(endless, pairing.jobs(endless), Silent(), stopping)
    assert outcome.interrupted
    assert outcome.comparison.deltas == ()
    assert git(mine, "worktree", "list").count("\n") == 1
