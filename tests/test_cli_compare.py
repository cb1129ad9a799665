"""compare, check and baseline update as a user meets them: exit codes, one-line refusals, files."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from fusionbench import baseline, checking, inspection, session, store
from fusionbench.inspection import Inspected, Inspection
from fusionbench.record import Environment, Record
from fusionbench.runner import Outcome
from fusionbench.sealed import seal_run
from tests.command import call
from tests.comparing import COSTS, failed, here, kept, record, run, timing

ROOT = Path(__file__).parents[1]
FusionBench = Callable[..., tuple[int, str, str]]
ONE = Inspected(
    "combine", "sm_90", {"head_dim": 64}, {"BLOCK_Q": 64}, 100, 0, 2048, 232448, 4096, {"all": 900, "HGMMA": 8}
)  # fmt: skip
TINY = """
title = "Tiny"
[budget]
measure_s = 0.02
[[sweep]]
strategies = ["cross_attention"]
backends = ["eager", "sdpa"]
image = [7]
text = [3]
image_width = [16]
text_width = [8]
width = [16]
heads = [2]
devices = ["cpu"]
"""


@pytest.fixture
def fusionbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FusionBench:
    """The command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    return lambda *arguments: call(*arguments, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return run(tmp_path / "base", record(1), record(2)).path


def refused(found: tuple[int, str, str], code: int, message: str) -> None:
    """Refused in one line."""
    assert found[0] == code, found
    assert message in found[2]
    assert found[2].count("\n") == 1
    assert found[1] == ""


# --- compare -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [[record(1), record(2)], [record(1, ms=9), failed(2)], [record(2, launches=99)]])
def test_comparing_judges_nothing(fusionbench: FusionBench, base: Path, tmp_path: Path, head: list[Record]) -> None:
    code, out, _ = fusionbench("compare", base, run(tmp_path / "head", *head).path)
    assert code == 0
    assert "compared" in out


def test_a_run_a_shard_a_sealed_file_and_a_baseline_are_told_by_their_content(
    fusionbench: FusionBench, base: Path, tmp_path: Path
) -> None:
    kept(store.read(base), tmp_path / "baseline")
    shard = next((base / "shards").iterdir())
    sealed = seal_run(base, tmp_path / "sealed").resolve()
    for one in (base, tmp_path / "baseline", shard, sealed):
        for other in (base, tmp_path / "baseline"):
            code, out, err = fusionbench("compare", one, other)
            assert (code, err) == (0, ""), one
            assert "2 jobs compared" in out


def test_a_comparison_is_written_as_json_and_markdown(fusionbench: FusionBench, base: Path, tmp_path: Path) -> None:
    head = run(tmp_path / "head", record(1, ms=1.3, seed=1), record(2, launches=43)).path
    code, _, _ = fusionbench("compare", base, head, "--json", "c.json", "--markdown", "c.md", "--all")
    assert code == 0
    found = json.loads(Path("c.json").read_text())
    assert [delta["verdict"] for delta in found["deltas"]] == ["slower", "same"]
    assert "launches" in Path("c.md").read_text()


def test_json_on_the_standard_output_stands_there_alone(fusionbench: FusionBench, base: Path, file: Path) -> None:
    code, out, err = fusionbench("compare", base, base, "--json", "-")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["deltas"]) == 2
    code, out, err = fusionbench("check", base, "--baseline", file, "--json", "-")
    assert (code, err) == (0, "")
    assert json.loads(out)["exit_code"] == 0


def test_nothing_in_common_is_no_comparison(fusionbench: FusionBench, base: Path, tmp_path: Path) -> None:
    code, _, err = fusionbench("compare", base, run(tmp_path / "head", record(3)).path)
    assert (code, err) == (5, "fusionbench: the two have no job in common\n")


@pytest.mark.parametrize("verb", [("compare",), ("check", "--baseline")])
@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda path: None, 2, "no "),
        (lambda path: path.mkdir(), 2, "not a run"),
        (lambda path: path.write_text(""), 5, "is empty"),
        (lambda path: path.write_text("{}"), 2, "neither a run, a shard"),
        (lambda path: path.write_bytes(os.urandom(9999)), 2, "neither a run, a shard"),
        (lambda path: path.write_bytes(b"PAR1 and then nothing"), 6, "cannot be read as a sealed run"),
        (lambda path: shutil.copy(ROOT / "results/baseline/kernels.json", path), 2, "neither a run, a shard"),
        (lambda path: os.mkfifo(path), 2, "not a regular file"),
    ],
)
def test_what_cannot_be_read_is_refused_whichever_side_it_is(
    fusionbench: FusionBench, base: Path, tmp_path: Path, verb: tuple[str, ...], make: Any, code: int, message: str
) -> None:
    path = tmp_path / "thing"
    make(path)
    if verb == ("compare",):
        for pair in ((base, path), (path, base)):
            refused(fusionbench("compare", *pair), code, message)
    elif path.is_dir() or not path.is_file():
        refused(fusionbench("check", base, "--baseline", path), 2, "")
    else:
        found = fusionbench("check", base, "--baseline", path)
        assert found[0] in (2, 5, 6)
        assert found[0] == 5 or "baseline" in found[2]


# --- check ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(base: Path, tmp_path: Path) -> Path:
    kept(store.read(base), tmp_path / "b.json")
    return tmp_path / "b.json"


@pytest.mark.parametrize(
    ("head", "gates", "code"),
    [
        ([record(1, seed=1), record(2, seed=1)], (), 0),
        ([record(1, launches=41), record(2)], (), 0),
        ([record(1, launches=43), record(2)], (), 1),
        ([record(1, launches=43), record(2)], ("timing",), 0),
        ([record(1), failed(2)], (), 1),
        ([record(1)], ("deterministic",), 1),
        ([record(1, ms=1.3, seed=1), record(2)], ("deterministic",), 0),
        ([record(1, ms=1.3, seed=1), record(2)], (), 0),  # the commit is the same: it is the machine that was slower
        ([record(1, time=timing(rounds=2)), record(2, time=timing(rounds=2))], ("timing",), 5),
    ],
)
def test_the_exit_code_is_the_judgement(
    fusionbench: FusionBench, file: Path, tmp_path: Path, head: list[Record], gates: tuple[str, ...], code: int
) -> None:
    path = run(tmp_path / "head", *head).path
    options = [argument for gate in gates for argument in ("--gate", gate)]
    found = fusionbench("check", path, "--baseline", file, *options)
    assert found[0] == code, found


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (here(commit="beef" * 10), "suite 'smoke' ("),  # the suite of today is not that of the baseline
        (here(dirty=True), "the run is of uncommitted changes, which may be gone; commit, and measure it anew"),
    ],
)
def test_a_suspect_that_cannot_be_measured_again_is_not_judged(
    fusionbench: FusionBench, file: Path, tmp_path: Path, where: Environment, words: str
) -> None:
    path = run(tmp_path / "head", record(1, ms=1.3, seed=1), record(2), where=where).path
    code, out, _ = fusionbench("check", path, "--baseline", file)
    assert code == 5
    assert "timing gate not judged" in out
    assert f"could not be measured again: {words}" in " ".join(out.split())


def test_a_plugin_that_got_slower_under_the_same_fusionbench_is_no_noise_of_the_machine(
    fusionbench: FusionBench, tmp_path: Path
) -> None:
    """The commit that records tell is fusionbench's, not that of the code beside it."""
    Path("own.py").write_text("")
    kept(run(tmp_path / "base", record(1), plugins=("own.py",)), tmp_path / "b.json")
    head = run(tmp_path / "head", record(1, ms=1.3, seed=1)).path
    code, out, _ = fusionbench("check", head, "--baseline", "b.json", "--plugin", "own.py")
    assert code == 5
    assert "the baseline does not say its commit" in " ".join(out.split())


def test_a_baseline_of_another_machine_judges_facts_and_no_times(
    fusionbench: FusionBench, file: Path, tmp_path: Path
) -> None:
    head = run(tmp_path / "head", record(1), record(2), where=here(machine="elsewhere")).path
    code, out, _ = fusionbench("check", head, "--baseline", file)
    assert code == 5
    assert "machine m → elsewhere" in out
    assert fusionbench("check", head, "--baseline", file, "--gate", "deterministic")[0] == 0
    assert fusionbench("check", head, "--baseline", file, "--machine", "m")[0] == 0


def test_a_baseline_of_other_libraries_says_what_it_did_not_compare(
    fusionbench: FusionBench, file: Path, tmp_path: Path
) -> None:
    worse = [record(number, launches=99) for number in (1, 2)]
    head = run(tmp_path / "head", *worse, where=here(torch="2.14.0")).path
    fusionbench("check", head, "--baseline", file, "--gate", "deterministic", "--json", "j.json")
    judged = json.loads(Path("j.json").read_text())
    assert judged["exit_code"] == 0
    (note,) = judged["comparison"]["notes"]
    assert note == "counted_flops, peak_bytes, launches, kernels not compared: torch 2.13.0 → 2.14.0 (2 jobs)"


@pytest.mark.parametrize(
    ("edit", "code", "message"),
    [
        (lambda text: "", 5, "is empty"),
        (lambda text: text[:500], 6, "is damaged: its end is missing"),
        (lambda text: text.replace('"flops":1000', '"flops":1'), 6, "is damaged: its checksum"),
        (lambda text: text.replace('{"key"', '<<<<<<< HEAD\n{"key"', 1), 6, "marks of a merge conflict"),
        (lambda text: text.replace('"v":1', '"v":2'), 2, "schema 2 is newer"),
        (lambda text: "title = 'no'", 2, "is no baseline"),
    ],
)
def test_a_baseline_that_is_none_never_passes(
    fusionbench: FusionBench, base: Path, file: Path, edit: Callable[[str], str], code: int, message: str
) -> None:
    file.write_text(edit(file.read_text()))
    refused(fusionbench("check", base, "--baseline", file), code, message)
    assert fusionbench("check", base, "--baseline", file, "--gate", "deterministic")[0] == code


def test_a_damaged_run_and_a_baseline_in_its_place_are_not_judged(
    fusionbench: FusionBench, base: Path, file: Path
) -> None:
    refused(fusionbench("check", file, "--baseline", file), 2, "is a baseline; give the run to judge")
    refused(fusionbench("baseline", "update", file, "--reason", "x"), 2, "is a baseline; give the run to keep")
    (shard,) = (base / "shards").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(lines[0] + lines[1].replace(b"concat", b"cancat") + lines[2])
    refused(fusionbench("check", base, "--baseline", file), 6, "is damaged")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to judge by; name a baseline with --baseline FILE"),
        (("--baseline", "b.json", "--gate", "timings"), "no gate named 'timings'; did you mean 'timing'?"),
        (("--baseline", "b.json", "--baseline", "b.json"), "are both of suites; check them one by one"),
        (("--baseline", "none.json"), "no baseline at 'none.json'"),
        (("--baseline", "b.json", "--json", "."), "cannot write '.': is a directory; name a file in it"),
        (("--baseline", "b.json", "--junit", "b.json/x"), "cannot write 'b.json/x': not a directory; choose a folder"),
        (("--baseline", "b.json", "--json", "x" * 300), "file name too long; choose a shorter name"),
        (("--baseline", "b.json", "--json", "-", "--junit", "-"), "only one of the outputs can be '-'"),
        (("--baseline", "k.json"), "no baseline to judge 'base"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(
    fusionbench: FusionBench, base: Path, file: Path, arguments: tuple[str, ...], message: str
) -> None:
    inspection.save(Inspection(version("triton"), [ONE]), Path("k.json"))
    refused(fusionbench("check", base.relative_to(Path.cwd()), *arguments), 2, message)


def test_a_judgement_is_published(
    fusionbench: FusionBench, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    head = run(tmp_path / "head", record(1, costs=replace(COSTS, flops=2000)), record(2)).path
    files = {name: tmp_path / f"out.{name}" for name in ("json", "markdown", "junit", "comment")}
    options = [argument for name, path in files.items() for argument in (f"--{name}", path)]
    code, out, _ = fusionbench("check", head, "--baseline", file, "--gate", "deterministic", "--github", *options)
    assert code == 1
    assert "::error" in out
    assert summary.read_text().startswith("before\n")
    assert len(summary.read_text()) > 100
    assert json.loads(files["json"].read_text())["exit_code"] == 1
    assert int(ET.parse(files["junit"]).getroot().attrib["failures"]) == 1  # noqa: S314 - of ours
    assert "flops" in files["markdown"].read_text()
    assert "flops" in files["comment"].read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_judgement_that_cannot_be_kept_is_told(fusionbench: FusionBench, base: Path, file: Path) -> None:
    code, out, err = fusionbench("check", base, "--baseline", file, "--json", "/dev/full")
    assert (code, out.startswith("✓ passed")) == (2, True)
    assert "no space left on device" in err


def test_under_strict_times_of_a_disturbed_machine_are_not_judged_and_facts_are(
    fusionbench: FusionBench, file: Path, tmp_path: Path
) -> None:
    disturbed = timing()
    disturbed = replace(disturbed, run_delay_ns=tuple(each // 2 for each in disturbed.samples_ns))
    head = run(tmp_path / "head", record(1, time=disturbed), record(2)).path
    refused(fusionbench("check", head, "--baseline", file, "--strict"), 4, "not measured in peace: concat/eager")
    assert fusionbench("check", head, "--baseline", file, "--strict", "--gate", "deterministic")[0] == 0


# --- check, measuring ----------------------------------------------------------------------------------------------


def test_the_suite_of_a_baseline_is_measured_and_judged(fusionbench: FusionBench) -> None:
    Path("tiny.toml").write_text(TINY)
    assert fusionbench("run", "tiny.toml", "--rounds", "1", "-q")[0] == 0
    code, out, _ = fusionbench("baseline", "update", "--reason", "first", "--machine", "ci")
    assert (code, out.splitlines()[-1]) == (0, "results/baseline/ci/tiny.json")
    made = baseline.load(Path("results/baseline/ci/tiny.json"))
    assert all(None not in (job.facts.launches, job.facts.peak_bytes, job.facts.flops) for job in made.jobs)

    check = ("check", "--baseline", "results/baseline/ci/tiny.json", "--gate", "deterministic", "-q")
    refused(fusionbench(*check), 2, "no suite named 'tiny' is shipped; name the baseline's with --suite FILE")
    code, out, _ = fusionbench(*check, "--suite", "tiny.toml", "--machine", "ci")
    assert code == 0, out
    assert "deterministic gate passed: 2 judged" in out
    newest = next(iter(store.runs(Path("results/runs"))))
    measured = store.read(newest)
    assert {environment.machine for environment in measured.environments.values()} == {"ci"}
    assert measured.manifest is not None
    assert (measured.manifest.budget.rounds, measured.manifest.budget.max_samples) == (1, 6)

    # what a change that costs a fact looks like: the baseline had less
    cheaper = [replace(job, facts=replace(job.facts, launches=(job.facts.launches or 0) - 1)) for job in made.jobs]
    Path("results/baseline/ci/tiny.json").write_bytes(baseline.encode(replace(made, jobs=tuple(cheaper))))
    assert fusionbench(*check, newest)[0] == 1

    Path("tiny.toml").write_text(TINY + "# edited\n")
    refused(fusionbench(*check, "--suite", "tiny.toml"), 2, "name that with --suite FILE, or write the baseline anew")


def test_an_unfit_gpu_is_not_judged_under_strict(
    fusionbench: FusionBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = baseline.of(run(tmp_path / "runs", record()), "why")
    Path("b.json").write_bytes(baseline.encode(replace(made, suite_hash=checking.suites.read("smoke").hash)))
    monkeypatch.setattr(session.fitness, "warnings", lambda devices: ["it is hot"])
    refused(fusionbench("check", "--baseline", "b.json", "-q", "--strict"), 4, "--strict: it is hot")


def test_a_baseline_is_not_trusted_to_name_code(fusionbench: FusionBench, tmp_path: Path) -> None:
    found = run(tmp_path / "runs", record(), plugins=["/somewhere/gated.py"])
    made = replace(baseline.of(found, "why"), suite_hash=checking.suites.read("smoke").hash)
    Path("b.json").write_bytes(baseline.encode(made))
    refused(fusionbench("check", "--baseline", "b.json"), 2, "the baseline needs the plugin 'gated.py'; give it with")


def test_an_interruption_judges_nothing(
    fusionbench: FusionBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = baseline.of(run(tmp_path / "runs", record()), "why")
    Path("b.json").write_bytes(baseline.encode(replace(made, suite_hash=checking.suites.read("smoke").hash)))
    monkeypatch.setattr(session, "measure", lambda *_, **__: Outcome(signal=2))
    refused(fusionbench("check", "--baseline", "b.json", "-q"), 130, "interrupted, nothing was judged")


# --- check, kernels ------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Inspected]:
    """What the compiler will be said to have made."""
    made = [ONE]
    monkeypatch.setattr(inspection, "planned", lambda: ["a row"])
    monkeypatch.setattr(inspection, "among", lambda rows, base: rows)
    monkeypatch.setattr(inspection, "inspect", lambda rows: iter(made))
    return made


def test_a_profile_of_kernels_is_judged_by_compiling_them_again(
    fusionbench: FusionBench, compiled: list[Inspected]
) -> None:
    inspection.save(Inspection(version("triton"), [ONE]), Path("k.json"))
    code, out, _ = fusionbench("check", "--baseline", "k.json")
    assert code == 0, out
    assert "deterministic gate passed: 1 judged" in out
    compiled[0] = msgspec.structs.replace(ONE, spill_bytes=8)
    code, out, _ = fusionbench("check", "--baseline", "k.json", "--json", "j.json")
    assert code == 1
    (ruling,) = json.loads(Path("j.json").read_text())["rulings"]
    assert ruling["failures"] == [["combine/sm_90/head_dim ≤ 64", "spill_bytes 0 -> 8"]]
    assert fusionbench("check", "--baseline", "k.json", "--gate", "timing")[0] == 5


def test_a_profile_by_another_compiler_is_not_judged(fusionbench: FusionBench, compiled: list[Inspected]) -> None:
    inspection.save(Inspection("1.0", [ONE]), Path("k.json"))
    code, out, _ = fusionbench("check", "--baseline", "k.json")
    assert code == 5
    assert f"of triton 1.0, this is {version('triton')}; they are not compared" in out


def test_one_command_judges_jobs_and_kernels(
    fusionbench: FusionBench, base: Path, file: Path, compiled: list[Inspected]
) -> None:
    inspection.save(Inspection(version("triton"), [ONE]), Path("k.json"))
    check = ("check", base, "--baseline", file, "--baseline", "k.json", "--gate", "deterministic", "--json", "j.json")
    assert fusionbench(*check)[0] == 0
    compiled[0] = msgspec.structs.replace(ONE, registers=200)
    assert fusionbench(*check)[0] == 1
    rulings = json.loads(Path("j.json").read_text())["rulings"]
    assert [(ruling["outcome"], ruling["judged"]) for ruling in rulings] == [("passed", 2), ("failed", 1)]


def test_only_the_rows_that_a_profile_names_are_compiled() -> None:
    rows = inspection.planned(["sm_90"], ["combine"])
    whole = inspection.load(ROOT / "results" / "baseline" / "kernels.json")
    assert inspection.among(rows, whole) == rows
    assert inspection.among(rows, replace(whole, profiles=[])) == []


# --- baseline update -----------------------------------------------------------------------------------------------


def test_a_baseline_without_a_reason_is_not_written(fusionbench: FusionBench, base: Path) -> None:
    for reason in ((), ("--reason", " ")):
        refused(
            fusionbench("baseline", "update", base, *reason), 2, "a baseline needs a reason, for whoever reviews it"
        )
    assert not Path("results").exists()


def test_a_baseline_is_written_where_its_machine_is_and_says_what_changed(
    fusionbench: FusionBench, base: Path, tmp_path: Path
) -> None:
    code, out, _ = fusionbench("baseline", "update", base, "--reason", "first")
    assert (code, out) == (0, "a new baseline of 2 jobs of suite 'smoke'\nresults/baseline/m/smoke.json\n")
    head = run(tmp_path / "head", record(1, launches=40), record(3)).path
    code, out, err = fusionbench("baseline", "update", head, "--reason", "one fused, one dropped")
    assert (code, err) == (0, "")
    assert f"{record(1).job.key}: launches 42 → 40 (-4.76%)" in out
    assert "2 jobs: 1 facts changed, 1 new, 1 missing, 0 fixed, 0 broken" in out
    assert baseline.load(Path("results/baseline/m/smoke.json")).reason == "one fused, one dropped"
    assert (Path("results/baseline/m/smoke.json").stat().st_mode & 0o777) == 0o644


def test_the_newest_run_is_kept_and_another_file_may_be_named(fusionbench: FusionBench, base: Path) -> None:
    code, out, _ = fusionbench("baseline", "update", "--results", base.parent, "--reason", "x", "-o", "deep/er/b.json")
    assert (code, out.splitlines()[-1]) == (0, "deep/er/b.json")


def test_a_baseline_that_nobody_could_confirm_says_so(fusionbench: FusionBench, tmp_path: Path) -> None:
    dirty = run(tmp_path / "runs", record(), where=here(dirty=True)).path
    code, out, _ = fusionbench("baseline", "update", dirty, "--reason", "x")
    assert code == 0
    assert "its commit is not known or had changes" in out


@pytest.mark.parametrize(
    ("items", "paper", "code", "message"),
    [
        ((record(1), failed(2)), {}, 2, "has failures and is no baseline"),
        ((record(1),), {"planned": 3}, 2, "is not complete; finish it with: fusionbench resume"),
        ((record(status="skipped", time=None),), {}, 5, "every job was skipped"),
    ],
)
def test_a_run_that_is_not_fit_to_judge_by_is_refused(
    fusionbench: FusionBench, tmp_path: Path, items: tuple[Record, ...], paper: dict[str, Any], code: int, message: str
) -> None:
    path = run(tmp_path / "runs", *items, **paper).path
    refused(fusionbench("baseline", "update", path, "--reason", "x"), code, message)


def test_a_file_that_is_no_baseline_is_not_overwritten_and_a_damaged_one_is(
    fusionbench: FusionBench, base: Path
) -> None:
    update = ("baseline", "update", base, "--reason", "x", "-o", "b.json")
    Path("b.json").write_text("my notes")
    refused(fusionbench(*update), 2, "nothing is overwritten: 'b.json' is no baseline")
    assert Path("b.json").read_text() == "my notes"
    Path("b.json").unlink()
    assert fusionbench(*update)[0] == 0
    newer = Path("b.json").read_text().replace('"v":1', '"v":2')
    Path("b.json").write_text(newer)
    refused(fusionbench(*update), 2, "schema 2 is newer")
    Path("b.json").write_text(newer.replace('"v":2', '"v":1')[:-40])
    code, _, err = fusionbench(*update)
    assert (code, "replaced unread: baseline 'b.json' is damaged" in err) == (0, True)
    assert baseline.load(Path("b.json"))
