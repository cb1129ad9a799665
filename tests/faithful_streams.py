"""Official code, or its loop transcribed, of streams that meet in a way of their own: CLIP, MulT, MBT, "Qwen"."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fusionbench.spec import Case
from fusionbench.strategies.mult import Positioned
from tests.faithful import Official, Parameters, found, torch_attention

Mask = Tensor | None

# --- CLIP ----------------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """A tower that has done its work: its input is the pooled vector [B, D]."""

    def forward(self, **given: Tensor) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=given.get("pixel_values", given.get("input_ids")))


class Clip(Official):
    """transformers' CLIPModel behind its towers: logits per image. One token is its own mean."""

    small: ClassVar = {"image": 1, "image_width": 20, "text": 1, "text_width": 28, "width": 12, "heads": 1}
    takes_masks: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        layers = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
        config = CLIPConfig(
            vision_config={"hidden_size": s.image_width} | layers,
            text_config={"hidden_size": s.text_width} | layers,
            projection_dim=s.width,
        )
        self.model = CLIPModel(config)
        self.model.vision_model, self.model.text_model = Pooled(), Pooled()

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=image[:, 0], input_ids=text[:, 0]).logits_per_image
        return logits

    def same(self) -> Parameters:
        return {
            "combine.image.weight": self.model.visual_projection.weight,
            "combine.text.weight": self.model.text_projection.weight,
            "combine.log_scale": self.model.logit_scale,
        }


# --- MulT ----------------------------------------------------------------------------------------------------------


class MulTStack(nn.Module):
    """The loop of the authors' TransformerEncoder, without dropout: scale, positions, layers, norm."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(layers))
        self.first, self.second = (nn.ModuleList(nn.LayerNorm(width) for _ in range(layers)) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor | None, positions: Tensor, mask: Mask) -> Tensor:
        x = math.sqrt(x.shape[-1]) * x + positions[: x.shape[1]]
        if context is not None:
            context = math.sqrt(context.shape[-1]) * context + positions[: context.shape[1]]
        pad = None if mask is None else ~mask
        for attention, first, second, up, down in zip(
            self.attention, self.first, self.second, self.up, self.down, strict=True
        ):
            q = first(x)
            kv = q if context is None else first(context)  # the same tokens and the same norm in every layer
            x = x + attention(q, kv, kv, key_padding_mask=pad, need_weights=False)[0]
            x = x + down(up(second(x)).relu())
        y: Tensor = self.last(x)
        return y

    def same(self, ours: str) -> dict[str, Tensor]:
        same = found(ours, {"norm": "last"}, self)
        for i, attention in enumerate(self.attention):
            assert isinstance(attention, nn.MultiheadAttention)
            names = {"attention.norm": "first", "ffn.norm": "second", "ffn.ffn.up": "up", "ffn.ffn.down": "down"}
            same |= found(f"{ours}.layers.{i}", {own: f"{other}.{i}" for own, other in names.items()}, self)
            same |= torch_attention(f"{ours}.layers.{i}.attention.attention", attention)
        return same


class MulT(Official):
    """yaohungt/Multimodal-Transformer, transcribed from src/models.py and modules/transformer.py.

    Its projections, Conv1d of kernel 1, have no bias, ours have one. Its option attn_mask, by default on, hides later
    tokens from every query, those of the other modality too; it is off here, as ours has nothing like it across
    modalities. Positions are as ours has them, in fp32.
    """

    small: ClassVar = {"image": 9, "image_width": 10, "text": 7, "text_width": 14, "width": 30, "heads": 5, "depth": 2}

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.image, self.text = nn.Linear(s.image_width, s.width), nn.Linear(s.text_width, s.width)
        self.positioned = Positioned(s.width, max(s.image, s.text))
        memory = max(3, s.depth)
        layers = {"text_from_image": s.depth, "image_from_text": s.depth, "text_memory": memory, "image_memory": memory}
        self.stacks = nn.ModuleDict({name: MulTStack(s.width, s.heads, n) for name, n in layers.items()})

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor, Tensor]:
        image, text, positions, of = self.image(image), self.text(text), self.positioned.positions, self.stacks
        fused_text = of["text_from_image"](text, image, positions, image_mask)
        fused_image = of["image_from_text"](image, text, positions, text_mask)
        return (
            of["text_memory"](fused_text, None, positions, text_mask),
            of["image_memory"](fused_image, None, positions, image_mask),
        )

    def same(self) -> Parameters:
        same = found("project", {"image.layers.0": "image", "text.layers.0": "text"}, self)
        return same | {key: p for name, stack in self.stacks.items() for key, p in stack.same(name).items()}


# --- MBT -----------------------------------------------------------------------------------------------------------


class MBTBlock(nn.Module):
    """scenic's EncoderBlock, without its dropout: pre-norm, multi-head self-attention, two Dense layers.

    flax's GELU is the approximation by tanh, and its LayerNorm has this eps.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.norm1(inputs)
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = self.out((weights @ v).transpose(1, 2).flatten(2)) + inputs
        return x + self.mlp(self.norm2(x))


class MBT(Official):
    """google-research/scenic's loop over fused layers with ``use_bottleneck``, transcribed from projects/mbt/model.py.

    It is without ``share_encoder``, and takes no mask.
    """

    small: ClassVar = {
        "image": 7, "image_width": 24, "text": 5, "text_width": 24, "width": 24, "heads": 3, "depth": 3, "latents": 3,
    }  # fmt: skip
    takes_masks: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.bottleneck = nn.Parameter(torch.zeros(1, case.design.latents, s.width))
        self.layers = nn.ModuleList(
            nn.ModuleDict({m: MBTBlock(s.width, s.heads, s.units(s.width)) for m in ("rgb", "spectrogram")})
            for _ in range(s.depth)
        )

    def forward(self, rgb: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        x = {"rgb": rgb, "spectrogram": spectrogram}
        bottleneck = self.bottleneck.tile(rgb.shape[0], 1, 1)
        for encoders in self.layers:
            bottle = []
            for modality in x:
                t_mod = x[modality].shape[1]
                in_mod = torch.cat([x[modality], bottleneck], dim=1)
                out_mod = encoders[modality](in_mod)
                x[modality] = out_mod[:, :t_mod]
                bottle.append(out_mod[:, t_mod:])
            bottleneck = torch.stack(bottle, dim=-1).mean(dim=-1)
        return x["spectrogram"], x["rgb"]

    def same(self) -> Parameters:
        names = {
            "attention.norm": "norm1",
            "attention.attention.q": "query",
            "attention.attention.k": "key",
            "attention.attention.v": "value",
            "attention.attention.out": "out",
            "ffn.norm": "norm2",
            "ffn.ffn.up": "mlp.0",
            "ffn.ffn.down": "mlp.2",
        }
        same: dict[str, Tensor] = {"bottlenecks": self.bottleneck}
        for i, encoders in enumerate(self.layers):
            for ours, theirs in (("image", "rgb"), ("text", "spectrogram")):
                same |= found(f"{ours}_layers.{i}", names, encoders.get_submodule(theirs))
        return same


# --- one output projection for both directions ---------------------------------------------------------------------


class DescribedQwen(Official):
    """What is widely described as Qwen2.5-VL's fusion: Linear + LayerNorm on the image, then attention both ways."""

    small: ClassVar = {"image": 9, "image_width": 10, "text": 7, "text_width": 24, "width": 24, "heads": 3}
    takes_masks: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        s, width = case.shape, case.shape.width
        self.heads = s.heads
        self.projection, self.norm = nn.Linear(s.image_width, width), nn.LayerNorm(width)
        self.q_visual, self.k_text, self.v_text = (nn.Linear(width, width) for _ in range(3))
        self.q_text, self.k_visual, self.v_visual = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        image = self.norm(self.projection(image))
        visual = self.read(self.q_visual(image), self.k_text(text), self.v_text(text))
        return self.read(self.q_text(text), self.k_visual(image), self.v_visual(image)), visual

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        out: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return out

    def same(self) -> Parameters:
        names = {"project.image.layers.0": "projection", "project.image.layers.1": "norm", "layer.out": "out_proj"}
        for ours, own, other in (("image", "visual", "text"), ("text", "text", "visual")):
            reading = {"q": f"q_{own}", "k": f"k_{other}", "v": f"v_{other}"}
            names |= {f"layer.{ours}_attention.{name}": theirs for name, theirs in reading.items()}
        return {f"{ours}.{n}": p for ours, own in names.items() for n, p in self.get_submodule(own).named_parameters()}
