"""The words of a history: runs, points in time, and the series, segments, shifts and steps that they make up."""

from __future__ import annotations

from msgspec import Struct

from .record import Environment

VERSION = 1  # of a history as JSON

Interval = tuple[float, float, float]  # median, low, high at 95 %


class Measurement(Struct, frozen=True, kw_only=True, gc=False):
    """One run of the history. ``planned`` is None where nobody counted, as in a lone sealed file."""

    name: str
    measured_at: str  # of its first record; UTC, ISO 8601
    machines: tuple[str, ...]
    commit: str
    dirty: bool
    jobs: int
    planned: int | None
    unfinished: bool


class Point(Struct, frozen=True, kw_only=True, gc=False):
    """One job in one run. Times are of one call on the core; what failed has none.

    ``even`` is the time in units of a fixed piece of work that was timed beside it, round by round: what the machine
    gained or lost is in both, and what the code did is in the one. None where a record has no such controls.
    """

    at: str  # UTC, ISO 8601
    run: int  # index into the history's runs
    commit: str
    dirty: bool
    environment: str
    status: str
    conditions: tuple[str, ...] = ()  # timer, cache, threads
    ns: Interval | None = None
    even: Interval | None = None
    control_ns: float | None = None
    flops: int | None = None
    params: int | None = None
    peak_bytes: int | None = None
    kernels: tuple[str, ...] = ()


class Shift(Struct, frozen=True, kw_only=True, gc=False):
    """A new level of the time, from point ``at`` on; ``since`` is the last point before it.

    ``ratio`` is the median after over the one before, with its 95 % interval.
    """

    since: int
    at: int
    ratio: float
    low: float
    high: float


class Step(Struct, frozen=True, kw_only=True, gc=False):
    """A fact that no noise moves and that is another from point ``at`` on than it was at point ``since``."""

    fact: str
    since: int
    at: int
    base: int | str
    head: int | str


class Segment(Struct, frozen=True, kw_only=True, gc=False):
    """The points of a series whose timings may be compared; they can lie between those of another segment.

    ``even_ns`` turns a point's ``even`` into nanoseconds; None where not all points have one, and then changes are
    looked for in the plain times. ``reason`` says why none could be looked for.
    """

    environment: str
    conditions: tuple[str, ...]
    points: tuple[int, ...]
    differences: tuple[str, ...] = ()  # from the segment before
    even_ns: float | None = None
    shifts: tuple[Shift, ...] = ()
    reason: str = ""


class Series(Struct, frozen=True, kw_only=True, gc=False):
    """One job on one machine, its points in the order in which they were measured."""

    key: str
    machine: str
    points: tuple[Point, ...]
    segments: tuple[Segment, ...]
    steps: tuple[Step, ...]

    @property
    def shifts(self) -> list[Shift]:
        """The shifts of all segments in their order."""
        return sorted((each for segment in self.segments for each in segment.shifts), key=lambda each: each.at)

    @property
    def latest(self) -> Segment | None:
        """The segment that was measured last; None where nothing was timed."""
        return max(self.segments, key=lambda segment: segment.points[-1], default=None)

    def judged(self, segment: Segment) -> list[Interval]:
        """The times of a segment in ns in which changes are looked for: even where all of them are."""
        points = [self.points[at] for at in segment.points]
        if segment.even_ns is None:
            return [point.ns for point in points if point.ns]
        pace = segment.even_ns
        return [(m * pace, low * pace, high * pace) for m, low, high in (point.even for point in points if point.even)]

    @property
    def since_first(self) -> float | None:
        """The last of the judged times over the first of the latest segment; None where there is only one."""
        times = self.judged(self.latest) if self.latest else []
        return times[-1][0] / times[0][0] if len(times) > 1 else None


class History(Struct, frozen=True, kw_only=True, gc=False):
    """Every job of a folder of runs; the series that changed most come first."""

    v: int = VERSION
    runs: tuple[Measurement, ...]
    environments: dict[str, Environment]
    series: tuple[Series, ...]
    problems: tuple[str, ...] = ()
    note: str = ""  # why change points were not looked for at all
