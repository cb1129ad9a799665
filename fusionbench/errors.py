"""Every error that fusionbench raises on purpose, and how a near miss is answered.

FusionbenchError            exit code 2 unless said otherwise
├── SuiteError              a suite file or a command-line value is wrong
├── UnknownNameError             a name nobody registered; the message holds the nearest one
├── MissingModalityError         a strategy was given None for a modality that it cannot do without
├── NothingError                 there is nothing to compare (exit code 5)
├── StoppedError                 a signal ended it with nothing to show (exit code 130 or 143)
├── UnfitError                   the machine is not fit to measure (exit code 4)
├── DeviceLostError              a GPU is gone (exit code 3: its jobs fail, others go on)
└── StoreError              a results folder cannot be read or written (exit code 6 when damaged)
    ├── DamagedError             what was stored once is no longer whole
    └── UnstoredError            what was measured could not be stored
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class FusionbenchError(Exception):
    """Base of all errors whose message is meant for the user: one line, no traceback."""

    exit_code = 2


class SuiteError(FusionbenchError):
    """A suite file, or a value that narrows one, cannot be used."""


class UnknownNameError(FusionbenchError):
    """A name that is not registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no {kind} named '{printable(name)}'{nearest(name, known)}")


class MissingModalityError(FusionbenchError):
    """A strategy was called without a modality that it needs."""


class NothingError(FusionbenchError):
    """There is nothing to compare, which is no pass."""

    exit_code = 5


class StoppedError(FusionbenchError):
    """A signal ended it before there was anything to show."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(f"interrupted, {text}")
        self.exit_code = 128 + number


class UnfitError(FusionbenchError):
    """The machine is not fit to measure: someone else is on it, or it throttles."""

    exit_code = 4


class DeviceLostError(FusionbenchError):
    """The driver no longer reaches a GPU; nothing in this process can bring it back."""

    exit_code = 3


class StoreError(FusionbenchError):
    """A results folder or file cannot be written or read."""


class DamagedError(StoreError):
    """What was stored once is no longer whole."""

    exit_code = 6


class UnstoredError(StoreError):
    """A record could not be stored where it belongs; the message says where it is."""

    exit_code = 6


def refuse_unknown(kind: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise UnknownNameError for the first given name that is not known."""
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if matches:
        return f"; did you mean '{matches[0]}'?"
    return f" (known: {', '.join(names)})" if names else ""


def counted(number: int, one: str, many: str = "") -> str:
    """``1 job``, ``2,000 jobs``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(text: str, limit: int = 200) -> str:
    """Text from outside as it may be shown in a terminal: no control characters, bounded length."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[:limit] + "…"
