"""One finding of the doctor: its status, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from ..errors import printable

Status = Literal["ok", "warn", "fail"]
BUG = "the machine may be fine: run with --json and report what it says"


class Check(Struct, frozen=True, kw_only=True):
    """What one check found, as a sentence and, where it is a number, as ``value`` in ``unit``.

    ``remedy`` says what to do, ``command`` is a line for the shell that does it. ``group`` is what was examined:
    software, machine, results, timer or a device.
    """

    name: str
    status: Status
    found: str
    value: float | None = None
    unit: str = ""
    remedy: str = ""
    command: str = ""
    group: str = ""


def ok(name: str, found: str, value: float | None = None, unit: str = "") -> Check:
    """Nothing to do."""
    return Check(name=name, status="ok", found=found, value=value, unit=unit)


def graded(
    name: str, found: str, value: float, unit: str, limits: tuple[float, float], remedy: str, command: str = ""
) -> Check:
    """A number to be small: above the first limit a warning, above the second a failure, each with its remedy."""
    if value <= limits[0]:
        return ok(name, found, value, unit)
    status: Status = "warn" if value <= limits[1] else "fail"
    return Check(name=name, status=status, found=found, value=value, unit=unit, remedy=remedy, command=command)


def guarded(group: str, name: str, examine: Callable[[], Check | Iterable[Check]]) -> Iterator[Check]:
    """The checks that ``examine`` makes; if it raises, one that failed, as a doctor goes on to the next organ."""
    try:
        found = examine()
        for check in [found] if isinstance(found, Check) else found:
            yield replace(check, group=group)
    except Exception as error:
        what = printable(" ".join(str(error).split()), 200)
        told = f"this check raised {type(error).__name__}{': ' if what else ''}{what}"
        yield Check(name=name, status="fail", found=told, remedy=BUG, group=group)
