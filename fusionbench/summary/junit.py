"""A comparison as JUnit XML, for every CI that shows test results."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # to write, never to read

from ..delta import Comparison, Delta, Judgement
from ..errors import counted
from .headline import headline
from .sections import sections, strays
from .words import fact, ratio, span

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
_STATUS = re.compile(r"\b(wrong|oom|crash|timeout|error)\b")
_NUMBERS = ("base_ns", "head_ns", "ratio", "low", "high", "detectable", "rounds", "stage", "p")

Result = tuple[str, str, str]  # failure, error, skipped or "" for passed; its type; its message
Case = tuple[str, Delta | None, Result]


def junit(comparison: Comparison, judgement: Judgement | None = None) -> bytes:
    """One test case per job: a failure is slower, costs more or is wrong, an error did not come to an end.

    A judgement that passed nothing and has no such job (nothing comparable, say) is an error of its own.
    """
    found = sections(comparison)
    stray = strays(judgement, found)
    cases: list[Case] = [(delta.key, delta, result(delta, judgement)) for delta in comparison.deltas]
    cases += [(each.key, None, ("failure", "worse", each.what)) for each in stray]
    bad = any(kind in ("failure", "error") for _, _, (kind, _, _) in cases)
    if judgement is not None and judgement.exit_code and not bad:
        cases.append(("check", None, ("error", f"exit {judgement.exit_code}", headline(judgement, found, stray))))
    return _document(comparison, cases)


def result(delta: Delta, judgement: Judgement | None) -> Result:
    """What a job comes to; a difference that no gate judged fails nothing."""
    judged = {ruling.gate for ruling in judgement.rulings if ruling.outcome != "not judged"} if judgement else None
    timing, facts = (judged is None or gate in judged for gate in ("timing", "deterministic"))
    if delta.verdict == "broken":
        status = _STATUS.search(delta.reason[:80])
        kind = "failure" if status and status[1] == "wrong" else "error"
        return (kind, status[1] if status else "broken", delta.reason or "broken")
    worse = [fact(change) for change in delta.changes if change.worse]
    slower = [f"slower: {_times(delta)}"] if delta.verdict == "slower" else []
    if (slower and timing) or (worse and facts):
        return ("failure", "slower" if slower else "worse", "; ".join(slower + worse))
    if delta.verdict == "missing" and judgement and _fails(delta, judgement):  # a lost job hides a regression
        return ("failure", "missing", delta.reason or "missing")
    if delta.verdict in ("new", "missing") or (delta.verdict == "unclear" and timing):
        return ("skipped", delta.verdict, delta.reason or delta.verdict)
    return ("", "", "")


def _fails(delta: Delta, judgement: Judgement) -> bool:
    return any(key == delta.key for ruling in judgement.rulings for key, _ in ruling.failures)


def _times(delta: Delta) -> str:
    return f"{span(delta.base_ns, delta.head_ns)}, ratio {ratio(delta)}, {counted(delta.rounds, 'round')}"


def _document(comparison: Comparison, cases: list[Case]) -> bytes:
    kinds = [kind for _, _, (kind, _, _) in cases]
    seconds = sum((delta.head_ns or 0.0) / 1e9 for _, delta, _ in cases if delta)
    counts = {
        "tests": str(len(cases)),
        "failures": str(kinds.count("failure")),
        "errors": str(kinds.count("error")),
    }
    counts |= {"skipped": str(kinds.count("skipped")), "time": f"{seconds:.9f}"}
    root = ET.Element("testsuites", {"name": "fusionbench", **counts})
    name = legal(comparison.head.suite) or "comparison"
    suite = ET.SubElement(root, "testsuite", {"name": name, **counts})
    if comparison.head.measured_at:
        suite.set("timestamp", legal(comparison.head.measured_at))
    for case in cases:
        _case(suite, f"fusionbench.{name}", case)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(suite: ET.Element, classname: str, told: Case) -> None:
    key, delta, (kind, type_, message) = told
    seconds = (delta.head_ns or 0.0) / 1e9 if delta else 0.0
    case = ET.SubElement(suite, "testcase", {"classname": classname, "name": legal(key), "time": f"{seconds:.9f}"})
    if delta is not None:
        _properties(case, delta)
    if kind:
        ET.SubElement(case, kind, {"type": legal(type_), "message": legal(message)})


def _properties(case: ET.Element, delta: Delta) -> None:
    known = {name: getattr(delta, name) for name in ("verdict", *_NUMBERS)}
    known |= {f"{change.fact}.{side}": getattr(change, side) for change in delta.changes for side in ("base", "head")}
    properties = ET.SubElement(case, "properties")
    for name, value in known.items():
        if value not in (None, ""):
            ET.SubElement(properties, "property", {"name": legal(name), "value": legal(str(value))})


def legal(text: str) -> str:
    """Without what XML 1.0 has no way to write."""
    return _ILLEGAL.sub("", text)
