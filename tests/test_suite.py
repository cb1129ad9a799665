"""Suites: what is accepted, what is refused and in which words, and how the plan is counted."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from fusionbench import suite
from fusionbench.errors import SuiteError

SWEEP = """
title = "t"
[[sweep]]
strategies = ["cross_attention"]
backends = ["sdpa"]
image_width = [8]
text_width = [8]
width = [8]
heads = [2]
"""
LENGTHS = "image = [1, 2]\ntext = [3]\n"


def parse(text: str) -> suite.Suite:
    return suite.parse(text, "mine", "mine.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('title = "t"\nfoo = 1', "mine.toml: suite has unknown key 'foo' (known: analysis, budget, question, sweep, title)"),
        (SWEEP + LENGTHS + 'dtype = ["fp32"]', "mine.toml: sweep 1 has unknown key 'dtype'; did you mean 'dtypes'?"),
        (SWEEP + LENGTHS + 'dtypes = ["fp99"]', "mine.toml: sweep 1 dtypes: no dtype named 'fp99'; did you mean 'fp32'?"),
        (SWEEP + LENGTHS + 'modes = ["bwd"]', "mine.toml: sweep 1 modes: no mode named 'bwd'; did you mean 'fwd'?"),
        (SWEEP + LENGTHS + 'projectors = ["mpl"]', "mine.toml: sweep 1 projectors: no projector named 'mpl'; did you mean 'mlp'?"),
        (SWEEP + LENGTHS + 'match = "flop"', "mine.toml: sweep 1: no match named 'flop'; did you mean 'flops'?"),
        (SWEEP + LENGTHS + 'match = "flops"', "mine.toml: sweep 1: match makes the strategies alike that the sweep names, and it names one"),
        (SWEEP + LENGTHS + 'devices = ["gpu"]', "mine.toml: sweep 1 devices: no device named 'gpu' (use cpu, cuda or cuda:N)"),
        (SWEEP + LENGTHS + 'adapt = ["lora:0"]', "mine.toml: sweep 1 adapt: no adapt named 'lora:0' (use full, frozen or lora:RANK, as lora:8)"),
        (SWEEP + LENGTHS + 'prune = ["structured:0.00"]', "mine.toml: sweep 1 prune: no prune named 'structured:0.00' (use none, 2:4, structured:SHARE or unstructured:SHARE, as structured:0.5)"),
        (SWEEP + "image = [0]\ntext = [1]", "mine.toml: sweep 1 image 1: expected `int` >= 1; got '0'"),
        (SWEEP + "image = [-1]\ntext = [1]", "mine.toml: sweep 1 image 1: expected `int` >= 1; got '-1'"),
        (SWEEP + "image = [1099511627776]\ntext = [1]", "mine.toml: sweep 1 image 1: expected `int` <= 2147483647; got '1099511627776'"),
        (SWEEP + "image = [" + "9" * 30 + "]\ntext = [1]", "mine.toml: sweep 1 image 1: "),
        (SWEEP + LENGTHS + 'dtypes = ["fp8"]', "mine.toml: sweep 1 dtypes: no dtype named 'fp8'; did you mean '"),
        (SWEEP + "image = [true]\ntext = [1]", "mine.toml: sweep 1 image 1: expected `int`, got `bool`; got 'True'"),
        (SWEEP + "image = [1.5]\ntext = [1]", "mine.toml: sweep 1 image 1: expected `int`, got `float`; got '1.5'"),
        (SWEEP + "image = []\ntext = [1]", "mine.toml: sweep 1 image: expected `array` of length >= 1"),
        (SWEEP + "image = 4\ntext = [1]", "mine.toml: sweep 1 image: expected `array`, got `int`; got '4'"),
        (SWEEP + "text = [1]", "mine.toml: sweep 1 names no 'image', and no presets that would"),
        (SWEEP + LENGTHS + "padding = [nan]", "mine.toml: sweep 1 padding 1: expected `float` >= 0.0; got 'nan'"),
        (SWEEP + LENGTHS + "exclude = [{ dtype = 1 }]", "mine.toml: sweep 1: filter has unknown key 'dtype'; did you mean 'dtypes'?"),
        (SWEEP + LENGTHS + "exclude = [{}]", "mine.toml: sweep 1: filter is empty and would match every case"),
        (SWEEP + LENGTHS + 'include = [{ strategies = "cros_attention" }]', "mine.toml: sweep 1: filter: the sweep has no strategies 'cros_attention'; did you mean 'cross_attention'?"),
        ("x = " + "9" * 5000, "mine.toml: not valid TOML: "),
        ('title = "t"\n[budget]\nmeasure = 1', "mine.toml: budget has unknown key 'measure'; did you mean 'measure_s'?"),
        ('title = "t"\n[budget]\nmeasure_s = -1', "mine.toml: budget measure_s: expected `float` > 0.0; got '-1'"),
        ('title = "t"', "mine.toml: object missing required field `sweep`"),
        ("x = [[[", "mine.toml: not valid TOML: "),
        ('a = 1\na = 2', "mine.toml: not valid TOML: Cannot overwrite a value"),
        ("x = " + "[" * 5000 + "]" * 5000, "mine.toml: not valid TOML: "),
    ],
)  # fmt: skip
def test_a_bad_suite_is_one_line_that_names_file_place_value_and_remedy(text: str, message: str) -> None:
    with pytest.raises(SuiteError, match="^" + re.escape(message)) as raised:
        parse(text)
    assert "\n" not in str(raised.value)


def test_hostile_text_in_a_suite_reaches_no_terminal(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as raised:
        parse('title = "t"\n"\\u001b[31m" = 1')
    assert "\x1b" not in str(raised.value)
    with pytest.raises(SuiteError, match="does not match"):
        suite.parse(SWEEP + LENGTHS, "../evil", "x")


def test_a_file_that_is_huge_binary_or_absent_is_refused(tmp_path: Path) -> None:
    huge, binary = tmp_path / "huge.toml", tmp_path / "binary.toml"
    huge.write_bytes(b"#" * 1_000_001)
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in (
        (huge, "larger than 1000000 bytes"),
        (binary, "is not UTF-8"),
        (tmp_path / "no.toml", "no such suite file"),
    ):
        with pytest.raises(SuiteError, match=words):
            suite.read(str(path))
    with pytest.raises(SuiteError, match="no suite named 'smok'; did you mean 'smoke'"):
        suite.read("smok")


def test_a_sweep_is_the_product_of_its_axes_in_order() -> None:
    jobs = list(suite.jobs(parse(SWEEP + LENGTHS + 'dtypes = ["fp32", "bf16"]')))
    assert [(job.case.shape.image, job.case.dtype) for job in jobs if job] == [
        (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"),
    ]  # fmt: skip


def test_include_keeps_and_exclude_drops_what_matches() -> None:
    text = (
        SWEEP
        + "image = [1, 2, 3]\ntext = [1, 2, 3]\ninclude = [{ image = [1, 2] }]\nexclude = [{ image = 2, text = [2, 3] }]"
    )
    pairs = [(job.case.shape.image, job.case.shape.text) for job in suite.jobs(parse(text)) if job]
    assert pairs == [(1, 1), (1, 2), (1, 3), (2, 1)]


def test_a_trillion_cases_are_counted_at_once() -> None:
    numbers = ", ".join(map(str, range(1, 101)))
    text = SWEEP.replace("[8]", f"[{numbers}]").replace("heads = [2]", f"heads = [{numbers}]")
    start = time.perf_counter()
    chosen = parse(text + f"image = [{numbers}]\ntext = [{numbers}]")
    assert chosen.count == 100**6
    assert next(suite.jobs(chosen)) is not None
    assert time.perf_counter() - start < 1


def test_narrowing_keeps_the_named_values_only() -> None:
    chosen = parse(SWEEP + LENGTHS + 'dtypes = ["fp32", "bf16"]\ntype_embedding = [true, false]')
    narrowed = suite.narrow(chosen, {"dtypes": ["bf16"], "image": ["2"], "type_embedding": ["true"]})
    assert [job.case.key for job in suite.jobs(narrowed) if job] == [
        "b1-i2x8-t3x8-w8-h2-n1-f4/linear+type/bf16/cpu/fwd"
    ]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"dtype": ["bf16"]}, "--only: no axis named 'dtype'; did you mean 'dtypes'?"),
        ({"dtypes": ["bf61"]}, "--only: suite 'mine' has no dtypes 'bf61'"),
        ({"image": ["7"]}, "--only: suite 'mine' has no image '7'"),
    ],
)
def test_narrowing_to_what_is_not_there_is_refused(only: dict[str, list[str]], message: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(message)):
        suite.narrow(parse(SWEEP + LENGTHS), only)


@pytest.mark.parametrize("name", sorted(suite.shipped()))
def test_a_shipped_suite_says_what_it_asks(name: str) -> None:
    chosen = suite.read(name)
    assert chosen.question.endswith("?")
    assert chosen.analysis.strip()
    assert chosen.count > 0


def test_the_six_suites_are_shipped() -> None:
    assert set(suite.shipped()) >= {"smoke", "lengths", "dims", "dtypes", "backends", "batch"}


def test_keys_are_readable_and_unique() -> None:
    jobs = [job for name in suite.shipped() for job in suite.jobs(suite.read(name)) if job]
    assert len({job.key for job in jobs}) == len(set(jobs))
    assert "cross_attention/sdpa/b1-i196x768-t32x768-w256-h4-n1-f4/linear/fp32/cpu/fwd" in {job.key for job in jobs}
