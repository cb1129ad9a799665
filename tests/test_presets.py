"""Presets: the table is whole and sane, a part becomes a case, and shrinking keeps what makes a system itself."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from fusionbench import presets, suite
from fusionbench.errors import SuiteError, UnknownNameError
from fusionbench.registry import get
from fusionbench.spec import Job

NAMES = list(presets.presets())
LABELS = [label for label, _ in presets.parts(NAMES)]


def jobs(body: str) -> list[Job]:
    text = 'title = "t"\n[[sweep]]\nbackends = ["sdpa"]\n' + body
    return [job for job in suite.jobs(suite.parse(text, "mine", "mine.toml")) if job is not None]


def job_of(label: str, extra: str = "") -> Job:
    (job,) = jobs(f'presets = ["{label}"]\n{extra}')
    return job


@pytest.mark.parametrize("label", LABELS)
def test_every_part_is_a_case_that_its_strategy_accepts_whole_and_shrunk(label: str) -> None:
    for scale in ("1", "1/3", "1/8", "1/64", "1/1024"):
        for extent in ("layer", "stack"):
            job = job_of(label, f'scale = ["{scale}"]\nextent = ["{extent}"]')
            shape = job.case.shape
            assert get(job.strategy).refusal(job.case) is None
            assert shape.width % shape.heads == 0
            assert shape.heads % (job.case.design.kv_heads or 1) == 0
            assert (job.case.preset, job.case.shrink) == (label, presets.denominator(scale))


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_names_where_its_numbers_stand_and_its_parts_apart(name: str) -> None:
    preset = presets.presets()[name]
    assert preset.title
    assert preset.source
    names = [part.name for part in preset.part]
    assert len(set(names)) == len(names)
    assert all(names) or len(names) == 1 or names[0] == ""


def test_image_tokens_span_what_real_systems_span() -> None:
    counts = [part.image for _, part in presets.parts(NAMES)]
    assert min(counts) <= 50
    assert max(counts) == 9216


@pytest.mark.parametrize("label", [x for x in LABELS if "clip" not in x])
def test_one_eighth_costs_less_and_keeps_the_proportions(label: str) -> None:
    whole, eighth = job_of(label), job_of(label, 'scale = ["1/8"]')
    a, b = whole.case.shape, eighth.case.shape
    for name in ("image", "text", "image_width", "text_width", "width"):
        exact = getattr(a, name) / 8
        assert abs(getattr(b, name) - exact) <= 4.5, name  # half of the step, or the least width of 8
    assert b.batch == a.batch
    costs = [get(job.strategy).costs(job.case, "sdpa").flops for job in (whole, eighth)]
    assert costs[1] * 30 < costs[0]
    if a.width >= 8 * (a.width // a.heads):
        assert b.width // b.heads == pytest.approx(a.width // a.heads, rel=0.5)


def test_widths_that_were_equal_stay_equal() -> None:
    shape = job_of("lxmert", 'scale = ["1/7"]').case.shape
    assert shape.image_width == shape.text_width == shape.width == 8 * round(768 / 7 / 8)


def test_shared_key_heads_stay_shared_in_the_same_proportion() -> None:
    design = job_of("llama-3.2-11b-vision", 'scale = ["1/4"]').case
    assert (design.shape.heads, design.design.kv_heads) == (8, 2)
    assert job_of("qwen2.5-vl-7b", 'scale = ["1/8"]').case.design.kv_heads in (1, 2)


def test_the_record_says_which_preset_at_which_scale() -> None:
    key = job_of("llava-1.5-7b", 'scale = ["1/8"]').key
    assert key.startswith("concat_attention/sdpa/llava-1.5-7b@1:8/b1-i72x128-t8x512-w512-h4-n1-u1376/norm=rms,")
    assert job_of("llava-1.5-7b").key.startswith("concat_attention/sdpa/llava-1.5-7b/b1-i576x1024-")


def test_a_layer_is_one_and_a_stack_is_all_of_them() -> None:
    depths = [j.case.shape.depth for j in jobs('presets = ["sd15", "clip-vit-b32"]\nextent = ["layer", "stack"]')]
    assert depths == [1, 5, 1, 5, 1, 5, 1, 1, 0, 0]


def test_what_a_sweep_names_replaces_what_the_preset_says_and_shrinks_with_it() -> None:
    body = 'presets = ["llava-1.5-7b"]\nimage = [576, 1601]\nscale = ["1", "1/8"]\nstrategies = ["cross_attention"]'
    found = jobs(body)
    assert sorted(job.case.shape.image for job in found) == [72, 200, 576, 1601]
    assert {job.strategy for job in found} == {"cross_attention"}
    assert {job.case.design.norm for job in found} == {"rms"}


def test_a_ratio_in_the_sweep_replaces_the_presets_hidden_width() -> None:
    assert job_of("llava-1.5-7b", "ffn = [2]").case.shape.units(4096) == 8192


def test_what_a_sweep_changed_in_a_preset_is_told() -> None:
    body = 'presets = ["llava-1.5-7b"]\nscale = ["1/8"]\n'
    assert presets.departures(job_of("llava-1.5-7b", 'scale = ["1/8"]\nimage = [99]\nextent = ["stack"]').case) == ()
    (changed,) = jobs(body + 'projectors = ["linear"]\nffn = [4]')
    assert presets.departures(changed.case) == ("hidden=0", "projector=linear")
    assert presets.departures(msgspec.structs.replace(changed.case, preset="of another version")) == ()


def test_a_pair_of_encoders_is_a_preset_for_strategies_that_the_sweep_names() -> None:
    shape = job_of("resnet-50+bert-base", 'strategies = ["cross_attention"]').case.shape
    assert (shape.image, shape.image_width, shape.text, shape.text_width) == (49, 2048, 512, 768)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('presets = ["llavva"]', "mine.toml: sweep 1: no preset named 'llavva'; did you mean 'llava-1.5-7b'?"),
        ('presets = ["sd15:64x65"]', "mine.toml: sweep 1: no preset named 'sd15:64x65'; did you mean 'sd15:64x64'?"),
        ('presets = ["vit-b61+gpt2"]', "mine.toml: sweep 1: no encoder named 'vit-b61'; did you mean 'vit-b16'?"),
        ('presets = ["vit-b16+gpt2:x"]\nstrategies = ["late"]', "mine.toml: sweep 1: no encoder named 'gpt2:x'; did you mean 'gpt2'?"),
        ('presets = ["vit-b16"]', "mine.toml: sweep 1: 'vit-b16' is an encoder; a preset of two joins them, as vit-b16+bert-base"),
        ('presets = ["lxmert"]\nextent = ["stack"]\ndepth = [2]', "mine.toml: sweep 1 has 'extent' and 'depth', and each says how many layers there are; name one of them"),
        ('presets = ["vit-b16+gpt2"]', "mine.toml: sweep 1: preset 'vit-b16+gpt2' has no fusion of its own; name the strategies"),
        ('presets = ["lxmert"]\nscale = ["1/0"]', "mine.toml: sweep 1: scale '1/0' is not 1 or 1/N with N up to 1024 (as 1/8)"),
        ('presets = ["lxmert"]\nscale = ["0.5"]', "mine.toml: sweep 1: scale '0.5' is not 1 or 1/N with N up to 1024 (as 1/8)"),
        ('presets = ["lxmert"]\nextent = ["model"]', "mine.toml: sweep 1 extent: no extent named 'model' (known: layer, stack)"),
        ('presets = ["lxmert"]\nexclude = [{ image = 36 }]', "mine.toml: sweep 1: filter: the sweep takes its image from its presets; filter by presets"),
        ('presets = ["lxmert"]\nmatch = "flops"', "mine.toml: sweep 1: match makes the strategies alike that the sweep names, and it names none"),
        ('strategies = ["late"]\nscale = ["1/8"]\nimage = [1]\ntext = [1]\nimage_width = [8]\ntext_width = [8]\nwidth = [8]\nheads = [1]',
         "mine.toml: sweep 1 has 'scale' but no presets for it"),
    ],
)  # fmt: skip
def test_a_bad_preset_is_one_line(body: str, message: str) -> None:
    with pytest.raises(SuiteError) as raised:
        jobs(body)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_presets_can_be_kept_and_dropped_by_name_and_by_part() -> None:
    body = 'presets = ["sd15", "lxmert"]\n'
    assert len(jobs(body + 'exclude = [{ presets = "sd15" }]')) == 1
    assert len(jobs(body + 'exclude = [{ presets = "sd15:64x64" }]')) == 4
    assert len(jobs(body.replace("sd15", "sd15:64x64"))) == 2


def narrowed(only: dict[str, list[str]]) -> list[Job]:
    text = 'title = "t"\n[[sweep]]\nbackends = ["sdpa"]\npresets = ["sd15", "lxmert", "llava-1.5-7b"]\n'
    chosen = suite.narrow(suite.parse(text, "mine", "mine.toml"), only)
    found = [job for job in suite.jobs(chosen) if job is not None]
    assert len(found) == chosen.count
    return found


def test_a_suite_of_presets_is_narrowed_by_preset_part_strategy_and_scale() -> None:
    assert len(narrowed({"presets": ["sd15"]})) == 4
    assert [j.case.preset for j in narrowed({"presets": ["sd15:8x8", "lxmert"]})] == ["sd15:8x8", "lxmert"]
    assert [j.strategy for j in narrowed({"strategies": ["concat_attention"]})] == ["concat_attention"]
    assert {j.case.shrink for j in narrowed({"scale": ["1/8"]})} == {8}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"presets": ["sd51"]}, "--only: suite 'mine' has no presets 'sd51'; did you mean 'sd15'?"),
        ({"image": ["576"]}, "--only: suite 'mine' takes its image from presets; narrow presets instead"),
        ({"scale": ["8"]}, "scale '8' is not 1 or 1/N with N up to 1024 (as 1/8)"),
    ],
)
def test_narrowing_by_what_is_not_there_is_one_line(only: dict[str, list[str]], message: str) -> None:
    with pytest.raises(SuiteError) as raised:
        narrowed(only)
    assert str(raised.value) == message


def test_a_suite_without_presets_has_nothing_to_scale() -> None:
    with pytest.raises(SuiteError, match=r"\A--scale: suite 'smoke' has no presets to scale\Z"):
        suite.narrow(suite.read("smoke"), {"scale": ["1/8"]})


def test_an_unknown_preset_is_told_by_the_function_too() -> None:
    with pytest.raises(UnknownNameError, match="no preset named 'x'"):
        list(presets.parts(["x"]))


def test_heads_keep_their_width_as_nearly_as_the_new_width_allows() -> None:
    assert (presets._heads(512, 128), presets._heads(96, 64), presets._heads(40, 40)) == (4, 2, 1)
    for width in range(8, 400, 8):
        heads = presets._heads(width, 64)
        assert width % heads == 0
        assert width // heads % 2 == 0
        assert abs(math.log(width / heads / 64)) <= abs(math.log(width / 64)) + 1e-9


def test_the_table_ships_with_the_package() -> None:
    assert Path(presets.__file__).with_name("presets.toml").is_file()
