"""The Q-Former beside BLIP-2's of transformers: a layer of each kind, the whole, and the whole with text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerLayer, Blip2QFormerModel

from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from tests.faithful import TOLERANCE, assert_faithful, hiding, padded_inputs, pairs

SMALL = Shape(batch=3, image=7, text=5, image_width=28, text_width=24, width=24, heads=3, depth=3, hidden=40)
DESIGN = Design(post_norm=True, eps=1e-12, latents=4)
REAL = Shape(batch=1, image=257, text=32, image_width=1408, text_width=768, width=768, heads=12, depth=12)


def config_of(shape: Shape, with_text: bool) -> Blip2QFormerConfig:
    config = Blip2QFormerConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.units(shape.width),
        encoder_hidden_size=shape.image_width,
        use_qformer_text_input=with_text,
    )
    config._attn_implementation = "eager"  # whose softmax stays in the dtype of the scores
    return config


class Querying(nn.Module):
    """Blip2Model's query tokens and Q-Former."""

    def __init__(self, shape: Shape, queries: int, with_text: bool = False) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, shape.width))
        self.qformer = Blip2QFormerModel(config_of(shape, with_text))

    def forward(self, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor) -> Tensor:
        queries = self.query_tokens.expand(len(image), -1, -1)
        read: Tensor = self.qformer(
            query_embeds=queries, encoder_hidden_states=image, encoder_attention_mask=image_mask
        ).last_hidden_state
        return torch.cat([read, text], dim=1)  # as the language model is given them

    def with_text(self, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor) -> Tensor:
        """As Blip2ForImageTextRetrieval's matching head and InstructBLIP call it."""
        n = self.query_tokens.shape[1]
        read: Tensor = self.qformer(
            query_embeds=torch.cat([self.query_tokens.expand(len(image), -1, -1), text], dim=1),
            query_length=n,
            attention_mask=nn.functional.pad(text_mask, (n, 0), value=True),
            encoder_hidden_states=image,
            encoder_attention_mask=hiding(image_mask),  # it would give a mask [B, Li] a row for each token of text too
        ).last_hidden_state
        return read

    def text_alone(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """As Blip2ForImageTextRetrieval's contrastive head calls it."""
        read: Tensor = self.qformer(query_embeds=text, query_length=0, attention_mask=text_mask).last_hidden_state
        return read


def layer(prefix: str, theirs: Blip2QFormerLayer) -> dict[str, Tensor]:
    same: dict[str, Tensor] = {}
    blocks = [("attention", theirs.attention)]
    if theirs.has_cross_attention:
        blocks.append(("cross", theirs.crossattention))
    for ours, block in blocks:
        parts = {
            "attention.q": block.attention.query,
            "attention.k": block.attention.key,
            "attention.v": block.attention.value,
            "attention.out": block.output.dense,
            "norm": block.output.LayerNorm,
        }
        same |= pairs(f"{prefix}{ours}", parts)
    ffns = [("query_ffn", theirs.intermediate_query, theirs.output_query)]
    if hasattr(theirs, "intermediate"):
        ffns.append(("text_ffn", theirs.intermediate, theirs.output))
    for ours, up, down in ffns:
        same |= pairs(f"{prefix}{ours}", {"ffn.up": up.dense, "ffn.down": down.dense, "norm": down.LayerNorm})
    return same


def whole(theirs: Querying) -> dict[str, Tensor]:
    norm = theirs.qformer.layernorm
    same: dict[str, Tensor] = {"queries": theirs.query_tokens, "norm.weight": norm.weight, "norm.bias": norm.bias}
    for i, official in enumerate(theirs.qformer.encoder.layer):
        same |= layer(f"layers.{i}.", official)
    return same


@pytest.mark.parametrize("i", [0, 1], ids=["with cross-attention", "without"])
def test_a_layer_is_blip2s(i: int) -> None:
    ours = get("q_former").module(Case(shape=SMALL, projector="identity", design=DESIGN), "sdpa").layers[i]
    theirs = Blip2QFormerLayer(config_of(SMALL, with_text=False), i)
    assert theirs.has_cross_attention is (i == 0)

    image, text, mask, _ = padded_inputs(SMALL)
    assert_faithful(
        ours, theirs, layer("", theirs),
        lambda x, image: ours(x, 5, image, None, mask),
        lambda x, image: theirs(x, None, image, encoder_attention_mask=hiding(mask), query_length=5),
        [text, image],  # any 5 vectors of that width are queries
    )  # fmt: skip


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_the_whole_is_blip2s_second_stage(impl: str) -> None:
    ours = get("q_former").module(Case(shape=SMALL, projector="identity", design=DESIGN), impl)
    theirs = Querying(SMALL, 4)
    assert_faithful(ours, theirs, whole(theirs), ours, theirs, padded_inputs(SMALL))


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_the_whole_with_text_is_blip2s_first_stage(impl: str) -> None:
    ours = get("q_former:with_text").module(Case(shape=SMALL, projector="identity", design=DESIGN), impl)
    theirs = Querying(SMALL, 4, with_text=True)
    assert_faithful(ours, theirs, whole(theirs), ours, theirs.with_text, padded_inputs(SMALL))
    _, text, _, mask = padded_inputs(SMALL)
    alone, expected = ours(None, text, None, mask), theirs.text_alone(text, mask)  # both hold the same weights now
    torch.testing.assert_close(alone, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_whole_at_the_size_of_the_model_has_its_figures() -> None:
    design = Design(post_norm=True, eps=1e-12, latents=32)
    entry, case = get("q_former"), Case(shape=REAL, projector="identity", design=design)
    with torch.device("meta"):
        ours, theirs = entry.module(case, "sdpa"), Querying(REAL, 32)
    cost = entry.costs(case, "sdpa")
    assert cost.params == sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert cost.flops == 12_747_866_112  # 12.75 GF
