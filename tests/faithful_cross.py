"""Official code in which one modality reads the other: U-Net blocks, torch's decoder, gated layers, MMDiT."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from transformers.models.idefics.configuration_idefics import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from fusionbench.spec import Case
from tests.faithful import Official, Parameters, found, glu, hiding, joined, pairs, torch_attention

Mask = Tensor | None

# --- Stable Diffusion ----------------------------------------------------------------------------------------------


class UNetBlock(Official):
    """diffusers' BasicTransformerBlock, as its Transformer2DModel builds it in a U-Net."""

    small: ClassVar = {"image": 15, "image_width": 32, "text": 7, "text_width": 24, "width": 32, "heads": 4, "depth": 2}

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(s.image_width, s.heads, s.width // s.heads, cross_attention_dim=s.text_width)
            for _ in range(s.depth)
        )

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        hidden = None if text_mask is None else hiding(text_mask)[:, 0]  # [B, 1, Lt]
        seen = None if image_mask is None else hiding(image_mask)[:, 0]
        for block in self.blocks:
            image = block(image, attention_mask=seen, encoder_hidden_states=text, encoder_attention_mask=hidden)
        return image

    def same(self) -> Parameters:
        names = {"ffn.norm": "norm3", "ffn.ffn.up": "ff.net.0.proj", "ffn.ffn.down": "ff.net.2"}
        for own, norm, attention in (("self_attention", "norm1", "attn1"), ("cross_attention", "norm2", "attn2")):
            names |= {f"{own}.norm": norm, f"{own}.attention.out": f"{attention}.to_out.0"}
            names |= {f"{own}.attention.{name}": f"{attention}.to_{name}" for name in "qkv"}
        same: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            same |= found(f"decoder.layers.{i}", names, block)
        return same


class SD3(Official):
    """diffusers' SD3Transformer2DModel: its context_embedder and JointTransformerBlocks but the last.

    That has context_pre_only. The mean of the text stands where the embedding of time step and pooled text does. The
    official processor takes no padding mask.
    """

    small: ClassVar = {"image": 7, "image_width": 24, "text": 5, "text_width": 20, "width": 24, "heads": 3, "depth": 2}
    takes_masks: ClassVar[bool] = False
    qk_norm: ClassVar[str | None] = None

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        model = SD3Transformer2DModel(
            num_layers=s.depth + 1,
            attention_head_dim=s.width // s.heads,
            num_attention_heads=s.heads,
            joint_attention_dim=s.text_width,
            caption_projection_dim=s.width,
            qk_norm=self.qk_norm,
        )
        self.context_embedder, self.blocks = model.context_embedder, model.transformer_blocks[:-1]

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        text = self.context_embedder(text)
        temb = text.mean(dim=1)
        for block in self.blocks:
            text, image = block(image, text, temb)
        return text, image

    def same(self) -> Parameters:
        """``to_q`` and the like belong to the image stream, ``add_q_proj`` and the like to the text stream."""
        names: dict[str, str] = {}
        for modality, norm, ffn, q, k, v, out, q_norm, k_norm in (
            ("image", "norm1", "ff", "to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k"),
            ("text", "norm1_context", "ff_context", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
             "norm_added_q", "norm_added_k"),
        ):  # fmt: skip
            own = f"attention.projections.{modality}"
            names |= {f"{own}.{name}": f"attn.{theirs}" for name, theirs in (("q", q), ("k", k), ("v", v))}
            if self.qk_norm:
                names |= {f"{own}.q_norm.norm": f"attn.{q_norm}", f"{own}.k_norm.norm": f"attn.{k_norm}"}
            names |= {
                f"modulations.{modality}.linear": f"{norm}.linear",
                f"attention.out.{modality}": f"attn.{out}",
                f"ffns.{modality}.up": f"{ffn}.net.0.proj",
                f"ffns.{modality}.down": f"{ffn}.net.2",
            }
        same = pairs("project.text.layers", {"0": self.context_embedder})
        for i, block in enumerate(self.blocks):
            same |= found(f"blocks.{i}", names, block)
        return same


class SD35(SD3):
    """The same with qk-norm, as in Stable Diffusion 3.5."""

    qk_norm: ClassVar[str | None] = "rms_norm"


# --- torch's own Transformer ---------------------------------------------------------------------------------------


def torch_options(case: Case) -> dict[str, object]:
    """Of nn.TransformerEncoderLayer and nn.TransformerDecoderLayer; the rest are their defaults, dropout apart."""
    s = case.shape
    return {
        "d_model": s.width, "nhead": s.heads, "dim_feedforward": s.units(s.width), "dropout": 0.0, "batch_first": True,
    }  # fmt: skip


def later(text: Tensor) -> Tensor:
    """[Lt, Lt], True at keys that stand behind their query."""
    return torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).triu(1)


def inverse(mask: Mask) -> Mask:
    return None if mask is None else ~mask


def torch_layer(ours: str, theirs: nn.Module, blocks: dict[str, str]) -> dict[str, Tensor]:
    """``blocks`` are our attentions with torch's; torch numbers the norms as they come, feed-forward last."""
    same = found(f"{ours}.ffn", {"ffn.up": "linear1", "ffn.down": "linear2", "norm": f"norm{len(blocks) + 1}"}, theirs)
    for i, (own, other) in enumerate(blocks.items()):
        attention = theirs.get_submodule(other)
        assert isinstance(attention, nn.MultiheadAttention)
        same |= found(f"{ours}.{own}", {"norm": f"norm{i + 1}"}, theirs)
        same |= torch_attention(f"{ours}.{own}.attention", attention)
    return same


def torch_decoder(theirs: nn.TransformerDecoder) -> dict[str, Tensor]:
    blocks = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
    same: dict[str, Tensor] = {}
    for i, layer in enumerate(theirs.layers):
        same |= torch_layer(f"decoder.layers.{i}", layer, blocks)
    return same


class TorchDecoder(Official):
    """nn.TransformerDecoder with its causal mask; ReLU and post-norm are its defaults, and Vaswani et al.'s."""

    small: ClassVar = {"image": 9, "image_width": 24, "text": 7, "text_width": 24, "width": 24, "heads": 3, "depth": 2}
    norm_first: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(**torch_options(case), norm_first=self.norm_first)  # type: ignore[arg-type]
        self.decoder = nn.TransformerDecoder(layer, case.shape.depth)

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        decoded: Tensor = self.decoder(
            text,
            image,
            tgt_mask=later(text),
            tgt_key_padding_mask=inverse(text_mask),
            memory_key_padding_mask=inverse(image_mask),
        )
        return decoded

    def same(self) -> Parameters:
        return torch_decoder(self.decoder)


class PreNormTorchDecoder(TorchDecoder):
    norm_first: ClassVar[bool] = True


class JointEncoderDecoder(Official):
    """The popular MultiModalTransformer of torch's parts: project both, concatenate, encode, decode, without a mask."""

    small: ClassVar = {"image": 9, "image_width": 16, "text": 7, "text_width": 10, "width": 24, "heads": 3, "depth": 2}

    def __init__(self, case: Case) -> None:
        super().__init__()
        s, options = case.shape, torch_options(case)
        self.image, self.text = nn.Linear(s.image_width, s.width), nn.Linear(s.text_width, s.width)
        encoder = nn.TransformerEncoderLayer(**options)  # type: ignore[arg-type]
        self.encoder = nn.TransformerEncoder(encoder, s.depth, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), s.depth)  # type: ignore[arg-type]

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        image, text, hidden = self.image(image), self.text(text), inverse(joined(image_mask, text_mask))
        memory = self.encoder(torch.cat([image, text], dim=1), src_key_padding_mask=hidden)
        decoded: Tensor = self.decoder(
            text, memory, tgt_key_padding_mask=inverse(text_mask), memory_key_padding_mask=hidden
        )
        return decoded

    def same(self) -> Parameters:
        same = found("project", {"image.layers.0": "image", "text.layers.0": "text"}, self)
        for i, layer in enumerate(self.encoder.layers):
            same |= torch_layer(f"encoder.layers.{i}", layer, {"attention": "self_attn"})
        return same | torch_decoder(self.decoder)


# --- gated cross-attention -----------------------------------------------------------------------------------------


def everywhere(image: Tensor) -> Tensor:
    """The mask that hides nothing: without any, transformers' SDPA takes these layers for causal ones."""
    return torch.ones(image.shape[:2], dtype=torch.bool)


class Mllama(Official):
    """transformers' MllamaModel: its multi_modal_projector, a Linear, and MllamaCrossAttentionDecoderLayer."""

    small: ClassVar = {
        "image": 9, "image_width": 40, "text": 5, "text_width": 48, "width": 48, "heads": 8, "depth": 2, "hidden": 88,
        "kv_heads": 2,
    }  # fmt: skip
    # not 0: where no token is real mllama averages over all keys, ours attends to nothing

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        config = MllamaTextConfig(
            hidden_size=s.width, num_attention_heads=s.heads, num_key_value_heads=case.design.kv_heads,
            intermediate_size=s.hidden, num_hidden_layers=s.depth, cross_attention_layers=list(range(s.depth)),
        )  # fmt: skip
        config._attn_implementation = "sdpa"  # eager makes its softmax in fp32
        self.projector = nn.Linear(s.image_width, s.text_width)
        self.layers = nn.ModuleList(MllamaCrossAttentionDecoderLayer(config, i) for i in range(s.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        image, seen = self.projector(image), everywhere(image) if image_mask is None else image_mask
        for layer in self.layers:
            text = layer(text, image, hiding(seen), None, None)
        return text

    def same(self) -> Parameters:
        same: dict[str, Tensor | list[Tensor]] = dict(pairs("project.image.layers", {"0": self.projector}))
        for i, layer in enumerate(self.layers):
            gates = {"attention": layer.cross_attn_attn_gate, "ffn": layer.cross_attn_mlp_gate}
            same |= _gated_glu_layer(f"layers.{i}", layer, "q_norm", "k_norm", gates)
        return same


class IdeficsGated(Official):
    """transformers' IdeficsGatedCrossAttentionLayer, with the checkpoint's qk_layer_norms."""

    small: ClassVar = {
        "image": 7, "image_width": 40, "text": 6, "text_width": 48, "width": 48, "heads": 6, "depth": 2, "hidden": 66,
    }  # fmt: skip
    least_image: ClassVar[int] = 0  # a sample without any image has its gate closed

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        config = IdeficsConfig(
            hidden_size=s.width, num_attention_heads=s.heads, intermediate_size=s.hidden, qk_layer_norms=True,
            vision_config={"embed_dim": s.image_width},
        )  # fmt: skip
        config._attn_implementation = "sdpa"  # eager makes its softmax in fp32
        self.layers = nn.ModuleList(IdeficsGatedCrossAttentionLayer(config, i) for i in range(s.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        seen = everywhere(image) if image_mask is None else image_mask
        gate = seen.any(dim=1, keepdim=True).expand(text.shape[:2])
        for layer in self.layers:
            text = layer(text, image_hidden_states=image, image_attention_mask=hiding(seen), cross_attention_gate=gate)
        return text

    def same(self) -> Parameters:
        same: dict[str, Tensor | list[Tensor]] = {}
        for i, layer in enumerate(self.layers):
            gates = {"attention": layer.alpha_cross_attn, "ffn": layer.alpha_dense}
            same |= _gated_glu_layer(f"layers.{i}", layer, "q_layer_norm", "k_layer_norm", gates)
        return same


def _gated_glu_layer(
    ours: str, theirs: nn.Module, q_norm: str, k_norm: str, gates: dict[str, Tensor]
) -> dict[str, Tensor | list[Tensor]]:
    names = {f"attention.attention.{name}": f"cross_attn.{name}_proj" for name in "qkv"}
    names |= {
        "attention.attention.out": "cross_attn.o_proj",
        "attention.attention.q_norm.norm": f"cross_attn.{q_norm}",
        "attention.attention.k_norm.norm": f"cross_attn.{k_norm}",
        "attention.norm": "input_layernorm",
        "ffn.norm": "post_attention_layernorm",
    }
    same: dict[str, Tensor | list[Tensor]] = {f"{ours}.{block}.gate.gate": gate for block, gate in gates.items()}
    return {**same, **found(ours, names, theirs), **glu(f"{ours}.ffn.ffn", theirs.get_submodule("mlp"))}


class FlamingoBlock(nn.Module):
    """The formula of ``GatedCrossAttentionBlock`` in open_flamingo/src/helpers.py, for text behind its only image.

    There keys and values are one product, ``to_kv``; here they are two, as its halves.
    """

    def __init__(self, width: int, media_width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (inner // heads) ** -0.5
        self.norm, self.ff_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_out = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(media_width, inner, bias=False) for _ in range(2))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.attn_gate, self.ff_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, media: Tensor, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1))
            for y in (self.to_q(self.norm(x)) * self.scale, self.to_k(media), self.to_v(media))
        )
        p = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        x = self.to_out(torch.einsum("bhij,bjhd->bihd", p, v).flatten(2)) * self.attn_gate.tanh() + x
        y: Tensor = self.down(nn.functional.gelu(self.up(self.ff_norm(x)))) * self.ff_gate.tanh() + x
        return y


class OpenFlamingoGated(Official):
    """mlfoundations/open_flamingo's GatedCrossAttentionBlock, transcribed: its inner width is not the text's."""

    small: ClassVar = {"image": 4, "image_width": 24, "text": 7, "text_width": 40, "width": 16, "heads": 2, "depth": 2}
    takes_masks: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.layers = nn.ModuleList(
            FlamingoBlock(s.text_width, s.image_width, s.width, s.heads) for _ in range(s.depth)
        )

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        for layer in self.layers:
            text = layer(image, text)
        return text

    def same(self) -> Parameters:
        names = {f"attention.attention.{name}": f"to_{name}" for name in (*"qkv", "out")}
        names |= {"attention.norm": "norm", "ffn.norm": "ff_norm", "ffn.ffn.up": "up", "ffn.ffn.down": "down"}
        same: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            ours = f"layers.{i}"
            same |= found(ours, names, layer)
            same |= {f"{ours}.attention.gate.gate": layer.attn_gate, f"{ours}.ffn.gate.gate": layer.ff_gate}
        return same
