"""Who leads in each case of a run that is still going on, by its records alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from threading import Lock

from msgspec import Struct

from .presets import candidate
from .record import Record, Timing
from .spec import Case
from .stats import median_interval

RECENT = 200  # cases among which undecided ones are looked for; a sweep may have thousands

Way = tuple[str, str, int]  # timer, cache, threads: times are compared only where these agree


class Leader(Struct, frozen=True, gc=False):
    """The fastest so far in a case. ``lead`` is how long the second takes in its time, None where it is alone; it is
    ``clear`` where no other's interval reaches the fastest's, as in the tables (report/rank.py)."""

    case: Case
    who: str
    ms: float
    half_width: float  # of the median's interval, relative
    lead: float | None
    clear: bool
    peak_bytes: int | None

    @property
    def undecided(self) -> bool:
        return self.lead is not None and not self.clear


class _Timed(Struct, frozen=True, gc=False):
    case: Case
    middle: float  # ns, as the bounds of its interval
    low: float
    high: float
    peak_bytes: int | None


@dataclass
class Standings:
    """The candidates of each case with their latest times; one thread may add to it while another one reads."""

    version: int = 0  # grows with every record
    _cases: dict[tuple[str, Way], dict[str, _Timed]] = field(default_factory=dict)  # the most recent one is last
    _met: dict[tuple[str, Way], int] = field(default_factory=dict)  # in which order they came up
    _ways: set[Way] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def add(self, record: Record) -> None:
        """A candidate's record so far, in place of an earlier one; a candidate that failed is out."""
        job, time = record.job, record.time
        who, question = f"{candidate(job)}/{job.backend}", job.case.question
        with self._lock:
            self.version += 1
            if record.status == "ok" and time is not None:
                self._place(question, who, record, time)
            elif record.status != "ok":
                for way in self._ways:
                    self._cases.get((question, way), {}).pop(who, None)

    def _place(self, question: str, who: str, record: Record, time: Timing) -> None:
        way = (time.timer, time.cache, time.threads)
        self._ways.add(way)
        timed = self._cases.pop((question, way), {})
        middle, low, high = median_interval(time.calls_ns, time.rounds)
        peak = record.memory.peak_bytes if record.memory else None
        timed[who] = _Timed(record.job.case, middle, low, high, peak)
        self._cases[question, way] = timed
        self._met.setdefault((question, way), len(self._met))

    def top(self, most: int) -> tuple[list[Leader], int]:
        """At most ``most`` cases and how many more there are: undecided ones are kept before decided ones, and of each
        kind the most recent. They are in the order in which they came up, so that rows stay where they are."""
        with self._lock:
            recent = itertools.islice(((key, timed) for key, timed in reversed(self._cases.items()) if timed), RECENT)
            leaders = [(self._met[key], leader(timed)) for key, timed in recent]
            count = sum(map(bool, self._cases.values()))
        kept = sorted(leaders, key=lambda each: not each[1].undecided)[:most]
        return [found for _, found in sorted(kept, key=lambda each: each[0])], count - len(kept)


def leader(timed: dict[str, _Timed]) -> Leader:
    """The fastest of some candidates."""
    (who, first), *others = sorted(timed.items(), key=lambda item: item[1].middle)
    known = first.middle > 0
    return Leader(
        case=first.case,
        who=who,
        ms=first.middle / 1e6,
        half_width=(first.high - first.low) / 2 / first.middle if known else 0.0,
        lead=others[0][1].middle / first.middle if others and known else None,
        clear=all(other.low > first.high for _, other in others),
        peak_bytes=first.peak_bytes,
    )
