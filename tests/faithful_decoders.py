"""Official code of decoders over image and text in one stream: LLaVA, Qwen2.5-VL, Qwen-VL, Fuyu, GPT-2, Llama 3.2."""

from __future__ import annotations

from typing import ClassVar

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from transformers import (
    FuyuConfig,
    FuyuModel,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    PersimmonConfig,
    Qwen2_5_VLTextConfig,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLPatchMerger

from fusionbench.parts import Rotary
from fusionbench.spec import Case
from tests.faithful import Official, Parameters, found, glu, joined, pairs, thirds, unfuse

# What the checkpoints' configs have in place of their classes' defaults, which are Llama 1's and 1e-5.
LLAMA_2 = {"rms_norm_eps": 1e-5}
LLAMA_3 = {"rms_norm_eps": 1e-5}
QWEN = {"rms_norm_eps": 1e-6}

SDPA = {"attn_implementation": "sdpa"}  # eager makes its softmax in fp32


def llama_sizes(case: Case) -> dict[str, int]:
    s = case.shape
    return {
        "hidden_size": s.width,
        "intermediate_size": s.units(s.width),
        "num_attention_heads": s.heads,
        "num_key_value_heads": case.design.kv_heads or s.heads,
    }


class Stream(Official):
    """A projector on the image, the text behind it, and a decoder's layers with its causal mask.

    ``rotated`` is the share of a head that the model rotates. Positions are given to the official layers as ours has
    them: both tables are fp32, and differ in the last bit.
    """

    rotated: ClassVar[float] = 1.0

    def __init__(self, case: Case, projector: nn.Module, layers: nn.ModuleList) -> None:
        super().__init__()
        s, design = case.shape, replace(case.design, rope=self.rotated)
        self.projector, self.layers = projector, layers
        self.turn = Rotary(s.image + s.text, s.width // s.heads, replace(case, design=design))

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        stream = torch.cat([self.projector(image).view(text.shape[0], -1, text.shape[-1]), text], dim=1)
        keys, seen = joined(image_mask, text_mask), None  # [B, 1, L, L], True at keys that a query sees
        if keys is not None:
            seen = keys[:, None, None] & torch.ones(keys.shape[1], keys.shape[1], dtype=torch.bool).tril()
        placed = {"position_embeddings": (self.turn.cos[None], self.turn.sin[None])} if self.rotated else {}
        for layer in self.layers:
            stream = layer(stream, attention_mask=seen, **placed)
        return stream

    def projected(self) -> Parameters:
        return pairs("project.image.layers", {"0": self.projector})

    def layer(self, ours: str, theirs: nn.Module) -> Parameters:
        """Llama's names, which Qwen's decoder has too."""
        names = {f"attention.attention.{own}": f"self_attn.{own}_proj" for own in "qkv"}
        names |= {
            "attention.attention.out": "self_attn.o_proj",
            "attention.norm": "input_layernorm",
            "ffn.norm": "post_attention_layernorm",
        }
        return {**found(ours, names, theirs), **glu(f"{ours}.ffn.ffn", theirs.get_submodule("mlp"))}

    def same(self) -> Parameters:
        same = dict(self.projected())
        for i, layer in enumerate(self.layers):
            same |= self.layer(f"encoder.layers.{i}", layer)
        return same


class Llava(Stream):
    """transformers' LlavaMultiModalProjector and LlamaDecoderLayer, with Llama 2's eps."""

    small: ClassVar = {
        "image": 9, "image_width": 20, "text": 7, "text_width": 24, "width": 24, "heads": 3, "depth": 2, "hidden": 40,
    }  # fmt: skip

    def __init__(self, case: Case) -> None:
        text = LlamaConfig(**llama_sizes(case), **LLAMA_2, **SDPA)
        vision = {"model_type": "clip_vision_model", "hidden_size": case.shape.image_width, "num_attention_heads": 2}
        # a copy of text's config: LlavaConfig takes its attention's implementation away
        config = LlavaConfig(text_config=text.to_dict(), vision_config=vision)
        layers = nn.ModuleList(LlamaDecoderLayer(text, i) for i in range(case.shape.depth))
        super().__init__(case, LlavaMultiModalProjector(config), layers)

    def projected(self) -> Parameters:
        return found("project.image.layers", {"0": "linear_1", "2": "linear_2"}, self.projector)


class LlamaUnified(Stream):
    """One Linear and transformers' LlamaDecoderLayer, with shared heads of keys and Llama 3's eps."""

    small: ClassVar = {**Llava.small, "kv_heads": 1}

    def __init__(self, case: Case) -> None:
        s, config = case.shape, LlamaConfig(**llama_sizes(case), **LLAMA_3, **SDPA)
        layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(s.depth))
        super().__init__(case, nn.Linear(s.image_width, s.width), layers)


class Qwen25VL(Stream):
    """transformers' Qwen2_5_VLPatchMerger and Qwen2_5_VLDecoderLayer, with the checkpoints' eps.

    Of the model's three position axes each token has the same position here: the layer takes any table.
    """

    small: ClassVar = {
        "image": 5, "image_width": 10, "text": 7, "text_width": 24, "width": 24, "heads": 6, "depth": 2, "hidden": 40,
        "kv_heads": 2,
    }  # fmt: skip

    def __init__(self, case: Case) -> None:
        s, config = case.shape, Qwen2_5_VLTextConfig(**llama_sizes(case), **QWEN, **SDPA)
        layers = nn.ModuleList(Qwen2_5_VLDecoderLayer(config, i) for i in range(s.depth))
        super().__init__(case, Qwen2_5_VLPatchMerger(dim=s.width, context_dim=s.image_width), layers)

    def projected(self) -> Parameters:
        return found("project.image.layers.0", {"norm": "ln_q", "mlp.0": "mlp.0", "mlp.2": "mlp.2"}, self.projector)


class QwenVLDecoder(Stream):
    """The layer of Qwen 1 by the one that transformers has of its successor, without shared heads of keys.

    Its own code, which ships with the checkpoint alone, differs in names, and in one product for queries, keys, values.
    """

    small: ClassVar = {**Llava.small, "image_width": 24}

    def __init__(self, case: Case) -> None:
        config = Qwen2_5_VLTextConfig(**llama_sizes(case), **QWEN, **SDPA)
        layers = nn.ModuleList(Qwen2_5_VLDecoderLayer(config, i) for i in range(case.shape.depth))
        super().__init__(case, nn.Identity(), layers)


class Fuyu(Stream):
    """transformers' FuyuModel: its vision_embed_tokens and PersimmonDecoderLayers."""

    small: ClassVar = {**Llava.small, "image_width": 12}
    rotated: ClassVar[float] = 0.5

    def __init__(self, case: Case) -> None:
        s = case.shape
        text = PersimmonConfig(
            hidden_size=s.width, intermediate_size=s.hidden, num_attention_heads=s.heads, num_hidden_layers=s.depth,
            vocab_size=64, pad_token_id=0,
        )  # fmt: skip
        patch = round((s.image_width / 3) ** 0.5)
        model = FuyuModel(FuyuConfig(text_config=text.to_dict(), patch_size=patch))
        model.language_model.config._attn_implementation = "sdpa"  # which FuyuConfig has taken away
        super().__init__(case, model.vision_embed_tokens, model.language_model.layers)

    def layer(self, ours: str, theirs: nn.Module) -> Parameters:
        """Persimmon makes queries, keys and values in one product, each head's three together."""
        attention = theirs.get_submodule("self_attn")
        heads, fused = attention.num_heads, attention.get_submodule("query_key_value")
        names = {
            "attention.norm": "input_layernorm",
            "attention.attention.q_norm.norm": "self_attn.q_layernorm",
            "attention.attention.k_norm.norm": "self_attn.k_layernorm",
            "attention.attention.out": "self_attn.dense",
            "ffn.norm": "post_attention_layernorm",
            "ffn.ffn.up": "mlp.dense_h_to_4h",
            "ffn.ffn.down": "mlp.dense_4h_to_h",
        }
        same = found(ours, names, theirs)
        for kind in ("weight", "bias"):
            parts = unfuse(
                fused,
                kind,
                lambda whole: [x.flatten(0, 1) for x in whole.unflatten(0, (heads, 3, -1)).unbind(1)],
                lambda *qkv: torch.stack([x.unflatten(0, (heads, -1)) for x in qkv], dim=1).flatten(0, 2),
            )
            same |= {f"{ours}.attention.attention.{name}.{kind}": p for name, p in zip("qkv", parts, strict=True)}
        return same


class Gpt2Unified(Stream):
    """One Linear and transformers' GPT2Block, whose weights lie transposed, queries, keys and values in one product."""

    small: ClassVar = {"image": 9, "image_width": 10, "text": 7, "text_width": 24, "width": 24, "heads": 3, "depth": 2}
    rotated: ClassVar[float] = 0.0

    def __init__(self, case: Case) -> None:
        s = case.shape
        config = GPT2Config(n_embd=s.width, n_head=s.heads, n_inner=s.units(s.width), **SDPA)
        layers = nn.ModuleList(GPT2Block(config, i) for i in range(s.depth))
        super().__init__(case, nn.Linear(s.image_width, s.width), layers)

    def layer(self, ours: str, theirs: nn.Module) -> Parameters:
        fused = theirs.get_submodule("attn.c_attn")
        weights = unfuse(fused, "weight", lambda w: w.T.chunk(3), lambda *parts: torch.cat(parts).T)
        same = found(ours, {"attention.norm": "ln_1", "ffn.norm": "ln_2"}, theirs)
        for name, weight, bias in zip("qkv", weights, thirds(fused, "bias"), strict=True):
            own = f"{ours}.attention.attention.{name}"
            same |= {f"{own}.weight": weight, f"{own}.bias": bias}
        for own, other in (
            ("attention.attention.out", "attn.c_proj"), ("ffn.ffn.up", "mlp.c_fc"), ("ffn.ffn.down", "mlp.c_proj")
        ):  # fmt: skip
            conv = theirs.get_submodule(other)
            (same[f"{ours}.{own}.weight"],) = unfuse(conv, "weight", lambda w: (w.T,), lambda part: part.T)
            same[f"{ours}.{own}.bias"] = conv.get_parameter("bias")
        return same
