"""Markdown summaries: within their limits, regressions never dropped in silence, and no text from outside is markup."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fusionbench.delta import Comparison
from fusionbench.errors import FusionbenchError
from fusionbench.summary.blocks import Block, fitted
from fusionbench.summary.markdown import COMMENT_BYTES, MARKER, STEP_BYTES, code, comment, full, step_summary
from tests.deltas import HOSTILE, change, comparison, delta, hostile, judged, key, many, mixed, untimed

OURS = {"br", "details", "summary"}  # the tags that are in the markdown itself


def rendered(text: str) -> str:
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)


def outside_code(html: str) -> str:
    return re.sub(r"<code[^>]*>.*?</code>", "", html, flags=re.DOTALL)


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_marker_is_the_first_line() -> None:
    judgement = judged(mixed())
    for text in (full(mixed()), comment(judgement), step_summary(judgement)):
        assert text.startswith(f"{MARKER}\n### ")


def test_the_parts_come_in_the_order_in_which_they_are_read() -> None:
    text = full(mixed(), judged(mixed()), "https://example.com/run/1")
    parts = ("### ✗ failed", "#### Regressions (3)", "#### Broken (1)", "#### Improvements (2)", "12 unchanged and 5 unclear",
             "<details>", "</details>", "#### Environments", "#### Reproduce", "[The whole report](https://example.com/run/1)")  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_regressions_are_not_folded_and_the_table_of_all_jobs_is() -> None:
    text = full(mixed(), judged(mixed()))
    folded = text[text.index("<details>") : text.index("</details>")]
    before = text[: text.index("<details>")]
    assert before.count("▲\N{NO-BREAK SPACE}slower") == 2
    assert folded.count("early/sdpa") == 17
    assert "early/sdpa" not in before


def test_facts_are_rows_with_both_values() -> None:
    text = full(comparison(delta(changes=(change("flops", 1_234_567, 1_300_000), change("kernels", "flash", "math")))))
    assert "| ↳ `flops` | 1,234,567 | 1,300,000 | +5.3\N{NO-BREAK SPACE}% |" in text
    assert "| ↳ `kernels` | `flash` | `math` |" in text


def test_every_table_is_one_to_its_reader() -> None:
    html = rendered(full(mixed(), judged(mixed())))
    assert html.count("<table>") == 8
    for table in re.findall(r"<table>.*?</table>", html, re.DOTALL):
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1


@pytest.mark.parametrize("jobs", [0, 1, 200, 5000])
def test_sizes_are_within_what_github_takes(jobs: int) -> None:
    judgement = judged(many(jobs), exit_code=1)
    assert len(comment(judgement).encode()) <= COMMENT_BYTES
    assert len(step_summary(judgement).encode()) <= STEP_BYTES


def test_what_has_no_room_is_counted() -> None:
    text = comment(judged(many(5000)))
    assert "### ✗ failed: 1,000 regressions" in text
    shown = text[: text.index("#### Improvements")].count("▲")
    left = re.search(r"… and ([\d,]+) more regressions in the report", text)
    assert left
    assert shown + int(left[1].replace(",", "")) == 1000
    assert shown > 50
    assert "… and 1,000 more improvements in the report" in text
    assert "… and 5,000 more jobs in the report" in text
    assert "#### Reproduce" in text
    assert text.rstrip().endswith("```")


def test_regressions_have_room_before_all_else() -> None:
    text = step_summary(judged(many(5000)))
    assert text[: text.index("#### Improvements")].count("▲") == 1000
    assert "more regressions" not in text


def test_no_row_is_cut_in_its_middle() -> None:
    judgement = judged(many(200))
    for limit in range(8000, 8800, 37):
        for row in rows(step_summary(judgement, limit=limit)):
            assert row.endswith(" |")
            assert row.count(" | ") == 6


@given(st.lists(st.text("aé€😀", max_size=30), max_size=30), st.integers(0, 400))
def test_a_block_keeps_whole_rows_and_says_how_many_it_has_not(texts: list[str], limit: int) -> None:
    block = Block(before=("title",), rows=tuple(f"- {text}" for text in texts), noun="rows")
    text = fitted([block], limit)
    kept = [line for line in text.splitlines() if line.startswith("- ")]
    assert kept == [f"- {each}" for each in texts][: len(kept)]
    left = len(texts) - len(kept)
    assert (f"… and {left:,} more rows in the report" in text) == bool(left)
    assert len(text.encode()) <= max(limit, len(block.text(0).encode()))


def test_hostile_texts_make_no_markup() -> None:
    text = full(hostile().comparison, hostile())
    html = rendered(text)
    assert set(re.findall(r"<([a-z0-9]+)", outside_code(html))) <= OURS | {
        "h3",
        "h4",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
        "pre",
    }
    assert "<!--" not in html.replace(MARKER, "")
    plain = outside_code(html)
    for sign in ("@everyone", "#123", "javascript:", "http", "evil", "owned", "pwned"):
        assert sign not in plain
    for table in re.findall(r"<table>.*?</table>", html, re.DOTALL):
        assert len({len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}) == 1


@settings(max_examples=200)
@given(st.text() | st.sampled_from(HOSTILE))
def test_any_text_is_one_code_span_in_one_cell(text: str) -> None:
    html = rendered(f"| a | b |\n|---|---|\n| {code(text)} | end |\n")
    cells = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert len(cells) == 2
    assert cells[1] == "end"
    assert re.fullmatch(r"<code>[^<]*</code>|–", cells[0])


def test_a_command_in_a_fence_cannot_leave_it() -> None:
    base = comparison().base
    side = type(base)(name="x```\n# owned", suite="```` `")
    text = full(comparison(delta(key(), "slower", 1.2), head=side, base=side))
    assert "owned" not in outside_code(rendered(text))


def test_a_command_that_cannot_be_typed_as_it_is_is_left_out() -> None:
    name = type(comparison().base)
    for bad in ("--plugin=x.py", "a\nb", "x" * 2000, ""):
        text = full(comparison(base=name(name=bad), head=name(name="b")))
        assert "#### Reproduce" not in text
    assert "fusionbench compare 'a b' b" in full(comparison(base=name(name="a b"), head=name(name="b")))


def test_a_link_that_is_none_is_refused() -> None:
    for bad in (
        "javascript:alert(1)",
        "http://a.example",
        "https://a.example/)(x",
        "https://a.example/ b",
        "https://a.example/\n",
    ):
        with pytest.raises(FusionbenchError, match="no plain https address"):
            full(mixed(), None, bad)


def test_notes_and_differences_without_number_leave_room_for_regressions() -> None:
    of = comparison(
        *(delta(key(f"s{n}"), "slower", 1.2) for n in range(3)),
        notes=("n" * 9000,) * 500,
        differences=("d" * 9000,) * 500,
    )
    text = comment(judged(of))
    assert text.count("▲") >= 3
    assert "- and 480 more" in text


def test_a_comparison_without_jobs_has_no_table() -> None:
    text = full(Comparison(method="stored", base=mixed().base, head=mixed().head))
    assert "| verdict" not in text
    assert text.splitlines()[1] == "### 0 jobs compared: nothing in common"


def test_columns_that_say_nothing_are_left_out() -> None:
    text = full(comparison(untimed(key(), "new", head_ns=2e6)))
    assert "| verdict | job | head |" in text
