"""The kernels' targets, judged on made-up records: a hit, a miss, and what nobody measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fusionbench import plan, registry, store, suite
from fusionbench.record import Record, Timing
from fusionbench.spec import Budget, Case, Job, Skip
from tests.perf import kernel_targets as targets
from tests.synthetic import ENVIRONMENTS

SUITE = suite.read("kernels")
JOBS = [job for job in suite.jobs(SUITE) if job]


def timed(job: Job, ms: float, timer: str = "cuda_graph") -> Record:
    time = Timing(
        timer=timer, cache="cold", loops=1, samples_ns=(round(ms * 1e6),) * 7, stop="precise",
        first_call_ns=1, warmup_calls=1, threads=1,
    )  # type: ignore[arg-type] # fmt: skip
    return Record(job=job, status="ok", time=time, environment="h100-a")


def first(name: str) -> tuple[str, Case]:
    """The first strategy and case of the suite that a target concerns."""
    target = next(target for target in targets.TARGETS if target.name == name)
    return next((job.strategy, job.case) for job in JOBS if target.concerns(job.strategy, job.case))


def records(name: str, **ms: float) -> list[Record]:
    strategy, case = first(name)
    return [timed(Job(strategy=strategy, backend=b.replace("_", "-"), case=case), t) for b, t in ms.items()]


def told(name: str, given: list[Record]) -> str:
    strategy, case = first(name)
    start = f"{name}: {strategy} {targets.brief(case)}: "
    (line,) = (line for line in targets.judged(given) if line.startswith(start))
    return line.removeprefix(start)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.name)
def test_every_target_concerns_cases_of_the_suite(target: targets.Target) -> None:
    assert any(target.concerns(job.strategy, job.case) for job in JOBS)


def test_ours_is_held_against_the_best_other_backend() -> None:
    hit = told("short keys", records("short keys", sdpa=0.9, sdpa_cudnn=0.6, triton=0.5))
    assert hit == "hit  1.20 of 1.20: triton 0.5000 ms, sdpa-cudnn 0.6000 ms (cuda_graph, cold)"
    miss = told("short keys", records("short keys", sdpa=0.9, sdpa_cudnn=0.59, triton=0.5))
    assert miss.startswith("MISS 1.18 of 1.20: ")


def test_a_variant_of_ours_by_name_is_ours() -> None:
    line = told("short keys", records("short keys", sdpa=1.0, triton=0.9, triton_resident=0.5))
    assert line.startswith("hit  2.00 of 1.20: triton-resident 0.5000 ms, sdpa 1.0000 ms")


def test_fused_projections_are_judged_by_the_backends_that_fuse_them() -> None:
    name = "short keys, projections fused"
    given = records(name, sdpa=1.0, compile=0.9, triton=0.1)
    assert told(name, given) == "not measured: no time of triton-projected or triton-absorbed (cuda_graph, cold)"
    given += records(name, triton_projected=0.6, triton_absorbed=0.5)
    assert told(name, given).startswith("hit  1.80 of 1.80: triton-absorbed 0.5000 ms, compile 0.9000 ms")
    assert not any(job.case.dtype == "int8" and targets.projected(job.strategy, job.case) for job in JOBS)


def test_long_balanced_attention_is_held_against_cudnn_alone() -> None:
    given = records("balanced and long", sdpa_flash=0.1, sdpa_cudnn=0.6, triton=0.75)
    assert told("balanced and long", given).startswith("hit  0.80 of 0.75: triton 0.7500 ms, sdpa-cudnn 0.6000 ms")
    assert told("balanced and long", given[:1] + given[2:]).startswith("not measured: no time of sdpa-cudnn")


def test_what_has_no_record_is_not_measured_and_a_refusal_is_told() -> None:
    name = "one affinity both ways"
    assert told(name, []) == "not measured: no time of triton"
    strategy, case = first(name)
    skipped = Record(job=Job(strategy=strategy, backend="triton", case=case), status="skipped", reason="no kernel")
    given = [*records(name, sdpa=1.0), skipped]
    assert told(name, given) == "not measured: no time of triton (skipped: no kernel) (cuda_graph, cold)"


def test_each_timer_is_judged_for_itself() -> None:
    strategy, case = first("short keys")
    given = records("short keys", sdpa=1.0, triton=0.5)
    given += [
        timed(Job(strategy=strategy, backend=b, case=case), t, "cuda_event") for b, t in (("sdpa", 1), ("triton", 2))
    ]
    lines = [line for line in targets.judged(given) if "cuda_" in line]
    assert [line.partition("h10 d64 bf16 fwd: ")[2][:4] for line in lines] == ["hit ", "MISS"]


def test_the_ratios_have_the_best_other_backend_at_one() -> None:
    (line,) = targets.ratios(records("short keys", sdpa=1.0, sdpa_cudnn=0.8, triton=0.4))
    assert line.endswith("[0.8000 ms, cuda_graph, cold]: triton 2.00  sdpa-cudnn 1.00  sdpa 0.80")


def test_a_run_folder_is_read_and_its_counts_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = store.new_manifest(suite_name="kernels", suite_hash=SUITE.hash, command=["run"])
    run = store.create(tmp_path, manifest, SUITE.text)
    with store.Writer(run, ENVIRONMENTS["h100-a"]) as writer:
        for record in records("short keys", sdpa=1.0, triton=0.5):
            writer.append(record)
    assert targets.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "2 records, NVIDIA H100 80GB HBM3" in out
    assert out.splitlines()[-1].startswith("1 hit, 0 MISS, ")
    assert targets.main([]) == 5


def test_the_suite_asks_nothing_that_its_strategies_refuse() -> None:
    on_cpu = [msgspec.structs.replace(job, case=msgspec.structs.replace(job.case, device="cpu")) for job in JOBS]
    assert {registry.get(job.strategy).refusal(job.case) for job in on_cpu} == {None}
    skips = [item for item in plan.Plan(SUITE) if isinstance(item, Skip)]
    assert {skip.reason.split(":")[0] for skip in skips} <= {
        "device 'cuda' is not available", "PyTorch's flash attention takes no key-padding mask on CUDA",
    }  # fmt: skip


def test_the_suite_times_graphs_and_stays_short() -> None:
    assert SUITE.budget == Budget(
        measure_s=0.15, warmup_s=0.02, min_samples=20, max_samples=200, timeout_s=120, timers=("graph",)
    )
    assert SUITE.count < 600


def concerned(strategy: str, queries: int, keys: int, dtype: str = "bf16") -> set[str]:
    """The targets of the suite's cases with these lengths, without padding, forward."""
    wanted = dict.fromkeys((job.strategy, job.case) for job in suite.jobs(suite.read("kernels")) if job)
    cases = [
        (name, case)
        for name, case in wanted
        if name == strategy and targets.lengths(name, case) == (queries, keys)
        and (case.dtype, case.mode, case.padding) == (dtype, "fwd", 0.0)
    ]  # fmt: skip
    assert cases
    return {target.name for target in targets.TARGETS for name, case in cases if target.concerns(name, case)}


def test_the_shapes_that_the_targets_were_named_for_are_judged_by_them() -> None:
    assert concerned("attention_core:image_to_text", 4096, 77) == {"short keys"}  # Stable Diffusion
    assert concerned("attention_core:image_to_text", 16384, 512) == {"short keys"}  # Wan
    assert concerned("attention_core", 32, 257) == {"few queries, split keys"}  # Q-Former
    assert concerned("attention_core", 126, 15360) == {"few queries, split keys"}  # LTX-2
    assert concerned("attention_core", 4096, 4096, "int8") == set()


def test_the_backward_pass_is_judged_alone() -> None:
    target = next(t for t in targets.TARGETS if t.name == "one affinity both ways")
    job = next(j for j in suite.jobs(suite.read("kernels")) if j and target.concerns(j.strategy, j.case))
    forward = {name: timed(job, ms) for name, ms in {"triton": 1.0, "sdpa": 2.0}.items()}
    both = {name: timed(job, ms) for name, ms in {"triton": 2.0, "sdpa": 5.0}.items()}
    assert targets.verdict(target, both, forward).startswith("hit  3.00 of 1.40")
    assert targets.verdict(target, both, {}).startswith("not measured")
