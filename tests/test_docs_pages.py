"""The pages of docs/ are true: their commands run and print what is shown, their scripts run, their files are whole."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

from fusionbench import backends, registry, slices, suite
from fusionbench.cli import app
from fusionbench.errors import FusionbenchError
from tests import pages
from tests.command import call
from tests.pages import Block, Command

ROOT = Path(__file__).parents[1]
RUN = {page: [block for block in pages.blocks(page) if block.info in ("console", "python")] for page in pages.names()}
ELSEWHERE = [(page, block) for page in pages.names() for block in pages.blocks(page) if "elsewhere" in block.info]

# These tests are about the commands, not about the figures: six processes and a third of a second per job take minutes.
QUICK = ["--rounds", "1", "--measure-s", "0.02"]
SHORTER = {
    "run smoke": [*QUICK, "--limit", "3"],
    "run": QUICK,
}
# Words of an output that say on what it was made.
MACHINE = {"amd", "epyc", "cores", "gib", "cpu", "gpu", "linux", "python"}
# What bounds a candidate: another on another machine.
BOUND = {"compute", "launch", "memory", "bound"}
COLUMNS = "100"


def module(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", pages.DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with one small run, as readers of a how-to have one."""
    folder = tmp_path_factory.mktemp("results")
    narrow = ["--only", "devices=cpu", "--only", "strategies=cross_attention,concat_attention", "--limit", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fusionbench", "run", "smoke", *narrow, *QUICK, "--results", str(folder / "runs")])
        with pytest.raises(SystemExit) as left:
            app()
    assert left.value.code == 0
    return folder


@pytest.fixture
def place(tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader is: a project with results of its own, and those that are committed here."""
    shutil.copytree(results, tmp_path / "results")
    shutil.copytree(ROOT / "results" / "epyc-2core", tmp_path / "results" / "epyc-2core")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", COLUMNS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
    return tmp_path


def write_files(page: str) -> None:
    for block in pages.blocks(page):
        if block.file:
            Path(block.file).write_text(block.body)


def commit() -> None:
    """The project is a repository with a branch main, for what compares revisions."""
    own = ["git", "-c", "user.name=Reader", "-c", "user.email=reader@example.org"]
    subprocess.run([*own, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*own, "add", "--", *(str(path) for path in Path().glob("*.*"))], check=True)
    subprocess.run([*own, "commit", "-q", "-m", "As the page has it"], check=True)


@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found])
def test_what_a_page_tells_the_reader_to_run_runs_and_prints_what_is_shown(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(page)
    if any(block.body.find("--paired") > 0 for block in RUN[page]):
        commit()
    for block in RUN[page]:
        if block.info == "python":
            if not block.file:
                exec(compile(block.body, f"{page}:{block.line}", "exec"), {"__name__": "__main__"})  # noqa: S102
            continue
        for command in pages.commands(block):
            out = execute(command, f"{page}:{block.line}", monkeypatch, capsys)
            missing = pages.words("\n".join(command.shown)) - pages.words(out) - MACHINE - BOUND - names()
            assert not missing, f"{page}:{block.line}: '{command.text}' prints no {sorted(missing)}, but:\n{out}"


def names() -> set[str]:
    """Words that are in names of strategies and backends: which of them wins, a quick measurement does not know."""
    return pages.words(" ".join([*registry.strategies(), *backends.BACKENDS]))


def execute(command: Command, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; it must end well."""
    variables, program, words = split(command.text)
    arguments = [each for word in words for each in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if program == "fusionbench":
        assert not variables, where
        shorter = next((more for verb, more in SHORTER.items() if " ".join(arguments).startswith(verb)), [])
        code, out, err = call(*arguments, *shorter, capsys=capsys, monkeypatch=monkeypatch)
    else:
        assert program in ("python", "pytest"), f"{where}: '{program}' is not run here: use {{elsewhere}}"
        line = [sys.executable, *arguments] if program == "python" else [sys.executable, "-m", "pytest", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})
        code, out, err = done.returncode, done.stdout, done.stderr
    assert code == 0, (where, command.text, out, err)
    return out + err


def split(text: str) -> tuple[dict[str, str], str, list[str]]:
    """The variables that a command line sets, its program and its arguments."""
    parts = shlex.split(text)
    first = next(place for place, part in enumerate(parts) if "=" not in part)
    return dict(part.split("=", 1) for part in parts[:first]), parts[first], parts[first + 1 :]


# --- what is not run here --------------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {"console", "python", "toml", "yaml", "text", "{toctree}", "{include}", "{eval-rst}", "{note}"}
    for page in pages.names():
        for block in pages.blocks(page):
            kind = block.info.split()[0]
            assert kind in kinds | {"{elsewhere}"}, f"{page}:{block.line}: {block.info}"
            assert kind != "toml" or block.file, f"{page}:{block.line}: a suite's first line is its name"


@pytest.mark.parametrize(("page", "block"), ELSEWHERE, ids=[f"{page}:{block.line}" for page, block in ELSEWHERE])
def test_a_command_that_needs_what_a_test_has_not_says_what_and_is_spelled_right(page: str, block: Block) -> None:
    _, need, *language = block.info.split()
    assert need in module("elsewhere").NEEDS
    if not language:
        for command in pages.commands(block):
            assert_spelled_right(command.text, f"{page}:{block.line}")


def test_every_need_is_somebodys() -> None:
    """The reasons why commands are not run here: a GPU, GitHub, Slurm, an installation, hours, no end."""
    assert {block.info.split()[1] for _, block in ELSEWHERE} == set(module("elsewhere").NEEDS)


def assert_spelled_right(text: str, where: str) -> None:
    program, *arguments = shlex.split(text)
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {each for each in arguments if "=" not in each} <= targets, where
    if program == "sbatch":
        assert_array_is_whole(arguments, where)
    if program == "fusionbench":
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            verb, *arguments = arguments
            assert verb in command.commands, where
            command = command.commands[verb]
        command.make_context(text, list(arguments))  # raises where an option is unknown or a value does not fit


def assert_array_is_whole(arguments: list[str], where: str) -> None:
    """What an array wraps is spelled right, and its tasks are all slices of the plan."""
    given = dict(each.split("=", 1) for each in arguments)
    assert set(given) <= {"--array", "--gpus", "--wrap"}, where
    first, last = given["--array"].split("-")
    tasks = [given["--wrap"].replace("$SLURM_ARRAY_TASK_ID", str(task)) for task in range(int(first), int(last) + 1)]
    for task in tasks:
        assert "$" not in task, where
        assert_spelled_right(task, where)
    shards = [shlex.split(task)[shlex.split(task).index("--shard") + 1] for task in tasks]
    assert [slices.parse(shard) for shard in shards] == [
        slices.Slices(of=len(tasks), numbers=(task,)) for task in range(1, len(tasks) + 1)
    ], where


def test_an_array_that_leaves_slices_out_or_has_an_unknown_option_is_found() -> None:
    wrap = "--wrap=fusionbench run a.toml --shard $SLURM_ARRAY_TASK_ID/4"
    assert_array_is_whole(["--array=1-4", wrap], "here")
    for wrong in ("--array=0-3", "--array=1-3"):
        with pytest.raises((AssertionError, FusionbenchError)):
            assert_array_is_whole([wrong, wrap], "here")
    with pytest.raises(Exception, match="No such option: --sharp"):
        assert_array_is_whole(["--array=1-4", f"{wrap} --sharp"], "here")


def test_every_suite_in_the_pages_is_valid() -> None:
    for page in pages.names():
        for block in pages.blocks(page):
            if block.info == "toml" and block.file and "[[sweep]]" in block.body:
                suite.parse(block.body, Path(block.file).stem, f"docs/{page}")


def test_every_workflow_in_the_pages_spells_commands_right_and_gives_the_action_inputs_that_it_has() -> None:
    action = yaml.safe_load((ROOT / ".github/actions/fusionbench/action.yml").read_text())
    steps = 0
    for page in pages.names():
        for block in pages.blocks(page):
            if block.info.split()[-1] != "yaml":
                continue
            for job in yaml.safe_load(block.body)["jobs"].values():
                for step in job["steps"]:
                    if step.get("run", "").startswith("fusionbench"):
                        assert_spelled_right(re.sub(r"\$\{\{.*?\}\}", "1", step["run"]), f"{page}:{block.line}")
                    if "/actions/fusionbench@" in step.get("uses", ""):
                        steps += 1
                        assert set(step["with"]) <= set(action["inputs"]), f"{page}:{block.line}"
    assert steps


# --- what is made of the code ------------------------------------------------------------------------------------------


def test_the_reference_has_every_verb_with_every_option() -> None:
    text = module("generated").verbs()
    command = typer.main.get_command(app)
    for verb, each in command.commands.items():
        inner = each.commands.values() if hasattr(each, "commands") else [each]
        for option in (name for one in inner for param in one.params for name in param.opts if name.startswith("--")):
            assert re.search(rf"^## {verb}\b", text, re.MULTILINE)
            assert option in text, (verb, option)


def test_a_marker_that_nothing_generates_fails_the_build() -> None:
    with pytest.raises(Exception, match="nothing generates 'verb' \\(has: verbs, "):
        module("generated").filled("<!-- generated: verb -->")


def test_every_generated_part_is_in_a_page() -> None:
    found = re.findall(r"generated: (\w+)", "".join((pages.DOCS / page).read_text() for page in pages.names()))
    assert sorted(found) == sorted(module("generated").TEXTS)


def test_the_python_reference_has_every_function_of_the_kernels() -> None:
    import fusionbench_kernels

    listed = re.findall(r"fusionbench_kernels\.(\w+)$", (pages.DOCS / "reference/kernels.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(fusionbench_kernels.__all__)


@pytest.mark.parametrize(
    ("html", "asked"),
    [
        ('<script src="https://a.org/x.js">', 1),
        ('<link rel="stylesheet" href="//a.org/x.css">', 1),
        ('<img src="http://a.org/x.png">', 1),
        ('<a href="https://a.org">a</a><link rel="canonical" href="https://a.org">', 0),
        ('<script src="_static/x.js">', 0),
    ],
)
def test_a_page_that_would_ask_another_host_is_found(html: str, asked: int) -> None:
    assert len(module("offline").fetches(html)) == asked
