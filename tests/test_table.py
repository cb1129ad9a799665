"""What a terminal shows: fits its width, says tie when it is one, and passes nothing on from outside."""

from __future__ import annotations

import io
import shlex

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from fusionbench.record import Environment, Parts, Record
from fusionbench.report.frame import frame
from fusionbench.report.table import show
from fusionbench.spec import Case, Job, Shape
from tests.hostile import hostile_environments, hostile_records
from tests.synthetic import ENVIRONMENTS, records, smoke


def printed(
    items: list[Record], width: int = 100, environments: dict[str, Environment] = ENVIRONMENTS, **options: int
) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False, color_system=None)
    parts = show(frame(items, environments), environments, width=width, command="fusionbench run s.toml", **options)
    console.print(parts, crop=False)
    return out.getvalue()


@pytest.mark.parametrize("width", [30, 50, 79, 80, 120])
def test_only_commands_are_wider_than_the_terminal(width: int) -> None:
    for line in printed(records(600), width).splitlines():
        assert cell_len(line) <= width or line.startswith("    fusionbench run "), line


def test_a_narrow_terminal_drops_columns_and_keeps_who_and_how_long() -> None:
    wide, narrow = printed(smoke(), 120), printed(smoke(), 44)
    assert "TFLOP/s" in wide
    assert "TFLOP/s" not in narrow
    for kept in ("strategy", "backend", "ms", "vs best"):
        assert kept in narrow
    rows = [[line for line in text.splitlines() if line[:8].strip().isidentifier()] for text in (wide, narrow)]
    assert [line.split()[:2] for line in rows[0]] == [line.split()[:2] for line in rows[1]]  # nothing wrapped


def test_a_tie_is_not_called_slower() -> None:
    text = printed(records(40))
    ties = [line for line in text.splitlines() if "≈" in line]
    assert any(line.startswith(("film", "late:vote")) for line in ties)
    assert all(" × " not in line for line in ties if "≈ 1 " in line)


def test_more_groups_than_asked_for_are_counted() -> None:
    assert "… 8 more shapes and conditions" in printed(records(3000)[:400], groups=2)


def test_each_kind_of_failure_comes_with_a_command_that_repeats_a_job() -> None:
    items = records(3000)
    text = printed(items)
    failed = [r for r in items if r.status in ("oom", "crash", "wrong", "error", "timeout")]
    assert f"{len(failed)} failed" in text
    commands = [line.strip() for line in text.splitlines() if line.startswith("    fusionbench run ")]
    assert commands
    assert {shlex.split(c)[-1] for c in commands} <= {r.job.key for r in failed}


def test_skips_are_grouped_by_reason_with_counts() -> None:
    text = printed(smoke())
    assert "4 skipped" in text
    assert "2  backend 'sdpa' skips 'concat'" in text


def test_a_reason_is_never_cut() -> None:
    reason = "Triton kernels need a GPU (on a CPU there is only Triton's interpreter, which is no backend)"
    case = Case(shape=Shape(batch=1, image=1, text=1, image_width=1, text_width=1, width=1, heads=1))
    items = [
        Record(job=Job(strategy=name, backend="b", case=case), status=status, reason=reason)
        for name, status in (("early", "skipped"), ("late", "error"))
    ]
    lines = [line.rstrip() for line in printed(items, 50, {}).splitlines()]
    assert " ".join(" ".join(lines).split()).count(reason) == 2
    assert "1  Triton kernels need a GPU (on a CPU there is" in lines
    assert "   only Triton's interpreter, which is no backend)" in lines  # behind the number


def test_hostile_text_reaches_the_terminal_without_control_characters() -> None:
    text = printed(hostile_records(), 100, hostile_environments())
    assert not {c for c in text if not c.isprintable() and c != "\n"}
    assert "[red]x[/]" in text  # shown, not obeyed
    assert "x" * 2100 not in text


def test_a_key_with_shell_characters_is_quoted() -> None:
    case = Case(shape=Shape(batch=1, image=1, text=1, image_width=1, text_width=1, width=1, heads=1))
    failed = Record(job=Job(strategy="a;rm -rf", backend="b", case=case), status="error", reason="r")
    key = shlex.quote(failed.job.key)
    assert key.startswith("'a;rm")
    assert f"fusionbench run s.toml --job {key}" in printed([failed], environments={})


def test_no_records_say_so() -> None:
    assert printed([], environments={}).strip() == "no records"


def test_notes_that_differ_in_numbers_alone_are_told_once_with_their_remedy() -> None:
    items = [item for item in smoke() if item.status == "ok"][:4]
    waited = [f"waited {share}% of the time for a core; close other programs" for share in (3, 12.5, 40)]
    noted = [msgspec.structs.replace(item, notes=(note,)) for item, note in zip(items, [*waited, "leaks"], strict=True)]
    text = printed(noted)
    assert "3  waited 3% of the time for a core; close other programs" in text
    assert "12.5%" not in text
    assert "1  leaks" in text


def test_a_wide_terminal_says_what_most_of_the_time_goes_to() -> None:
    items = [item for item in smoke() if item.status == "ok"][:2]
    spent = Parts(attention_ns=1_000_000_000, feed_forward_ns=3_000_000_000)  # longer than any sample: no gaps
    known = [msgspec.structs.replace(items[0], parts=spent), items[1]]
    assert "feed-forward 75%" in printed(known, width=200)
    assert "mostly" not in printed(items, width=200)
