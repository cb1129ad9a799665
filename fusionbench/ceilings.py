"""The rooflines of one run: from the machine's cache or measured, stored with the records, and held against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from .record import Record, Roofline
from .roofline import Probe, better, impossible, load, needed, save
from .spec import Job

# Measures what a device can do at best, in a process of its own; a text says why that could not be done.
Prober = Callable[[Sequence[Probe]], Iterator[tuple[Probe, Roofline | str]]]
Note = Callable[[str], object]


@dataclass
class Ceilings:
    """What the devices of a run can do at best."""

    prober: Prober
    store: Callable[[Roofline], object]
    note: Note
    threads: int
    environment: str
    known: dict[Probe, Roofline] = field(default_factory=dict)

    def prepare(self, jobs: Iterable[Job]) -> None:
        """Know the rooflines of these jobs: from the cache, else by measuring; store them."""
        wanted = needed(jobs, self.threads, self.environment)
        kept = load(note=self.note) if wanted else {}
        self.known = {probe: kept[probe] for probe in wanted if probe in kept}
        self._measure([probe for probe in wanted if probe not in kept])
        for roofline in self.known.values():
            self.store(roofline)

    def judged(self, record: Record) -> Record:
        """The record, or that it cannot be: a result that is faster than physics. The ceiling is then measured anew
        first, lest a bad moment of the probe be held against the job."""
        case = record.job.case
        probe = Probe(case.device, case.dtype, self.threads, self.environment)
        if record.status != "ok" or probe not in self.known or not impossible(record, self.known[probe]):
            return record
        before = self.known[probe]
        self._measure([probe])
        if self.known[probe] != before:
            self.store(self.known[probe])
        reason = impossible(record, self.known[probe])
        return replace(record, status="wrong", reason=reason, phase="time") if reason else record

    def _measure(self, probes: Sequence[Probe]) -> None:
        found: list[Roofline] = []
        for probe, roofline in self.prober(probes) if probes else ():
            if isinstance(roofline, str):
                self.note(f"no roofline of {probe.dtype} on {probe.device}: {roofline}")
                continue
            self.known[probe] = better(self.known[probe], roofline) if probe in self.known else roofline
            found.append(self.known[probe])
        if found:
            save(found, note=self.note)
