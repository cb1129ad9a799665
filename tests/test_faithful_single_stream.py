"""Single-stream models beside transformers: VisualBERT, whose layer is UNITER's and BERT's, and ViLT."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import ViltConfig, VisualBertConfig
from transformers.models.vilt.modeling_vilt import ViltLayer
from transformers.models.visual_bert.modeling_visual_bert import VisualBertLayer

from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from tests.faithful import assert_faithful, bert_layer, hiding, padded_inputs, pairs

SMALL = Shape(batch=3, image=7, text=5, image_width=24, text_width=24, width=24, heads=3, depth=2, hidden=40)
VISUAL_BERT = Design(post_norm=True, eps=1e-12)
VILT = Design(eps=1e-12)


class Stack(nn.Module):
    """Official layers over one stream, the image first; the models put it last, which attention does not see."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor) -> Tensor:
        x, seen = torch.cat([image, text], dim=1), hiding(torch.cat([image_mask, text_mask], dim=1))
        for layer in self.layers:
            (x,) = layer(x, seen)
        return x


def vilt_layer(prefix: str, theirs: ViltLayer) -> dict[str, Tensor]:
    own = theirs.attention.attention
    return pairs(
        prefix,
        {
            "attention.norm": theirs.layernorm_before,
            "attention.attention.q": own.query,
            "attention.attention.k": own.key,
            "attention.attention.v": own.value,
            "attention.attention.out": theirs.attention.output.dense,
            "ffn.norm": theirs.layernorm_after,
            "ffn.ffn.up": theirs.intermediate.dense,
            "ffn.ffn.down": theirs.output.dense,
        },
    )


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_concat_attention_after_norm_is_visualberts(impl: str) -> None:
    ours = get("concat_attention").module(Case(shape=SMALL, projector="identity", design=VISUAL_BERT), impl)
    config = VisualBertConfig(hidden_size=24, num_attention_heads=3, intermediate_size=40)
    theirs = Stack([VisualBertLayer(config) for _ in range(2)])
    same: dict[str, Tensor] = {}
    for i, layer in enumerate(theirs.layers):
        same |= bert_layer(f"encoder.layers.{i}", layer)
    assert_faithful(ours, theirs, same, ours, theirs, padded_inputs(SMALL))


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_concat_attention_before_norm_is_vilts(impl: str) -> None:
    ours = get("concat_attention").module(Case(shape=SMALL, projector="identity", design=VILT), impl)
    config = ViltConfig(hidden_size=24, num_attention_heads=3, intermediate_size=40)
    theirs = Stack([ViltLayer(config) for _ in range(2)])
    same: dict[str, Tensor] = {}
    for i, layer in enumerate(theirs.layers):
        same |= vilt_layer(f"encoder.layers.{i}", layer)
    assert_faithful(ours, theirs, same, ours, theirs, padded_inputs(SMALL))


@pytest.mark.parametrize(("image", "text", "flops"), [(36, 20, 802_357_248), (100, 60, 2_343_567_360)])
def test_a_layer_at_the_size_of_uniter_has_its_figures(image: int, text: int, flops: int) -> None:
    shape = Shape(batch=1, image=image, text=text, image_width=768, text_width=768, width=768, heads=12)
    entry, case = get("concat_attention"), Case(shape=shape, projector="identity", design=VISUAL_BERT)
    with torch.device("meta"):
        theirs = VisualBertLayer(VisualBertConfig())
    cost = entry.costs(case, "sdpa")
    assert cost.params == sum(p.numel() for p in theirs.parameters()) == 7_087_872
    assert cost.flops == flops  # 0.802 GF with the padding left out, 2.344 GF with it
