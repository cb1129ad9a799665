"""What the Triton kernels are meant to reach, held against measured runs: ``python tests/perf/kernel_targets.py RUN...``

Prints every shape's ratios, the best other backend being 1.00, then each target as hit, MISS or not measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fusionbench import store, suite
from fusionbench.record import Record
from fusionbench.spec import Case
from fusionbench.stats import median

OURS = "triton"  # and whatever backend begins so: the variants by name
FUSED = ("triton-projected", "triton-absorbed")
CORE, BACK, SHARED = "attention_core", "attention_core:image_to_text", "attention_core_shared"
PROJECTED = "cross_attention:image_to_text"


@dataclass(frozen=True)
class Target:
    """A factor by which the best of ours is meant to be faster than ``against`` (the best other backend if empty).

    ``by`` says which of ours count, where not all do.
    """

    name: str
    factor: float
    concerns: Callable[[str, Case], bool]
    against: str = ""
    by: tuple[str, ...] = ()


def lengths(strategy: str, case: Case) -> tuple[int, int]:
    """(queries, keys)."""
    shape = case.shape
    return (shape.text, shape.image) if strategy == CORE else (shape.image, shape.text)


def alone(strategy: str, case: Case, padded: bool = False) -> bool:
    plain = case.mode == "fwd" and case.dtype != "int8"  # int8 answers another question, with other errors
    return strategy in (CORE, BACK) and plain and bool(case.padding) is padded


def short_keys(strategy: str, case: Case) -> bool:
    queries, keys = lengths(strategy, case)
    return keys <= 512 and queries > keys


def split_keys(strategy: str, case: Case) -> bool:
    queries, keys = lengths(strategy, case)
    return queries <= 128 and keys > 256


def projected(strategy: str, case: Case) -> bool:
    return strategy == PROJECTED and case.mode == "fwd" and case.dtype != "int8" and short_keys(PROJECTED, case)


TARGETS = (
    Target("short keys", 1.2, lambda s, c: alone(s, c) and short_keys(s, c)),
    Target("short keys, projections fused", 1.8, projected, by=FUSED),
    Target("few queries, split keys", 1.2, lambda s, c: alone(s, c) and split_keys(s, c)),
    Target("padding masked", 1.3, lambda s, c: alone(s, c, padded=True)),
    Target("one affinity both ways", 1.4, lambda s, c: s == SHARED and c.shape.text <= 256 and not c.padding),
    Target(
        "balanced and long", 0.75, lambda s, c: alone(s, c) and len({*lengths(s, c)}) == 1, against="sdpa-cudnn"
    ),
)  # fmt: skip

Group = dict[str, Record]  # the newest record of each backend, for one strategy, case and timer


def groups(records: Iterable[Record]) -> dict[tuple[str, Case], dict[str, Group]]:
    """By strategy and case, then by timer ("" for records without a time)."""
    found: dict[tuple[str, Case], dict[str, Group]] = {}
    for record in records:
        timer = f"{record.time.timer}, {record.time.cache}" if record.status == "ok" and record.time else ""
        found.setdefault((record.job.strategy, record.job.case), {}).setdefault(timer, {})[record.job.backend] = record
    return found


def milliseconds(record: Record) -> float:
    assert record.time
    return median(sorted(record.time.calls_ns)) / 1e6


def verdict(target: Target, group: Group, forward: Group | None = None) -> str:
    """ "hit" or "MISS" with the figures, or "not measured" with what is missing; ``group`` is of one timer.

    With the records of the forward pass alone, ``group`` holds both passes and the backward pass is judged.
    """
    times = {name: milliseconds(r) for name, r in group.items()}
    if forward is not None:
        times = {name: time - milliseconds(forward[name]) for name, time in times.items() if name in forward}
    ours = {name: time for name, time in times.items() if counts(target, name)}
    others = {name: time for name, time in times.items() if not name.startswith(OURS)}
    if target.against:
        others = {name: time for name, time in others.items() if name == target.against}
    if not ours or not others:
        return f"not measured: no time of {target.against or 'another backend' if ours else ' or '.join(target.by) or OURS}"
    best, other = min(ours, key=ours.__getitem__), min(others, key=others.__getitem__)
    if ours[best] <= 0 or others[other] <= 0:
        return "not measured: the backward pass is lost in the noise of both"
    ratio = others[other] / ours[best]
    figures = f"{best} {ours[best]:.4f} ms, {other} {others[other]:.4f} ms"
    return f"{'hit ' if ratio >= target.factor else 'MISS'} {ratio:.2f} of {target.factor:.2f}: {figures}"


def counts(target: Target, backend: str) -> bool:
    return backend in target.by if target.by else backend.startswith(OURS)


def judged(records: Sequence[Record]) -> list[str]:
    """A line per target and case of the suite ``kernels``, one for each timer that was used."""
    measured = groups(records)
    wanted = dict.fromkeys((job.strategy, job.case) for job in suite.jobs(suite.read("kernels")) if job)
    lines = []
    for target in TARGETS:
        for strategy, case in wanted:
            if not target.concerns(strategy, case):
                continue
            by_timer, backward = measured.get((strategy, case), {}), case.mode == "fwd_bwd"
            ahead = measured.get((strategy, msgspec.structs.replace(case, mode="fwd")), {}) if backward else {}
            timed = {timer: group for timer, group in by_timer.items() if timer}
            for timer, group in timed.items() or [("", {})]:
                why = reasons(target, by_timer.get("", {})) if not any(counts(target, name) for name in group) else ""
                judgement = verdict(target, group, ahead.get(timer, {}) if backward else None)
                shown = f"{judgement}{why}{f' ({timer})' if timer else ''}"
                what = f"{target.name}, backward alone" if backward else target.name
                lines.append(f"{what}: {strategy} {brief(case)}: {shown}")
    return lines


def reasons(target: Target, untimed: Group) -> str:
    """Why ours has no time, where a record says so."""
    told = [f"{r.status}: {r.reason}" for name, r in untimed.items() if counts(target, name)]
    return f" ({'; '.join(told)})" if told else ""


def ratios(records: Sequence[Record]) -> list[str]:
    """A line per strategy, case and timer: every backend's speed, the best other backend being 1.00."""
    lines = []
    for (strategy, case), by_timer in groups(records).items():
        for timer, group in by_timer.items():
            times = {name: milliseconds(record) for name, record in group.items()} if timer else {}
            others = [time for name, time in times.items() if not name.startswith(OURS)]
            if others:
                speeds = sorted(((min(others) / time, name) for name, time in times.items()), reverse=True)
                shown = "  ".join(f"{name} {speed:.2f}" for speed, name in speeds)
                lines.append(f"{strategy} {brief(case)} [{min(others):.4f} ms, {timer}]: {shown}")
    return lines


def brief(case: Case) -> str:
    s = case.shape
    size = f"b{s.batch} {s.image}x{s.text} h{s.heads} d{s.width // s.heads}"
    return f"{size} {case.dtype} {case.mode}" + (f" pad{case.padding:g}" if case.padding else "")


def main(arguments: Sequence[str]) -> int:
    """Print both tables; 0, or 5 where nothing was measured."""
    records: list[Record] = []
    for path in (each for argument in arguments for each in run_folders(Path(argument))):
        run = store.read(path)
        records += run.records
        machines = ", ".join(f"{e.gpu or e.cpu} ({e.machine}, torch {e.torch})" for e in run.environments.values())
        say(f"{path}: {len(run.records)} records, {machines}")
    say("\n".join(["", *ratios(records), "", *(lines := judged(records)), ""]))
    found = {word: sum(f": {word}" in line for line in lines) for word in ("hit ", "MISS", "not measured")}
    say(", ".join(f"{count} {word.strip()}" for word, count in found.items()))
    return 0 if found["hit "] + found["MISS"] else 5


def run_folders(path: Path) -> list[Path]:
    """The path itself, or where it is a folder of runs, those."""
    return list(store.runs(path)) or [path] if path.is_dir() else [path]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
