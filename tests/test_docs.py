"""The documents are true: every verb is explained, every command in the README works, its strategy runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusionbench import suite
from fusionbench.cli import app, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^ {4}(?:\.venv/bin/)?fusionbench (.*?)(?: {2,}#.*)?$", README, re.MULTILINE)))
SNIPPET = re.search(r"```python\n(# gated\.py\n.*?)```", README, re.DOTALL)
KERNELS = re.search(r"```python\n(import torch\nfrom fusionbench_kernels.*?)```", README, re.DOTALL)
ADAPTER = re.search(r'( {4}title = "Our adapter".*?)\n\n {4}fusionbench', README, re.DOTALL)


def exit_code() -> int:
    """What the command line in sys.argv leaves with."""
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.mark.parametrize(
    "verb", sorted(command.name or command.callback.__name__ for command in app.registered_commands)
)  # type: ignore[union-attr]
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert f"| `{verb.strip('_')}` |" in README


def test_every_suite_is_in_the_readme() -> None:
    rows = re.findall(r"\| `(\w+)` \|$", README, re.MULTILINE)
    assert {name: rows.count(name) for name in suite.shipped()} == dict.fromkeys(suite.shipped(), 1)


def test_the_readmes_use_of_the_kernels_runs() -> None:
    assert KERNELS
    done = subprocess.run([sys.executable, "-c", KERNELS[1]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Choice(variant=")


def test_the_readme_names_every_function_of_the_kernels() -> None:
    import fusionbench_kernels

    public = {name for name in fusionbench_kernels.__all__ if name.islower()}
    helpers = {"absorption_pays", "attention_weights", "choice", "co_attention_choice", "projected_choice"}
    assert [name for name in sorted(public - helpers) if f"`{name}`" not in README] == []


def test_the_readmes_commands_run_in_the_readmes_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SNIPPET
    assert ADAPTER
    assert len(COMMANDS) >= 7
    monkeypatch.chdir(tmp_path)
    text = re.sub("^ {4}", "", ADAPTER[1], flags=re.MULTILINE)
    # the README's sizes and devices, but small and on the CPU: this test is about the commands
    small = text.replace(
        'devices = ["cuda"]', 'devices = ["cpu"]\n[budget]\nmeasure_s = 0.01\nwarmup_s = 0.0\nmin_samples = 6'
    )
    small = small.replace('"sdpa", "compile"', '"sdpa"').replace("[576]", "[9]").replace("[32, 64, 128]", "[5]")
    small = (
        small.replace('"concat_attention", ', '"concat_attention", "gated", ')
        .replace("[768]", "[24]")
        .replace("[1024]", "[24]")
    )
    budget = small[small.index("[budget]") : small.index("modes")]
    small = small.replace(budget, "") + "\n" + budget
    Path("adapter.toml").write_text(small)
    Path("gated.py").write_text(SNIPPET[1])
    order = [
        line
        for line in re.findall(r"fusionbench ((?:list|plan|run|show|report) .*?)(?: {2,}#.*)?$", README, re.MULTILINE)
        if line in COMMANDS
    ]
    for line in order:
        if line.startswith(("run lengths", "plan lengths")):
            continue
        arguments = line.split()
        if "adapter.toml" in arguments and "--plugin" not in arguments:
            arguments += ["--plugin", "gated.py"]
        if arguments[0] == "run":
            arguments += ["--rounds", "1", "--measure-s", "0.02"]  # 200 s without (78 systems, 6 processes each)
        if arguments[:2] == ["run", "systems"]:
            arguments += ["--limit", "20"]
        monkeypatch.setattr(sys, "argv", ["fusionbench", *arguments])
        code = exit_code()
        out, err = capsys.readouterr()
        assert code == 0, (line, out, err)
    assert Path("adapter.csv").exists()
    assert Path("adapter.html").exists()


def test_the_readmes_sweep_is_a_valid_suite() -> None:
    assert ADAPTER
    chosen = suite.parse(re.sub("^ {4}", "", ADAPTER[1], flags=re.MULTILINE), "adapter", "README.md")
    assert chosen.count == 2 * 2 * 2 * 3 * 2 * 2 * 2


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in ("README.md", "METHODOLOGY.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert (ROOT / target).exists(), f"{document} links to {target}"


def test_nothing_committed_names_a_package_host() -> None:
    texts = [p for p in ROOT.iterdir() if p.is_file() and p.suffix in {".md", ".toml", ".txt", ""}] + [
        ROOT / ".ci" / "run"
    ]
    for path in texts:
        if path.name != "LICENSE":
            assert not re.search(r"https?://|--(extra-)?index-url|--find-links", path.read_text()), path
