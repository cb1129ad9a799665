"""What strategies of published models promise beside their results: gates, bottlenecks, what is missing, refusals."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from fusionbench.presets import shrunk
from fusionbench.registry import get
from fusionbench.spec import PLAIN, Case, Design, Shape
from tests.faithful import costs, inputs, real


def case_of(image: tuple[int, int], text: tuple[int, int], width: int, heads: int, **more: int) -> Case:
    """``image`` and ``text`` are tokens and width; a batch of 2, nothing projected."""
    sizes = {"image": image[0], "image_width": image[1], "text": text[0], "text_width": text[1]}
    return Case(shape=Shape(batch=2, width=width, heads=heads, **sizes, **more), projector="identity")


def built(name: str, case: Case) -> nn.Module:
    torch.manual_seed(0)
    return get(name).module(case, "sdpa").double()


# --- gates ---------------------------------------------------------------------------------------------------------

GATED = replace(case_of((5, 12), (4, 20), 16, 2, depth=3), projector="linear")


def gates(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if name.endswith("gate.gate")}


def test_a_plain_design_of_gated_cross_attention_is_gated_too() -> None:
    assert len(gates(built("gated_cross_attention", GATED))) == 2 * 3


def test_with_gates_at_zero_the_layers_are_the_identity_and_open_gates_are_not() -> None:
    module, (image, text) = built("gated_cross_attention", GATED), inputs(GATED)
    assert not torch.equal(module(image, text), module.project.text(text))
    with torch.no_grad():
        for gate in gates(module).values():
            gate.zero_()
    assert torch.equal(module(image, text), module.project.text(text))
    module(image, text).sum().backward()
    assert all(gate.grad is not None and gate.grad.any() for gate in gates(module).values())  # it can be trained


def test_text_without_an_image_passes_no_gated_layer() -> None:
    module, (_, text) = built("gated_cross_attention", GATED), inputs(GATED)
    assert torch.equal(module(None, text), module.project.text(text))


# --- bottlenecks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "reached"), [(1, False), (2, True)])
def test_it_takes_two_layers_of_bottlenecks_for_one_modality_to_reach_the_other(depth: int, reached: bool) -> None:
    case = case_of((7, 12), (5, 12), 12, 3, depth=depth)
    image, text = inputs(case)
    output, _ = built("bottleneck", case)(image.requires_grad_(), text)
    (gradient,) = torch.autograd.grad(output.sin().sum(), image, allow_unused=True, materialize_grads=True)
    assert bool(gradient.any()) is reached


def test_a_modality_alone_goes_on_with_the_bottlenecks() -> None:
    case = case_of((7, 12), (5, 12), 12, 3, depth=2)
    module, (image, _) = built("bottleneck", case), inputs(case)
    x = torch.cat([image, module.bottlenecks.expand(2, -1, -1)], dim=1)
    for layer in module.image_layers:
        x = layer(x)
    text, found = module(image, None)
    assert text is None
    torch.testing.assert_close(found, x[:, :7])


# --- what is missing, what is apart --------------------------------------------------------------------------------


def test_mmdits_condition_without_text_is_that_of_a_sample_whose_text_is_all_padding() -> None:
    case = case_of((7, 24), (5, 24), 24, 3, depth=2)
    module, (image, text) = built("mmdit", case), inputs(case)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    torch.testing.assert_close(module(image, None)[1], module(image, text, None, nothing)[1])
    assert module(image, None)[0] is None
    assert module(None, text)[1] is None


@pytest.mark.parametrize("name", ["perceiver_resampler", "attention_pooling:image"])
def test_image_and_text_stay_apart_where_their_widths_differ(name: str) -> None:
    case = replace(case_of((9, 20), (5, 28), 24, 3), design=Design(latents=4))
    module, (image, text) = built(name, case), inputs(case)
    apart, resampled = module(image, text)
    assert apart is text
    assert resampled.shape[:2] == (2, 4)
    assert module(None, text) == (text, None)
    assert torch.equal(module(image, None)[1], resampled)


# --- what weights are shared ---------------------------------------------------------------------------------------


def test_sharing_lxmerts_cross_attention_saves_its_parameters_and_no_flops() -> None:
    case = real("lxmert", ffn=0)
    shared, apart = costs(case), get("hierarchical").costs(case, "sdpa")
    assert apart.params - shared.params == 4 * 768 * (768 + 1) + 2 * 768
    assert apart.flops == shared.flops
    assert apart.activation_bytes(2) == shared.activation_bytes(2)


def test_sharing_an_output_projection_saves_its_parameters_and_no_flops() -> None:
    case = real("seed-qwen")
    shared, apart = costs(case), get("co_attention").costs(case, "sdpa")
    assert apart.params - shared.params == 4096**2 + 4096 + 4 * 4096  # and the two norms that it has not
    assert apart.flops == shared.flops


def test_a_quarter_of_vilbert_keeps_the_head_dims_of_both_streams() -> None:
    case = shrunk(real("vilbert-base-6x6"), 4)
    assert (case.shape.width // case.shape.heads, case.shape.text_width // case.design.text_heads) == (128, 64)
    assert get("vilbert:with_self").refusal(case) is None


# --- refusals ------------------------------------------------------------------------------------------------------

POSITIONS = "bottleneck tokens have no position, which a causal or rotary design needs"
BLOCKS = "mmdit's blocks are pre-LayerNorm with gates of their own, not"


@pytest.mark.parametrize(
    ("name", "design", "reason"),
    [
        ("bottleneck", Design(causal=True), f"{POSITIONS} (causal=1)"),
        ("bottleneck", Design(rope=0.5), f"{POSITIONS} (rope=0.5)"),
        (
            "bottleneck",
            Design(image_hidden=9),
            "bottleneck has one feed-forward width for both modalities (image_hidden=9)",
        ),
        ("bottleneck", PLAIN, None),
        ("mmdit", Design(norm="rms"), f"{BLOCKS} norm=rms"),
        ("mmdit", Design(post_norm=True), f"{BLOCKS} post_norm=1"),
        ("mmdit", Design(gated=True), f"{BLOCKS} gated=1"),
        (
            "perceiver_resampler",
            Design(post_norm=True),
            "perceiver_resampler normalises what attention reads, not its result (design post_norm)",
        ),
        (
            "perceiver",
            Design(causal=True),
            "perceiver normalises what attention reads, and its latents have no order (causal=1)",
        ),
        (
            "attention_pooling",
            Design(gated=True),
            "attention_pooling has no residual stream to normalise or to gate (gated=1)",
        ),
    ],
)
def test_a_design_that_a_strategy_cannot_follow_is_refused(name: str, design: Design, reason: str | None) -> None:
    case = replace(case_of((9, 20), (5, 20), 24, 4), design=design)
    assert get(name).refusal(case) == reason


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("gated_cross_attention", {"depth": 0}, "gated_cross_attention of depth 0 has no layer that reads the image"),
        ("perceiver_resampler", {"depth": 0}, "perceiver_resampler of depth 0 has no layer that reads the image"),
        (
            "perceiver",
            {"heads": 8},
            "perceiver's cross-attention is as wide as its inputs, and 20 is not a multiple of 8 heads",
        ),
    ],
)
def test_sizes_that_a_strategy_cannot_have_are_refused(name: str, sizes: dict[str, int], reason: str) -> None:
    case = case_of((9, 20), (5, 20), 24, **{"heads": 4, **sizes})
    assert get(name).refusal(case) == reason
