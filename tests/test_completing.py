"""What a Tab offers: names that are true, found without torch, kept as JSON, and never an error on the user's line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionbench import backends, registry, suite
from fusionbench.cli import completing, names
from tests.command import call

Tab = Callable[..., list[str]]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for variable in ("FUSIONBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tab(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tab:
    """What is offered for the last of some words, as bash splits them."""

    def press(*words: str) -> list[str]:
        monkeypatch.setenv("_FUSIONBENCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["fusionbench", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        _, out, err = call(capsys=capsys, monkeypatch=monkeypatch)
        monkeypatch.delenv("_FUSIONBENCH_COMPLETE")
        assert err == ""
        return out.splitlines()

    return press


def cache(home: Path) -> Path:
    return home / ".cache" / "fusionbench" / names.FILE


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("re",), ["resume", "report"]),
        (("run", "smo"), ["smoke"]),
        (("run", "smoke", "--fre"), ["--fresh"]),
        (("run", "smoke", "--only", "dty"), [f"dtypes={each}" for each in ("bf16", "fp16", "fp32", "int8", "tf32")]),
        (("run", "smoke", "--only", "te"), ["text=", "text_width="]),
        (("run", "smoke", "--only", "text="), ["text=16", "text=32"]),
        (("run", "smoke", "--only", "text=16,"), ["text=16,32"]),
        (("run", "--only", "dtypes=bf"), ["dtypes=bf16"]),
        (("list", "su"), ["suites"]),
        (("show", "--reference", "gated"), ["gated_cross_attention"]),
        (("show", "--reference", "gmu/com"), ["gmu/compile"]),
        (("advise", "--preset", "llava-1.5-7"), ["llava-1.5-7b"]),
        (("advise", "--dtype", "bf"), ["bf16"]),
        (("claims", "C1", "C27"), ["C27"]),
        (("check", "--gate", "t"), ["timing"]),
        (("run", "smoke", "--timer", "gr"), ["graph"]),
        (("run", "no-such-suite"), []),
        (("run", "no-such-suite", "--only", "te"), []),
        (("no-such-verb", "x"), []),
    ],
)  # fmt: skip
def test_a_tab_offers_what_could_stand_there(tab: Tab, words: tuple[str, ...], offered: list[str]) -> None:
    assert sorted(tab(*words)) == sorted(offered)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("run", "smoke", "--only", "dtypes", "=", "bf"), ["bf16"]),
        (("run", "smoke", "--only", "text", "="), ["16", "32"]),
        (("run", "smoke", "--only", "=", "dtypes", "=", "bf"), ["bf16"]),
        (("run", "smoke", "--only", "strategies", "=", "late", ":", "vo"), ["vote"]),
        (("run", "smoke", "--only", "strategies", "=", "late", ":", "vote,late", ":", "si"), ["similarity"]),
        (("run", "smoke", "--only", "text", "=", "16", "--only", "dty"), [f"dtypes={d}" for d in ("bf16", "fp16", "fp32", "int8", "tf32")]),
    ],
)  # fmt: skip
def test_words_that_bash_cuts_at_its_breaks_are_put_together(
    tab: Tab, words: tuple[str, ...], offered: list[str]
) -> None:
    assert sorted(tab(*words)) == sorted(offered)


def test_run_folders_are_offered_the_newest_first_and_of_the_results_that_the_line_names(tab: Tab, home: Path) -> None:
    for name in ("20260101T000000Z-a-1", "20260102T000000Z-a-2", "no-run"):
        for results in ("results/runs", "elsewhere"):
            (home / results / name).mkdir(parents=True)
            if name != "no-run":
                (home / results / name / "manifest.json").write_text("{}")
    newest = ["results/runs/20260102T000000Z-a-2", "results/runs/20260101T000000Z-a-1"]
    assert tab("show", "") == newest
    assert tab("compare", newest[0], "results/runs/20260101") == newest[1:]
    assert tab("show", "--results", "elsewhere", "") == [each.replace("results/runs", "elsewhere") for each in newest]
    assert tab("resume", "elsewhere/20260102") == ["elsewhere/20260102T000000Z-a-2"]


def test_a_suite_of_ones_own_is_offered_and_read_for_its_values(tab: Tab, home: Path) -> None:
    text = suite.shipped()["smoke"].read_text().replace("[196]", "[197]")
    (home / "mine.toml").write_text(text)
    assert tab("run", "mi") == ["mine.toml"]
    assert tab("run", "mine.toml", "--only", "image=19") == ["image=197"]
    (home / "mine.toml").write_text("no = toml = at all")
    assert tab("run", "mine.toml", "--only", "im") == []


def test_every_name_that_is_offered_exists_and_list_completes_them(
    home: Path, tab: Tab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, there in (("strategies", registry.strategies()), ("backends", backends.BACKENDS)):
        offered = names.known().kinds[kind]
        assert offered
        assert set(offered) <= set(there)
        call("list", kind, capsys=capsys, monkeypatch=monkeypatch)
        assert set(names.known().kinds[kind]) == set(there)
    assert list(names.known().suites) == list(suite.shipped())


def test_strategies_of_a_plugin_are_not_kept(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = str(Path(__file__).with_name("faulty.py"))
    code, out, _ = call("list", "strategies", "--plugin", plugin, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    assert "raises" in out
    assert "raises" not in names.known().kinds["strategies"]


def test_names_are_kept_until_a_file_of_the_package_changes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names.known()
    kept = json.loads(cache(home).read_text())
    cache(home).write_text(json.dumps({**kept, "suites": {"kept": {}}}))
    assert list(names.known().suites) == ["kept"]
    monkeypatch.setattr(names, "_fingerprint", lambda: "after an edit")
    assert "smoke" in names.known().suites
    assert json.loads(cache(home).read_text())["of"] == "after an edit"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"v": 1}', '{"v": 99}', '{"v": 1, "of": 1, "kinds": [], "suites": 3}', "[" * 100_000]
)
def test_a_damaged_cache_is_made_anew(home: Path, tab: Tab, content: str) -> None:
    cache(home).parent.mkdir(parents=True)
    cache(home).write_text(content)
    assert tab("run", "smo") == ["smoke"]
    assert json.loads(cache(home).read_text())["v"] == names.VERSION


def test_a_cache_from_elsewhere_puts_no_control_characters_on_the_line(home: Path, tab: Tab) -> None:
    names.known()
    kept = json.loads(cache(home).read_text())
    kept["kinds"]["presets"] = ["fine", "\x1b]0;x\x07", "a b", 7, "x\ny"]
    cache(home).write_text(json.dumps(kept))
    assert tab("advise", "--preset", "") == ["fine"]


def test_where_nothing_can_be_kept_a_tab_still_answers(tab: Tab, home: Path) -> None:
    (home / ".cache").write_text("a file where a folder should be")
    assert tab("run", "smo") == ["smoke"]


def test_an_error_offers_nothing_and_says_nothing(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> names.Names:
        sys.stderr.write("noise")
        raise RuntimeError("no names today")

    monkeypatch.setattr(names, "known", broken)
    assert tab("run", "smo") == []


@pytest.mark.parametrize(
    "words", ["fusionbench run smoke --only dtypes=b", "fusionbench show --reference late", "fusionbench ru"]
)
def test_a_tab_loads_no_heavy_library_even_when_it_is_the_first(home: Path, words: str) -> None:
    script = (
        "import sys, atexit\nsys.argv = ['fusionbench']\n"
        "atexit.register(lambda: print(*sys.modules, file=open('loaded', 'w')))\n"
        "from fusionbench.cli import main\nmain()"
    )
    environment = {**os.environ, "_FUSIONBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words,
                   "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    loaded = set((home / "loaded").read_text().split())
    assert "fusionbench.cli" in loaded
    assert loaded & {"torch", "numpy", "pandas", "plotly", "scipy", "rich", "pyarrow"} == set()


def test_zsh_and_fish_get_the_same_names(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "fusionbench run smo")
    for shell in ("zsh", "fish"):
        monkeypatch.setenv("_FUSIONBENCH_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        _, out, err = call(capsys=capsys, monkeypatch=monkeypatch)
        assert "smoke" in out
        assert err == ""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_with_the_script_that_is_installed(home: Path) -> None:
    """As a user does it: install, start a shell, press Tab."""
    command = home / "bin" / "fusionbench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fusionbench "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = home / ".bash_completions" / "fusionbench.sh"

    def bash(text: str) -> str:
        # The end keeps bash from giving its place to the command, whose parent is what says which shell it is.
        done = subprocess.run(
            ["bash", "--norc", "-c", f"{text}\ntrue"], env=environment, capture_output=True, text=True, timeout=120
        )
        return done.stdout

    bash("fusionbench --install-completion")
    assert script.is_file()
    pressed = f"""source {script}
        COMP_WORDS=(fusionbench run smoke --only dtypes = bf) COMP_CWORD=6
        _fusionbench_completion fusionbench
        echo "offered ${{COMPREPLY[@]}}" """
    assert bash(pressed) == "offered bf16\n"


def test_what_cannot_be_put_together_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completing._joined(["fusionbench", "run", "smoke"]) == (["fusionbench", "run", "smoke"], "")
    for place in ("x", "", "99"):
        monkeypatch.setenv("COMP_WORDS", "fusionbench run")
        monkeypatch.setenv("COMP_CWORD", place)
        assert completing._mended() == ""
        assert os.environ["COMP_WORDS"] == "fusionbench run"
