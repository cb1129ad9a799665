"""Records whose every text tries to break out of the place it is shown in."""

from __future__ import annotations

import random

import msgspec

from fusionbench.record import Environment, Record
from tests.synthetic import ENVIRONMENTS, record, smoke

TEXTS = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=2>",
    '"><svg onload=window.pwned=3>',
    '=HYPERLINK("http://evil.invalid")',
    "[red]x[/] [link=http://evil.invalid]y[/link]",
    "\x1b]0;owned\x07\x1b[31mred\x1b[2J",
    "abc\u202etxt.exe\u2066",
    "<a href='javascript:window.pwned=4'>click</a> %{x} $\\alpha$ {{ 7*7 }}",
    "line\r\nbreak\ttab\x00nul \u2028sep",
    "x" * 10_000,
)


def hostile_records() -> list[Record]:
    """A small run with hostile names, and one failure and one skip per hostile text."""
    rng = random.Random(0)
    measured = smoke()
    for index, text in enumerate(TEXTS):
        base = measured[index]
        named = msgspec.structs.replace(base.job, strategy=text, backend=TEXTS[-2 - index % 3])
        measured.append(msgspec.structs.replace(record(base.job, rng), job=named, kernels=(text,), notes=(text,)))
        for status in ("error", "skipped"):
            other = msgspec.structs.replace(named, strategy=f"{text}{status}")
            measured.append(
                Record(job=other, status=status, reason=text, phase=text, environment="h100-a")  # type: ignore[arg-type]
            )
    return measured


def hostile_environments() -> dict[str, Environment]:
    return {
        "h100-a": msgspec.structs.replace(ENVIRONMENTS["h100-a"], machine=TEXTS[0], cpu=TEXTS[1], gpu=TEXTS[5]),
    }
