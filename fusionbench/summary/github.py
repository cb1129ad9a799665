"""What a check found as annotations of a GitHub workflow: for each a command on a line of its own, escaped."""

from ..delta import Judgement
from .headline import headline
from .junit import result
from .sections import sections, strays
from .words import clean

MOST = 10  # of each level are shown for a step; the others would be dropped without a word

Note = tuple[str, str]  # title and message


def annotations(judgement: Judgement) -> list[str]:
    """At most ten errors and ten warnings; where there are more, the last of either says how many."""
    found = sections(judgement.comparison)
    stray = strays(judgement, found)
    deltas = [(delta, result(delta, judgement)) for title in ("regressions", "broken") for delta in found[title]]
    errors = [(kind, f"{delta.key}: {told}") for delta, (level, kind, told) in deltas if level]
    errors += [("worse", f"{each.key}: {each.what}") for each in stray]
    if judgement.exit_code and not errors:
        errors = [("check", headline(judgement, found, stray))]
    unjudged = [ruling for ruling in judgement.rulings if ruling.outcome == "not judged"]
    warnings = [(f"{ruling.gate} gate not judged", ruling.reason or "no reason given") for ruling in unjudged]
    warnings += [("environments differ", difference) for difference in judgement.comparison.differences]
    warnings += [
        ("missing", f"{delta.key}: {delta.reason or 'measured before, not now'}") for delta in found["missing"]
    ]
    warnings += [("not judged", f"{delta.key}: {delta.verdict}") for delta, (level, _, _) in deltas if not level]
    return [*_limited("error", errors), *_limited("warning", warnings)]


def _limited(level: str, notes: list[Note]) -> list[str]:
    if len(notes) > MOST:
        rest = len(notes) - (MOST - 1)
        notes = [*notes[: MOST - 1], (f"{rest:,} more", f"{rest:,} more in the summary of this step and in the report")]
    return [f"::{level} title={_property(f'fusionbench: {title}')}::{_message(text)}" for title, text in notes]


def _message(text: str) -> str:
    return (clean(text, 1000) or "–").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(clean(text, 100)).replace(":", "%3A").replace(",", "%2C")
