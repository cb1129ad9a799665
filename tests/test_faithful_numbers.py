"""The presets' numbers against the official configurations: their classes' defaults, or what a checkpoint has instead."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn
from transformers import (
    BertConfig,
    Blip2Config,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    FuyuConfig,
    GPT2Config,
    IdeficsConfig,
    LlamaConfig,
    LlavaConfig,
    LxmertConfig,
    MobileNetV2Config,
    MobileNetV2Model,
    PerceiverConfig,
    Qwen2_5_VLConfig,
    ResNetConfig,
    ViltConfig,
    VisualBertConfig,
    ViTConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaConfig

from fusionbench.presets import Part, encoders
from fusionbench.spec import Design
from tests.faithful import part_of
from tests.faithful_decoders import LLAMA_2, LLAMA_3, QWEN
from tests.test_faithful_presets import COMPARED

Numbers = Mapping[str, Any]  # by the name of a field of Part or Design

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "relu2": "relu2",
    "silu": "swiglu",
}  # fmt: skip


def patches(config: Any) -> int:
    side: int = config.image_size // config.patch_size
    return side * side


# --- how each configuration says it --------------------------------------------------------------------------------


def llama(c: Any) -> Numbers:
    return {
        "layers": c.num_hidden_layers,
        "text_width": c.hidden_size,
        "width": c.hidden_size,
        "heads": c.num_attention_heads,
        "kv_heads": c.num_key_value_heads if c.num_key_value_heads != c.num_attention_heads else 0,
        "hidden": c.intermediate_size,
        "activation": ACTIVATIONS[c.hidden_act],
        "eps": c.rms_norm_eps,
    }


def llava(c: LlavaConfig) -> Numbers:
    assert patches(c.vision_config) == c.image_seq_length  # "default": without the class token
    return {**llama(c.text_config), "image": c.image_seq_length, "image_width": c.vision_config.hidden_size}


def qwen(c: Qwen2_5_VLConfig) -> Numbers:
    assert c.vision_config.spatial_merge_size**2 == 4  # of 32 x 32 patches, at 448 px
    return {**llama(c.text_config), "image": (448 // c.vision_config.patch_size) ** 2 // 4,
            "image_width": c.vision_config.hidden_size}  # fmt: skip


def mllama(c: MllamaConfig) -> Numbers:
    text, vision = c.text_config, c.vision_config
    assert text.cross_attention_layers == list(range(3, 40, 5))
    assert vision.vision_output_dim == (1 + len(vision.intermediate_layers_indices)) * vision.hidden_size
    return {**llama(text), "layers": len(text.cross_attention_layers),
            "image": vision.max_num_tiles * (patches(vision) + 1), "image_width": vision.vision_output_dim}  # fmt: skip


def idefics_gated(c: IdeficsConfig) -> Numbers:
    return {
        "layers": c.num_hidden_layers // c.cross_layer_interval,
        "image": c.perceiver_config.resampler_n_latents,
        "image_width": c.vision_config.embed_dim,
        "text_width": c.hidden_size,
        "width": c.hidden_size,
        "heads": c.num_attention_heads,
        "hidden": c.intermediate_size,
        "activation": ACTIVATIONS[c.hidden_act],
        "eps": c.rms_norm_eps,
    }


def idefics_resampler(c: IdeficsConfig) -> Numbers:
    p = c.perceiver_config
    return {
        "layers": p.resampler_depth,
        "image": patches(c.vision_config) + 1,
        "image_width": c.vision_config.embed_dim,
        "text_width": c.hidden_size,
        "width": p.resampler_n_heads * p.resampler_head_dim,
        "heads": p.resampler_n_heads,
        "latents": p.resampler_n_latents,
    }


def fuyu(c: FuyuConfig) -> Numbers:
    text, rows, columns = c.text_config, 1080 // c.patch_size, 1920 // c.patch_size
    return {
        "layers": text.num_hidden_layers,
        "image": rows * (columns + 1),  # 1080p; a newline ends each row
        "image_width": c.num_channels * c.patch_size**2,
        "text_width": text.hidden_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "hidden": text.intermediate_size,
        "activation": ACTIVATIONS[text.hidden_act],
        "eps": text.layer_norm_eps,
        "rope": text.rope_parameters["partial_rotary_factor"],
    }


def gpt2(c: GPT2Config) -> Numbers:
    assert c.n_inner is None  # 4 x n_embd
    image = ViTConfig()
    return {"layers": c.n_layer, "image": patches(image) + 1, "image_width": image.hidden_size, "text_width": c.n_embd,
            "width": c.n_embd, "heads": c.n_head, "ffn": 4, "activation": ACTIVATIONS[c.activation_function],
            "eps": c.layer_norm_epsilon}  # fmt: skip


def llama_unified(c: LlamaConfig) -> Numbers:
    vision = LlavaConfig().vision_config
    return {**llama(c), "image": patches(vision), "image_width": vision.hidden_size}


def bert(c: Any) -> Numbers:
    return {
        "layers": c.num_hidden_layers,
        "text_width": c.hidden_size,
        "width": c.hidden_size,
        "heads": c.num_attention_heads,
        "ffn": c.intermediate_size / c.hidden_size,
        "activation": ACTIVATIONS[c.hidden_act],
        "eps": c.layer_norm_eps,
    }


def uniter(c: BertConfig) -> Numbers:
    """UNITER's own config class has BERT's fields; IMG_DIM stands in its utils/const.py."""
    return {**bert(c), "image_width": 2048}


def visual_bert(c: VisualBertConfig) -> Numbers:
    return {**bert(c), "image_width": c.visual_embedding_dim}


def vilt(c: ViltConfig) -> Numbers:
    assert c.modality_type_vocab_size == 2
    return {**bert(c), "image": patches(c), "image_width": c.num_channels * c.patch_size**2,
            "text": c.max_position_embeddings}  # fmt: skip


def lxmert(c: LxmertConfig) -> Numbers:
    return {
        "layers": c.x_layers,
        "image_width": c.hidden_size,
        "text_width": c.hidden_size,
        "width": c.hidden_size,
        "heads": c.num_attention_heads,
        "ffn": c.intermediate_size / c.hidden_size,
        "activation": ACTIVATIONS[c.hidden_act],
    }


def q_former(c: Blip2Config) -> Numbers:
    assert c.qformer_config.cross_attention_frequency == 2
    assert c.qformer_config.encoder_hidden_size == c.vision_config.hidden_size
    return {**bert(c.qformer_config), "image": patches(c.vision_config) + 1,
            "image_width": c.vision_config.hidden_size, "latents": c.num_query_tokens}  # fmt: skip


def perceiver(c: PerceiverConfig) -> Numbers:
    assert c.num_self_attention_heads == c.num_cross_attention_heads
    assert c.self_attention_widening_factor == c.cross_attention_widening_factor
    return {
        "layers": c.num_self_attends_per_block * c.num_blocks,
        "image_width": c.d_model,
        "text_width": c.d_model,
        "width": c.d_latents,
        "heads": c.num_self_attention_heads,
        "ffn": c.self_attention_widening_factor,
        "latents": c.num_latents,
        "activation": ACTIVATIONS[c.hidden_act],
    }


def clip(c: CLIPConfig) -> Numbers:
    return {
        "image": patches(c.vision_config) + 1,
        "image_width": c.vision_config.hidden_size,
        "text": c.text_config.max_position_embeddings,
        "text_width": c.text_config.hidden_size,
        "width": c.projection_dim,
        "heads": c.text_config.num_attention_heads,
        "activation": ACTIVATIONS[c.vision_config.hidden_act],
        "eps": c.vision_config.layer_norm_eps,
    }


def sd3(c: Any) -> Numbers:
    """CLIP's tokens, then T5's, as many as the pipeline takes; a guided sample is two."""
    t5 = inspect.signature(StableDiffusion3Pipeline.__call__).parameters["max_sequence_length"].default
    width = c.num_attention_heads * c.attention_head_dim
    assert c.caption_projection_dim == width
    return {"batch": 2, "layers": c.num_layers, "image": (c.sample_size // c.patch_size) ** 2, "image_width": width,
            "text": CLIPTextConfig().max_position_embeddings + t5, "text_width": c.joint_attention_dim,
            "width": width, "heads": c.num_attention_heads}  # fmt: skip


def vaswani(c: inspect.Signature) -> Numbers:
    d = {name: p.default for name, p in c.parameters.items()}
    assert d["num_encoder_layers"] == d["num_decoder_layers"]
    assert d["norm_first"] is False
    return {
        "layers": d["num_decoder_layers"],
        "width": d["d_model"],
        "heads": d["nhead"],
        "ffn": d["dim_feedforward"] / d["d_model"],
        "activation": ACTIVATIONS[d["activation"].__name__],
        "eps": d["layer_norm_eps"],
    }


def transformer_base(c: inspect.Signature) -> Numbers:
    return {**vaswani(c), "image_width": vaswani(c)["width"], "text_width": vaswani(c)["width"]}


def multimodal_transformer(c: inspect.Signature) -> Numbers:
    vision = ViTConfig()
    return {**vaswani(c), "image": patches(vision) + 1, "image_width": vision.hidden_size,
            "text_width": BertConfig().hidden_size}  # fmt: skip


# --- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A configuration, what its checkpoint has in place of its defaults, and how to read the preset's numbers off it.

    ``elsewhere`` are the fields that no configuration has: typical lengths, and what stands in the modules themselves.
    """

    config: Callable[..., Any]
    read: Callable[[Any], Numbers]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ("text",)


def sd3_config(**changes: Any) -> Any:
    with torch.device("meta"):
        return SD3Transformer2DModel(**changes).config


# IDEFICS-9B, where the class has no norms of heads, a cross-attention in every layer, and CLIP B's width.
IDEFICS = {
    "qk_layer_norms": True,
    "cross_layer_interval": 4,
    "vision_config": {"embed_dim": 1280},
    "perceiver_config": {"qk_layer_norms_perceiver": True},
}
QWEN_VISION = {"hidden_size": 1280}  # the class's is the width behind the merger, 3584
CLIP_L = {
    "vision_config": {"hidden_size": 1024, "patch_size": 14, "num_attention_heads": 16},
    "text_config": {"hidden_size": 768, "num_attention_heads": 12},
    "projection_dim": 768,
}
LENGTHS = ("image", "text")

KNOWN: Mapping[str, Known] = {
    "llava-1.5-7b": Known(LlavaConfig, llava, {"text_config": LLAMA_2}),
    "llava-1.5-13b": Known(
        LlavaConfig,
        llava,
        {"text_config": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                         "num_attention_heads": 40, "num_key_value_heads": 40, **LLAMA_2}},
    ),
    "qwen2.5-vl-3b": Known(
        Qwen2_5_VLConfig,
        qwen,
        {"vision_config": QWEN_VISION,
         "text_config": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
                         "num_attention_heads": 16, "num_key_value_heads": 2, **QWEN}},
    ),
    "qwen2.5-vl-7b": Known(
        Qwen2_5_VLConfig,
        qwen,
        {"vision_config": QWEN_VISION,
         "text_config": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                         "num_attention_heads": 28, "num_key_value_heads": 4, **QWEN}},
    ),
    "qwen2.5-vl-72b": Known(Qwen2_5_VLConfig, qwen, {"vision_config": QWEN_VISION, "text_config": QWEN}),
    "fuyu-8b": Known(FuyuConfig, fuyu),
    "gpt2-unified": Known(GPT2Config, gpt2),
    "llama-unified": Known(
        LlamaConfig,
        llama_unified,
        {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
         "num_key_value_heads": 8, **LLAMA_3},
    ),
    # 1601 tokens a tile; the class's 448 px make 1025
    "llama-3.2-11b-vision": Known(MllamaConfig, mllama, {"vision_config": {"image_size": 560}}),
    "idefics-9b:resampler": Known(IdeficsConfig, idefics_resampler, IDEFICS, elsewhere=("text", "activation")),
    "idefics-9b:gated": Known(IdeficsConfig, idefics_gated, IDEFICS),
    "transformer-base": Known(lambda: inspect.signature(nn.Transformer), transformer_base, elsewhere=LENGTHS),
    "multimodal-transformer": Known(lambda: inspect.signature(nn.Transformer), multimodal_transformer),
    "sd3-medium": Known(  # the class's defaults are a model of 18 layers and heads
        sd3_config,
        sd3,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
        elsewhere=("activation", "eps"),
    ),
    "clip-vit-b32": Known(CLIPConfig, clip, elsewhere=("batch", "layers")),
    "clip-vit-l14": Known(CLIPConfig, clip, CLIP_L, elsewhere=("batch", "layers")),
    "lxmert": Known(LxmertConfig, lxmert, elsewhere=(*LENGTHS, "eps")),  # 1e-12 stands in its modules
    "uniter-base": Known(BertConfig, uniter, elsewhere=LENGTHS),
    "uniter-large": Known(
        BertConfig,
        uniter,
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        elsewhere=LENGTHS,
    ),
    # features of 2048, as mmf's defaults have them; the class's are 512
    "visualbert": Known(VisualBertConfig, visual_bert, {"visual_embedding_dim": 2048}, elsewhere=LENGTHS),
    "vilt-b32": Known(ViltConfig, vilt, elsewhere=()),
    "blip2-qformer": Known(Blip2Config, q_former),
    "perceiver": Known(PerceiverConfig, perceiver, elsewhere=LENGTHS),
}  # fmt: skip

# What the sources say of systems without such a class.
WRITTEN: Mapping[str, Numbers] = {
    # the articles: Linear 768 to 4096, 32 heads, no feed-forward part
    "seed-qwen": {"image_width": 768, "text_width": 4096, "width": 4096, "heads": 32, "ffn": 0},
    # Qwen/Qwen-VL visual.py: 448 px in patches of 14, ViT-bigG, grid_size 256 ** 0.5, heads of 128
    "qwen-vl:resampler": {"image": (448 // 14) ** 2, "image_width": 1664, "text_width": 4096, "width": 4096,
                          "heads": 4096 // 128, "ffn": 0, "latents": 256, "eps": 1e-6},
    # Qwen/Qwen-VL config.json, whose intermediate_size counts values and gates
    "qwen-vl:decoder": {"layers": 32, "image": 256, "image_width": 4096, "text_width": 4096, "width": 4096,
                        "heads": 32, "hidden": 22016 // 2, "activation": "swiglu", "eps": 1e-6},
    # open_flamingo: MPT-1B of 24 layers of 2048, interval 1; src/helpers.py's dim_head 64, heads 8, num_latents 64
    "openflamingo-3b:gated": {"layers": 24 // 1, "image": 64, "image_width": 1024, "text_width": 2048,
                              "width": 8 * 64, "heads": 8},
    "openflamingo-9b:resampler": {"layers": 6, "image": 256, "image_width": 1024, "text_width": 4096,
                                  "width": 8 * 64, "heads": 8, "latents": 64},
    # MPT-7B of 32 layers of 4096, interval 4
    "openflamingo-9b:gated": {"layers": 32 // 4, "image": 64, "image_width": 1024, "text_width": 4096,
                              "width": 8 * 64, "heads": 8},
    # vilbert_beta config/bert_base_6layer_6conect.json: v_biattention_id 0 to 5, bi_*, v_* and the text's own sizes
    "vilbert-base-6x6": {"layers": 6, "image_width": 1024, "text_width": 768, "width": 1024, "heads": 8,
                         "hidden": 3072, "image_hidden": 1024, "text_heads": 12, "eps": 1e-12},
    # scenic balanced_audioset_base.py: num_layers - fusion_layer, n_bottlenecks, 8 seconds of spec_shape (100, 128) in
    # patches of 16; the paper's 8 frames, where this config takes 16 pairs of frames
    "mbt-base": {"layers": 12 - 8, "image": 8 * 14 * 14, "image_width": 768, "text": 800 // 16 * (128 // 16),
                 "text_width": 768, "width": 768, "heads": 12, "ffn": 3072 / 768, "latents": 4,
                 "activation": "gelu_tanh", "eps": 1e-6},
    # Multimodal-Transformer main.py: nlevels, num_heads; src/models.py: d_l, d_v; CMU-MOSEI's aligned features
    "mult": {"layers": 5, "image": 50, "image_width": 35, "text": 50, "text_width": 300, "width": 30, "heads": 5,
             "activation": "relu"},
}  # fmt: skip

SIZES = (
    "batch", "layers", "image", "image_width", "text", "text_width", "width", "heads", "ffn", "hidden", "kv_heads",
    "latents", "image_hidden", "text_heads", "activation", "eps",
)  # fmt: skip
PLAIN_PART = Part(image=0, image_width=0, text=0, text_width=0, width=0, heads=0)


def number(part: Part, name: str) -> Any:
    return getattr(part.design if name in Design.__struct_fields__ else part, name)


def named(part: Part) -> set[str]:
    """The numbers that are no default."""
    return {name for name in SIZES if number(part, name) != number(PLAIN_PART, name)}


@pytest.mark.parametrize("label", KNOWN)
def test_a_presets_numbers_are_those_of_the_official_configuration(label: str) -> None:
    known, part = KNOWN[label], part_of(label)
    expected = known.read(known.config(**known.checkpoint))
    assert {name: number(part, name) for name in expected} == expected
    assert named(part) - set(expected) == set(known.elsewhere)


@pytest.mark.parametrize("label", WRITTEN)
def test_a_presets_numbers_are_those_of_its_source(label: str) -> None:
    expected, part = WRITTEN[label], part_of(label)
    assert {name: number(part, name) for name in expected} == expected
    assert named(part) - set(expected) <= {"image", "text"}


@pytest.mark.parametrize("label", [label for label, known in KNOWN.items() if known.checkpoint])
def test_what_a_checkpoint_changes_is_not_the_default(label: str) -> None:
    known = KNOWN[label]
    assert not same_as(known.checkpoint, known.config())


def same_as(changes: Mapping[str, Any], config: Any) -> list[str]:
    """The names in ``changes`` whose values are the config's own."""
    same = []
    for name, value in changes.items():
        own = getattr(config, name)
        same += same_as(value, own) if isinstance(value, Mapping) else [name] * (value == own)
    return same


def test_the_numbers_of_each_part_are_held() -> None:
    u_nets = [label for label in COMPARED if label.partition(":")[0] in UNETS]
    assert sorted([*KNOWN, *WRITTEN, *u_nets]) == sorted(COMPARED)


# --- U-Nets --------------------------------------------------------------------------------------------------------

# In place of the class's defaults, which are Stable Diffusion 1's but for the size and the text.
UNETS: Mapping[str, Mapping[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sd21": {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)},
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


def level(name: str, levels: int) -> int:
    """How often the image was halved where the block called ``name`` stands."""
    kind, number, *_ = f"{name}.0".split(".")
    return {"down_blocks": lambda i: i, "mid_block": lambda _: levels - 1, "up_blocks": lambda i: levels - 1 - i}[kind](
        int(number) if number.isdigit() else 0
    )


@pytest.mark.parametrize("name", UNETS)
def test_a_u_nets_parts_are_its_transformer_blocks(name: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    blocks: Counter[tuple[int, ...]] = Counter()
    for path, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock):
            side, read = unet.config.sample_size >> level(path, len(unet.config.block_out_channels)), module.attn2
            blocks[side * side, read.to_q.in_features, read.to_k.in_features, read.heads, read.to_q.out_features] += 1
    found = {label: part_of(label) for label in COMPARED if label.partition(":")[0] == name}
    assert all(label.endswith(f":{side}x{side}") for label, p in found.items() for side in [int(p.image**0.5)])
    expected = {(p.image, p.image_width, p.text_width, p.heads, p.width): p.layers for p in found.values()}
    assert expected == dict(blocks)
    text = CLIPTextConfig().max_position_embeddings
    assert {(p.batch, p.text, p.ffn, p.hidden) for p in found.values()} == {(2, text, 4, 0)}  # guided: with and without


# --- encoders ------------------------------------------------------------------------------------------------------


def test_the_encoders_hand_over_what_their_configurations_say() -> None:
    vit, clip_l = ViTConfig(), CLIPVisionConfig(**CLIP_L["vision_config"])
    resnet, mobilenet = ResNetConfig(), MobileNetV2Config()
    with torch.device("meta"):
        channels = MobileNetV2Model(mobilenet).conv_1x1.convolution.out_channels
    stride = 2 ** (1 + len(resnet.hidden_sizes))  # a stem of 4, and 2 in each stage but the first
    expected = {
        "vit-b16": (patches(vit) + 1, vit.hidden_size),
        "vit-l14": (patches(clip_l) + 1, clip_l.hidden_size),
        "resnet-50": ((224 // stride) ** 2, resnet.hidden_sizes[-1]),
        "mobilenet-v2": ((mobilenet.image_size // mobilenet.output_stride) ** 2, channels),
        "bert-base": (BertConfig().max_position_embeddings, BertConfig().hidden_size),
        "gpt2": (GPT2Config().n_positions, GPT2Config().n_embd),
    }
    assert {name: (e.tokens, e.width) for name, e in encoders().items()} == expected
