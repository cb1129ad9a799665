"""CLIP beside that of transformers: what it makes of two pooled vectors, and the layers of its towers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from tests.faithful import assert_faithful, padded_inputs, pairs


class Pooled(nn.Module):
    """A tower that has done its work: its input is the pooled vector [B, D]."""

    def forward(self, **given: Tensor) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=given.get("pixel_values", given.get("input_ids")))


def test_similarity_is_clips() -> None:
    shape = Shape(batch=3, image=1, text=1, image_width=20, text_width=28, width=12, heads=1, depth=0)
    ours = get("late:similarity").module(Case(shape=shape, projector="identity"), "eager")
    towers = {"vision_config": {"hidden_size": 20}, "text_config": {"hidden_size": 28}}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    theirs = CLIPModel(CLIPConfig(**{k: v | layers for k, v in towers.items()}, projection_dim=12))
    theirs.vision_model, theirs.text_model = Pooled(), Pooled()
    same = {
        "combine.image.weight": theirs.visual_projection.weight,
        "combine.text.weight": theirs.text_projection.weight,
        "combine.log_scale": theirs.logit_scale,
    }

    def call_ours(image: Tensor, text: Tensor) -> Tensor:
        return ours(image.unsqueeze(1), text.unsqueeze(1))  # one token, which is its own mean

    def call_theirs(image: Tensor, text: Tensor) -> Tensor:
        return theirs(pixel_values=image, input_ids=text).logits_per_image

    image, text, *_ = padded_inputs(shape)
    assert_faithful(ours, theirs, same, call_ours, call_theirs, [image[:, 0], text[:, 0]])


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_an_encoder_layer_is_clips(tower: str, impl: str) -> None:
    """The vision tower sees all of its patches, the text tower what came before, of tokens that are no padding."""
    shape = Shape(batch=3, image=7, text=7, image_width=24, text_width=24, width=24, heads=3, hidden=40)
    design = Design(activation="quick_gelu", causal=tower == "text")
    module = get("late:similarity").module(Case(shape=shape, projector="identity", design=design), impl)
    ours = {"vision": module.image_encoder, "text": module.text_encoder}[tower].layers[0]
    config = {"vision": CLIPVisionConfig, "text": CLIPTextConfig}[tower](
        hidden_size=24, num_attention_heads=3, intermediate_size=40
    )
    config._attn_implementation = "sdpa"  # the eager one takes its softmax in fp32
    theirs = CLIPEncoderLayer(config)
    _, x, _, real = padded_inputs(shape)
    mask = {"vision": None, "text": real}[tower]
    seen = None if mask is None else mask[:, None, None, :] & torch.ones(7, 7, dtype=torch.bool).tril()
    same = pairs(
        "attention",
        {
            "norm": theirs.layer_norm1,
            "attention.q": theirs.self_attn.q_proj,
            "attention.k": theirs.self_attn.k_proj,
            "attention.v": theirs.self_attn.v_proj,
            "attention.out": theirs.self_attn.out_proj,
        },
    ) | pairs("ffn", {"norm": theirs.layer_norm2, "ffn.up": theirs.mlp.fc1, "ffn.down": theirs.mlp.fc2})
    assert_faithful(ours, theirs, same, lambda x: ours(x, None, mask), lambda x: theirs(x, seen), [x])


def test_a_layer_at_the_size_of_b32_has_its_figures() -> None:
    with torch.device("meta"):
        for width, heads, params in ((768, 12, 7_087_872), (512, 8, 3_152_384)):
            shape = Shape(batch=1, image=1, text=1, image_width=width, text_width=width, width=width, heads=heads)
            module = get("late:similarity").module(Case(shape=shape, projector="identity"), "sdpa")
            config = CLIPVisionConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
            for layer in (module.image_encoder.layers[0], CLIPEncoderLayer(config)):
                assert sum(p.numel() for p in layer.parameters()) == params
