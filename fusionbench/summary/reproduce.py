"""Commands that show the same again, quoted for a shell."""

from __future__ import annotations

import shlex

from ..delta import Comparison, Delta, Judgement
from ..revisions import WORKING_TREE
from .words import clean

Command = list[str]


def commands(comparison: Comparison, judgement: Judgement | None, worst: Delta | None) -> list[str]:
    """The comparison, and the job that got worst alone. What cannot be typed as it is, is left out."""
    asked = [_compare(comparison) if judgement is None else _check(comparison, judgement)]
    if worst is not None and judgement is not None and comparison.method == "paired":
        asked.append([*asked[0], *_only(worst.key)])  # all of a suite in pairs takes an hour
    elif worst is not None:
        asked.append(["fusionbench", "run", comparison.head.suite or "SUITE", "--job", worst.key])
    return [shlex.join(command) for command in asked if all(map(_typable, command))]


def _check(comparison: Comparison, judgement: Judgement) -> Command:
    against = "--paired" if comparison.method == "paired" else "--baseline"
    judged = [ruling.gate for ruling in judgement.rulings]
    gate = ["--gate", judged[0]] if len(judged) == 1 else []
    return ["fusionbench", "check", against, comparison.base.name, *_measured(comparison), *gate]


def _measured(comparison: Comparison) -> Command:
    """What a pair was: a baseline says it itself."""
    if comparison.method != "paired":
        return []
    head = [] if comparison.head.name == WORKING_TREE else ["--head", comparison.head.name]
    return [*head, *(["--suite", comparison.head.suite] if comparison.head.suite else [])]


def _only(key: str) -> Command:
    strategy, backend, *_ = [*key.split("/"), "", ""]
    return ["--only", f"strategies={strategy}", "--only", f"backends={backend}"]


def _compare(comparison: Comparison) -> Command:
    return ["fusionbench", "compare", comparison.base.name, comparison.head.name]


def _typable(word: str) -> bool:
    """Whole, on one line, and no option where it is meant as a value."""
    return bool(word) and clean(word, 1000) == word and (not word.startswith("-") or word in _OPTIONS)


_OPTIONS = {"--paired", "--baseline", "--head", "--suite", "--gate", "--job", "--only"}
