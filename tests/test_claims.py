"""The claims ledger: every claim is checked, exact figures are exact, and a ledger from elsewhere can do no harm."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console

from fusionbench import findings, ledger
from fusionbench.claims import costs, paired, run, systems, table
from fusionbench.claims.check import Answer, Lab, judged
from fusionbench.disk import NewerSchemaError
from fusionbench.errors import StoreError
from fusionbench.ledger import VERDICTS, Claim, Figure, Finding, Ledger
from fusionbench.meters.flops import Counted
from fusionbench.report import page
from fusionbench.report.frame import frame
from tests.browser import Visit, browser, chromium
from tests.command import call
from tests.hostile import TEXTS
from tests.synthetic import ENVIRONMENTS, smoke
from tests.test_cli import started

QUICK = Lab(seconds=0.01)
IDS = [f"C{number}" for number in range(1, 29)]
# What follows from no timing. The others (C5, C20, C24) depend on the machine.
EXPECTED = {
    **dict.fromkeys(("C1", "C4", "C12", "C13"), "needs the quality track"),
    **dict.fromkeys(("C2",), "not testable as stated"),
    **dict.fromkeys(("C6", "C8", "C10"), "exact"),
    **dict.fromkeys(("C3", "C9", "C11", "C19", "C21", "C22", "C23", "C25", "C26", "C27"), "holds under conditions"),
    **dict.fromkeys(("C7", "C14", "C15", "C16", "C17", "C18", "C28"), "refuted"),
}
# Section 6.4 of the research: both ways over text asking and over image asking, concat over text asking and over both.
RATIOS = {
    "576×64 tokens, width 4096": (4.263, 1.306, 4.354, 1.021),
    "256×32 tokens, width 768": (4.100, 1.323, 4.303, 1.050),
    "36×20 tokens, width 768": (2.467, 1.681, 2.483, 1.007),
    "4096×77 tokens, width 320": (4.941, 1.254, 14.535, 2.942),
}


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    return {finding.id: finding for finding in run.run(table.chosen(()), QUICK)}


def figures(finding: Finding) -> dict[str, float]:
    return {figure.what: figure.value for figure in finding.figures}


def test_every_claim_has_words_a_source_a_method_and_a_check() -> None:
    assert list(table.CLAIMS) == IDS
    assert set(run.CHECKS) == set(IDS)
    for claim in table.CLAIMS.values():
        assert min(map(len, (claim.said, claim.source, claim.method))) > 10


def test_the_verdicts_are_these_words() -> None:
    assert VERDICTS == (
        "exact", "holds under conditions", "refuted", "not testable as stated", "needs the quality track",
    )  # fmt: skip


@pytest.mark.parametrize("name", IDS)
def test_a_check_ends_in_a_verdict_with_figures_and_says_when_it_holds(name: str, found: dict[str, Finding]) -> None:
    finding = found[name]
    assert finding.error == ""
    assert finding.verdict in VERDICTS
    assert finding.verdict == EXPECTED.get(name, finding.verdict)
    assert finding.figures
    assert finding.condition


def test_both_directions_cost_exactly_twice_and_one_affinity_half_more(found: dict[str, Finding]) -> None:
    got = figures(found["C3"])
    assert got["attention sub-layer, own projections: all 4 shapes"] == 2
    assert got["attention sub-layer, one shared affinity: all 4 shapes"] == 1.5
    for shape, (text, image, _, _) in RATIOS.items():
        assert round(got[f"block with FFN, text asked alone: {shape}"], 3) == text
        assert round(got[f"block with FFN, image asked alone: {shape}"], 3) == image


def test_concatenation_costs_what_the_closed_forms_say(found: dict[str, Finding]) -> None:
    got = figures(found["C11"])
    for shape, (_, _, text, both) in RATIOS.items():
        assert round(got[f"FLOPs of concat over cross, text asks: {shape}"], 3) == text
        assert round(got[f"FLOPs of concat over cross, both ask: {shape}"], 3) == both


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        ("C2", "operations that refuse widths 768 and 4096", 5),
        ("C6", "dtypes in which every output of integers is equal", 2),
        ("C7", "unequal widths that run", 3),
        ("C8", "largest difference between cross(x, copy of x) and self(x)", 0),
        ("C9", "largest |∂ image output / ∂ text|, concat", 0),
        ("C10", "outputs with the query's shape", 108),
        ("C13", "its best accuracy where the label is the XOR of both", 75),
        ("C15", "parameters of the projector as claimed", 3_158_016),
        ("C15", "parameters of the 7B model's patch merger", 44_574_464),
        ("C16", "weight matrices that both streams' outputs depend on", 0),
        ("C17", "attention calls with a context of their own", 0),
        ("C17", "parameters of one layer", 7_087_872),
        ("C18", "pairs of lengths where A·V is attention over the text", 0),
        ("C21", "forward FLOPs once they are merged", 1),
        ("C22", "bytes of weights, gradients and Adam with fp32 masters", 1),
        ("C26", "layers with cross-attention, Llama 3.2 Vision", 8),
        ("C27", "numbers in a 16 × 16 patch, RGB", 768),
        ("C28", "calls that run as printed", 0),
    ],
)
def test_what_can_be_exact_is(name: str, what: str, value: float, found: dict[str, Finding]) -> None:
    assert figures(found[name])[what] == value


def test_the_cosine_of_random_features_is_what_theory_says(found: dict[str, Finding]) -> None:
    got = figures(found["C4"])
    for width in (768, 4096):
        assert got[f"mean |cos| of independent features, width {width}"] == pytest.approx(
            got[f"√(2/πD), width {width}"], rel=0.1
        )


def test_adapters_cost_their_closed_form_beside_the_layers_and_nothing_once_merged(found: dict[str, Finding]) -> None:
    tokens, width, rank = 64, 512, 8
    layer = 24 * tokens * width**2 + 4 * tokens**2 * width
    adapters = 2 * tokens * rank * (4 * 2 * width + 2 * 5 * width)  # 2·r·(in + out) for four square and two FFN weights
    got = figures(found["C21"])
    assert got["forward FLOPs with adapters beside the layers"] == (layer + adapters) / layer


def test_the_printed_decoder_misses_its_memory(found: dict[str, Finding]) -> None:
    assert "missing 1 required positional argument: 'memory'" in found["C28"].condition


@pytest.mark.parametrize("name", ["C15", "C26"])
def test_without_transformers_published_sizes_stand_in_and_the_note_says_so(
    name: str, found: dict[str, Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems.importlib.util, "find_spec", lambda _: None)
    (finding,) = run.run([table.CLAIMS[name]], QUICK)
    assert finding.verdict == found[name].verdict
    assert "from the published sizes" in finding.note


def test_a_closed_form_that_pytorch_counts_differently_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "count_flops", lambda _: Counted(7, ()))
    (finding,) = run.run([table.CLAIMS["C3"]], QUICK)
    assert finding.verdict is None
    assert "by its closed form and 7 as PyTorch counts" in finding.error


def test_a_verdict_follows_from_the_cases_tried() -> None:
    assert [judged(cases) for cases in ([True], [True, False], [False])] == [
        "exact", "holds under conditions", "refuted",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no case"):
        judged([])


def test_the_same_seed_gives_the_same_figures_in_any_order_and_leaves_torch_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    names = ("C4", "C23")
    first = list(run.run([table.CLAIMS[name] for name in names], QUICK))
    again = list(run.run([table.CLAIMS[name] for name in reversed(names)], QUICK))[::-1]
    other = list(run.run([table.CLAIMS[name] for name in names], Lab(seed=1, seconds=0.01)))
    assert [f.figures for f in first] == [f.figures for f in again]
    assert [f.figures for f in first] != [f.figures for f in other]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


class Clock:
    """Time that passes only in calls, and ever more slowly or quickly: ``drift`` is the growth per call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, drift: float = 1.0) -> None:
        self.now, self.speed, self.drift = 0.0, 1.0, drift
        monkeypatch.setattr(paired, "perf_counter_ns", lambda: round(self.now))

    def takes(self, ms: float) -> Callable[[], None]:
        def call() -> None:
            self.now += ms * 1e6 * self.speed
            self.speed *= self.drift

        return call


def test_a_ratio_is_that_of_the_two_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ratio = paired.compare(clock.takes(3), clock.takes(2), seconds=1)
    assert (ratio.middle, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    assert (ratio.head_ms, ratio.base_ms) == pytest.approx((3, 2))
    assert ratio.slower
    assert not ratio.faster


def test_a_machine_that_slows_down_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, drift=1.01)
    ratio = paired.compare(clock.takes(2), clock.takes(2), seconds=0.05)
    assert ratio.low == pytest.approx(1, abs=1e-3)
    assert ratio.high == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("figure", "amount", "interval"),
    [
        (Figure(what="x", value=2.0, unit="×"), "2.000 ×", ""),
        (Figure(what="x", value=15004.4, unit="×"), "15,004 ×", ""),
        (Figure(what="x", value=1.014, unit="×", low=0.98, high=1.03), "1.01 ×", "[0.980, 1.03], unclear"),
        (Figure(what="x", value=0.335, unit="×", low=0.331, high=0.341), "0.335 ×", "[0.331, 0.341]"),
        (Figure(what="x", value=38.91, unit="×", low=35.3, high=46.0), "38.9 ×", "[35.3, 46.0]"),
        (Figure(what="x", value=20979712), "20,979,712", ""),
        (Figure(what="x", value=2.3e-6), "2.3e-06", ""),
        (Figure(what="x", value=44.93, unit="ms", low=0.9, high=45.2), "44.9 ms", "[0.9, 45.2]"),
        (Figure(what="x", value=4, unit="of 5"), "4 of 5", ""),
    ],
)
def test_a_figure_is_written_with_its_unit_and_says_when_it_is_unclear(
    figure: Figure, amount: str, interval: str
) -> None:
    assert (figure.amount, figure.interval) == (amount, interval)


def made(*pairs: tuple[Claim, Finding]) -> Ledger:
    return Ledger(
        created_at="2026-03-02T10:00:00+00:00",
        seed=0,
        environment=ENVIRONMENTS["h100-a"],
        claims=tuple(claim for claim, _ in pairs),
        findings=tuple(finding for _, finding in pairs),
    )


def some(text: str = "it holds") -> Ledger:
    """One finding of every outcome, all of whose texts are ``text``."""
    text, short = text[:300], text[:20]
    figure = Figure(what=text, value=1.01, unit=short, low=0.9, high=1.1)
    pairs = []
    for number, verdict in enumerate((*VERDICTS, None), 1):
        claim = Claim(id=f"C{number}", said=text, source=text, method=text)
        pairs.append((claim, Finding(id=claim.id, verdict=verdict, figures=(figure,) * 6, condition=text, note=text,
                                     error="" if verdict else text)))  # fmt: skip
    return made(*pairs)


def test_a_ledger_reads_back_as_it_was(found: dict[str, Finding], tmp_path: Path) -> None:
    whole = run.ledger(table.chosen(()), list(found.values()), QUICK)
    ledger.save(whole, tmp_path / "claims.json")
    assert ledger.load(tmp_path / "claims.json") == whole
    assert (tmp_path / "claims.json").stat().st_size < 100_000
    assert sum(whole.counts.values()) == 28


def changed(**changes: Any) -> bytes:
    data = msgspec.to_builtins(some())
    for path, value in changes.items():
        *steps, last = path.split("__")
        at = data
        for step in steps:
            at = at[int(step[1:]) if step[1:].isdigit() and step[0] == "n" else step]
        at[last] = value
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not what 'fusionbench claims --output' writes"),
        (b"[" * 100_000, "is not what"),
        (b"\xff\xfe{}", "is not what"),
        (b'{"v": 1}', "missing required field"),
        (changed(findings__n0__verdict="true"), "Invalid enum value 'true'"),
        (changed(findings__n0__verdict=None), "needs either a verdict or an error"),
        (changed(findings__n1__id="C1"), "finding C1 is there twice"),
        (changed(findings__n1__id="C99"), "finding C99 is about no claim"),
        (changed(findings__n1__id="../C1"), "matching regex"),
        (changed(findings__n0__condition="x" * 2001), "length <= 2000"),
        (changed(findings__n0__figures=[{"what": "x", "value": 1}] * 101), "length <= 100"),
        (changed(findings__n0__figures=[{"what": "x", "value": float("inf")}]), "is not what"),
        (changed(findings__n0__figures=[{"what": "x", "value": "1"}]), "Expected `float`"),
        (b'{"v": 1, "seed": 1' + b"0" * 400 + b"}", "is not what"),
        (b" " * (ledger.MAX_BYTES + 1), "more than the limit"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_file_that_is_no_ledger_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StoreError, match=message.replace("(", r"\(")) as refused:
        ledger.load(tmp_path / "x.json")
    assert "\n" not in str(refused.value)


def test_a_newer_ledger_a_link_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "newer.json").write_bytes(changed(v=2))
    with pytest.raises(NewerSchemaError, match="newer than this fusionbench"):
        ledger.load(tmp_path / "newer.json")
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.json")
    for path in ("link.json", "pipe.json", ".", "absent.json"):
        with pytest.raises(StoreError, match="cannot read"):
            ledger.load(tmp_path / path)


def test_a_ledger_that_would_not_read_back_is_not_written(tmp_path: Path) -> None:
    figure = Figure(what="x", value=float("nan"))
    claim = Claim(id="C1", said="x", source="x", method="x")
    with pytest.raises(StoreError, match="cannot be stored"):
        ledger.save(made((claim, Finding(id="C1", verdict="exact", figures=(figure,)))), tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [40, 60, 100, 139, 140, 160])
def test_blocks_fit_the_terminal_and_lose_no_word(width: int) -> None:
    out = Console(width=width, record=True, file=io.StringIO())
    said = "Bidirectional attention doubles the compute."
    claim = Claim(id="C3", said=said, source="x", method="x")
    figure = Figure(what="a label that is long enough to wrap", value=44574464, unit="×", low=0.9, high=1.1)
    finding = Finding(id="C3", verdict="needs the quality track", figures=(figure,), condition="if it rains", note="so")
    out.print(findings.block(claim, finding, width))
    lines = out.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    words = " ".join(lines).split()
    for word in (*said.split(), "needs", "quality", "track", "rains", "44,574,464", "label", "unclear"):
        assert any(word in each for each in words), word


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_text_is_plain_text_in_a_terminal(text: str) -> None:
    out = Console(width=100, record=True, file=io.StringIO())
    shown = some(text)
    for claim, finding in shown.entries:
        out.print(findings.block(claim, finding, 100))
    out.print(findings.ending(shown))
    plain = out.export_text()
    assert not set("\x00\x07\x1b\u202e\u2066") & set(plain)
    assert "[/link]" in plain or "[link" not in text


@pytest.fixture
def fusionbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_claims_are_printed_saved_and_put_into_a_report(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = fusionbench("claims", "c18", "C2", "-o", "new/claims.json")
    assert code == 0
    assert out.index("C2 ") < out.index("C18 ")
    assert "not testable as stated" in out
    assert "2 claims in 1 s: refuted 1 · not testable as stated 1" in out
    assert err.splitlines() == [
        "[1/2] C2  A mismatch of feature dimensions lowers VQA accuracy by 15 to 20 %.",
        "[2/2] C18  Fused vision features are A·V, with queries from vision and keys from text.",
    ]
    assert [f.id for f in ledger.load(tmp_path / "new" / "claims.json").findings] == ["C2", "C18"]


def test_json_is_alone_on_stdout_and_is_what_output_saves(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = fusionbench("claims", "C28", "--json", "--seed", "3", "--output", "x.json")
    assert code == 0
    assert out == (tmp_path / "x.json").read_text()
    assert (json.loads(out)["seed"], json.loads(out)["findings"][0]["verdict"]) == (3, "refuted")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("claims", "C33"), "fusionbench: no claim named 'C33'; did you mean 'C3'?"),
        (("claims", "C3", "bogus"), "fusionbench: no claim named 'BOGUS' (known: C1, C10,"),
        (("claims", "C3", "-o", "/proc/x/y.json"), "fusionbench: cannot write '/proc/x/y.json': "),
        (("claims", "C3", "--seed", "-1"), "Invalid value for '--seed'"),
    ],
)
def test_bad_input_is_told_before_anything_is_checked(fusionbench, arguments: tuple[str, ...], message: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = fusionbench(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "[1/" not in err
    assert "Traceback" not in err


def fails(lab: Lab) -> Answer:
    raise RuntimeError("the cat\nis out\x1b[2J")


def test_a_check_that_raises_costs_its_own_claim_and_the_exit_code(
    fusionbench, monkeypatch: pytest.MonkeyPatch  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    monkeypatch.setitem(run.CHECKS, "C2", fails)  # type: ignore[arg-type]
    code, out, _ = fusionbench("claims", "C2", "C18")
    assert code == 3
    assert "RuntimeError: the cat is out\N{REPLACEMENT CHARACTER}[2J" in out
    assert "refuted 1 · error 1" in out


def interrupts(lab: Lab) -> Answer:
    raise KeyboardInterrupt


def test_what_was_found_before_ctrl_c_is_kept(
    fusionbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    monkeypatch.setitem(run.CHECKS, "C18", interrupts)  # type: ignore[arg-type]
    code, out, err = fusionbench("claims", "C2", "C18", "C28", "--output", "x.json", "--json")
    assert code == 130
    assert err.endswith("interrupted after 1 of 3 claims\n")
    assert [f["id"] for f in json.loads(out)["findings"]] == ["C2"]
    assert (tmp_path / "x.json").read_text() == out


def test_a_folder_is_no_place_for_the_findings_and_is_told_before_anything_is_checked(
    fusionbench, tmp_path: Path  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    code, out, err = fusionbench("claims", "C2", "--output", str(tmp_path))
    assert (code, out) == (2, "")
    assert err == f"fusionbench: cannot write '{tmp_path}': it is a folder; name the file in it (claims.json)\n"


def test_ctrl_c_leaves_with_130(tmp_path: Path) -> None:
    process = started("claims", "C20", cwd=tmp_path)
    assert process.stderr
    assert process.stderr.readline().startswith("[1/1] C20")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_no_torch_is_imported_to_show_a_ledger_or_to_name_a_claim() -> None:
    modules = "fusionbench.ledger, fusionbench.report.claims, fusionbench.report.page, fusionbench.findings"
    code = f"import sys, fusionbench.claims.table, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def written(path: Path, *ledgers: Ledger) -> Path:
    return page.write(path, frame(smoke(), ENVIRONMENTS), ENVIRONMENTS, ledgers=ledgers)


def test_the_section_is_there_only_with_findings_and_holds_no_raw_text(tmp_path: Path) -> None:
    assert 'id="claims"' not in written(tmp_path / "none.html").read_text()
    assert 'id="claims"' not in written(tmp_path / "empty.html", made()).read_text()
    html = written(tmp_path / "r.html", *(some(text) for text in TEXTS)).read_text()
    assert 'id="claims"' in html
    for text in TEXTS:
        assert text[:300] not in html


RUN = """
title = "Tiny"
[budget]
measure_s = 0.02
min_samples = 6
[[sweep]]
strategies = ["concat"]
backends = ["eager"]
image = [3]
text = [2]
image_width = [8]
text_width = [8]
width = [8]
heads = [1]
projectors = ["identity"]
"""


def test_a_report_takes_the_ledger_it_is_given_or_the_runs_own(fusionbench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Path("tiny.toml").write_text(RUN)
    fusionbench("run", "tiny.toml", "-q")
    folder = next((tmp_path / "results" / "runs").iterdir())
    ledger.save(some(), tmp_path / "x.json")

    def reported(*arguments: str) -> tuple[int, bool, str]:
        code, _, err = fusionbench("report", str(folder), "-o", "r.html", *arguments)
        return code, Path("r.html").exists() and 'id="claims"' in Path("r.html").read_text(), err

    ledger.save(some(), folder / "claims.json")
    assert reported()[:2] == (0, True)
    (folder / "claims.json").write_text("{")
    assert reported()[:2] == (6, False)
    assert reported("--claims", "x.json")[:2] == (0, True)
    code, _, err = reported("--claims", "tiny.toml")
    assert code == 2
    assert "fusionbench: 'tiny.toml' is not what 'fusionbench claims --output' writes" in err


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed (pip install fusionbench[dev])")
    if chromium() is None:
        pytest.skip("no chromium on the path (set FUSIONBENCH_CHROMIUM)")
    with browser() as running:
        yield running


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 768, 1200])
def test_the_section_shows_every_claim_and_fits_the_page(
    width: int, chrome: Any, found: dict[str, Finding], tmp_path: Path
) -> None:
    whole = run.ledger(table.chosen(()), list(found.values()), QUICK)
    visit = Visit(chrome, written(tmp_path / "r.html", whole), viewport={"width": width, "height": 900})
    assert visit.page.locator("#claims .claim").count() == 28
    third = visit.page.locator("#claims .claim").nth(2)
    assert "“Bidirectional attention doubles the compute.”" in third.inner_text()
    assert "2.000 ×" in third.inner_text()
    assert "7 more figures" in third.inner_text()
    third.locator("summary", has_text="more").click()
    assert "4.941 ×" in third.inner_text()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.trouble == []
    visit.context.close()


@pytest.mark.browser
def test_hostile_text_stays_inert_in_the_page(chrome: Any, tmp_path: Path) -> None:
    visit = Visit(chrome, written(tmp_path / "r.html", *(some(text) for text in TEXTS)))
    shown = visit.page.evaluate("document.querySelector('#claims').textContent")
    for text in TEXTS[:5]:
        assert text[:300] in shown
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.locator("#claims img, #claims svg, #claims a, #claims script").count() == 0
    assert not set("\x00\x07\x1b\u202e\u2066") & set(shown)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert visit.trouble == []
    visit.context.close()
