"""Which facts of a job are the same whenever it is measured: two runs of one code on one machine, process by process.

    python3 tests/gpu_facts.py results/h200/runs

`make gpu` measures some backends twice, by two timers and in two orders. Whatever differs between such runs is no fact:
the deterministic gate would fail for nothing. Prints each fact's share; exit code 1 where one differs, 5 where no job
was measured twice.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from fusionbench import facts, store
from fusionbench.record import Record


def main(arguments: Sequence[str] | None = None) -> int:
    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    oldest_first = reversed(store.runs(folder))
    known, differing = compared(record for path in oldest_first for record in store.read(path).records)
    for name, count in known.items():
        lines = differing[name]
        sys.stdout.write(f"{name}: {count - len(lines)} of {count} the same\n")
        sys.stdout.writelines(f"    {line}\n" for line in lines[:10])
    if not known:
        sys.stdout.write("no job was measured twice\n")
        return 5
    return 1 if any(differing.values()) else 0


def compared(records: Iterable[Record]) -> tuple[Counter[str], dict[str, list[str]]]:
    """Of each fact in how many jobs it was measured twice, and of those the ones that differ."""
    known, differing, before = Counter[str](), defaultdict[str, list[str]](list), dict[tuple[str, ...], Record]()
    for record in records:
        first = before.setdefault(record.identity, record) if record.status == "ok" else record
        if first is record:
            continue
        base, head = facts.of(first), facts.of(record)
        known.update(facts.compared(base, head, alike=True))
        for change in facts.changes(base, head, alike=True):
            differing[change.fact].append(f"{record.job.key}: {facts.told(change)}")
    return known, differing


if __name__ == "__main__":
    sys.exit(main())
