"""Official code that no preset is: variants of the presets' strategies, CLIP's towers, tables of positions."""

from __future__ import annotations

import math

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPVisionConfig, LlamaConfig, PersimmonConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.persimmon.modeling_persimmon import PersimmonRotaryEmbedding

from fusionbench.registry import get
from fusionbench.spec import PLAIN, Case, Design, Shape
from tests.faithful import TOLERANCE, Official, assert_faithful, assert_official, found, inputs, masks, numel, small
from tests.faithful_bert import QFormerWithText, VilbertWithSelf
from tests.faithful_cross import SD35, PreNormTorchDecoder
from tests.faithful_decoders import Fuyu, Llava
from tests.faithful_latents import CoCa, Idefics2Resampler
from tests.faithful_streams import MBT, MulT

both_impls = pytest.mark.parametrize("impl", ["eager", "sdpa"])


def of_sizes(official: type[Official], design: Design) -> Case:
    """A case of no preset, nothing projected, at the official class's small sizes."""
    sizes = {name: n for name, n in official.small.items() if name in Shape.__struct_fields__}
    own = {name: n for name, n in official.small.items() if name not in sizes}
    return Case(shape=Shape(batch=3, **sizes), projector="identity", design=replace(design, **own))


# --- variants of presets -------------------------------------------------------------------------------------------


@both_impls
def test_vilberts_layers_of_each_stream_stand_where_the_authors_have_them(impl: str) -> None:
    case = small("vilbert-base-6x6", VilbertWithSelf.small)
    ours = get("vilbert:with_self").module(case, impl)
    assert_official(ours, VilbertWithSelf(case), case, padded=True)


@both_impls
def test_the_q_former_with_text_is_blip2s_first_stage(impl: str) -> None:
    case = small("blip2-qformer", QFormerWithText.small)
    ours, theirs = get("q_former:with_text").module(case, impl), QFormerWithText(case)
    assert_official(ours, theirs, case, padded=True)
    (_, text), (_, mask) = inputs(case), masks(case)
    alone, expected = ours(None, text, None, mask), theirs.text_alone(text, mask)  # both hold the same weights now
    torch.testing.assert_close(alone, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_with_qk_norm_the_blocks_are_those_of_stable_diffusion_3_5() -> None:
    case = small("sd3-medium", SD35.small)
    case = replace(case, design=replace(case.design, qk_norm="rms"))
    assert_official(get("mmdit").module(case, "sdpa"), SD35(case), case)


@both_impls
def test_a_decoder_that_normalises_first_is_torchs_with_norm_first(impl: str) -> None:
    case = small("transformer-base", PreNormTorchDecoder.small)
    case = replace(case, design=replace(case.design, post_norm=False))
    ours = get("transformer_decoder").module(case, impl)
    assert_official(ours, PreNormTorchDecoder(case), case, padded=True)


def test_mbt_without_a_number_of_bottlenecks_has_the_authors_four() -> None:
    case = small("mbt-base", {**MBT.small, "latents": 4})
    unnamed = replace(case, design=replace(case.design, latents=0))
    assert_official(get("bottleneck").module(unnamed, "sdpa"), MBT(case), case)


@pytest.mark.parametrize("depth", [2, 4], ids=["fewer layers than the memory's", "more"])
def test_mult_of_an_odd_width_is_the_authors(depth: int) -> None:
    case = small("mult", {**MulT.small, "width": 15, "heads": 3, "depth": depth})
    assert_official(get("mult").module(case, "sdpa"), MulT(case), case, padded=True)


@both_impls
@pytest.mark.parametrize("queries", [1, 6])
def test_the_pooled_stream_is_cocas(queries: int, impl: str) -> None:
    case = of_sizes(CoCa, PLAIN)
    case = replace(case, design=replace(case.design, latents=queries))
    assert_official(get("attention_pooling").module(case, impl), CoCa(case), case, padded=True)


@both_impls
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_a_resampler_in_front_of_its_text_is_that_of_idefics2(impl: str, padded: bool) -> None:
    design = Design(norm="rms", activation="swiglu", qkv_bias=False, out_bias=False, ffn_bias=False, eps=1e-6)
    case = of_sizes(Idefics2Resampler, design)
    ours = get("perceiver_resampler").module(case, impl)
    assert_official(ours, Idefics2Resampler(case), case, padded=padded)


# --- CLIP's towers -------------------------------------------------------------------------------------------------

TOWERS = {"vision": CLIPVisionConfig, "text": CLIPTextConfig}


@both_impls
@pytest.mark.parametrize("tower", TOWERS)
def test_a_layer_of_a_tower_is_clips(tower: str, impl: str) -> None:
    """The vision tower sees all of its patches, the text tower what came before, of tokens that are no padding."""
    sizes = {"image": 7, "text": 7, "image_width": 24, "text_width": 24, "width": 24, "heads": 3, "depth": 1}
    case = small("clip-vit-b32", sizes)
    case = replace(case, design=replace(case.design, causal=tower == "text"))
    module = get("late:similarity").module(case, impl)
    ours = {"vision": module.image_encoder, "text": module.text_encoder}[tower].layers[0]
    config = TOWERS[tower](hidden_size=24, num_attention_heads=3, intermediate_size=4 * 24)
    config._attn_implementation = "sdpa"  # the eager one takes its softmax in fp32
    theirs = CLIPEncoderLayer(config)
    (_, x), (_, text_mask) = inputs(case), masks(case)
    mask = {"vision": None, "text": text_mask}[tower]
    seen = None if mask is None else mask[:, None, None, :] & torch.ones(7, 7, dtype=torch.bool).tril()
    names = {"norm": "layer_norm1", "attention.out": "self_attn.out_proj"}
    names |= {f"attention.{name}": f"self_attn.{name}_proj" for name in "qkv"}
    same = found("attention", names, theirs)
    same |= found("ffn", {"norm": "layer_norm2", "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"}, theirs)
    assert_faithful(ours, theirs, same, lambda x: ours(x, None, mask), lambda x: theirs(x, seen), [x])


def test_a_layer_at_the_size_of_b32_has_as_many_parameters() -> None:
    with torch.device("meta"):
        for config, params in ((CLIPVisionConfig(), 7_087_872), (CLIPTextConfig(), 3_152_384)):
            width, heads = config.hidden_size, config.num_attention_heads
            shape = Shape(batch=1, image=1, text=1, image_width=width, text_width=width, width=width, heads=heads)
            module = get("late:similarity").module(Case(shape=shape, projector="identity"), "sdpa")
            assert numel(module.image_encoder.layers[0]) == numel(CLIPEncoderLayer(config)) == params


# --- positions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["llama", "persimmon"])
def test_our_rotary_table_is_the_official_one(model: str) -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 3}
    case, official = {
        "llama": (small("llava-1.5-7b", Llava.small), LlamaRotaryEmbedding(LlamaConfig(**sizes))),
        "persimmon": (small("fuyu-8b", Fuyu.small), PersimmonRotaryEmbedding(PersimmonConfig(**sizes))),
    }[model]
    cos, sin = official(torch.zeros(1), torch.arange(case.shape.image + case.shape.text)[None])
    turn = get("concat_attention").module(case, "sdpa").encoder.layers[0].attention.attention.turn
    torch.testing.assert_close((turn.cos, turn.sin), (cos[0], sin[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [30, 15])
def test_mults_table_of_positions_is_fairseqs(width: int) -> None:
    case = small("mult", {**MulT.small, "width": width})
    table = get("mult").module(replace(case, shape=replace(case.shape, heads=3)), "sdpa").positioned.positions
    torch.testing.assert_close(table, sinusoids(case.shape.image, width), rtol=0, atol=1e-5)


def sinusoids(tokens: int, width: int) -> Tensor:
    """fairseq's table without its first row, which stands for padding."""
    half = width // 2
    rates = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(1, tokens + 1)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()] + [torch.zeros(tokens, 1)] * (width % 2), dim=1)


def test_torchs_decoder_without_its_memory_does_not_run() -> None:
    # the popular snippet of a MultiModalTransformer ends in self.decoder(encoded)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, batch_first=True), 1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'memory'"):
        decoder(torch.zeros(1, 3, 8))
