"""Advice in a terminal of any width: the answer first, then the candidates, what is left open, and how to settle it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from .advice import Advice, Candidate
from .calibration import LEVEL, Estimate
from .errors import counted, printable
from .fitting import Column, fitted
from .summary.folding import paragraph

BEHIND = 8  # of those not advised, unless all are asked for
NEAREST = 3


def show(found: Advice, *, width: int, settle: str, everything: bool = False) -> Group:
    """The advice, at most ``width`` columns wide but for the command ``settle``: print with ``crop=False``."""
    parts: list[RenderableType] = [*paragraph(question(found), width, "")]
    parts += [*paragraph(answer(found), width, "bold"), Text(), *_table(found.advised, width)]
    rest = [each for each in found.candidates if each.place != "advised"]
    if rest:
        parts += [Text(), *paragraph(f"not advised, {len(rest)}", width, "bold")]
        for each in rest if everything else rest[:BEHIND]:
            parts += paragraph(f"{each.name}  {_time(each.latency)}: {each.why}", width, "dim", indent=2, hang=2)
        if len(rest) > BEHIND and not everything:
            parts += paragraph(f"and {len(rest) - BEHIND} more (see them with --all)", width, indent=2)
    parts += [Text(), *(line for text in _basis(found) for line in paragraph(text, width, "dim"))]
    if settle:
        parts += [Text(), *paragraph("to settle it, measure the candidates in doubt at this shape:", width, "")]
        parts += [Text(f"    {settle}", no_wrap=True, overflow="ignore")]
    return Group(*parts)


def question(found: Advice) -> str:
    """What is asked, and where."""
    case, shape = found.case, found.case.shape
    sizes = [f"{shape.image:,} image × {shape.text:,} text tokens", f"width {shape.width:,}"]
    sizes += [counted(shape.heads, "head")]
    sizes += [f"batch {shape.batch}"] if shape.batch > 1 else []
    sizes += [f"depth {shape.depth}"] if shape.depth > 1 else []
    where = printable(found.hardware or found.machine)
    return f"{', '.join(sizes)}, {case.dtype} on {where}, {case.mode}:"


def answer(found: Advice) -> str:
    """The sentence that answers, with what is not known."""
    if not found.advised:
        return "no candidate keeps the limits"
    first, ties = found.advised[0], [each for each in found.advised if each.tie]
    time = f"{_time(first.latency)} {_range(first.latency)}"
    if len(ties) > 1:
        names = ", ".join(each.name for each in ties[:3]) + (f" and {len(ties) - 3} more" if len(ties) > 3 else "")
        return f"no clear winner: {names}; {first.name} is predicted at {time}"
    told = "measured" if first.measured else "predicted"
    others = [each for each in found.candidates if each is not first and each.place != "over budget"]
    if not others:
        rest = "no other keeps the limits" if len(found.candidates) > 1 else "nothing else was measured"
        return f"take {first.name}, {told} at {time}; {rest}"
    second = min(others, key=lambda each: each.latency.value)
    ratio = Estimate(
        value=second.latency.value / first.latency.value,
        low=second.latency.low / first.latency.high,
        high=second.latency.high / first.latency.low,
        own=0,
    )
    by = f"{ratio.value:.2f}× faster than {second.name} [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"take {first.name}, {told} at {time}: {by}"


def _table(candidates: Sequence[Candidate], width: int) -> list[Text]:
    columns: list[Column] = [
        ("advised", False, [Text(("= " if each.tie else "  ") + each.name) for each in candidates]),
        ("latency", True, [Text(_time(each.latency)) for each in candidates]),
        (f"{LEVEL:.0%} interval", True, [Text(_range(each.latency)) for each in candidates]),
        ("memory", True, [Text(_memory(each.memory)) for each in candidates]),
        ("error", True, [Text(_error(each.error)) for each in candidates]),
        ("bound by", False, [Text(_bound(each)) for each in candidates]),
        (
            "from",
            False,
            [Text("measured" if each.measured else counted(each.latency.own, "job")) for each in candidates],
        ),
    ]
    return fitted(columns, width, keep=2)  # whole names rather than the last columns


def _bound(each: Candidate) -> str:
    told = {"launch": "launching", "compute": "computing", "memory": "memory"}[each.bound]
    share = f" {each.share:.0%}" if each.bound == "launch" else ""
    return told + share + (f", {each.of_ceiling:.0%} of ceiling" if each.of_ceiling and each.bound != "launch" else "")


def _basis(found: Advice) -> Iterator[str]:
    """From what it is told, what lies outside of it, and the measured jobs nearest to it."""
    place = f"of {printable(found.machine)}" if found.machine else ""
    yield f"from {counted(found.records, 'record')} {place}; memory is beyond inputs and weights, error is relative L2"
    for each in found.advised[:NEAREST]:
        if each.measured:
            continue
        near = "; ".join(f"{one.ms:.3g} ms at {', '.join(one.apart)}" for one in each.nearest)
        yield f"nearest measured of {each.name}: {near}"
    beyond = {text for each in found.advised for text in each.outside}
    if beyond:
        yield f"beyond what was measured, so less sure than its interval: {', '.join(sorted(beyond))}"
    if found.unmeasured:
        yield f"{counted(found.unmeasured, 'other backend')} of these strategies could run it and are not measured"
    yield from found.notes


def _time(each: Estimate) -> str:
    return f"{each.value * 1e3:.3g} µs" if each.value < 1 else f"{each.value:.3g} ms"


def _range(each: Estimate) -> str:
    factor = 1e3 if each.value < 1 else 1.0
    return f"[{each.low * factor:.3g}, {each.high * factor:.3g}]"


def _memory(each: Estimate | None) -> str:
    return "unknown" if each is None else f"{each.value:.3g} MiB" + _give_or_take(each)


def _error(each: Estimate | None) -> str:
    return "unknown" if each is None else f"{each.value:.1e}" + _give_or_take(each)


def _give_or_take(each: Estimate) -> str:
    """How far the interval reaches up, as a share of the value."""
    return f" ±{each.high / each.value - 1:.0%}"
