"""mmdit against diffusers' JointTransformerBlock (Stable Diffusion 3), and its cost at SD3-medium's size."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from tests.faithful import Parameters, assert_faithful, exact_norms

HEADS, WIDTH = 3, 24
SD3 = Design(activation="gelu_tanh", eps=1e-6)


def case(depth: int, qk_norm: Literal["", "rms"]) -> Case:
    shape = Shape(batch=2, image=7, text=5, image_width=WIDTH, text_width=WIDTH, width=WIDTH, heads=HEADS, depth=depth)
    return Case(shape=shape, projector="identity", design=Design(activation="gelu_tanh", eps=1e-6, qk_norm=qk_norm))


class Official(nn.Module):
    """Blocks of SD3 in a row; the mean of the text stands where the embedding of time step and pooled text does."""

    def __init__(self, depth: int, qk_norm: str | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            JointTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, qk_norm=qk_norm) for _ in range(depth)
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        temb = text.mean(dim=1)
        for block in self.blocks:
            text, image = block(image, text, temb)
        return text, image


def same(theirs: Official) -> Parameters:
    """``to_q`` and the like belong to the image stream, ``add_q_proj`` and the like to the text stream."""
    names: dict[str, str] = {}
    for i in range(len(theirs.blocks)):
        for modality, norm, ffn, q, k, v, out, q_norm, k_norm in (
            ("image", "norm1", "ff", "to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k"),
            ("text", "norm1_context", "ff_context", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
             "norm_added_q", "norm_added_k"),
        ):  # fmt: skip
            for ours, official in {
                f"modulations.{modality}.linear": f"{norm}.linear",
                f"attention.projections.{modality}.q": f"attn.{q}",
                f"attention.projections.{modality}.k": f"attn.{k}",
                f"attention.projections.{modality}.v": f"attn.{v}",
                f"attention.projections.{modality}.q_norm.norm": f"attn.{q_norm}",
                f"attention.projections.{modality}.k_norm.norm": f"attn.{k_norm}",
                f"attention.out.{modality}": f"attn.{out}",
                f"ffns.{modality}.up": f"{ffn}.net.0.proj",
                f"ffns.{modality}.down": f"{ffn}.net.2",
            }.items():
                for kind in ("weight", "bias"):
                    names[f"blocks.{i}.{ours}.{kind}"] = f"blocks.{i}.{official}.{kind}"
    named = dict(theirs.named_parameters())
    return {ours: named[official] for ours, official in names.items() if official in named}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("qk_norm", "official"), [("", None), ("rms", "rms_norm")], ids=["sd3", "sd3.5"])
def test_blocks_are_those_of_stable_diffusion_3(depth: int, qk_norm: Literal["", "rms"], official: str | None) -> None:
    # The last block of SD3 has context_pre_only, which neither side has here. Dropout is 0; the official processor
    # takes no padding mask, and its RMSNorm computes in fp32, which exact_norms undoes.
    ours = get("mmdit").module(case(depth, qk_norm), "sdpa")
    theirs = exact_norms(Official(depth, official))
    inputs = [torch.randn(2, tokens, WIDTH, dtype=torch.float64) for tokens in (7, 5)]
    assert isinstance(theirs, Official)
    assert_faithful(ours, theirs, same(theirs), ours, theirs, inputs)


def medium(text: int) -> Case:
    shape = Shape(batch=1, image=4096, text=text, image_width=1536, text_width=1536, width=1536, heads=24)
    return Case(shape=shape, projector="identity", design=SD3)


MODULATION = 2 * 6 * 1536 * 1536  # weights of a block's two Linears


@pytest.mark.parametrize(("text", "gigaflops"), [(154, 351.6), (333, 371.3)])
def test_a_joint_block_of_sd3_medium_costs_what_it_costs(text: int, gigaflops: float) -> None:
    cost = get("mmdit").costs(medium(text), "sdpa")
    assert round((cost.flops - 2 * MODULATION) / 1e9, 1) == gigaflops
    assert cost.params - (MODULATION + 2 * 6 * 1536) == 56_650_752


def test_a_joint_block_of_sd3_medium_has_as_many_parameters_as_the_official_one() -> None:
    with torch.device("meta"):
        official = JointTransformerBlock(1536, 24, 64)
        ours = get("mmdit").module(medium(333), "sdpa")
    counts = [sum(p.numel() for p in module.parameters()) for module in (ours, official)]
    assert counts[0] == counts[1] == get("mmdit").costs(medium(333), "sdpa").params


def test_without_text_the_condition_is_that_of_a_sample_whose_text_is_all_padding() -> None:
    torch.manual_seed(0)
    module = get("mmdit").module(case(2, ""), "sdpa").double()
    image, text = (torch.randn(2, tokens, WIDTH, dtype=torch.float64) for tokens in (7, 5))
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    torch.testing.assert_close(module(image, None)[1], module(image, text, None, nothing)[1])
    assert module(image, None)[0] is None
    assert module(None, text)[1] is None


@pytest.mark.parametrize(
    ("design", "reason"),
    [
        (Design(norm="rms"), "mmdit's blocks are pre-LayerNorm with gates of their own, not norm=rms"),
        (Design(post_norm=True), "mmdit's blocks are pre-LayerNorm with gates of their own, not post_norm=1"),
        (Design(gated=True), "mmdit's blocks are pre-LayerNorm with gates of their own, not gated=1"),
    ],
)
def test_what_the_modulation_decides_is_not_the_designs_to_change(design: Design, reason: str) -> None:
    shape = Shape(batch=2, image=7, text=5, image_width=WIDTH, text_width=WIDTH, width=WIDTH, heads=HEADS)
    assert get("mmdit").refusal(Case(shape=shape, design=design)) == reason
