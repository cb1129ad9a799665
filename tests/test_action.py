"""The GitHub Action and its workflows: no more rights than needed, and no input that becomes a command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusionbench.summary import as_json, markdown
from tests.deltas import judged, mixed

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
ACTION = GITHUB / "actions" / "fusionbench"
FILES = sorted(GITHUB.rglob("*.yml"))
HOSTILE = (
    '"; rm -rf "$HOME"; echo "',
    "$(touch owned)",
    "`touch owned`",
    "' ; touch owned ; '",
    "--plugin=evil.py",
    "a b\tc",
    "*",
    "$HOME ${PATH}",
    "x && touch owned",
    "\\",
    "line\nbreak",
    "ünïcode 😀",
)
INPUTS = {"SUITE": "--suite", "BASELINE": "--baseline", "PAIRED_BASE": "--paired", "GATE": "--gate"}


def document(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def nodes(value: Any) -> Iterator[dict[Any, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from nodes(each)


def triggers(path: Path) -> Any:
    return document(path)[True]  # YAML 1.1 reads "on" as true


def workflow(name: str) -> Path:
    return GITHUB / "workflows" / f"{name}.yml"


def steps(name: str) -> list[dict[str, Any]]:
    (job,) = document(workflow(name))["jobs"].values()
    found = job["steps"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GITHUB)))
def test_no_script_has_an_expression_in_it(path: Path) -> None:
    for node in nodes(document(path)):
        for name in ("run", "script"):
            assert "${{" not in str(node.get(name, "")), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GITHUB)))
def test_actions_of_others_are_pinned_by_commit(path: Path) -> None:
    for line in path.read_text("utf-8").splitlines():
        if match := re.search(r"uses: (\S+)(.*)", line):
            ours = match[1] == "./.github/actions/fusionbench"
            assert ours or re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", match[1]), line
            assert ours or re.fullmatch(r" # v\d+\.\d+\.\d+", match[2]), line


def test_the_same_action_has_the_same_commit_everywhere() -> None:
    used = {match for path in FILES for match in re.findall(r"actions/[a-z-]+@[0-9a-f]{40}", path.read_text("utf-8"))}
    assert len({each.partition("@")[0] for each in used}) == len(used)


def test_no_workflow_runs_on_pull_request_target() -> None:
    for path in FILES:
        assert "pull_request_target" not in path.read_text("utf-8")
    assert set(triggers(workflow("benchmark"))) == {"pull_request"}
    assert triggers(workflow("comment")) == {"workflow_run": {"workflows": ["benchmark"], "types": ["completed"]}}


def test_permissions_are_those_needed() -> None:
    benchmark, comment = document(workflow("benchmark")), document(workflow("comment"))
    assert benchmark["permissions"] == {"contents": "read"}
    assert comment["permissions"] == {}
    assert comment["jobs"]["comment"]["permissions"] == {
        "actions": "read",
        "contents": "read",
        "pull-requests": "write",
    }
    assert all("permissions" not in job for job in benchmark["jobs"].values())


def test_what_runs_the_pull_requests_code_has_no_secret_and_keeps_no_token() -> None:
    text = workflow("benchmark").read_text("utf-8")
    assert "${{ secrets" not in text
    assert "github.token" not in text
    checkouts = [
        step for name in ("benchmark", "comment") for step in steps(name) if "checkout" in step.get("uses", "")
    ]
    assert len(checkouts) == 2
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_what_may_write_runs_the_default_branch_alone() -> None:
    found = steps("comment")
    (checkout,) = [step for step in found if "checkout" in step.get("uses", "")]
    assert checkout["with"]["ref"] == "${{ github.event.repository.default_branch }}"
    assert not any(step.get("uses", "").startswith("./") for step in found)
    assert "head_branch" not in str([step.get("env") for step in found])


def test_every_input_reaches_the_scripts_through_the_environment() -> None:
    action = document(ACTION / "action.yml")
    passed = {
        value
        for node in nodes(action["runs"])
        for value in [*node.get("env", {}).values(), *node.get("with", {}).values()]
    }
    conditions = " ".join(str(node.get("if", "")) for node in nodes(action["runs"]))
    for name, described in action["inputs"].items():
        assert described["description"]
        assert f"${{{{ inputs.{name} }}}}" in passed or f"inputs.{name}" in conditions


def test_workflows_use_inputs_that_the_action_has() -> None:
    known = set(document(ACTION / "action.yml")["inputs"])
    ours = [step for step in steps("benchmark") if step.get("uses", "").startswith("./")]
    assert len(ours) == 2
    for step in ours:
        assert set(step["with"]) <= known
    assert {step["with"].get("artifact", "fusionbench-judgement") for step in ours} >= {"fusionbench-judgement"}
    (download,) = [step for step in steps("comment") if "download-artifact" in step.get("uses", "")]
    assert download["with"]["name"] == "fusionbench-judgement"


# the scripts, with a fusionbench that writes down what it was called with


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A runner's folders, and on the path a program that writes its arguments to called.json and exits with $FAKE_CODE."""
    for name in ("bin", "temp", "work"):
        (tmp_path / name).mkdir()
    for name in ("fusionbench", "python"):
        fake = tmp_path / "bin" / name
        fake.write_text(
            f"#!{sys.executable} -S\nimport json, os, sys\n"
            f"json.dump(sys.argv[1:], open({str(tmp_path / 'called.json')!r}, 'w'))\n"
            "sys.exit(int(os.environ.get('FAKE_CODE', '0')))\n"
        )
        fake.chmod(0o755)
    return tmp_path


def script(name: str, place: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """(arguments that arrived, outputs) of one of the action's scripts."""
    known = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(place / "temp"),
        "GITHUB_OUTPUT": str(place / "output"),
        "ACTION": str(ACTION),
        **dict.fromkeys([*INPUTS, "ARGS", "PIP_ARGS"], ""),
    }
    done = subprocess.run(
        ["bash", str(ACTION / name)],
        cwd=place / "work",
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    output = place / "output"
    lines = output.read_text().splitlines() if output.exists() else []
    return json.loads((place / "called.json").read_text()), dict(line.split("=", 1) for line in lines)


def test_no_input_means_no_option(place: Path) -> None:
    arguments, outputs = script("check.sh", place)
    folder = outputs["folder"]
    assert arguments == [
        "check",
        f"--json={folder}/judgement.json",
        f"--markdown={folder}/report.md",
        f"--junit={folder}/junit.xml",
        "--github",
    ]
    assert Path(folder).parent == place / "temp"
    assert outputs["json"] == f"{folder}/judgement.json"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_an_input_arrives_as_the_value_of_its_option(place: Path, name: str, text: str) -> None:
    arguments, _ = script("check.sh", place, **{name: text})
    assert arguments[5:] == [f"{INPUTS[name]}={text}"]
    assert list((place / "work").iterdir()) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_of_args_arrives_as_one_argument(place: Path, text: str) -> None:
    arguments, _ = script("check.sh", place, ARGS=f"--rounds\n9\n\n{text}\n")
    assert arguments[5:] == ["--rounds", "9", *text.split("\n")]
    pip, _ = script("install.sh", place, PIP_ARGS=text)
    assert pip == ["-m", "pip", "install", "--quiet", *text.split("\n"), "--editable", f"{ACTION}/../../.."]
    assert list((place / "work").iterdir()) == []


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5, 6, 130])
def test_the_exit_code_is_passed_on(place: Path, code: int) -> None:
    _, outputs = script("check.sh", place, FAKE_CODE=str(code))
    assert outputs["exit-code"] == str(code)
    last = document(ACTION / "action.yml")["runs"]["steps"][-1]
    assert last["env"] == {"EXIT_CODE": "${{ steps.check.outputs.exit-code }}"}
    done = subprocess.run(["bash", "-e", "-c", last["run"]], env={"EXIT_CODE": str(code)}, timeout=60)
    assert done.returncode == code


def test_a_fusionbench_that_is_not_installed_fails(place: Path) -> None:
    (place / "bin" / "fusionbench").unlink()
    (place / "called.json").write_text("[]")
    environment = {
        "PATH": f"{place / 'bin'}:/usr/bin:/bin",
        "RUNNER_TEMP": str(place / "temp"),
        "GITHUB_OUTPUT": str(place / "output"),
    }
    environment |= dict.fromkeys([*INPUTS, "ARGS"], "")
    subprocess.run(["bash", str(ACTION / "check.sh")], env=environment, capture_output=True, timeout=60)
    assert "exit-code=127" in (place / "output").read_text()


def test_the_action_installs_the_project_that_it_belongs_to(place: Path) -> None:
    pip, _ = script("install.sh", place, PIP_ARGS="-c\nconstraints.txt\n")
    assert pip[3:6] == ["--quiet", "-c", "constraints.txt"]
    assert (Path(pip[-1]) / "pyproject.toml").samefile(ROOT / "pyproject.toml")


def test_the_action_imports_from_the_repository_so_that_a_pair_measures_two_revisions_of_it(place: Path) -> None:
    pip, _ = script("install.sh", place)
    assert pip[-2] == "--editable"


# the job that writes the comment


def commenting(tmp_path: Path, data: bytes) -> subprocess.CompletedProcess[str]:
    """The step that reads the JSON, as the workflow has it."""
    (step,) = [step for step in steps("comment") if "summarize" in step.get("run", "")]
    (tmp_path / "judgement").mkdir()
    (tmp_path / "judgement" / "judgement.json").write_bytes(data)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(tmp_path),
        "RUN_URL": "https://github.example/o/r/actions/runs/7",
    }
    return subprocess.run(
        ["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_comment_is_made_of_the_json_alone(tmp_path: Path) -> None:
    done = commenting(tmp_path, as_json.encode(judged(mixed())))
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "comment.md").read_text("utf-8")
    assert text == markdown.comment(judged(mixed()), "https://github.example/o/r/actions/runs/7")


def test_a_damaged_json_makes_no_comment_and_no_command(tmp_path: Path) -> None:
    bad = json.loads(as_json.encode(judged(mixed())))
    bad["comparison"]["deltas"][0]["verdict"] = "##[error]owned\n::error::owned"
    done = commenting(tmp_path, json.dumps(bad).encode())
    assert done.returncode == 6
    assert not (tmp_path / "comment.md").exists()
    first, *_, last = done.stdout.splitlines()
    token = first.removeprefix("::stop-commands::")
    assert re.fullmatch("[0-9a-f]{32}", token)
    assert last == f"::{token}::"


RUN = {"head_sha": "a" * 40, "head_branch": "x", "head_repository": {"id": 7, "owner": {"login": "fork"}}}
PULL = {"number": 12, "head": {"sha": "a" * 40, "repo": {"id": 7}}}
OLD = {"id": 99, "user": {"login": "github-actions[bot]"}, "body": f"{markdown.MARKER}\nold"}
OTHERS = [
    {"id": 1, "user": {"login": "mallory"}, "body": f"{markdown.MARKER}\nmine"},
    {"id": 2, "user": {"login": "github-actions[bot]"}, "body": "another bot's"},
    {"id": 3, "user": None, "body": None},
]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, as the workflow's script does")
@pytest.mark.parametrize(
    ("run", "pulls", "comments", "call"),
    [
        (RUN, [PULL], OTHERS, ["createComment", {"issue_number": 12}]),
        (RUN, [PULL], [*OTHERS, OLD], ["updateComment", {"comment_id": 99}]),
        (RUN, [], [], ["notice"]),
        (RUN, [PULL, {**PULL, "number": 13}], [], ["notice"]),
        (RUN, [{**PULL, "head": {"sha": "b" * 40, "repo": {"id": 7}}}], [], ["notice"]),
        (RUN, [{**PULL, "head": {"sha": "a" * 40, "repo": {"id": 8}}}], [], ["notice"]),
        (RUN, [{**PULL, "head": {"sha": "a" * 40, "repo": None}}], [], ["notice"]),
        ({**RUN, "head_repository": None}, [PULL], [], ["notice"]),
    ],
)
def test_one_comment_is_posted_or_updated_where_the_pull_request_is_known(
    tmp_path: Path, run: Any, pulls: Any, comments: Any, call: Any
) -> None:
    (step,) = [step for step in steps("comment") if "github-script" in step.get("uses", "")]
    (tmp_path / "comment.md").write_text("summary")
    given = json.dumps({"run": run, "pulls": pulls, "comments": comments})
    harness = f"""
    const given = {given}, calls = []
    const told = (name) => async (values) => {{ calls.push([name, values]) }}
    const github = {{
      rest: {{ pulls: {{ list: 'pulls' }}, issues: {{ listComments: 'comments', createComment: told('createComment'), updateComment: told('updateComment') }} }},
      paginate: async (what, values) => {{
        if (what === 'pulls' && values.head !== 'fork:x') throw new Error(values.head)
        return given[what]
      }},
    }}
    const core = {{ notice: (text) => calls.push(['notice']) }}
    const context = {{ payload: {{ workflow_run: given.run }}, repo: {{ owner: 'o', repo: 'r' }} }}
    const AsyncFunction = (async () => {{}}).constructor
    new AsyncFunction('github', 'context', 'core', 'require', {json.dumps(step["with"]["script"])})(github, context, core, require)
      .then(() => console.log(JSON.stringify(calls)))
    """
    done = subprocess.run(
        ["node", "-e", harness],
        env={**os.environ, "RUNNER_TEMP": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    (found,) = json.loads(done.stdout)
    assert found[0] == call[0]
    if len(call) > 1:
        assert found[1].items() >= call[1].items()
        assert found[1]["body"].startswith("summary\nMeasured at aaaa")
