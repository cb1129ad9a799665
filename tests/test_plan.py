"""Plans: what is skipped and why, names that do not exist, limits."""

from __future__ import annotations

import pytest

from fusionbench import plan, suite
from fusionbench.errors import SuiteError, UnknownNameError
from fusionbench.spec import Job, Skip


def make(body: str) -> suite.Suite:
    defaults = {
        "strategies": '["cross_attention"]', "backends": '["sdpa"]', "image": "[4]", "text": "[3]",
        "image_width": "[768]", "text_width": "[8]", "width": "[8]", "heads": "[2]",
    }  # fmt: skip
    given = {line.partition("=")[0].strip() for line in body.splitlines()}
    lines = [f"{key} = {value}" for key, value in defaults.items() if key not in given]
    return suite.parse("\n".join(['title = "t"', "[[sweep]]", *lines, body]), "mine", "mine.toml")


def reasons(body: str) -> list[str]:
    return [item.reason for item in plan.Plan(make(body)) if isinstance(item, Skip)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('strategies = ["concat_features"]\nbackends = ["flex"]', "backend 'flex' skips 'concat_features': it has no 'flex' impl (has: eager, triton)"),
        ('backends = ["triton"]', "Triton kernels need a GPU"),
        ('backends = ["sdpa-cudnn"]', "PyTorch has this attention kernel for CUDA only"),
        ('dtypes = ["tf32"]', "tf32 is a format of NVIDIA's tensor cores; a CPU has none"),
        ('dtypes = ["int8"]', "backend 'sdpa' has no int8 kernels (use backend 'int8')"),
        ('backends = ["int8"]', "backend 'int8' computes in int8, not in fp32 (use dtype 'int8')"),
        ('backends = ["int8"]\ndtypes = ["int8"]\nmodes = ["fwd_bwd"]', "int8 products have no backward pass"),
        ('backends = ["flex"]\nmodes = ["fwd_bwd"]', "flex_attention has no backward pass on the CPU"),
        ("heads = [3]", "width 8 is not a multiple of 3 heads"),
        ('devices = ["cuda:99"]', "device 'cuda:99' is not available: torch"),
        ('strategies = ["concat_attention"]\nprojectors = ["identity"]', "projector 'identity' leaves image at width 768"),
    ],
)  # fmt: skip
def test_a_job_that_makes_no_sense_is_skipped_with_the_reason(body: str, reason: str) -> None:
    found = reasons(body)
    assert len(found) == 1
    assert found[0].startswith(reason)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('strategies = ["cros_attention"]', "no strategy named 'cros_attention'; did you mean 'cross_attention'"),
        ('backends = ["sdpa", "flexx"]', "no backend named 'flexx'; did you mean 'flex'"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_one(body: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        plan.Plan(make(body)).check()


def test_a_suite_too_large_is_refused_without_a_limit() -> None:
    numbers = ", ".join(map(str, range(1, 401)))
    large = make(f"image = [{numbers}]\ntext = [{numbers}]")
    with pytest.raises(SuiteError, match=r"spans 160,000 cases, more than 100,000; narrow it with --only"):
        plan.Plan(large).check()
    limited = plan.Plan(large, limit=5)
    limited.check()
    assert len(list(limited)) == 5


def test_a_job_named_twice_is_planned_once() -> None:
    assert len(list(plan.Plan(make("image = [4, 4]")))) == 1


def test_one_job_can_be_chosen_by_its_key() -> None:
    chosen = make("image = [4, 5, 6]")
    key = "cross_attention/sdpa/b1-i5x768-t3x8-w8-h2-n1-f4/linear/fp32/cpu/fwd"
    (job,) = plan.Plan(chosen, only_job=key)
    assert isinstance(job, Job)
    assert job.key == key


def test_the_smoke_suite_runs_every_strategy_once_on_the_cpu() -> None:
    from fusionbench.registry import strategies

    jobs = [item for item in plan.Plan(suite.read("smoke")) if isinstance(item, Job) and item.case.device == "cpu"]
    shipped = {name for name, s in strategies().items() if s.build.__module__.startswith("fusionbench.strategies.")}
    assert {job.strategy.partition(":")[0] for job in jobs} == {name.partition(":")[0] for name in shipped}
    assert 20 <= len(jobs) <= 60
