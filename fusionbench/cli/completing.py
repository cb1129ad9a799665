"""What a Tab offers: values of options and arguments, from names that are kept (names.py), never from torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import typer

from ..remote import is_url
from . import names

MOST = 50  # run folders, the newest
INSTRUCTION = "_FUSIONBENCH_COMPLETE"  # what the script of `--install-completion` sets, as complete_bash
_BREAKS = "=:"  # where bash cuts words, unless COMP_WORDBREAKS says otherwise


# --- what options and arguments offer: typer keeps those that begin with what was typed ----------------------------


def suites(incomplete: str) -> list[str]:
    """Shipped suites, and suite files here."""
    return [*names.known().suites, *(path.name for path in Path().glob("*.toml") if path.name != "pyproject.toml")]


def only(ctx: typer.Context, incomplete: str) -> list[str]:
    """``AXIS=`` and, once it is clear which axis, its values in the suite of the line; after a comma the others."""
    # An option that still lacks its value keeps click from giving the words before it to their arguments.
    axes = names.axes_of(ctx.params.get("suite") or next(iter(ctx.args), None))
    axis, equals, values = incomplete.partition("=")
    if not equals:
        found = [name for name in axes if name.startswith(axis)]
        if len(found) != 1:
            return [f"{name}=" for name in found]
        (axis,), values = found, ""
    before, comma, _ = values.rpartition(",")
    chosen = before.split(",")
    return [f"{axis}={before}{comma}{value}" for value in axes.get(axis, ()) if value not in chosen]


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Run folders, the newest first: of the results folder, or of the one that is being typed."""
    from .options import DEFAULT_RESULTS  # which need this module

    typed = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    results = ctx.params.get("results") or DEFAULT_RESULTS
    folder = typed if "/" in incomplete and typed.is_dir() else results
    if is_url(incomplete) or not isinstance(folder, Path):  # a Tab waits for no network
        return []
    found = sorted(folder.glob("*/manifest.json"), key=lambda path: path.parent.name, reverse=True)
    return [str(path.parent) for path in found[:MOST]]


def candidates(incomplete: str) -> list[str]:
    """Strategies, and behind a slash backends."""
    strategy, slash, _ = incomplete.partition("/")
    found = names.known().kinds
    return [f"{strategy}/{backend}" for backend in found["backends"]] if slash else found["strategies"]


def of(kind: str) -> Callable[[str], list[str]]:
    """All names of a kind."""

    def complete(incomplete: str) -> list[str]:
        return names.known().kinds[kind]

    return complete


# --- how a Tab is answered -----------------------------------------------------------------------------------------


def answer(app: Callable[[], object]) -> int:
    """Let ``app`` answer, and pass on nothing but names: an error would land in the line that is being typed."""
    out, code = io.StringIO(), 0
    front = _mended() if os.environ[INSTRUCTION] == "complete_bash" else ""
    try:
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            app()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0  # fish asks by it whether there is anything
    except Exception:
        return 1
    lines = [line[len(front) :] if line.startswith(front) else line for line in out.getvalue().splitlines()]
    sys.stdout.write("".join(f"{line}\n" for line in lines if line))
    return code


def _mended() -> str:
    """Put together in COMP_WORDS what bash has cut at = and :, up to the word that is typed. Returns the part of that
    word which bash takes for other words, and so wants back no more."""
    raw, place = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
    words = raw.split("\n" if "\n" in raw else " ")
    if not place.isdecimal() or int(place) > len(words):
        return ""
    words = [*words, ""][: int(place) + 1]
    joined, front = _joined(words)
    os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    return front


def _joined(words: Sequence[str]) -> tuple[list[str], str]:
    found: list[str] = []
    front, after_break = "", False
    for word in words:
        is_break = bool(word) and set(word) <= set(_BREAKS)
        if found and (is_break or after_break):
            front = found[-1] + (word if is_break else "")
            found[-1] += word
        else:
            found.append(word)
            front = ""
        after_break = is_break
    if front.startswith("--"):  # --only=dtypes=: what is offered is the option's value
        front = front.partition("=")[2]
    return found, front
