"""What a run shows in the terminal while it runs: the plan, where it is, how long it will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from . import estimate
from .errors import printable
from .live import Bar, Board
from .record import FAILED, Record
from .spec import Budget, Job, Skip, Visit
from .standings import Standings
from .stats import median_interval

# Without a terminal: a line per job up to this many jobs, beyond it one line in this many seconds.
EVERY_JOB, EVERY_S = 200, 10.0

NARROW = 70  # columns below which the line of the bar is shortened

START_S = 2.0  # before the first job the fork server imports torch and its compiler


@dataclass(frozen=True)
class Outline:
    """What a run is about to do."""

    title: str
    question: str
    todo: Counter[str]  # jobs to measure, by backend
    done: int  # jobs that an earlier attempt finished
    skips: Counter[str]  # reasons
    devices: tuple[str, ...]
    machine: str
    folder: str
    budget: Budget
    begun: tuple[int, ...] = ()  # how many rounds each of the jobs has that an earlier attempt began

    @property
    def jobs(self) -> int:
        return sum(self.todo.values())

    def work_s(self) -> tuple[float, float]:
        """What all visits take together."""
        visits = Counter({(backend, 0): count for backend, count in self.todo.items()})
        for backend, count in self.todo.items():
            visits[backend, 1] += count * (estimate.rounds(backend, self.budget) - 1)
        visits["", 0] -= len(self.begun)  # only what is not compiled has some rounds without the others
        visits["", 1] -= sum(self.begun) - len(self.begun)
        each = [(count, estimate.visit_s(*visit, self.budget)) for visit, count in visits.items()]
        return sum(count * low for count, (low, _) in each), sum(count * high for count, (_, high) in each)

    def estimate_s(self) -> tuple[float, float]:
        """What the whole run takes."""
        low, high = self.work_s()
        return START_S + low, START_S + high


def outline_box(outline: Outline) -> Panel:
    """The plan as a box."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    if outline.question:
        grid.add_row("question", Text(printable(outline.question, 300)))
    low, high = outline.estimate_s()
    jobs = f"{outline.jobs} to measure on {', '.join(outline.devices) or 'no device'}"
    jobs += f", {len(outline.begun)} of them begun" if outline.begun else ""
    grid.add_row("jobs", Text(jobs + (f", {outline.done} already done" if outline.done else "")))
    for reason, count in outline.skips.most_common(4):
        grid.add_row("skipped", Text(f"{count}: {printable(reason)}"))
    if len(outline.skips) > 4:
        rest = sum(count for _, count in outline.skips.most_common()[4:])
        grid.add_row("skipped", Text(f"{rest} for {len(outline.skips) - 4} other reasons (see: fusionbench plan)"))
    if outline.jobs:
        grid.add_row("time", Text(f"about {span(low, high, ' to ')}"))
    grid.add_row("machine", Text(outline.machine))
    grid.add_row("results", Text(outline.folder))
    return Panel(grid, title=Text(printable(outline.title)), title_align="left", expand=False)


def plan_listing(title: str, jobs: Sequence[Job], skips: Sequence[Skip], head: int) -> Group:
    """The first ``head`` jobs by key, then the reasons of the skips with an example each.

    Keys may be wider than the terminal, so that they can be copied: print with ``crop=False``.
    """
    parts = [Text(f"{printable(title)}: {len(jobs)} jobs, {len(skips)} skipped"), Text()]
    parts += [_keys([job.key for job in jobs[:head]])] if jobs else []
    if len(jobs) > head:
        parts.append(Text(f"... {len(jobs) - head} more (--head 0 prints all)"))
    reasons = Counter(skip.reason for skip in skips)
    example = {skip.reason: skip.job.key for skip in reversed(skips)}
    for reason, count in reasons.most_common():
        parts += [Text(), Text(f"{count} skipped: {printable(reason)}"), _keys([f"    {example[reason]}"])]
    return Group(*parts)


def _keys(keys: Sequence[str]) -> Text:
    return Text("\n".join(keys), no_wrap=True, overflow="ignore")


def duration(seconds: float) -> str:
    """12 s, 3 min, 2 h 05 min."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def span(low: float, high: float, between: str) -> str:
    """From a time to a longer one; one of them where they read alike."""
    ends = dict.fromkeys((duration(low), duration(high)))
    return between.join(ends)


@dataclass
class Display:
    """A listener that draws a bar on a terminal with the best so far below it, and prints plain lines anywhere else.

    ``earlier`` are the records of the jobs that an earlier attempt has finished or begun.
    """

    console: Console
    outline: Outline
    quiet: bool = False
    earlier: Iterable[Record] = ()
    done: int = 0  # jobs
    visits: int = 0
    # Visits are weighed by the seconds they should take: a first one takes several times as long as a later one.
    worked: float = 0.0
    expected: float = 0.0  # as far as known: a job that fails or is slow to build has fewer visits
    begun: float | None = None  # when the first job did
    last_line: float = field(default_factory=monotonic)
    bar: Bar | None = None
    board: Board = field(default_factory=lambda: Board(Standings()))

    def __enter__(self) -> Self:
        self.expected = sum(self.outline.work_s()) / 2
        if self.console.is_terminal and not self.quiet:
            for record in self.earlier:
                self.board.standings.add(record)
            self.bar = Bar(
                *bar_columns(self.console.width),
                below=self._below,
                console=self.console,
                refresh_per_second=2,  # with 16 rows 0.4 % of a core, 1 % where each one is new (1.8 and 5 ms)
                transient=True,
            )
            self.bar.add_task("preparing", total=self.expected, left="", jobs=f"0/{self.outline.jobs}")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _below(self) -> RenderableType | None:
        return self.board(self.console.width, self.console.height)

    def started(self, job: Job) -> None:
        self.begun = monotonic() if self.begun is None else self.begun
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description=brief(job, self.console.width - 60), left=self._left())

    def visited(self, visit: Visit, record: Record, last: bool) -> None:
        rounds = self.outline.budget.rounds
        self.done += last
        self._weigh(visit, last)
        if self.bar is not None:
            self.board.standings.add(record)
            jobs = f"{self.done}/{self.outline.jobs}" + (f" round {visit.round + 1}/{rounds}" if rounds > 1 else "")
            self.bar.update(
                self.bar.task_ids[0], completed=self.worked, total=self.expected, jobs=jobs, left=self._left()
            )
            if record.status in FAILED:
                self._print(f"{record.status:>8}  {record.job.key}: {record.reason}")
        elif not self.quiet and self._line_is_due(last):
            self.last_line = monotonic()
            place = "" if last else f"round {visit.round + 1} of {rounds}: "
            self._print(f"[{self.done}/{self.outline.jobs}] {place}{outcome(record)}  {record.job.key}")

    def interrupted(self, signal_name: str) -> None:
        self._print(f"{signal_name}: finishing the running sample; once more to stop at once")

    def _line_is_due(self, last: bool) -> bool:
        few, all_done = self.outline.jobs <= EVERY_JOB, self.done == self.outline.jobs
        return (last and (few or all_done)) or monotonic() - self.last_line >= EVERY_S

    def _weigh(self, visit: Visit, last: bool) -> None:
        """Count a visit as done, and see whether its job will have fewer others than thought, or more."""
        backend, budget = visit.job.backend, self.outline.budget
        worked, later = (sum(estimate.visit_s(backend, each, budget)) / 2 for each in (visit.round, 1))
        thought = (budget.rounds if visit.round else estimate.rounds(backend, budget)) - visit.round - 1
        left = 0 if last else budget.rounds - visit.round - 1
        self.visits += 1
        self.worked += worked
        self.expected += later * (left - thought)

    def _left(self) -> str:
        """The time left, from the pace so far; a range, as jobs differ."""
        if self.visits < 3 or self.begun is None:
            return ""
        left = (monotonic() - self.begun) / self.worked * max(0.0, self.expected - self.worked)
        return f"{span(0.7 * left, 1.4 * left, '-')} left"

    def _print(self, text: str) -> None:
        self.console.print(Text(printable(text, 1000)), soft_wrap=True)


def bar_columns(width: int) -> list[ProgressColumn]:
    """What stands on the line of the bar, and never on two: in a narrow terminal without the clock and the job."""

    def text(field: str) -> TextColumn:
        return TextColumn(f"{{{field}}}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))

    if width < NARROW:
        return [BarColumn(bar_width=max(4, width - 36)), text("task.fields[jobs]"), text("task.fields[left]")]
    more = [text("task.fields[left]"), text("task.description")]
    return [BarColumn(bar_width=24), text("task.fields[jobs]"), TimeElapsedColumn(), *more]


def brief(job: Job, width: int) -> str:
    """A job in at most ``width`` characters."""
    shape, case = job.case.shape, job.case
    text = f"{job.strategy}/{job.backend} {shape.image}x{shape.text} {case.dtype} {case.device} {case.mode}"
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def outcome(record: Record) -> str:
    """The median with its interval, or what went wrong."""
    if record.time is None:
        return f"{record.status}: {record.reason}" if record.status != "ok" else "ok"
    middle, low, high = (ns / 1e6 for ns in median_interval(record.time.calls_ns, record.time.rounds))
    return f"{middle:.4g} ms [{low:.4g}, {high:.4g}]"
