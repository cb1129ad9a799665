"""Pairs on a GPU, whose both sides are this very code: do turns tell a change from chance there, and are facts the same?

    python3 tests/gpu_pairs.py --out results/h200 [--jobs 8] [--seconds 300] [--device cuda]

Seven rounds of JOBS as `check --paired` screens them, and a line of ``paired.jsonl`` for each round as it comes: its
effect, its turns, what both processes say of the device. A last line for each job has what its rounds say together,
the facts that two processes do not agree on, and what would have been said of a slow-down injected on paper; the one of
all jobs has the shares. Where the seconds do not suffice, that is said of the rounds there are. Imports no library of
the verbs that show things, and no torch: the processes that measure do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from fusionbench import device_lock, facts, fitness, paired, trial
from fusionbench.compare import TOLERANCE
from fusionbench.delta import Change
from fusionbench.engines.local import Cancelled
from fusionbench.engines.twins import Code, Pair, Twins
from fusionbench.errors import FusionbenchError
from fusionbench.record import FAILED, Record
from fusionbench.spec import Budget, Case, Job, Mode, Shape
from fusionbench.stats import median

ROUNDS = trial.SCREEN_ROUNDS
FACTORS = (1.0, 1.05, 1.10)  # by which the head is made slower on paper
BUDGET = Budget(measure_s=0.15, warmup_s=0.02, min_samples=20, timeout_s=60, rounds=ROUNDS, timers=("graph",))


def job(backend: str, mode: Mode = "fwd", strategy: str = "attention_core:image_to_text", **sizes: int) -> Job:
    usual = {"batch": 2, "image": 4096, "text": 77, "image_width": 640, "text_width": 640, "width": 640, "heads": 10}
    shape = Shape(**(usual | {"ffn": 0} | sizes))
    case = Case(shape=shape, projector="identity", dtype="bf16", device="cuda", mode=mode)
    return Job(strategy=strategy, backend=backend, case=case)


# Of suite `kernels`, so that what they compile is there already: SDXL's cross-attention, a training step of it, 126
# queries over 15360 keys (split), with its projections, a copy of rows; 10 µs to 1 ms a call on paper.
LONG = {"batch": 1, "image": 15360, "text": 126, "image_width": 2048, "text_width": 2048, "width": 2048, "heads": 32}
WIDE = {"batch": 8, "image": 576, "text": 128, "image_width": 4096, "text_width": 4096, "width": 4096, "heads": 32}
JOBS = (
    job("sdpa-flash"),
    job("triton"),
    job("eager"),
    job("triton", "fwd_bwd"),
    job("sdpa-flash", "fwd_bwd"),
    job("triton", strategy="attention_core", **LONG),
    job("triton", strategy="cross_attention:image_to_text", text_width=2048),
    job("eager", strategy="concat", **WIDE),
)


@dataclass
class Study:
    """What was found of one job so far."""

    found: trial.Found
    compared: Callable[[Record, Record], tuple[int, tuple[Change, ...]]]
    facts: int = 0
    changed: list[str] = field(default_factory=list)
    failed: str = ""

    def add(self, pair: Pair) -> None:
        first = self.found.base is None
        self.found.add(pair)
        self.failed = self.failed or "; ".join(
            f"{each.status}: {each.reason}" for each in (pair.base, pair.head) if each.status in FAILED
        )
        if first and pair.base.status == pair.head.status == "ok":
            self.facts, changes = self.compared(pair.base, pair.head)
            self.changed = [facts.told(change) for change in changes]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all rounds of all jobs came; 130 where the time was over before; 3 where a job failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of paired.jsonl")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no round begins after them")
    parser.add_argument("--device", default="cuda", help="cpu: to try this where there is no GPU")
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="how many of JOBS, the first ones")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each job ({ROUNDS})")
    options = parser.parse_args(arguments)
    jobs = [_on(each, options.device) for each in JOBS[: options.jobs]]
    asked = signal_asked()
    over = monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "paired.jsonl").open("w") as file:
        studies, whole = measured(jobs, options.rounds, lambda: asked() or monotonic() > over, file)
        for line in [*map(summary, studies), {"all": shares(studies)}]:
            file.write(json.dumps(line) + "\n")
            say(json.dumps(line))
    if any(study.failed for study in studies):
        return 3
    return 0 if whole else 130


def signal_asked() -> Callable[[], bool]:
    """Whether SIGINT came: the time is over."""
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    return lambda: bool(came)


def _on(each: Job, device: str) -> Job:
    """The job itself on CUDA; elsewhere one of its kind that a processor does in a millisecond."""
    from msgspec.structs import replace

    if device != "cpu":
        return replace(each, case=replace(each.case, device=device))
    small = Shape(batch=1, image=64, text=16, image_width=64, text_width=64, width=64, heads=2, ffn=0)
    case = replace(each.case, device="cpu", dtype="fp32", shape=small)
    return replace(each, backend="eager" if each.strategy == "concat" else "sdpa", case=case)


def measured(jobs: Sequence[Job], rounds: int, stopping: Callable[[], bool], file: TextIO) -> tuple[list[Study], bool]:
    """Every job in so many rounds, in another order each time, and whether all were done; a line for each round."""
    side = {"argv": (sys.executable,), "env": dict(os.environ)}
    studies: list[Study] = []
    with ExitStack() as stack:
        stack.enter_context(device_lock.held([jobs[0].case.device]))
        for line in fitness.warnings([jobs[0].case.device]):
            say(line)
        try:
            twins = stack.enter_context(Twins(Code(name="base", **side), Code(name="head", **side), BUDGET, stopping))  # type: ignore[arg-type]
            studies += [Study(trial.Found(each), _comparing(twins)) for each in dict.fromkeys(jobs)]
            for number, study in visits(studies, rounds):
                if stopping():
                    raise Cancelled
                begun = monotonic()
                pair = twins.round(study.found.job, number, study.found.loops)
                study.add(pair)
                file.write(json.dumps(line_of(study.found.job, number, pair, monotonic() - begun)) + "\n")
                file.flush()
        except Cancelled:
            return studies, False
        except FusionbenchError as error:
            say(f"a round could not be measured: {error}")
            return studies, False
    return studies, True


def _comparing(twins: Twins) -> Callable[[Record, Record], tuple[int, tuple[Change, ...]]]:
    def compared(base: Record, head: Record) -> tuple[int, tuple[Change, ...]]:
        return facts.between(base, head, twins.environments)

    return compared


def visits(studies: Sequence[Study], rounds: int) -> Iterator[tuple[int, Study]]:
    """Round by round; a job that has failed is not tried again."""
    for number in range(rounds):
        for study in random.Random(number).sample(studies, len(studies)):
            if study.found.settled is None:
                yield number, study


def line_of(job: Job, number: int, pair: Pair, seconds: float) -> dict[str, Any]:
    """A round as a line: everything that is known of it but the samples."""
    sides = [
        {
            "status": each.status, "reason": each.reason, "notes": each.notes, "launches": each.launches,
            "peak_bytes": each.memory.peak_bytes if each.memory else None, "kernels": each.kernels,
            "samples": len(each.time.samples_ns) if each.time else 0, "phases_s": each.phases_s,
            "throttle": each.device.throttle if each.device else None,
            "sm_mhz": each.device.sm_mhz if each.device else None,
            "foreign": each.device.foreign if each.device else None,
        }
        for each in (pair.base, pair.head)
    ]  # fmt: skip
    found = {"job": job.key, "round": number, "wall_s": round(seconds, 3), "loops": pair.loops}
    found |= {"throttled": pair.throttled, "turns": pair.turns, "base": sides[0], "head": sides[1]}
    if pair.turns:
        found |= {"effect": paired.effect(pair.turns), "standard_error": paired.standard_error(pair.turns)}
    return found


# --- what follows ----------------------------------------------------------------------------------------------------


def summary(study: Study) -> dict[str, Any]:
    """What all rounds of a job say together, and what they would say of a slower head."""
    found = study.found
    line: dict[str, Any] = {"job": found.job.key, "failed": study.failed, "facts": study.facts}
    line |= {"settled": f"{found.settled.verdict}: {found.settled.reason}" if found.settled else ""}
    line |= {"facts_changed": study.changed, "effects": found.effects}
    if found.effects:
        each = paired.estimate(found.effects)
        base_ns = median(sorted(found.base_ns))
        verdict = trial.judged(each, base_ns, found.job, confirmed=False, sure=False)
        line |= {"base_ns": base_ns, "ratio": each.ratio, "low": each.low, "high": each.high, "p": each.p}
        line |= {"detectable": each.detectable if math.isfinite(each.detectable) else None, "verdict": verdict}
        line |= {f"suspect at {factor:g}": suspected(found, factor) for factor in FACTORS}
        line |= {"throttled_rounds": len(found.throttled), "foreign": found.foreign}
    return line


def suspected(found: trial.Found, factor: float) -> bool:
    """Whether the screen would measure it again, were the head so many times slower."""
    return trial.suspect(_slowed(found, factor))


def slower(found: Sequence[trial.Found], factor: float) -> int:
    """How many the trial would call slower, were the rounds of the screen those that confirm it."""
    again = {each.job.key: paired.estimate(_slowed(each, factor).effects) for each in found if suspected(each, factor)}
    sure = paired.rejected({key: each.p for key, each in again.items()}, trial.FALSE_RATE)
    return sum(again[key].ratio > 1 + TOLERANCE for key in sure)


def _slowed(found: trial.Found, factor: float) -> trial.Found:
    return trial.Found(found.job, effects=[effect + math.log(factor) for effect in found.effects])


def shares(studies: Sequence[Study]) -> dict[str, Any]:
    """Over all jobs: false alarms, what of an injected slow-down is found, facts that differ."""
    timed = [study.found for study in studies if study.found.effects]
    return {
        "jobs": len(studies),
        "timed": len(timed),
        "rounds": [len(found.effects) for found in timed],
        "suspect": {f"{factor:g}": sum(suspected(found, factor) for found in timed) for factor in FACTORS},
        "slower": {f"{factor:g}": slower(timed, factor) for factor in FACTORS},
        "facts": sum(study.facts for study in studies),
        "facts_changed": [f"{study.found.job.key}: {line}" for study in studies for line in study.changed],
        "failed": sum(bool(study.failed) for study in studies),
    }


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
