"""What a run says while it runs: the same numbers as its tables."""

from __future__ import annotations

from fusionbench.progress import outcome
from fusionbench.record import Record, Timing
from tests.test_runner import job


def test_a_line_of_progress_tells_the_time_of_one_call() -> None:
    time = Timing(
        timer="wall", cache="hot", loops=10, samples_ns=(4_000_000, 5_000_000, 7_000_000), stop="budget",
        run_delay_ns=(0, 0, 1_000_000), first_call_ns=1, warmup_calls=2, threads=1,
    )  # fmt: skip
    assert outcome(Record(job=job(), status="ok", time=time)) == "0.5 ms [0.4, 0.6]"
