"""The trial of two revisions, with rounds made up: who is suspect, who is confirmed, what is said of the rest."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest

from fusionbench.delta import Change, Delta
from fusionbench.engines.local import Cancelled
from fusionbench.engines.twins import Pair
from fusionbench.record import DeviceState, Record
from fusionbench.spec import Case, Job, Shape
from fusionbench.trial import CONFIRM_ROUNDS, MOST_CONFIRM_ROUNDS, SCREEN_ROUNDS, Found, Trial, confirm_rounds

CALL_NS = 1e6


def job(strategy: str) -> Job:
    shape = Shape(batch=1, image=8, text=8, image_width=8, text_width=8, width=8, heads=1)
    return Job(
        strategy=strategy,
        backend="eager",
        case=Case(shape=shape, projector="identity", dtype="fp32", device="cpu", mode="fwd"),
    )


class Machine:
    """Rounds with noise of 2 %: ``slow`` says by which factor the head of a job is slower, ``fails`` which side of
    which job fails from which round on."""

    def __init__(
        self,
        slow: Mapping[str, float] = {},
        fails: Mapping[str, tuple[str, str, int]] = {},
        call_ns: float = CALL_NS,
        deviation: float = 0.02,
        seed: int = 0,
    ) -> None:
        self.slow, self.fails, self.call_ns, self.deviation = slow, fails, call_ns, deviation
        self.random = random.Random(seed)
        self.rounds: Counter[str] = Counter()
        self.numbers: list[int] = []
        self.end_after: int | None = None
        self.edited_after: int | None = None
        self.told: list[str] = []

    def measure(self, job: Job, number: int, loops: int = 0) -> Pair:
        if self.end_after is not None and sum(self.rounds.values()) >= self.end_after:
            raise Cancelled
        self.rounds[job.strategy] += 1
        self.numbers.append(number)
        status = {"base": "ok", "head": "ok"}
        side, as_what, since = self.fails.get(job.strategy, ("", "", 10**9))
        if self.rounds[job.strategy] > since:
            status[side] = as_what
        edited = self.edited_after is not None and self.rounds[job.strategy] > self.edited_after
        source = {"base": "a", "head": "c" if edited else "b"}
        base, head = (
            Record(job=job, status=status[name], reason="because", source=source[name])  # type: ignore[arg-type]
            for name in ("base", "head")
        )
        factor = self.slow.get(job.strategy, 1.0) * math.exp(self.random.gauss(0, self.deviation))
        turns = tuple((self.call_ns, self.call_ns * factor * self.random.gauss(1, 0.005)) for _ in range(8))
        return Pair(base, head, turns if set(status.values()) == {"ok"} else (), loops=1)

    def measured(self, job: Job, stage: str, number: int, rounds: int) -> None:
        self.told.append(stage)

    def suspected(self, jobs: int, rounds: int) -> None:
        self.told.append(f"suspects: {jobs} in {rounds} rounds")


def tried(machine: Machine, *strategies: str, **options: object) -> dict[str, Delta]:
    trial = Trial(machine.measure, machine, **options)  # type: ignore[arg-type]
    deltas = trial.run([job(name) for name in strategies], seed=0)
    return {delta.key.partition("/")[0]: delta for delta in deltas}


def test_a_job_that_is_ten_percent_slower_is_confirmed_in_fresh_rounds() -> None:
    machine = Machine(slow={"b": 1.10})
    found = tried(machine, "a", "b", "c")
    assert found["b"].verdict == "slower"
    assert found["b"].stage == "confirm"
    assert found["b"].ratio == pytest.approx(1.10, abs=0.03)
    assert found["b"].p is not None
    assert found["b"].p < 0.01
    assert {found[name].verdict for name in "ac"} <= {"same", "unclear"}


def test_only_suspects_are_measured_again() -> None:
    machine = Machine(slow={"b": 1.3})
    tried(machine, "a", "b", "c")
    assert machine.rounds["b"] >= SCREEN_ROUNDS + CONFIRM_ROUNDS
    assert machine.rounds["a"] == machine.rounds["c"] == SCREEN_ROUNDS


def test_identical_code_is_never_called_slower_in_three_hundred_trials() -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(60):
        verdicts.update(delta.verdict for delta in tried(Machine(seed=seed, deviation=0.05), *"abcde").values())
    assert verdicts.total() == 300
    assert verdicts["slower"] <= 2  # under 1 % on average; 3 of 300 at 1 % happen once in 30
    assert verdicts["faster"] <= 3


def test_a_change_below_the_tolerance_is_no_finding_however_sure() -> None:
    found = tried(Machine(slow={"a": 1.02}, deviation=0.001), "a")
    assert found["a"].verdict == "same"


def test_a_job_of_a_microsecond_needs_more_than_a_few_percent() -> None:
    assert tried(Machine(slow={"a": 1.5}, call_ns=5_000), "a")["a"].verdict != "slower"
    assert tried(Machine(slow={"a": 3.0}, call_ns=5_000), "a")["a"].verdict == "slower"


def test_an_improvement_is_told_from_the_screen() -> None:
    machine = Machine(slow={"a": 0.8})
    found = tried(machine, "a")
    assert (found["a"].verdict, found["a"].stage) == ("faster", "screen")
    assert machine.rounds["a"] == SCREEN_ROUNDS


@pytest.mark.parametrize(
    ("side", "status", "verdict"),
    [
        ("head", "wrong", "broken"),
        ("head", "crash", "broken"),
        ("base", "oom", "fixed"),
        ("base", "skipped", "new"),
        ("head", "skipped", "missing"),
    ],
)
def test_a_side_that_fails_settles_the_job_at_once(side: str, status: str, verdict: str) -> None:
    machine = Machine(fails={"a": (side, status, 0)})
    found = tried(machine, "a", "b")
    assert found["a"].verdict == verdict
    assert f"{side}: {status}, because" in found["a"].reason
    assert found["a"].ratio is None
    assert machine.rounds["a"] == 1
    assert machine.rounds["b"] == SCREEN_ROUNDS


def test_a_head_that_fails_in_a_later_round_is_broken_and_a_base_that_does_is_unclear() -> None:
    assert tried(Machine(fails={"a": ("head", "crash", 3)}), "a")["a"].verdict == "broken"
    assert tried(Machine(fails={"a": ("base", "crash", 3)}), "a")["a"].verdict == "unclear"


def test_a_suspect_that_breaks_while_it_is_confirmed_is_broken() -> None:
    found = tried(Machine(slow={"a": 1.3}, fails={"a": ("head", "crash", SCREEN_ROUNDS + 2)}), "a")
    assert found["a"].verdict == "broken"


def test_noise_is_called_unclear_with_the_rounds_that_would_tell() -> None:
    found = tried(Machine(deviation=0.08, seed=3), "a")
    assert found["a"].verdict == "unclear"
    assert "would tell 3%" in found["a"].reason


def test_what_disturbed_the_gpu_is_said_beside_the_verdict() -> None:
    hot, crowded = DeviceState(throttle=("sw_power_cap",)), DeviceState(throttle=("hw_slowdown",), foreign=2)
    found = Found(job("a"))
    for number in range(SCREEN_ROUNDS):
        base, head = (Record(job=job("a"), status="ok", device=state) for state in (hot, crowded))
        found.add(Pair(base, head, ((CALL_NS, CALL_NS),) * 8, loops=1, throttled=number < 2))
    trial = Trial(Machine().measure, Machine(), screened={found.job.key: found})
    (delta,) = trial.deltas()
    assert delta.verdict == "same"
    assert delta.reason == (
        "'cpu' throttled (hw_slowdown, sw_power_cap) in 2 of 7 rounds; "
        "2 other processes use 'cpu', and timings share it with them; "
        "wait for them, or choose another device"
    )


def test_an_interrupted_trial_never_calls_a_mere_suspect_slower() -> None:
    machine = Machine(slow={"a": 1.5, "b": 1.5})
    machine.end_after = 2 * SCREEN_ROUNDS + 3
    trial = Trial(machine.measure, machine)
    deltas = trial.run([job("a"), job("b")], seed=0)
    assert trial.interrupted
    assert {delta.verdict for delta in deltas} == {"unclear"}
    assert all("ended before it was measured again" in delta.reason for delta in deltas)


def test_a_trial_interrupted_in_the_screen_says_nothing_of_half_measured_jobs() -> None:
    machine = Machine()
    machine.end_after = 3
    trial = Trial(machine.measure, machine)
    assert trial.run([job("a"), job("b")], seed=0) == ()
    assert trial.interrupted


def test_code_that_is_edited_during_the_trial_is_not_judged() -> None:
    machine = Machine(slow={"a": 1.5})
    machine.edited_after = SCREEN_ROUNDS + 1
    found = tried(machine, "a")["a"]
    assert found.verdict == "unclear"
    assert "its code changed between two rounds" in found.reason
    assert machine.rounds["a"] == SCREEN_ROUNDS + 2


def test_sides_that_have_memory_only_one_at_a_time_are_not_judged_broken() -> None:
    machine = Machine()
    pair = machine.measure(job("a"), 0)
    found = Trial(lambda job, number, loops=0: Pair(pair.base, pair.head, reason="no room"), machine).run(
        [job("a")], seed=0
    )
    assert [(delta.verdict, delta.reason) for delta in found] == [("unclear", "no room")]


def test_rounds_of_the_confirmation_begin_no_round_0() -> None:
    machine = Machine(slow={"a": 1.5})
    tried(machine, "a")
    assert machine.numbers == list(range(len(machine.numbers)))


def test_the_facts_of_both_sides_are_compared_once_both_are_right() -> None:
    more = (Change(fact="flops", base=1, head=2, worse=True),)
    seen: list[str] = []

    def compared(base: Record, head: Record) -> tuple[int, tuple[Change, ...]]:
        seen.append(base.status)
        return 7, more

    found = tried(Machine(fails={"b": ("head", "wrong", 0)}), "a", "b", compared=compared)
    assert (found["a"].facts, found["a"].changes) == (7, more)
    assert (found["b"].facts, found["b"].changes) == (0, ())
    assert len(seen) == 1


def test_suspects_get_as_many_rounds_as_their_noise_asks_for() -> None:
    quiet = Found(job("a"), effects=[0.1, 0.101, 0.099, 0.1, 0.1, 0.102, 0.098])
    noisy = Found(job("a"), effects=[0.1, 0.3, -0.2, 0.2, 0.05, -0.1, 0.15])
    assert confirm_rounds(quiet, 1) == CONFIRM_ROUNDS
    assert confirm_rounds(noisy, 1) == MOST_CONFIRM_ROUNDS
    assert confirm_rounds(quiet, 1000) == 15  # 2^-15 is below 0.05 / 1000
