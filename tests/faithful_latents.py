"""Official code of learned latents and queries: IDEFICS, Idefics2, OpenFlamingo, Perceiver, CoCa, Qwen-VL."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PerceiverConfig, PerceiverModel
from transformers.models.idefics.configuration_idefics import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from fusionbench.spec import Case
from tests.faithful import Official, Parameters, found, glu, joined, pairs

Mask = Tensor | None

# --- Perceiver resampler -------------------------------------------------------------------------------------------


class IdeficsResampler(Official):
    """transformers' IdeficsPerceiverResampler, with the checkpoint's qk_layer_norms_perceiver; it takes no mask."""

    small: ClassVar = {
        "image": 9, "image_width": 20, "text": 5, "text_width": 28, "width": 24, "heads": 3, "depth": 2, "latents": 4,
    }  # fmt: skip
    takes_masks: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        config = IdeficsConfig(
            vision_config={"embed_dim": s.image_width}, perceiver_config={"qk_layer_norms_perceiver": True}
        )
        self.resampler = IdeficsPerceiverResampler(
            config, s.image_width, s.depth, s.heads, s.width // s.heads, case.design.latents
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return text, self.resampler(image)

    def same(self) -> Parameters:
        of_attention = {
            "image_norm": "context_layer_norm",
            "latent_norm": "latents_layer_norm",
            "attention.q_norm.norm": "q_layer_norm",
            "attention.k_norm.norm": "k_layer_norm",
            "attention.q": "q_proj",
            "attention.k": "k_proj",
            "attention.v": "v_proj",
            "attention.out": "output_proj",
        }
        of_mlp = {"ffn.norm": "ln", "ffn.ffn.up": "fc", "ffn.ffn.down": "c_proj"}
        same: dict[str, Tensor] = {"resample.latents": self.resampler.latents}
        same |= pairs("resample", {"norm": self.resampler.layer_norm})
        for i, (attention, mlp) in enumerate(self.resampler.blocks):
            ours = f"resample.layers.{i}"
            same |= found(ours, of_attention, attention) | found(ours, of_mlp, mlp)
        return same


class Idefics2Resampler(Official):
    """transformers' Idefics2PerceiverResampler, in front of its text."""

    small: ClassVar = {
        "image": 9, "image_width": 20, "text": 5, "text_width": 20, "width": 32, "heads": 4, "depth": 3, "hidden": 80,
        "latents": 6, "kv_heads": 2,
    }  # fmt: skip
    least_image: ClassVar[int] = 0  # latents read themselves where there is no image

    def __init__(self, case: Case) -> None:
        super().__init__()
        s, design = case.shape, case.design
        config = Idefics2PerceiverConfig(
            hidden_size=s.image_width, resampler_n_latents=design.latents, resampler_depth=s.depth,
            resampler_n_heads=s.heads, resampler_head_dim=s.width // s.heads, num_key_value_heads=design.kv_heads,
        )  # fmt: skip
        config._attn_implementation = "sdpa"  # eager makes its softmax in fp32
        self.resampler = Idefics2PerceiverResampler(config)

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        seen = torch.ones(image.shape[:2], dtype=torch.bool) if image_mask is None else image_mask
        return torch.cat([self.resampler(image, seen), text], dim=1)

    def same(self) -> Parameters:
        names = {f"attention.{name}": f"self_attn.{name}_proj" for name in "qkv"}
        names |= {
            "image_norm": "input_context_norm",
            "latent_norm": "input_latents_norm",
            "attention.out": "self_attn.o_proj",
            "ffn.norm": "post_attention_layernorm",
        }
        same: dict[str, Tensor | list[Tensor]] = {"resample.latents": self.resampler.latents}
        same |= pairs("resample", {"norm": self.resampler.norm})
        for i, layer in enumerate(self.resampler.layers):
            ours = f"resample.layers.{i}"
            same |= {**found(ours, names, layer), **glu(f"{ours}.ffn.ffn", layer.mlp)}
        return same


class OpenFlamingoResampler(Official):
    """mlfoundations/open_flamingo's PerceiverResampler, transcribed from src/helpers.py, for one image of one frame.

    There keys and values are one product, ``to_kv``; here they are two, as its halves.
    """

    small: ClassVar = {
        "image": 9, "image_width": 20, "text": 5, "text_width": 28, "width": 16, "heads": 2, "depth": 2, "latents": 3,
    }  # fmt: skip
    takes_masks: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        s, width, inner = case.shape, case.shape.image_width, case.shape.width
        self.heads, self.scale = s.heads, (inner // s.heads) ** -0.5
        self.latents, self.norm = nn.Parameter(torch.randn(case.design.latents, width)), nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_media": nn.LayerNorm(width),
                    "norm_latents": nn.LayerNorm(width),
                    "to_q": nn.Linear(width, inner, bias=False),
                    "to_k": nn.Linear(width, inner, bias=False),
                    "to_v": nn.Linear(width, inner, bias=False),
                    "to_out": nn.Linear(inner, width, bias=False),
                    "ff_norm": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width, bias=False),
                    "down": nn.Linear(4 * width, width, bias=False),
                }
            )
            for _ in range(s.depth)
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.latents.repeat(image.shape[0], 1, 1)
        for layer in self.layers:
            x = layer["norm_latents"](latents)
            both = torch.cat([layer["norm_media"](image), x], dim=-2)
            q, k, v = (
                y.unflatten(-1, (self.heads, -1))
                for y in (layer["to_q"](x) * self.scale, layer["to_k"](both), layer["to_v"](both))
            )
            p = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
            latents = layer["to_out"](torch.einsum("bhij,bjhd->bihd", p, v).flatten(2)) + latents
            latents = layer["down"](nn.functional.gelu(layer["up"](layer["ff_norm"](latents)))) + latents
        return text, self.norm(latents)

    def same(self) -> Parameters:
        names = {f"attention.{name}": f"to_{name}" for name in (*"qkv", "out")}
        names |= {
            "image_norm": "norm_media",
            "latent_norm": "norm_latents",
            "ffn.norm": "ff_norm",
            "ffn.ffn.up": "up",
            "ffn.ffn.down": "down",
        }
        same: dict[str, Tensor] = {"resample.latents": self.latents, **pairs("resample", {"norm": self.norm})}
        for i, layer in enumerate(self.layers):
            same |= found(f"resample.layers.{i}", names, layer)
        return same


# --- Perceiver -----------------------------------------------------------------------------------------------------


class Perceiver(Official):
    """transformers' PerceiverModel without preprocessor or decoder."""

    small: ClassVar = {
        "image": 9, "image_width": 24, "text": 5, "text_width": 24, "width": 40, "heads": 4, "depth": 3, "latents": 6,
    }  # fmt: skip
    least_image: ClassVar[int] = 0

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        config = PerceiverConfig(
            num_latents=case.design.latents, d_latents=s.width, d_model=s.image_width,
            num_self_attends_per_block=s.depth, num_self_attention_heads=s.heads, num_cross_attention_heads=s.heads,
        )  # fmt: skip
        self.model = PerceiverModel(config)

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        mask, stream = joined(image_mask, text_mask), torch.cat([image, text], dim=1)
        read: Tensor = self.model(stream, attention_mask=None if mask is None else mask.double()).last_hidden_state
        return read

    def same(self) -> Parameters:
        names = {
            "attention.norm": "attention.self.layernorm1",
            "attention.context_norm": "attention.self.layernorm2",  # nothing in self-attention, here and there
            "attention.attention.q": "attention.self.query",
            "attention.attention.k": "attention.self.key",
            "attention.attention.v": "attention.self.value",
            "attention.attention.out": "attention.output.dense",
            "ffn.norm": "layernorm",
            "ffn.ffn.up": "mlp.dense1",
            "ffn.ffn.down": "mlp.dense2",
        }
        encoder = self.model.encoder
        same: dict[str, Tensor] = {"latents": self.model.embeddings.latents}
        same |= found("read", names, encoder.cross_attention)
        for i, layer in enumerate(encoder.self_attends):
            same |= found(f"encoder.layers.{i}", names, layer)
        return same


# --- attention pooling ---------------------------------------------------------------------------------------------


class Pooler(nn.Module):
    """CoCa's pooler in open_clip (``AttentionalPooler``, then ``ln_post``), which with a projector is Qwen-VL's resampler.

    ``nn.MultiheadAttention`` is there what computes; here it is the function that it calls, and each of its weights a
    parameter. Qwen-VL adds constant sines to what queries and keys are made of; they are zero here.
    """

    def __init__(self, queries: int, width: int, context_width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads, self.query = heads, nn.Parameter(torch.randn(queries, width))
        self.ln_q, self.ln_k = nn.LayerNorm(width, eps=eps), nn.LayerNorm(context_width, eps=eps)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(context_width, width), nn.Linear(context_width, width)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        x, q = self.ln_k(x).transpose(0, 1), self.ln_q(self.query).unsqueeze(1).repeat(1, x.shape[0], 1)
        pooled, _ = nn.functional.multi_head_attention_forward(
            q, x, x, q.shape[-1], self.heads, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None,
            False, 0.0, self.out.weight, self.out.bias, key_padding_mask=None if mask is None else ~mask,
            need_weights=False, use_separate_proj_weight=True, q_proj_weight=self.q.weight,
            k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )  # fmt: skip
        y: Tensor = self.ln_post(pooled.transpose(0, 1))
        return y

    def same(self) -> dict[str, Tensor]:
        names = {"query_norm": "ln_q", "norm": "ln_k", "pooled_norm": "ln_post"}
        names |= {f"attention.{name}": name for name in (*"qkv", "out")}
        return {"pool.queries": self.query, **found("pool", names, self)}


class CoCa(Official):
    """CoCa's pooler over both modalities as one stream, with open_clip's eps."""

    small: ClassVar = {
        "image": 9, "image_width": 20, "text": 5, "text_width": 20, "width": 24, "heads": 3, "latents": 6,
    }  # fmt: skip
    least_image: ClassVar[int] = 0

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.pool = Pooler(case.design.latents, s.width, s.image_width, s.heads, eps=1e-5)

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        pooled: Tensor = self.pool(torch.cat([image, text], dim=1), joined(image_mask, text_mask))
        return pooled

    def same(self) -> Parameters:
        return self.pool.same()


class QwenVLResampler(Official):
    """Qwen-VL's Resampler, transcribed from its visual.py, and the text behind; its kv_proj has no bias, ours has one."""

    small: ClassVar = {
        "image": 16, "image_width": 20, "text": 5, "text_width": 24, "width": 24, "heads": 3, "latents": 4,
    }  # fmt: skip

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.kv_proj = nn.Linear(s.image_width, s.width)
        self.pool = Pooler(case.design.latents, s.width, s.width, s.heads, eps=1e-6)

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        return torch.cat([self.pool(self.kv_proj(image), image_mask), text], dim=1)

    def same(self) -> Parameters:
        return {**self.pool.same(), **pairs("project.image.layers", {"0": self.kv_proj})}
