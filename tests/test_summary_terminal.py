"""A comparison in a terminal: the verdict first, nothing that got worse left out, and it fits."""

from __future__ import annotations

import io
import time

import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from fusionbench.delta import Comparison, Judgement, Ruling
from fusionbench.summary.keys import grouped
from fusionbench.summary.terminal import show
from tests.deltas import LLAMA, change, comparison, delta, hostile, judged, key, many, mixed, untimed


def printed(of: Comparison, judgement: Judgement | None = None, width: int = 140, everything: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False, color_system=None, highlight=False, emoji=False)
    console.print(show(of, judgement, width, everything), crop=False)
    return out.getvalue()


def joined(text: str) -> str:
    """The text as if nothing had been folded."""
    return "".join(text.replace("\N{NO-BREAK SPACE}", " ").split())


def test_the_verdict_is_the_first_line() -> None:
    assert printed(mixed(), judged(mixed())).startswith("✗ failed: 3 regressions, 1 broken, 2 improvements")
    same = comparison(delta())
    assert printed(same, judged(same)).splitlines()[0] == "✓ passed: 1 unchanged"
    assert printed(same).splitlines()[0] == "1 job compared: 1 unchanged"


def test_what_nobody_could_compare_did_not_pass() -> None:
    nothing = judged(comparison(), exit_code=5, rulings=())
    assert printed(comparison(), nothing).splitlines()[0] == "? not judged: nothing could be compared"


def test_a_slower_job_that_no_gate_judged_is_no_regression_of_a_passed_check() -> None:
    slow = comparison(delta(key(), "slower", 1.2))
    only = judged(slow, exit_code=0, rulings=(judged(comparison(delta())).rulings[0],))
    first = printed(slow, only).splitlines()[0]
    assert first == "✓ passed: 1 slower or worse but not judged"


def test_sections_come_in_order_and_what_stayed_is_counted() -> None:
    text = printed(mixed(), judged(mixed()))
    titles = [line.partition(",")[0] for line in text.splitlines() if line[:1].isalpha() and ", " in line]
    assert titles == [
        "regressions",
        "broken",
        "improvements",
        "fixed",
        "changed",
        "new",
        "missing",
        "unclear",
        "unchanged",
    ]
    assert "early/sdpa" not in text
    assert "5  the interval holds both 1 and a change that matters" in text


def test_everything_has_a_row_for_every_job() -> None:
    text = joined(printed(mixed(), judged(mixed()), everything=True))
    assert text.count("=same") >= 12
    for part in ("b1-…-t32x768-w512", "?uncleari16x768", "b1-i196x768-…-w512"):
        assert part in text


def test_the_worst_comes_first() -> None:
    deltas = [delta(key(f"s{n}"), "slower", 1 + n / 100) for n in range(5, 50, 5)]
    text = printed(comparison(*deltas))
    places = [text.index(f" s{n}/sdpa") for n in range(45, 0, -5)]
    assert places == sorted(places)


def test_a_fact_that_got_worse_is_told_with_both_values_although_the_time_is_the_same() -> None:
    text = printed(comparison(delta(changes=(change("flops", 1_234_567, 1_300_000), change("launches", 0, 3)))))
    assert "regressions, 1" in text
    assert "▲ worse    cross_attention/sdpa  flops 1,234,567 → 1,300,000, +5.3 %" in text
    assert "launches 0 → 3\n" in text  # no share of nothing


def test_a_job_of_which_facts_alone_were_compared_has_no_line_about_its_time() -> None:
    only = untimed(key(), "unclear", "timings of two machines are not compared", changes=(change(),))
    text = printed(comparison(only))
    assert "▲ worse    cross_attention/sdpa" in text
    assert "? unclear" not in text


def test_a_failure_that_is_no_job_is_among_the_regressions() -> None:
    good = comparison(delta())
    ruling = judged(good).rulings[0]
    failed = type(ruling)(
        gate="deterministic", outcome="failed", judged=9, failures=(("streaming_forward sm_90", "spills 0 → 8 bytes"),)
    )
    text = printed(good, judged(good, exit_code=1, rulings=(failed,)))
    assert text.startswith("✗ failed: 1 regression, 1 unchanged")
    assert "▲ worse    streaming_forward sm_90: spills 0 → 8 bytes" in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 140, 200])
def test_only_commands_are_wider_than_the_terminal(width: int) -> None:
    for line in printed(mixed(), judged(mixed()), width, everything=True).splitlines():
        assert cell_len(line.rstrip()) <= max(width, 21) or line.startswith("  fusionbench "), line


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_number_and_no_part_of_a_key_is_lost_where_the_terminal_is_narrow(width: int) -> None:
    text = joined(printed(mixed(), judged(mixed()), width))
    for part in ("1.310(1.290–1.330)", "1.617ms", "2.1%", "7", "+100.0%", "norm=rms,activation=swiglu,kv_heads=8"):
        assert part in text


def test_environments_that_differ_are_named_before_any_job() -> None:
    elsewhere = comparison(untimed(key(), "unclear", "other machine"), differences=("torch 2.11.0 → 2.13.0",))
    text = printed(elsewhere)
    assert text.index("torch 2.11.0 → 2.13.0") < text.index("unclear, 1\n")
    assert "timings are not compared" in text


def test_commands_repeat_the_check_and_the_worst_job() -> None:
    pair = replace(mixed(), head=replace(mixed().head, name="working tree"))
    commands = [
        line.strip() for line in printed(pair, judged(pair), 60).splitlines() if line.startswith("  fusionbench")
    ]
    assert commands == [
        "fusionbench check --paired main --suite smoke",
        "fusionbench check --paired main --suite smoke --only strategies=co_attention --only backends=sdpa",
    ]


def test_commands_repeat_what_was_compared_with_a_baseline() -> None:
    stored = replace(mixed(), method="stored", base=replace(mixed().base, name="b.json"))
    assert [line.strip() for line in printed(stored, judged(stored)).splitlines() if line.startswith("  fusion")] == [
        "fusionbench check --baseline b.json",
        f"fusionbench run smoke --job {key('co_attention')}",
    ]


def test_a_pair_of_two_commits_is_repeated_as_one() -> None:
    pair = replace(mixed(), head=replace(mixed().head, name="topic"))
    assert "fusionbench check --paired main --head topic --suite smoke" in printed(pair, judged(pair))


def test_what_one_gate_could_not_judge_is_told_where_the_other_passed() -> None:
    passed, silent = (
        Ruling(gate="deterministic", outcome="passed", judged=2),
        Ruling(gate="timing", outcome="not judged"),
    )
    half = Judgement(comparison=comparison(untimed(key(), "unclear")), rulings=(passed, silent), exit_code=5)
    first, *_ = printed(half.comparison, half).splitlines()
    assert first == "? not judged: no verdict of the timing gate; 1 unclear"


def test_times_that_nobody_asked_for_are_not_called_unclear() -> None:
    facts = Judgement(
        comparison=comparison(untimed(key(), "unclear")),
        rulings=(Ruling(gate="deterministic", outcome="passed", judged=1),),
        exit_code=0,
    )
    assert printed(facts.comparison, facts).startswith("✓ passed: 1 not judged by time\n")


def test_when_it_was_measured_is_told_to_the_minute() -> None:
    side = replace(comparison().base, name="x", measured_at="2026-11-21T22:08:45.731740+00:00")
    assert "· 2026-11-21 22:08 UTC ·" in printed(comparison(base=side))


def test_no_line_is_a_command_to_the_ci_that_logs_it() -> None:
    for width in (20, 60, 140):
        text = printed(hostile().comparison, hostile(), width, everything=True)
        for line in text.splitlines():
            assert not line.lstrip().startswith("::"), line
            assert "##[" not in line


def test_hostile_text_reaches_the_terminal_without_control_characters() -> None:
    text = printed(hostile().comparison, hostile(), everything=True)
    assert not {c for c in text if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}"}
    assert "[red]x[/]" in text  # shown, not obeyed


def test_a_thousand_jobs_are_shown_at_once() -> None:
    of = many(1000)
    judgement = judged(of)
    start = time.perf_counter()
    printed(of, judgement, 120, everything=True)
    assert time.perf_counter() - start < 2.0  # 0.3 s on an idle core


def test_a_row_in_place_of_the_ellipsis_is_the_whole_key() -> None:
    for deltas in (
        mixed().deltas,
        [delta(key(image=n, text=m)) for n in (1, 2, 3) for m in (4, 5)],
        [delta("bare")],
        [delta("a/b/c"), delta("a/b/d-e")],
    ):
        told = [
            heading.replace("…", name) if heading else name for heading, rows in grouped(deltas) for name, _ in rows
        ]
        assert sorted(told) == sorted(each.key for each in deltas)


def test_jobs_of_one_strategy_on_many_shapes_stand_below_the_strategy() -> None:
    ((heading, rows),) = grouped([delta(key(image=n, text=m)) for n in (1, 2, 3) for m in (4, 5)])
    assert heading == "cross_attention/sdpa/b1-…-w512-h8-n1-f4/linear/fp32/cpu/fwd"
    assert [name for name, _ in rows][:2] == ["i1x768-t4x768", "i1x768-t5x768"]


def test_jobs_on_one_shape_stand_below_the_shape() -> None:
    ((heading, rows),) = grouped([delta(key("film")), delta(key("gmu")), delta(key("gmu", "eager"))])
    assert heading == "…/b1-i196x768-t32x768-w512-h8-n1-f4/linear/fp32/cpu/fwd"
    assert [name for name, _ in rows] == ["film/sdpa", "gmu/sdpa", "gmu/eager"]


def test_one_job_with_a_long_key_takes_no_columns_from_the_others() -> None:
    deltas = [*(delta(key(image=n), "slower", 1.2) for n in (1, 2, 3)), delta(LLAMA, "slower", 1.1)]
    text = printed(comparison(*deltas), width=110)
    assert "▲ slower   gated_cross_attention/sdpa  1.234 ms" in text


def test_a_long_key_is_whole() -> None:
    assert joined(LLAMA.partition("/sdpa/")[2]) in joined(printed(mixed(), judged(mixed()), 60))
