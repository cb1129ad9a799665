"""Figures of real systems, computed once from published sizes by other means, against the closed forms of the presets.

One sample, forward; 2 FLOPs per multiply-add. A figure with fewer digits is rounded.
"""

from __future__ import annotations

import pytest
import torch

from fusionbench.blocks import attention_block_cost, encoder_cost, layer_cost
from fusionbench.cost import Cost
from fusionbench.parts import feed_forward_block_cost
from fusionbench.presets import Extent
from fusionbench.registry import get
from fusionbench.spec import Case
from fusionbench.streams import projector_cost, projectors_cost
from tests.faithful import costs, numel, real
from tests.faithful_bert import Vilbert


def giga(cost: Cost, digits: int = 2) -> float:
    return round(cost.flops / 1e9, digits)


def tera(flops: int, digits: int = 3) -> float:
    return round(flops / 1e12, digits)


def layers_alone(case: Case) -> Cost:
    """The strategy's cost without the projectors in front of it."""
    return costs(case) + projectors_cost(case) * -1


# --- one decoder over image and text -------------------------------------------------------------------------------


def test_llava() -> None:
    case = real("llava-1.5-7b", "stack")
    projector = projector_cost("mlp", 576, 1024, 4096, case)
    assert (giga(projector), projector.params) == (24.16, 20_979_712)
    assert giga(layers_alone(real("llava-1.5-7b"))) == 265.75
    assert tera(layers_alone(case).flops) == 8.504
    assert costs(case).flops == layers_alone(case).flops + projector.flops
    assert tera(encoder_cost(case, 64, 4096, "sdpa").flops) == 0.831  # the text alone


@pytest.mark.parametrize(("label", "params"), [("qwen2.5-vl-7b", 44_574_464), ("seed-qwen", 3_158_016)])
def test_projectors(label: str, params: int) -> None:
    assert projectors_cost(real(label)).params == params


def test_the_fusion_widely_described_as_qwens_has_seven_products_of_weights() -> None:
    assert layers_alone(real("seed-qwen")).params == 7 * (4096**2 + 4096)


def test_uniter() -> None:
    """36 regions and 20 words packed as UNITER does, and padded to its greatest lengths."""
    packed, padded = layers_alone(real("uniter-base")), layers_alone(real("uniter-base", image=100, text=60))
    assert (giga(packed, 3), giga(padded, 3)) == (0.802, 2.344)
    assert packed.params == padded.params == 7_087_872


# --- gated cross-attention and what it reads -----------------------------------------------------------------------


def llama(image: int, extent: Extent = "layer") -> Case:
    return real("llama-3.2-11b-vision", extent, image=image)


@pytest.mark.parametrize(
    ("image", "cross", "stack", "concatenated", "ratio"),
    [(1601, 55.38, 1.339, 24.69, 18.4), (6404, 141.00, 2.024, 112.2, 55.5)],
    ids=["one tile", "four tiles"],
)
def test_llama_3_2_vision(image: int, cross: float, stack: float, concatenated: float, ratio: float) -> None:
    case = llama(image)
    own = layer_cost(case, 64, 4096, "sdpa")
    assert (giga(layers_alone(case)), giga(own)) == (cross, 27.98)
    flops = 32 * own.flops + 8 * layers_alone(case).flops
    joint = 32 * layer_cost(case, image + 64, 4096, "sdpa").flops  # the 32 layers over both, the road not taken
    assert (tera(flops), round(joint / flops, 1)) == (stack, ratio)
    assert tera(joint, len(str(concatenated).partition(".")[2])) == concatenated


def test_llama_3_2_visions_parameters() -> None:
    layers = layers_alone(llama(6404)).params
    assert layers == 218_112_258
    assert costs(llama(6404, "stack")).params == 8 * layers + 7680 * 4096 + 4096 == 1_776_359_440


def test_open_flamingo() -> None:
    resampler = real("openflamingo-9b:resampler", "stack")
    assert giga(costs(resampler)) == 11.53
    gated = costs(real("openflamingo-9b:gated"))
    assert (giga(gated), gated.params) == (17.86, 139_476_994)
    ffn = feed_forward_block_cost(real("openflamingo-9b:gated"), 64, 4096)
    assert round(ffn.flops / gated.flops, 2) == 0.96


def test_q_former() -> None:
    assert giga(costs(real("blip2-qformer", "stack"))) == 12.75


def test_qwen_vls_resampler() -> None:
    cost, width = costs(real("qwen-vl:resampler")), 4096
    projections = 2 * 1024 * 1664 * width + (2 * 2 * 1024 + 2 * 2 * 256) * width**2
    assert cost.flops == projections + 4 * 256 * 1024 * width
    bias_of_the_projector = width
    assert cost.params == 256 * width + 1664 * width + 4 * (width**2 + width) + 3 * 2 * width + bias_of_the_projector


# --- diffusion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "cross", "own", "units"),
    [
        ("sd15:64x64", 2.157, 24.83, 10.07),
        ("sd15:32x32", 2.031, 6.04, 10.07),
        ("sd15:16x16", 2.081, 3.69, 10.07),
        ("sd15:8x8", 0.747, 0.86, 2.52),
        ("sdxl:64x64", 7.92, 56.4, None),
        ("sdxl:32x32", 7.92, 18.8, None),
    ],
)
def test_sub_layers_of_stable_diffusion(label: str, cross: float, own: float, units: float | None) -> None:
    case = real(label, batch=1)
    s = case.shape
    parts = (
        attention_block_cost(case, s.image, s.width, "sdpa", keys=s.text, context_width=s.text_width),
        attention_block_cost(case, s.image, s.width, "sdpa"),
        feed_forward_block_cost(case, s.image, s.width),
    )
    for part, golden in zip(parts, (cross, own, units), strict=True):
        assert golden is None or giga(part, len(str(golden).partition(".")[2])) == golden
    assert costs(case).flops == sum(part.flops for part in parts)


@pytest.mark.parametrize(("text", "gigaflops"), [(154, 351.6), (333, 371.3)])
def test_a_joint_block_of_sd3(text: int, gigaflops: float) -> None:
    """The golden is without the Linear of either stream's modulation, 1536 to 6 x 1536."""
    block = layers_alone(real("sd3-medium", batch=1, text=text))
    modulation = 2 * 6 * 1536 * 1536
    assert round((block.flops - 2 * modulation) / 1e9, 1) == gigaflops
    assert block.params - (modulation + 2 * 6 * 1536) == 56_650_752


# --- vision-language encoders --------------------------------------------------------------------------------------


def test_vilbert() -> None:
    """The authors' layer has q_dense1 and q_dense2, which nothing reads."""
    case = real("vilbert-base-6x6")
    assert (giga(costs(case), 3), costs(case).params) == (1.523, 14_176_768)
    with torch.device("meta"):
        theirs = Vilbert(case)
    assert sum(p.numel() for p in theirs.unused()) == numel(theirs) - 14_176_768 == 1_836_800


def test_lxmert() -> None:
    case, d = real("lxmert"), 768
    assert giga(costs(case), 3) == 1.067
    # 3 attentions and 2 feed-forward parts that are 4 D wide, weights, then biases, and 5 norms
    params = 3 * 4 * d**2 + 2 * 8 * d**2 + 3 * 4 * d + 2 * 5 * d + 5 * 2 * d
    assert costs(case).params == params == 16_539_648


def test_mbt() -> None:
    """768 wide, attention is little beside the feed-forward part: bottlenecks save 9 %."""
    case = real("mbt-base")
    bottleneck, full = costs(case), get("concat_attention").costs(case, "sdpa")
    assert (giga(bottleneck), giga(full)) == (36.06, 39.76)
    assert bottleneck.params == 2 * full.params + 4 * 768
