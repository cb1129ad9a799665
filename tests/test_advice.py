"""Advice from records whose times are known: who is advised, who is not and why, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from fusionbench import advising, counsel, store
from fusionbench.advice import Advice, Limits, advise
from fusionbench.calibration import LEVEL
from fusionbench.errors import FusionbenchError, NothingError
from fusionbench.record import Accuracy, Deviation, Environment, Memory, Record, Roofline
from fusionbench.spec import Case, Job, Shape
from fusionbench.subject import closed_form
from tests.command import call
from tests.comparing import here, run, timing

LENGTHS = (16, 64, 256, 1024)
# Candidates with how fast they compute, what a call costs beside that, their bytes beyond inputs and their error.
PACES = {
    ("cross_attention", "sdpa"): (1.0, 0.01, 1.0, 1e-6),
    ("cross_attention", "eager"): (0.5, 0.01, 3.0, 1e-6),
    ("concat_attention", "sdpa"): (1.0, 0.01, 1.0, 1e-6),
    ("late", "sdpa"): (0.97, 0.01, 1.0, 1e-3),
}
HERE = here()
ROOFLINE = Roofline(
    device="cpu", dtype="fp32", threads=1, environment=HERE.id, flops_per_s=1e11,
    bytes_per_s=((1 << 15, 9e10), (1 << 28, 1e10)), measured_at="2026-11-21T00:00:00+00:00",
)  # fmt: skip


def case(image: int = 128, text: int = 100, **conditions: object) -> Case:
    sizes = {"batch": 1, "image_width": 64, "text_width": 64, "width": 64, "heads": 1}
    return Case(shape=Shape(image=image, text=text, **sizes), **conditions)  # type: ignore[arg-type]


def record(strategy: str, backend: str, at: Case, **changes: object) -> Record:
    pace, beside, bytes_, error = PACES[strategy, backend]
    job = Job(strategy=strategy, backend=backend, case=at)
    ms = beside + closed_form(job, "sdpa", None).flops / 1e8 / pace
    deviation = Deviation(max_abs=error, mean_abs=error, rel_l2=error, cosine=1.0)
    plain = Record(
        job=job,
        status="ok",
        time=timing(ms, seed=at.shape.image * 7 + at.shape.text),
        memory=Memory(peak_bytes=int(bytes_ * 2**20), resting_bytes=100, meter="cpu_profiler"),
        accuracy=Accuracy(reference="fp64", samples=1, output=deviation, yardstick=deviation),
        costs=closed_form(job, "sdpa", None),
        source="s1",
        environment=HERE.id,
        started_at="2026-11-21T00:00:00.000+00:00",
    )
    return replace(plain, **changes)


def sweep(names: Sequence[tuple[str, str]] = tuple(PACES)) -> Iterator[Record]:
    for name, image, text in itertools.product(names, LENGTHS, LENGTHS):
        yield record(*name, case(image, text))


def told(records: Sequence[Record] | None = None, **options: object) -> Advice:
    environments = options.pop("environments", {HERE.id: HERE})
    asked = options.pop("case", case())
    found = list(sweep()) if records is None else records
    return advise(asked, found, environments, [ROOFLINE], **options)  # type: ignore[arg-type]


def named(found: Advice) -> dict[str, object]:
    return {each.name: each for each in found.candidates}


def test_the_fastest_is_advised_with_what_is_surer_or_smaller_and_the_others_say_what_dominates_them() -> None:
    found = told()
    each = named(found)
    assert found.advised[0].name == min(each, key=lambda name: each[name].latency.value)  # type: ignore[attr-defined]
    eager = each["cross_attention/eager"]
    assert eager.place == "dominated"  # type: ignore[attr-defined]
    assert eager.why.startswith("late/sdpa is") or eager.why.startswith("cross_attention/sdpa is")  # type: ignore[attr-defined]
    assert "× faster [" in eager.why  # type: ignore[attr-defined]
    # Late fusion is the fastest here and errs a thousand times as much: both stay.
    assert each["cross_attention/sdpa"].place == "advised"  # type: ignore[attr-defined]
    assert not each["cross_attention/sdpa"].tie  # type: ignore[attr-defined]


def test_predictions_are_near_the_truth_and_their_intervals_hold_it() -> None:
    for each in told().candidates:
        truth = record(each.strategy, each.backend, case())
        ms = sum(truth.time.calls_ns) / len(truth.time.calls_ns) / 1e6  # type: ignore[union-attr]
        assert each.latency.value == pytest.approx(ms, rel=0.05)
        assert each.latency.low <= ms <= each.latency.high
        assert each.memory is not None
        assert each.memory.value == pytest.approx(PACES[each.strategy, each.backend][2], rel=0.05)


def test_what_was_measured_at_this_very_shape_is_no_prediction() -> None:
    found = told([*sweep(), record("late", "sdpa", case())])
    late = named(found)["late/sdpa"]
    assert (late.measured, late.latency.own) == (True, 1)  # type: ignore[attr-defined]
    assert [each.measured for each in found.candidates].count(True) == 1


def test_two_of_one_speed_are_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = ("late:vote", "sdpa")
    monkeypatch.setitem(PACES, twin, PACES["late", "sdpa"])
    found = told(list(sweep([("late", "sdpa"), twin])))
    assert {each.name for each in found.advised if each.tie} == {"late/sdpa", "late:vote/sdpa"}
    assert counsel.answer(found).startswith("no clear winner: late")


def test_limits_put_out_what_surely_does_not_keep_them() -> None:
    times = {each.name: each.latency for each in told().candidates}
    between = (times["cross_attention/sdpa"].high + times["cross_attention/eager"].low) / 2
    found = told(limits=Limits(ms=between))
    over = named(found)["cross_attention/eager"]
    assert over.place == "over budget"  # type: ignore[attr-defined]
    assert over.why.startswith("takes ")  # type: ignore[attr-defined]
    assert named(told(limits=Limits(error=1e-5)))["late/sdpa"].place == "over budget"  # type: ignore[attr-defined]
    assert told(limits=Limits(ms=1e-9)).advised == ()
    assert counsel.answer(told(limits=Limits(ms=1e-9))) == "no candidate keeps the limits"


def test_sizes_beyond_the_records_are_named() -> None:
    found = told(case=case(image=5000))
    assert found.candidates[0].outside == ("image 5,000 (measured 16 to 1,024)",)
    assert told().candidates[0].outside == ()


def test_the_nearest_measured_jobs_are_named_with_what_differs() -> None:
    near = told(case=case(250, 64)).candidates[0].nearest[0]
    assert "i256x64-t64x64" in near.key
    assert near.apart == ("image 256",)


def test_a_candidate_with_hardly_any_records_is_told_from_the_others_less_surely() -> None:
    records = [*sweep([name for name in PACES if name[0] != "late"]), record("late", "sdpa", case(64, 64))]
    each = named(told(records))
    assert each["late/sdpa"].latency.own == 1  # type: ignore[attr-defined]
    wide, narrow = (each[name].latency for name in ("late/sdpa", "cross_attention/sdpa"))  # type: ignore[attr-defined]
    assert wide.high / wide.low > narrow.high / narrow.low
    assert each["late/sdpa"].memory is None  # type: ignore[attr-defined]


def test_who_is_told_from_the_others_dominates_nobody() -> None:
    records = [*sweep([name for name in PACES if name[0] == "cross_attention"]), record("late", "sdpa", case(64, 64))]
    fast = replace(records[-1], time=timing(1e-4))
    assert not any("late" in each.why for each in told([*records[:-1], fast]).candidates)


def test_only_the_strategies_named_are_candidates() -> None:
    assert {each.strategy for each in told(strategies=("late", "concat_attention")).candidates} == {
        "late", "concat_attention",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"status": "wrong"}, False),
        ({"time": None}, False),
        ({"job": Job(strategy="of_no_plugin", backend="sdpa", case=case())}, False),
        ({"job": Job(strategy="late", backend="sdpa", case=case(dtype="bf16"))}, False),
        ({"job": Job(strategy="late", backend="sdpa", case=case(padding=0.5))}, False),
        ({"job": Job(strategy="late", backend="sdpa", case=case(prune="2:4"))}, False),
        ({"job": Job(strategy="late", backend="sdpa", case=case(projector="identity"))}, True),
    ],
)
def test_records_of_other_conditions_and_failures_say_nothing(changes: dict[str, object], kept: bool) -> None:
    records = list(sweep())
    assert told([*records, record("late", "sdpa", case(), **changes)]).records == len(records) + kept


def test_times_of_two_machines_are_not_mixed() -> None:
    other = here(machine="far", cpu="Xeon")
    theirs = [replace(each, environment=other.id) for each in sweep()]
    both: dict[str, Environment] = {HERE.id: HERE, other.id: other}
    with pytest.raises(FusionbenchError, match="name one with --machine: 'far', 'm'"):
        told([*sweep(), *theirs], environments=both)
    assert told([*sweep(), *theirs], environments=both, machine="far").machine == "far"
    assert told([*sweep(), *theirs], environments=both, here=HERE.id).machine == "m"
    with pytest.raises(NothingError, match="no record of machine 'none'"):
        told([*sweep(), *theirs], environments=both, machine="none")


def test_records_by_another_timer_are_left_out_and_counted() -> None:
    threads = [replace(each, time=timing(1.0, threads=2)) for each in itertools.islice(sweep(), 3)]
    elsewhere = [replace(each, job=replace(each.job, case=case(17, number))) for number, each in enumerate(threads, 1)]
    assert "3 records with another timer or number of threads left out" in told([*sweep(), *elsewhere]).notes


def test_nothing_to_advise_from_says_what_to_measure() -> None:
    with pytest.raises(NothingError, match=r"no record in fp16 on 'cuda', mode 'fwd'.*fusionbench run lengths"):
        told(case=case(dtype="fp16", device="cuda"))


def test_a_rival_beyond_the_limits_is_not_told_as_unmeasured() -> None:
    both = list(sweep([("cross_attention", "sdpa"), ("cross_attention", "eager")]))
    assert counsel.answer(told(both, limits=Limits(ms=0.25))).endswith("; no other keeps the limits")
    assert counsel.answer(told(both[: len(both) // 2])).endswith("; nothing else was measured")


# the verb


@pytest.fixture
def fusionbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    run(tmp_path / "results" / "runs", *sweep(), where=HERE)
    sizes = ("--image", "128", "--text", "100", "--width", "64", "--machine", "m")
    return lambda *arguments: call("advise", *sizes, *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_advise_answers_in_a_sentence_and_a_table_and_names_the_command_that_settles_it(fusionbench) -> None:  # type: ignore[no-untyped-def]
    code, out, err = fusionbench()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "128 image × 100 text tokens, width 64, 1 head, fp32 on EPYC, fwd:"
    assert lines[1].startswith("take cross_attention/sdpa, predicted at ")
    assert f"{LEVEL:.0%} interval" in out
    assert "from 64 records of m" in out
    assert lines[-1] == "    fusionbench advise --image 128 --text 100 --width 64 --machine m --measure"


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_the_answer_fits_any_terminal(fusionbench, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = fusionbench()
    wide = [line for line in out.splitlines() if len(line) > columns]
    assert [line.strip().split()[:2] for line in wide] in ([], [["fusionbench", "advise"]])
    assert out.endswith(" --measure\n")  # the command is whole, to be copied
    assert columns < 60 or "  cross_attention/sdpa  " in out  # nor is a name folded where there is room for it


def test_scripts_get_json(fusionbench) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = fusionbench("--json")
    found = json.loads(out)
    assert code == 0
    assert found["candidates"][0]["place"] == "advised"
    assert found["candidates"][0]["latency"].keys() == {"value", "low", "high", "own"}


def test_no_candidate_within_the_limits_is_exit_code_5(fusionbench) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = fusionbench("--budget-ms", "0.000001")
    assert code == 5
    assert "no candidate keeps the limits" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--heads", "7"), 2, "width 64 is no multiple of 7 heads; name others with --heads"),
        (("--dtype", "fp99"), 2, "advise: dtypes: no dtype named 'fp99'; did you mean 'fp"),
        (("--mode", "forward"), 2, "advise: modes: no mode named 'forward'"),
        (("--device", "gpu"), 2, "advise: devices: no device named 'gpu' (use cpu, cuda or cuda:N)"),
        (("--strategy", "cros_attention"), 2, "no strategy named 'cros_attention'; did you mean 'cross_attention'?"),
        (("--preset", "lava"), 2, "--preset: no preset named 'lava'; did you mean"),
        (("--dtype", "bf16"), 5, "no record of machine 'm' in bf16 on 'cpu', mode 'fwd', to advise from"),
    ],
)
def test_bad_input_is_one_line(fusionbench, arguments: tuple[str, ...], code: int, message: str) -> None:  # type: ignore[no-untyped-def]
    found, out, err = fusionbench(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith(f"fusionbench: {message}")
    assert err.count("\n") == 1


def test_sizes_that_nobody_gave_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("advise", "--image", "8", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (2, "fusionbench: how many text tokens? give --text N, or --preset NAME\n")


def test_a_preset_gives_the_sizes_that_are_not_named() -> None:
    asked = advising.Request(
        sizes={"text": 7}, preset="vit-b16+bert-base", dtype="fp32", device="cpu", mode="fwd", limits=Limits(),
        results=Path(), machine=None, strategies=(), plugins=(),
    )  # fmt: skip
    shape = advising.case_of(asked).shape
    assert (shape.image, shape.text, shape.width) == (197, 7, 768)


def test_measuring_settles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For real: two candidates measured at one shape are advised on at another, and then measured there."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(
        'title = "small"\n[budget]\nmeasure_s = 0.02\nrounds = 1\nmax_samples = 8\n[[sweep]]\n'
        'strategies = ["cross_attention", "concat_attention"]\nbackends = ["sdpa"]\nimage = [4, 8, 16, 32]\ntext = [4]\n'
        "image_width = [16]\ntext_width = [16]\nwidth = [16]\nheads = [2]\n"
    )
    assert call("run", "small.toml", "-q", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    asked = ("advise", "--image", "12", "--text", "4", "--width", "16", "--heads", "2")
    code, before, _ = call(*asked, "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert not any(each["measured"] for each in json.loads(before)["candidates"])
    code, after, _ = call(*asked, "--json", "--measure", "-q", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    found = {each["strategy"]: each for each in json.loads(after)["candidates"]}
    assert any(each["measured"] for each in found.values())
    assert len(store.runs(Path("results/runs"))) == 2
    assert sys.argv[1] == "advise"


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_candidate_is_one_line_and_loses_columns_rather_than_its_name(width: int) -> None:
    found = told()
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(counsel.show(found, width=width, settle=""), crop=False)
    lines = out.getvalue().splitlines()
    assert [line for line in lines if cell_len(line) > width] == []
    for each in found.advised:
        assert sum(each.name in line[: len(each.name) + 2] for line in lines) == 1
