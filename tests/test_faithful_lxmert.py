"""LXMERT's cross-modality layers beside those of transformers."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from transformers import LxmertConfig
from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from tests.faithful import assert_faithful, hiding, padded_inputs, pairs

DESIGN = Design(post_norm=True, eps=1e-12)
SMALL = Shape(batch=3, image=7, text=5, image_width=24, text_width=24, width=24, heads=3, depth=2, hidden=40)
REAL = Shape(batch=1, image=36, text=20, image_width=768, text_width=768, width=768, heads=12)


class Stack(nn.Module):
    """LxmertEncoder's x_layers, the last of its three stacks."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        config = LxmertConfig(
            hidden_size=shape.width, num_attention_heads=shape.heads, intermediate_size=shape.units(shape.width)
        )
        self.layers = nn.ModuleList(LxmertXLayer(config) for _ in range(shape.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            text, image = layer(text, hiding(text_mask), image, hiding(image_mask))
        return text, image


def attention(theirs: nn.Module, name: str) -> dict[str, nn.Module]:
    """``att`` in LxmertCrossAttentionLayer, ``self`` in LxmertSelfAttentionLayer."""
    of = theirs.get_submodule
    return {
        "attention.q": of(f"{name}.query"),
        "attention.k": of(f"{name}.key"),
        "attention.v": of(f"{name}.value"),
        "attention.out": of("output.dense"),
        "norm": of("output.LayerNorm"),
    }


def cross_modality_layer(prefix: str, theirs: LxmertXLayer) -> dict[str, Tensor]:
    same = pairs(f"{prefix}.cross", attention(theirs.visual_attention, "att"))
    streams = (
        ("image", theirs.visn_self_att, theirs.visn_inter, theirs.visn_output),
        ("text", theirs.lang_self_att, theirs.lang_inter, theirs.lang_output),
    )
    for stream, own, inter, output in streams:
        same |= pairs(f"{prefix}.{stream}_layer.attention", attention(own, "self"))
        parts = {"ffn.up": inter.dense, "ffn.down": output.dense, "norm": output.LayerNorm}
        same |= pairs(f"{prefix}.{stream}_layer.ffn", parts)
    return same


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_a_stack_of_cross_modality_layers_is_lxmerts(impl: str) -> None:
    ours = get("lxmert").module(Case(shape=SMALL, projector="identity", design=DESIGN), impl)
    theirs = Stack(SMALL)
    same: dict[str, Tensor] = {}
    for i, layer in enumerate(theirs.layers):
        same |= cross_modality_layer(f"layers.{i}", layer)
    assert_faithful(ours, theirs, same, ours, theirs, padded_inputs(SMALL))


def test_a_layer_at_the_size_of_the_model_has_its_figures() -> None:
    entry, case = get("lxmert"), Case(shape=REAL, projector="identity", design=DESIGN)
    with torch.device("meta"):
        ours, theirs = entry.module(case, "sdpa"), Stack(REAL)
    cost, d = entry.costs(case, "sdpa"), 768
    # D² of 3 attentions and of 2 feed-forward parts that are 4 D wide, then their biases and 5 norms
    assert 3 * 4 * d**2 + 2 * 8 * d**2 + 3 * 4 * d + 2 * 5 * d + 5 * 2 * d == 16_539_648
    assert cost.params == sum(p.numel() for p in ours.parameters()) == 16_539_648
    assert sum(p.numel() for p in theirs.parameters()) == 16_539_648
    assert cost.flops == 1_066_598_400  # 1.067 GF


def test_sharing_weights_saves_one_attention_of_parameters_and_no_flops() -> None:
    case = Case(shape=replace(REAL, ffn=0), projector="identity", design=DESIGN)
    shared, apart = (get(name).costs(case, "sdpa") for name in ("lxmert", "hierarchical"))
    assert apart.params - shared.params == 4 * 768 * (768 + 1) + 2 * 768
    assert apart.flops == shared.flops
    assert apart.activation_bytes(2) == shared.activation_bytes(2)
