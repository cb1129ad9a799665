"""Summaries for machines: JUnit XML, GitHub annotations, JSON, and the verb that turns the last into the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionbench.delta import Judgement, Ruling
from fusionbench.disk import NewerSchemaError
from fusionbench.errors import DamagedError, StoreError
from fusionbench.judge import judge
from fusionbench.summary import as_json, files, github
from fusionbench.summary.junit import junit
from tests.command import call
from tests.deltas import HOSTILE, change, comparison, delta, hostile, judged, key, many, mixed, untimed

COMMAND = re.compile(r"::(error|warning) title=([^:,\r\n]*)::([^\r\n]+)")


def parsed(data: bytes) -> ET.Element:
    return ET.fromstring(data)  # noqa: S314 (what was just written here)


def kinds(root: ET.Element) -> dict[str, str]:
    found = {}
    for case in root.iter("testcase"):
        outcome = [child.tag for child in case if child.tag != "properties"]
        assert len(outcome) <= 1
        found[str(case.get("name"))] = outcome[0] if outcome else "passed"
    return found


def only(gate: str, of: Judgement) -> Judgement:
    """The judgement of one gate, the other not judged."""
    rulings = tuple(
        r if r.gate == gate else Ruling(gate=r.gate, outcome="not judged", reason="other machine") for r in of.rulings
    )
    code = int(any(r.outcome == "failed" for r in rulings))
    return msgspec.structs.replace(of, rulings=rulings, exit_code=code)


# JUnit


def test_every_job_is_one_test_case_of_its_kind() -> None:
    found = kinds(parsed(junit(mixed(), judged(mixed()))))
    assert len(found) == len(mixed().deltas)
    assert {found[key()], found[key("co_attention")], found[key("concat_attention")]} == {"failure"}
    assert found[key("film", "eager")] == "error"
    assert {found[key("mmdit")], found[key("vilbert")], found[key("early", image=4)]} == {"skipped"}
    assert {found[key("late")], found[key("mid")], found[key("early", text=4)]} == {"passed"}


def test_a_lost_job_is_a_failure_where_the_gate_says_so() -> None:
    of = comparison(untimed("lost", "missing", "was ok, and is not in the head"))
    assert kinds(parsed(junit(of, judge(of, ("deterministic",))))) == {"lost": "failure"}
    assert kinds(parsed(junit(of))) == {"lost": "skipped"}


def test_counts_are_those_of_the_cases() -> None:
    root = parsed(junit(mixed(), judged(mixed())))
    suite = root[0]
    told = list(kinds(root).values())
    for element in (root, suite):
        assert [int(str(element.get(name))) for name in ("tests", "failures", "errors", "skipped")] == [
            len(told), told.count("failure"), told.count("error"), told.count("skipped")
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "kind", "type_"),
    [
        ("wrong: relative error 0.41", "failure", "wrong"),
        ("crash in warm-up: worker died of SIGSEGV", "error", "crash"),
        ("timeout in time: no answer within 300 s", "error", "timeout"),
        ("", "error", "broken"),
    ],
)
def test_a_wrong_result_is_a_failure_and_what_came_to_no_end_an_error(reason: str, kind: str, type_: str) -> None:
    case = next(parsed(junit(comparison(untimed(key(), "broken", reason)))).iter("testcase"))
    assert (case[-1].tag, case[-1].get("type")) == (kind, type_)


def test_properties_hold_medians_interval_and_facts() -> None:
    case = next(parsed(junit(comparison(delta(ratio=1.1, changes=(change(),))))).iter("testcase"))
    found = {each.get("name"): each.get("value") for each in case.iter("property")}
    assert (float(found["base_ns"]), float(found["ratio"]), found["rounds"]) == (1.234e6, 1.1, "7")  # type: ignore[arg-type]
    assert float(found["low"]) < 1.1 < float(found["high"])  # type: ignore[arg-type]
    assert (found["flops.base"], found["flops.head"]) == ("1234567", "1300000")


def test_a_difference_that_no_gate_judged_fails_nothing() -> None:
    of = comparison(
        delta(key(), "slower", 1.2), delta(key("film"), changes=(change(),)), untimed(key("mid"), "unclear")
    )
    facts, timing = only("deterministic", judged(of)), only("timing", judged(of))
    assert list(kinds(parsed(junit(of, facts))).values()) == ["passed", "failure", "passed"]
    assert list(kinds(parsed(junit(of, timing))).values()) == ["failure", "passed", "skipped"]


def test_a_check_that_judged_nothing_is_an_error() -> None:
    nothing = judged(comparison(), exit_code=5, rulings=())
    assert kinds(parsed(junit(nothing.comparison, nothing))) == {"check": "error"}


def test_hostile_texts_make_well_formed_xml() -> None:
    data = junit(hostile().comparison, hostile())
    names = kinds(parsed(data))
    assert "</script><script>window.pwned=1</script>0" in names
    assert not re.search(rb"&#(0|1|2|3|8|27|x1b);", data)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_text_makes_well_formed_xml(text: str) -> None:
    bad = comparison(delta(f"k{text}", "slower", 1.2, reason=text), untimed(f"b{text}", "broken", text))
    parsed(junit(bad))


# annotations


def test_there_is_an_annotation_for_every_failure_and_a_warning_for_what_is_missing() -> None:
    lines = github.annotations(judged(mixed()))
    assert sum(line.startswith("::error ") for line in lines) == 4
    assert [line for line in lines if line.startswith("::warning ")] == [
        f"::warning title=fusionbench%3A missing::{key('vilbert')}: not in the suite any more"
    ]


def test_percent_signs_colons_and_commas_are_escaped() -> None:
    (line,) = github.annotations(judged(comparison(delta("a%0Ab", changes=(change(),)))))
    assert line.startswith("::error title=fusionbench%3A worse::a%250Ab: flops 1,234,567 → 1,300,000, +5.3 %25")
    of = comparison(differences=("x, y: z",))
    assert github.annotations(judged(of, exit_code=5, rulings=()))[1].endswith("environments differ::x, y: z")


def test_of_too_many_the_last_says_how_many_more() -> None:
    of = many(5000)
    missing = comparison(*of.deltas, *(untimed(f"m{n}", "missing") for n in range(30)))
    lines = github.annotations(judged(missing))
    assert len(lines) == 20
    assert "991 more in the summary" in lines[9]
    assert "21 more in the summary" in lines[19]


def test_a_check_that_judged_nothing_is_an_annotation() -> None:
    (line,) = github.annotations(judged(comparison(), exit_code=5, rulings=()))
    assert line == "::error title=fusionbench%3A check::? not judged: nothing could be compared"


texts = st.text(st.characters(exclude_categories=()), max_size=40) | st.sampled_from(HOSTILE)


@settings(max_examples=300)
@given(texts, texts, texts)
def test_every_line_is_exactly_one_command(name: str, reason: str, fact: str) -> None:
    of = comparison(
        delta(f"x{name}", "slower", 1.2, reason=reason, changes=(change(fact, name, reason),)),
        untimed(name, "broken", reason),
        untimed(f"m{name}", "missing", reason),
        differences=(name, reason),
    )
    rulings = (
        Ruling(gate="deterministic", outcome="failed", judged=1, failures=((name, fact), (fact, reason))),
        Ruling(gate="timing", outcome="not judged", reason=reason),
    )
    for line in github.annotations(Judgement(comparison=of, rulings=rulings, exit_code=1)):
        assert len(line.splitlines()) == 1
        match = COMMAND.fullmatch(line)
        assert match, line
        assert "%" not in re.sub("%(25|3A|2C|0D|0A)", "", match[2])
        assert "%" not in re.sub("%25", "", match[3])


# JSON


def test_a_judgement_reads_back_as_it_was(tmp_path: Path) -> None:
    for judgement in (judged(mixed()), hostile(), judged(comparison(), exit_code=5, rulings=())):
        (path,) = files.write(judgement, json=tmp_path / "j.json")
        assert as_json.load(path) == judgement
    assert as_json.decode_comparison(as_json.encode(mixed()), "x") == mixed()


def test_the_version_and_the_exit_code_come_first() -> None:
    assert as_json.encode(judged(mixed())).startswith(b'{"v":1,"exit_code":1,"rulings":')


def broken(**fields: object) -> bytes:
    return json.dumps(json.loads(as_json.encode(judged(mixed()))) | fields).encode()


def altered(**fields: object) -> bytes:
    """With other values in the first delta."""
    document = json.loads(as_json.encode(judged(mixed())))
    document["comparison"]["deltas"][0] |= fields
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not what 'fusionbench check --json' writes"),
        (b"{", "is not what"),
        (b"[1]", "is not what"),
        (b"\xff\xfe", "is not what"),
        (b"[" * 100_000, "is not what"),
        (as_json.encode(mixed()), "is not what 'fusionbench check --json' writes: Object missing required field"),
        (broken(exit_code=0), "contradicts itself: exit code 0, and a gate that failed"),
        (broken(exit_code=0, rulings=[]), "contradicts itself: exit code 0, and no gate that passed"),
        (broken(exit_code=700), "contradicts itself: exit code 700"),
        (altered(ratio=-1.0), "a negative or infinite number in job 'cross_attention/sdpa/"),
        (altered(verdict="great"), "is not what"),
        (altered(changes=[{"fact": "flops", "base": 1, "head": 10**400, "worse": False}]), ""),
        (altered(rounds=-1), "a count out of range"),
        (altered(key="k" * 20_000), "is not what"),
    ],
)
def test_json_that_is_damaged_or_contradicts_itself_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "j.json").write_bytes(data)
    with pytest.raises(DamagedError) as caught:
        as_json.load(tmp_path / "j.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_of_a_newer_fusionbench_is_refused(tmp_path: Path) -> None:
    newer = json.loads(as_json.encode(mixed())) | {"v": 2}
    for data in (broken(v=2), b'{"v": 7}', broken(comparison=newer)):
        (tmp_path / "j.json").write_bytes(data)
        with pytest.raises(NewerSchemaError, match="is newer than this fusionbench"):
            as_json.load(tmp_path / "j.json")


def test_a_link_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "j.json"
    whole.write_bytes(as_json.encode(judged(mixed())))
    (tmp_path / "link").symlink_to(whole)
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(as_json.MAX_BYTES + 1)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "huge", "pipe", ""):
        with pytest.raises(StoreError, match="cannot read"):
            as_json.load(tmp_path / name)
    with pytest.raises(StoreError, match=r"no judgement at '.*absent'; write one with: fusionbench check --json"):
        as_json.load(tmp_path / "absent")


# files and the verb


def test_github_gets_annotations_and_a_summary_after_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files.write(judged(mixed()), github=True)
    assert capsys.readouterr().out.splitlines() == github.annotations(judged(mixed()))
    assert summary.read_text().startswith("before\n<!-- fusionbench:summary -->\n### ✗ failed")


def test_a_step_summary_stays_within_the_limit_however_full_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    for _ in range(3):
        files.write(judged(many(2000)), github=True)
        assert summary.stat().st_size <= 900_000


@pytest.fixture
def summarize(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    Path("j.json").write_bytes(as_json.encode(judged(mixed())))
    return lambda *arguments: call("summarize", *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_summarize_writes_what_is_asked_for_and_exits_with_0_whatever_was_judged(summarize) -> None:  # type: ignore[no-untyped-def]
    code, out, err = summarize(
        "j.json", "--comment", "c.md", "--markdown", "m.md", "--junit", "u.xml", "--link", "https://a.example/1"
    )
    assert (code, out.split(), err) == (0, ["m.md", "u.xml", "c.md"], "")
    assert "[The whole report](https://a.example/1)" in Path("c.md").read_text("utf-8")
    assert kinds(parsed(Path("u.xml").read_bytes()))[key()] == "failure"


def test_summarize_prints_the_comparison_when_nothing_else_is_asked_for(
    summarize, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = summarize("j.json")
    assert code == 0
    assert out.startswith("✗ failed: 3 regressions")
    assert "= same     1.002" not in out
    assert "early/sdpa" in summarize("j.json", "--all")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.json"], 2, "no judgement at 'none.json'; write one with: fusionbench check --json FILE"),
        (["empty.json"], 6, "'empty.json' is not what 'fusionbench check --json' writes: Input data was truncated"),
        (["j.json", "--comment", "c.md", "--link", "ftp://x"], 2, "link 'ftp://x' is no plain https address"),
    ],
)
def test_summarize_says_in_one_line_what_is_wrong(summarize, arguments: list[str], code: int, message: str) -> None:  # type: ignore[no-untyped-def]
    Path("empty.json").touch()
    found, out, err = summarize(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith(f"fusionbench: {message}")
    assert err.count("\n") == 1


def test_a_comment_needs_nothing_but_typer_and_msgspec(tmp_path: Path) -> None:
    """What the job may install that is allowed to write to a pull request."""
    (tmp_path / "j.json").write_bytes(as_json.encode(judged(mixed())))
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'pandas', 'rich', 'psutil', 'scipy', 'plotly', 'pyarrow', 'jinja2', 'pynvml', 'triton'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['fusionbench', 'summarize', 'j.json', '--comment', 'c.md', '--markdown', 'm.md', '--junit', 'u.xml', '--github']\n"
        "from fusionbench.cli import main\nmain()\n"
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "c.md").read_text("utf-8").startswith("<!-- fusionbench:summary -->")
