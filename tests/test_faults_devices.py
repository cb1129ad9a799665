"""Devices that disappear, fill up or are shared: the jobs that this says nothing about are not called failed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from fusionbench import device_lock, fitness, remarks, runner, session
from fusionbench.errors import UnfitError
from fusionbench.record import DeviceState, Record, Status
from fusionbench.remarks import contention, remarked, unfit
from fusionbench.runner import Outcome
from fusionbench.schedule import Agenda, Limits
from fusionbench.spec import Budget, Case, Device, Job, Shape, Visit
from tests.command import call
from tests.test_cli import PLUGIN
from tests.test_faults_runs import measured, only_run, written
from tests.test_runner import OLD_CPU, ONCE, Heard, timing

NO_DEVICE = "RuntimeError: CUDA error: no CUDA-capable device is detected"
POISONED = "RuntimeError: CUDA error: unspecified launch failure"


def job(text: int = 1, strategy: str = "concat", device: Device = "cpu") -> Job:
    shape = Shape(batch=1, image=3, text=text, image_width=8, text_width=8, width=8, heads=1)
    return Job(strategy=strategy, backend="eager", case=Case(shape=shape, device=device))


def ok(each: Job) -> Record:
    return Record(job=each, status="ok", time=timing(10))


def run(jobs: Iterable[Job], answer: Callable[[Job], Record], **options: object) -> tuple[list[Record], Outcome]:
    """The stored records and the outcome of a run whose worker is ``answer``."""

    def engine(
        visits: Iterable[Visit], budget: Budget, plugins: Sequence[str], started: object, stopping: object
    ) -> Generator[tuple[Visit, Record], None, None]:
        for visit in visits:
            yield visit, answer(visit.job)

    stored: list[Record] = []
    outcome = runner.run(jobs, engine, OLD_CPU, stored.append, Heard(), budget=ONCE, **options)  # type: ignore[arg-type]
    return stored, outcome


# Lost devices


def test_jobs_of_a_lost_device_are_left_undone_and_others_go_on() -> None:
    gpu: list[Device] = ["cuda", "cuda:0", "cuda:1", "cpu"]
    jobs = [job(text, device=device) for device in gpu for text in range(1, 6)]
    tried: list[str] = []

    def answer(each: Job) -> Record:
        tried.append(each.case.device)
        if each.case.device in ("cuda", "cuda:0"):
            return Record(job=each, status="error", reason=NO_DEVICE)
        return ok(each)

    stored, outcome = run(jobs, answer)
    assert sum(device in ("cuda", "cuda:0") for device in tried) == 1
    assert sorted(record.job.case.device for record in stored) == ["cpu"] * 5 + ["cuda:1"] * 5
    assert (list(outcome.lost.values()), outcome.undone) == ([NO_DEVICE], 10)
    assert outcome.statuses == {"ok": 10}


@pytest.mark.parametrize(
    ("device", "status", "reason"),
    [("cuda", "error", POISONED), ("cpu", "error", NO_DEVICE), ("cuda", "oom", "OutOfMemoryError: CUDA out of memory")],
)
def test_other_errors_of_a_device_are_the_jobs(device: Device, status: Status, reason: str) -> None:
    jobs = [job(text, device=device) for text in (1, 2)]
    stored, outcome = run(jobs, lambda each: Record(job=each, status=status, reason=reason))
    assert [record.status for record in stored] == [status, status]
    assert (outcome.lost, outcome.undone) == ({}, 0)


def test_a_device_lost_in_a_later_round_costs_no_round_before() -> None:
    agenda = Agenda([job(device="cuda"), job()], Budget(rounds=2), 0)
    visits = []
    for visit in agenda:
        visits.append((visit.job.case.device, visit.round))
        if visits[-1] == ("cuda", 1):
            agenda.lose("cuda:0")
        else:
            agenda.join(visit, ok(visit.job))
    assert sorted(visits) == [("cpu", 0), ("cpu", 1), ("cuda", 0), ("cuda", 1)]
    assert agenda.undone == 1


def test_a_lost_device_is_told_at_the_end_with_the_way_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, 2)

    def gone(*arguments: object, **options: object) -> Outcome:
        return Outcome(lost={"cuda:0": NO_DEVICE}, undone=7)

    monkeypatch.setattr(session.launch, "execute", gone)
    code, _, err = call("run", "faulty.toml", "-q", "--plugin", PLUGIN, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 3
    assert f"device 'cuda:0' was lost ({NO_DEVICE}); 7 jobs are left undone; " in err
    assert "Go on with: fusionbench resume" in err


def test_a_suite_for_devices_that_are_not_here_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(tmp_path)
    written(tmp_path, 1)
    suite = tmp_path / "faulty.toml"
    suite.write_text(suite.read_text() + 'devices = ["cuda"]\n')
    code, _, err = call("run", "faulty.toml", "--plugin", PLUGIN, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 5
    assert "device 'cuda' is not available" in err
    assert "NVML" not in err


# Out of memory

TIGHT = """
from pathlib import Path
import torch
from fusionbench.cost import Cost
from fusionbench.registry import strategy

@strategy("tight", impls=("eager",), cost=lambda case, impl: Cost(params=case.shape.text))
class Tight(torch.nn.Module):
    'Runs out of the memory of a GPU, which takes as many text tokens as a file says.'
    def __init__(self, case, impl):
        super().__init__()

    def forward(self, image, text, image_mask=None, text_mask=None):
        if text.shape[1] > int(Path(__file__).with_name("room").read_text()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.cat([image, text], dim=1)
"""


def test_what_is_larger_than_a_job_that_ran_out_of_memory_is_not_tried() -> None:
    tried: list[int] = []

    def answer(each: Job) -> Record:
        tried.append(each.case.shape.text)
        return Record(job=each, status="oom", reason="none left") if each.case.shape.text > 3 else ok(each)

    jobs = [job(text) for text in range(1, 41)]
    stored, outcome = run(jobs, answer, size=lambda each: each.case.shape.text, source=lambda each: "s1")
    assert sorted(record.job.case.shape.text for record in stored) == list(range(1, 41))
    assert outcome.statuses == {"ok": 3, "oom": 37}
    assert len(tried) < 20  # each one that is tried lowers the limit: 3 and about ln 37
    implied = [record for record in stored if record.reason != "none left" and record.status == "oom"]
    assert len(implied) == 40 - len(tried)
    for record in implied:
        smaller = record.reason.removeprefix("not run: ").removesuffix(" ran out of memory")
        assert smaller in {each.key for each in jobs if 3 < each.case.shape.text <= record.job.case.shape.text}
        assert (record.environment, record.source, record.started_at != "") == ("e1", "s1", True)


@pytest.mark.parametrize(
    "other",
    [
        job(9, strategy="other"),
        job(9, device="cuda"),
        replace(job(9), backend="sdpa"),
        replace(job(9), case=replace(job(9).case, dtype="bf16")),
        replace(job(9), case=replace(job(9).case, mode="fwd_bwd")),
        job(7),
    ],
)
def test_only_larger_jobs_of_the_same_kind_are_implied(other: Job) -> None:
    limits = Limits(lambda each: each.case.shape.text)
    limits.learn(job(8))
    assert limits.refusal(other) is None
    assert limits.refusal(job(8)) is not None


def test_memory_that_ran_out_in_a_later_round_proves_nothing() -> None:
    agenda = Agenda([job(1), job(2)], Budget(rounds=3), 0, limits=Limits(lambda each: each.case.shape.text))
    visits: list[tuple[int, int]] = []
    for visit in agenda:
        visits.append((visit.job.case.shape.text, visit.round))
        failed = visits[-1] == (1, 1)
        agenda.join(visit, Record(job=visit.job, status="oom") if failed else ok(visit.job))
    assert sorted(visits) == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]


def test_implied_failures_are_measured_once_the_smaller_one_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, 8, '"tight"')
    (tmp_path / "tight.py").write_text(TIGHT)
    (tmp_path / "room").write_text("2")
    arguments = ("--plugin", "tight.py", "-q")
    assert call("run", "faulty.toml", *arguments, capsys=capsys, monkeypatch=monkeypatch)[0] == 3
    run = only_run(tmp_path)
    found = {record.job.case.shape.text: record for record in measured(run)}
    assert [found[text].status for text in range(1, 9)] == ["ok"] * 2 + ["oom"] * 6
    assert "CUDA out of memory" in found[3].reason or found[3].reason.startswith("not run: tight/eager/")
    (tmp_path / "room").write_text("6")
    call("resume", str(run), *arguments, "--retry-failed", capsys=capsys, monkeypatch=monkeypatch)
    found = {record.job.case.shape.text: record for record in measured(run)}
    assert [found[text].status for text in range(1, 9)] == ["ok"] * 6 + ["oom"] * 2


# Others on the machine


def busy(share: float, threads: int = 1) -> Record:
    samples = timing(10)
    delayed = replace(
        samples, samples_ns=(1000,) * 10, run_delay_ns=(round(1000 * share * threads),) * 10, threads=threads
    )
    return Record(job=job(), status="ok", time=delayed)


@pytest.mark.parametrize(("share", "noted", "refused"), [(0.005, False, False), (0.06, True, False), (0.2, True, True)])
def test_waiting_for_a_core_is_noted_and_under_strict_refused(share: float, noted: bool, refused: bool) -> None:
    record = busy(share, threads=4)
    assert record.time is not None
    assert contention(record.time) == pytest.approx(share)
    words = f"waited {share:.0%} of the time for a core; close other programs or use fewer threads"
    assert remarked(record).notes == ((words,) if noted else ())
    assert (unfit(record) is not None) == refused


def test_remarks_are_made_of_all_rounds_and_replace_those_of_fewer() -> None:
    once = remarked(replace(busy(0.5), notes=("bf16 is emulated",)))
    assert len(once.notes) == 2
    calm = remarked(replace(once, time=busy(0.0).time))
    assert calm.notes == ("bf16 is emulated",)


@pytest.mark.parametrize(
    ("samples", "told"),
    [((200_000, 200_000, 3_000_000_000), True), ((10**9, 10**9, 3 * 10**9), False), ((1000, 1000, 400_000_000), False)],
)
def test_a_sample_in_which_the_process_stood_still_is_noted(samples: tuple[int, ...], told: bool) -> None:
    record = Record(job=job(), status="ok", time=replace(timing(3), samples_ns=samples))
    assert remarked(record).notes == (
        (
            "a sample took 3.0 s where the median is 0.2 ms, as if the process was stopped; "
            "the median bears one of them, with more of them measure again",
        )
        if told
        else ()
    )


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (DeviceState(throttle=("hw_slowdown",)), "the device throttled (hw_slowdown)"),
        (DeviceState(foreign=2), "2 other processes used its GPU"),
        (DeviceState(), None),
    ],
)
def test_what_a_gpu_went_through_is_refused_under_strict(state: DeviceState, words: str | None) -> None:
    assert unfit(replace(busy(0), device=state)) == words


@pytest.mark.parametrize(("strict", "code"), [((), 0), (("--strict",), 4)])
def test_strict_leaves_with_4_after_a_run_that_was_disturbed(  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, strict, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, 1)
    monkeypatch.setattr(remarks, "unfit", lambda record: "it waited 20% of the time for a core")
    found, _, err = call(
        "run", "faulty.toml", "-q", "--plugin", PLUGIN, *strict, capsys=capsys, monkeypatch=monkeypatch
    )
    assert found == code
    assert ("--strict: not measured in peace: fine/" in err) == bool(strict)


def test_strict_measures_nothing_where_warnings_come_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, 1)
    monkeypatch.setattr(fitness, "warnings", lambda devices: ["somebody is on the GPU"])
    arguments = ("run", "faulty.toml", "-q", "--plugin", PLUGIN)
    code, _, err = call(*arguments, "--strict", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "--strict: somebody is on the GPU" in err) == (4, True)
    assert measured(only_run(tmp_path)) == []
    code, _, err = call(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "somebody is on the GPU" in err) == (0, True)


def test_a_gpu_that_another_run_holds_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, 1)

    def taken(devices: Iterable[str]) -> None:
        raise UnfitError("gpu 'GPU-1' is being measured by process 7; wait for it, or choose another device")

    monkeypatch.setattr(device_lock, "held", taken)
    code, _, err = call("run", "faulty.toml", "-q", "--plugin", PLUGIN, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "is being measured by process 7" in err) == (4, True)
