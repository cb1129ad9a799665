"""Equal terms: the feed-forward width that makes strategies cost alike, and memory that must suffice."""

from __future__ import annotations

import msgspec
import pytest

from fusionbench import footprint, suite
from fusionbench.plan import Plan
from fusionbench.registry import get
from fusionbench.spec import Case, Job, Shape, Skip

SWEEP = """
title = "t"
[[sweep]]
match = "{match}"
strategies = ["concat_attention", {strategies}]
backends = ["sdpa"]
image = [64]
text = [16]
image_width = [96]
text_width = [80]
width = [128]
heads = [4]
depth = [1]
modes = ["fwd", "fwd_bwd"]
"""


def planned(match: str, *strategies: str) -> list[Job | Skip]:
    named = ", ".join(f'"{s}"' for s in strategies)
    return list(Plan(suite.parse(SWEEP.format(match=match, strategies=named), "mine", "mine.toml")))


def amount(match: str, job: Job) -> int:
    cost = get(job.strategy).costs(job.case, "sdpa")
    return cost.params if match == "params" else cost.flops + (cost.backward_flops if job.case.mode == "fwd_bwd" else 0)


@pytest.mark.parametrize("match", ["params", "flops"])
def test_matched_strategies_agree_within_two_percent(match: str) -> None:
    jobs = planned(match, "cross_attention", "co_attention", "co_attention_shared", "cross_attention:image_to_text")
    assert not any(isinstance(job, Skip) for job in jobs)
    for mode in ("fwd", "fwd_bwd"):
        amounts = [amount(match, job) for job in jobs if isinstance(job, Job) and job.case.mode == mode]
        assert len(amounts) == 5
        assert max(abs(a - amounts[0]) for a in amounts) <= 0.02 * amounts[0]


def test_a_matched_width_is_a_multiple_of_8_where_that_is_near_enough() -> None:
    job = next(
        j for j in planned("params", "cross_attention") if isinstance(j, Job) and j.strategy == "cross_attention"
    )
    assert job.case.shape.hidden % 8 == 0
    assert job.case.match == "params=concat_attention"


def test_matched_cases_share_one_key_so_that_they_are_compared() -> None:
    keys = {job.case.key for job in planned("flops", "cross_attention") if isinstance(job, Job)}
    assert len(keys) == 2  # the two modes
    assert all("+flops=concat_attention/" in key for key in keys)


def test_all_treatments_of_a_matched_strategy_are_of_one_module() -> None:
    text = SWEEP.format(match="flops", strategies='"cross_attention"') + (
        'projectors = ["identity"]\nadapt = ["full", "lora:4"]\nprune = ["none", "structured:0.5"]\n'
    )
    text = text.replace("[80]", "[96]")
    jobs = [item for item in Plan(suite.parse(text, "mine", "mine.toml")) if isinstance(item, Job)]
    found = [job for job in jobs if job.strategy == "cross_attention" and job.case.mode == "fwd"]
    assert {job.case.treatment for job in found} == {"", "lora:4", "structured:0.5", "lora:4+structured:0.5"}
    assert len({job.case.shape.hidden for job in found}) == 1


def test_narrowing_to_some_strategies_leaves_them_matched_with_the_suites_first() -> None:
    chosen = suite.parse(SWEEP.format(match="flops", strategies='"cross_attention"'), "mine", "mine.toml")
    jobs = list(Plan(suite.narrow(chosen, {"strategies": ["cross_attention"]})))
    assert jobs == [job for job in Plan(chosen) if isinstance(job, Job) and job.strategy == "cross_attention"]
    assert all(isinstance(job, Job) and job.case.match == "flops=concat_attention" for job in jobs)


def test_what_cannot_be_matched_is_skipped_with_the_reason() -> None:
    reasons = {item.reason for item in planned("params", "attention_core", "late") if isinstance(item, Skip)}
    assert any("attention alone" in reason for reason in reasons)
    tiny = planned("flops", "late")
    assert all(isinstance(j, Job) or "feed-forward" in j.reason for j in tiny)


def test_a_strategy_that_is_dearer_than_its_anchor_without_any_feed_forward_says_so() -> None:
    text = SWEEP.format(match="params", strategies='"hierarchical"').replace("depth", "ffn = [0]\ndepth")
    (skip, *_) = [item for item in Plan(suite.parse(text, "mine", "mine.toml")) if isinstance(item, Skip)]
    wanted = "'hierarchical' has more params than 'concat_attention' however narrow its feed-forward layers are"
    assert skip.reason == wanted


SHAPE = Shape(batch=1, image=64, text=16, image_width=64, text_width=64, width=64, heads=4)


@pytest.fixture
def one_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "device_memory", lambda device: 2**30)


@pytest.mark.usefixtures("one_gib")
def test_a_preset_that_does_not_fit_is_refused_with_the_estimate_and_the_largest_scale_that_fits() -> None:
    text = 'title = "t"\n[[sweep]]\nbackends = ["sdpa"]\npresets = ["llava-1.5-7b"]\nextent = ["layer", "stack"]'
    layer, stack = Plan(suite.parse(text, "mine", "mine.toml"))
    assert isinstance(layer, Skip)
    assert isinstance(stack, Skip)
    assert "GiB of memory, and 'cpu' has 1 GiB; the largest scale that fits is 1/3" in layer.reason
    scale = stack.reason.rpartition(" ")[2]
    fits = text.replace('["layer", "stack"]', '["stack"]') + f'\nscale = ["{scale}"]'
    assert all(isinstance(item, Job) for item in Plan(suite.parse(fits, "mine", "mine.toml")))
    larger = fits.replace(scale, f"1/{int(scale[2:]) - 1}")
    assert all(isinstance(item, Skip) for item in Plan(suite.parse(larger, "mine", "mine.toml")))


@pytest.mark.usefixtures("one_gib")
def test_sizes_of_no_preset_are_refused_with_the_estimate_alone() -> None:
    huge = msgspec.structs.replace(SHAPE, width=16384, image_width=16384, text_width=16384)
    reason = footprint.refusal(Job(strategy="cross_attention", backend="sdpa", case=Case(shape=huge)))
    assert reason is not None
    assert reason.endswith("GiB of memory, and 'cpu' has 1 GiB")


def test_what_fits_is_not_refused_and_an_unknown_memory_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(strategy="cross_attention", backend="sdpa", case=Case(shape=SHAPE))
    assert footprint.refusal(job) is None
    monkeypatch.setattr(footprint, "device_memory", lambda device: None)
    huge = msgspec.structs.replace(job, case=Case(shape=msgspec.structs.replace(SHAPE, image=2**30)))
    assert footprint.refusal(huge) is None


def test_training_needs_more_than_a_forward_pass_and_half_precision_less() -> None:
    job = Job(strategy="concat_attention", backend="sdpa", case=Case(shape=msgspec.structs.replace(SHAPE, depth=6)))
    forward = footprint.footprint(job)
    training = msgspec.structs.replace(job, case=msgspec.structs.replace(job.case, mode="fwd_bwd"))
    half = msgspec.structs.replace(job, case=msgspec.structs.replace(job.case, dtype="bf16"))
    assert footprint.footprint(half) < forward < footprint.footprint(training)
