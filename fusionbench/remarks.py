"""What the samples of a record say about the conditions they were taken under, in words for its reader."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from msgspec.structs import replace

from .errors import printable
from .record import Record, Timing

NOTED, UNFIT = 0.01, 0.1  # shares of the time that threads waited for a core: told, and refused under --strict
SUSPENDED_NS, SUSPENDED_TIMES = 500_000_000, 100  # a sample longer than this, and than so many medians

_BEGINNINGS = ("waited ", "a sample took ")  # of the remarks that this module makes


def remarked(record: Record) -> Record:
    """The record with the remarks that its samples deserve, in place of those that fewer of them did."""
    kept = tuple(note for note in record.notes if not note.startswith(_BEGINNINGS))
    made = (waiting(record.time), suspension(record.time)) if record.time else ()
    return replace(record, notes=kept + tuple(note for note in made if note))


def contention(time: Timing) -> float:
    """The share of the sampled time that a thread waited for a core; 0 where the kernel does not say."""
    return sum(time.run_delay_ns) / time.threads / max(1, sum(time.samples_ns))


def waiting(time: Timing) -> str | None:
    """A note about other programs on the cores."""
    share = contention(time)
    if share <= NOTED:
        return None
    return f"waited {share:.0%} of the time for a core; close other programs or use fewer threads"


def suspension(time: Timing) -> str | None:
    """A note about a sample so long that the process must have stood still. It is kept: the median bears it."""
    longest, middle = max(time.samples_ns), median(time.samples_ns)
    if longest <= max(SUSPENDED_NS, SUSPENDED_TIMES * middle):
        return None
    took = (
        f"a sample took {longest / 1e9:.1f} s where the median is {middle / 1e6:.3g} ms, as if the process was stopped"
    )
    return f"{took}; the median bears one of them, with more of them measure again"


def disturbed(records: Iterable[Record]) -> str | None:
    """Why ``--strict`` refuses the conditions that these records were made under; None if it does not."""
    doubtful = [f"{record.job.key}: {reason}" for record in records if (reason := unfit(record))]
    more = f", and {len(doubtful) - 1} more" if len(doubtful) > 1 else ""
    return f"not measured in peace: {printable(doubtful[0])}{more}" if doubtful else None


def unfit(record: Record) -> str | None:
    """The same of one record."""
    if record.time and contention(record.time) > UNFIT:
        return f"it waited {contention(record.time):.0%} of the time for a core"
    if record.device and record.device.throttle:
        return f"the device throttled ({', '.join(record.device.throttle)})"
    if record.device and record.device.foreign:
        return f"{record.device.foreign} other processes used its GPU"
    return None
