"""Official code of vision-language encoders of BERT's kind: LXMERT, VisualBERT, UNITER, ViLT, ViLBERT, the Q-Former."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, LxmertConfig, ViltConfig, VisualBertConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerLayer, Blip2QFormerModel
from transformers.models.lxmert.modeling_lxmert import LxmertXLayer
from transformers.models.vilt.modeling_vilt import ViltEmbeddings, ViltLayer
from transformers.models.visual_bert.modeling_visual_bert import VisualBertEmbeddings, VisualBertLayer

from fusionbench.spec import Case
from tests.faithful import Official, Parameters, bert_layer, found, hiding, joined, pairs, rows

Mask = Tensor | None

# --- LXMERT --------------------------------------------------------------------------------------------------------


class Lxmert(Official):
    """transformers' LxmertEncoder: its x_layers, the last of its three stacks."""

    small: ClassVar = {"image": 7, "text": 5, "image_width": 24, "text_width": 24, "width": 24, "heads": 3, "depth": 2}

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        config = LxmertConfig(
            hidden_size=s.width, num_attention_heads=s.heads, intermediate_size=s.units(s.width), num_hidden_layers=1
        )
        self.layers = nn.ModuleList(LxmertXLayer(config) for _ in range(s.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None):  # type: ignore[no-untyped-def]
        for layer in self.layers:
            text, image = layer(text, hiding(text_mask), image, hiding(image_mask))
        return text, image

    def same(self) -> Parameters:
        same: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            ours = f"layers.{i}"
            same |= found(f"{ours}.cross", _lxmert_attention("att"), layer.visual_attention)
            for stream, theirs in (("image", "visn"), ("text", "lang")):
                own = layer.get_submodule(f"{theirs}_self_att")
                same |= found(f"{ours}.{stream}_layer.attention", _lxmert_attention("self"), own)
                names = {
                    "ffn.up": f"{theirs}_inter.dense",
                    "ffn.down": f"{theirs}_output.dense",
                    "norm": f"{theirs}_output.LayerNorm",
                }
                same |= found(f"{ours}.{stream}_layer.ffn", names, layer)
        return same


def _lxmert_attention(name: str) -> dict[str, str]:
    """``att`` in LxmertCrossAttentionLayer, ``self`` in LxmertSelfAttentionLayer."""
    return {
        "attention.q": f"{name}.query",
        "attention.k": f"{name}.key",
        "attention.v": f"{name}.value",
        "attention.out": "output.dense",
        "norm": "output.LayerNorm",
    }


# --- one stream ----------------------------------------------------------------------------------------------------


class SingleStream(Official):
    """Layers over one stream, the image first; the models put it last, which attention does not see.

    Positions, and the norm that VisualBERT and UNITER have behind the sum of all embeddings, are no part of the presets.
    """

    layers: nn.ModuleList

    def stream(self, image: Tensor, text: Tensor, image_mask: Mask, text_mask: Mask) -> Tensor:
        x, seen = torch.cat([image, text], dim=1), hiding(joined(image_mask, text_mask))
        for layer in self.layers:
            (x,) = layer(x, seen)
        return x

    def of_layers(self) -> dict[str, Tensor]:
        same: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            same |= bert_layer(f"encoder.layers.{i}", layer)
        return same


def visual_bert_config(case: Case) -> VisualBertConfig:
    s = case.shape
    return VisualBertConfig(
        hidden_size=s.width,
        num_attention_heads=s.heads,
        intermediate_size=s.units(s.width),
        visual_embedding_dim=s.image_width,
    )


class VisualBert(SingleStream):
    """transformers' VisualBertEmbeddings, of which image and text pass projection and types, and VisualBertEncoder."""

    small: ClassVar = {"image": 7, "text": 5, "image_width": 28, "text_width": 24, "width": 24, "heads": 3, "depth": 2}

    def __init__(self, case: Case) -> None:
        super().__init__()
        config = visual_bert_config(case)
        embeddings = VisualBertEmbeddings(config)
        self.projection = embeddings.visual_projection
        self.image_types, self.text_types = embeddings.visual_token_type_embeddings, embeddings.token_type_embeddings
        self.rows = {"image": rows(self.image_types), "text": rows(self.text_types)}
        self.layers = nn.ModuleList(VisualBertLayer(config) for _ in range(case.shape.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        # a table of 2 rows per modality, of which one is the default of each
        image = self.projection(image) + self.image_types(torch.tensor(1))
        return self.stream(image, text + self.text_types(torch.tensor(0)), image_mask, text_mask)

    def same(self) -> Parameters:
        types = {f"project.{m}.type_embedding": self.rows[m][i] for m, i in (("image", 1), ("text", 0))}
        return {**pairs("project.image.layers", {"0": self.projection}), **types, **self.of_layers()}

    def unused(self) -> list[Tensor]:
        return [self.rows["image"][0], self.rows["text"][1]]


class Uniter(SingleStream):
    """ChenRocks/UNITER's UniterImageEmbeddings, transcribed from model/model.py; its layers are BERT's."""

    small: ClassVar = VisualBert.small

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.img_linear, self.img_layer_norm = nn.Linear(s.image_width, s.width), nn.LayerNorm(s.width, eps=1e-12)
        self.token_type_embeddings = nn.Embedding(2, s.width)
        self.text_type, self.image_type = rows(self.token_type_embeddings)
        self.layers = nn.ModuleList(VisualBertLayer(visual_bert_config(case)) for _ in range(s.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        image = self.img_layer_norm(self.img_linear(image)) + self.token_type_embeddings(torch.tensor(1))
        return self.stream(image, text + self.token_type_embeddings(torch.tensor(0)), image_mask, text_mask)

    def same(self) -> Parameters:
        types = {"project.image.type_embedding": self.image_type, "project.text.type_embedding": self.text_type}
        projected = pairs("project.image.layers", {"0": self.img_linear, "1": self.img_layer_norm})
        return {**projected, **types, **self.of_layers()}


class Vilt(SingleStream):
    """transformers' ViltEmbeddings, of which image and text pass patches and types, and ViltEncoder.

    The model has a class token before the patches, which no projector of ours makes.
    """

    small: ClassVar = {"image": 7, "text": 5, "image_width": 12, "text_width": 24, "width": 24, "heads": 3, "depth": 2}

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.patch = round((s.image_width / 3) ** 0.5)
        config = ViltConfig(
            hidden_size=s.width, num_attention_heads=s.heads, intermediate_size=s.units(s.width), patch_size=self.patch
        )
        embeddings = ViltEmbeddings(config)
        self.patches, self.types = embeddings.patch_embeddings.projection, embeddings.token_type_embeddings
        self.text_type, self.image_type = rows(self.types)
        self.layers = nn.ModuleList(ViltLayer(config) for _ in range(s.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        pixels = image.unflatten(-1, (3, self.patch, self.patch)).permute(0, 2, 3, 1, 4).flatten(3)  # one row of them
        image = self.patches(pixels).flatten(2).transpose(1, 2) + self.types(torch.tensor(1))
        return self.stream(image, text + self.types(torch.tensor(0)), image_mask, text_mask)

    def same(self) -> Parameters:
        same = pairs("project.image.layers", {"0": self.patches})
        same |= {"project.image.type_embedding": self.image_type, "project.text.type_embedding": self.text_type}
        names = {
            "attention.norm": "layernorm_before",
            "attention.attention.q": "attention.attention.query",
            "attention.attention.k": "attention.attention.key",
            "attention.attention.v": "attention.attention.value",
            "attention.attention.out": "attention.output.dense",
            "ffn.norm": "layernorm_after",
            "ffn.ffn.up": "intermediate.dense",
            "ffn.ffn.down": "output.dense",
        }
        for i, layer in enumerate(self.layers):
            same |= found(f"encoder.layers.{i}", names, layer)
        return same


# --- ViLBERT -------------------------------------------------------------------------------------------------------


class Connection(nn.Module):
    """jiasenlu/vilbert_beta's BertConnectionLayer, transcribed: BertBiAttention, BertBiOutput and feed-forward parts.

    Stream 1 is the image, 2 the text. As there, scores 1 are those of the text's queries over the image's keys.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.heads = s.heads
        for i, width, hidden in ((1, s.image_width, case.design.image_hidden), (2, s.text_width, s.hidden)):
            for name in ("query", "key", "value"):
                self.add_module(f"{name}{i}", nn.Linear(width, s.width))
            self.add_module(f"dense{i}", nn.Linear(s.width, width))
            self.add_module(f"q_dense{i}", nn.Linear(s.width, width))
            self.add_module(f"intermediate{i}", nn.Linear(width, hidden))
            self.add_module(f"output{i}", nn.Linear(hidden, width))
            for name in ("LayerNorm", "output_LayerNorm"):
                self.add_module(f"{name}{i}", nn.LayerNorm(width, eps=1e-12))

    def forward(self, image: Tensor, image_bias: Mask, text: Tensor, text_bias: Mask) -> tuple[Tensor, Tensor]:
        made = {
            f"{name}{i}": self.get_submodule(f"{name}{i}")(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for i, x in ((1, image), (2, text))
            for name in ("query", "key", "value")
        }
        attended = {}
        for i, other, bias in ((1, 2, image_bias), (2, 1, text_bias)):
            query, key = made[f"query{other}"], made[f"key{i}"]
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + (0 if bias is None else bias)
            attended[i] = (scores.softmax(-1) @ made[f"value{i}"]).transpose(1, 2).flatten(2)
        return self.after(1, image, attended[2]), self.after(2, text, attended[1])

    def after(self, i: int, x: Tensor, attended: Tensor) -> Tensor:
        """BertBiOutput, which reads neither q_dense1 nor q_dense2, and the feed-forward part of stream ``i``."""
        of = self.get_submodule
        x = of(f"LayerNorm{i}")(of(f"dense{i}")(attended) + x)
        hidden = nn.functional.gelu(of(f"intermediate{i}")(x))
        y: Tensor = of(f"output_LayerNorm{i}")(of(f"output{i}")(hidden) + x)
        return y


class Vilbert(Official):
    """The connections of jiasenlu/vilbert_beta, transcribed from vilbert/vilbert.py."""

    # Head dim 8 in the co-attention and in the image's own layers, 4 in the text's: 128 and 64 in the model.
    small: ClassVar = {
        "image": 7, "text": 5, "image_width": 24, "text_width": 20, "width": 32, "heads": 4, "depth": 2, "hidden": 36,
        "image_hidden": 28, "text_heads": 5,
    }  # fmt: skip

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.connections = nn.ModuleList(Connection(case) for _ in range(case.shape.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None):  # type: ignore[no-untyped-def]
        for connection in self.connections:
            image, text = connection(image, hiding(image_mask), text, hiding(text_mask))
        return text, image

    def same(self) -> Parameters:
        same: dict[str, Tensor] = {}
        for level, connection in enumerate(self.connections):
            for i, other, stream in ((1, 2, "image"), (2, 1, "text")):
                names = {
                    "attention.q": f"query{i}",
                    "attention.k": f"key{other}",
                    "attention.v": f"value{other}",
                    "attention.out": f"dense{i}",
                    "norm": f"LayerNorm{i}",
                    "ffn.ffn.up": f"intermediate{i}",
                    "ffn.ffn.down": f"output{i}",
                    "ffn.norm": f"output_LayerNorm{i}",
                }
                ours = {f"{stream}_{own}": theirs for own, theirs in names.items()}
                same |= found(f"levels.{level}.exchange", ours, connection)
        return same

    def unused(self) -> list[Tensor]:
        return [p for name, p in self.named_parameters() if ".q_dense" in name]


class VilbertWithSelf(Vilbert):
    """Its BertEncoder: in each stream own layers up to where a connection stands, the connection, the rest after all.

    The ids 0, 1, ... of both streams: what is left of the text's 6, 7, ... when its first layers ran before.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        s, design = case.shape, case.design
        image, text = (
            VisualBertConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=hidden)
            for width, heads, hidden in (
                (s.image_width, s.heads, design.image_hidden),
                (s.text_width, design.text_heads, s.hidden),
            )
        )
        self.image = nn.ModuleList(VisualBertLayer(image) for _ in range(s.depth))
        self.text = nn.ModuleList(VisualBertLayer(text) for _ in range(s.depth))

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None):  # type: ignore[no-untyped-def]
        image_bias, text_bias, start = hiding(image_mask), hiding(text_mask), 0
        for end, connection in enumerate(self.connections):
            image, text = self.own(image, image_bias, text, text_bias, slice(start, end))
            image, text = connection(image, image_bias, text, text_bias)
            start = end
        image, text = self.own(image, image_bias, text, text_bias, slice(start, None))
        return text, image

    def own(
        self, image: Tensor, image_bias: Mask, text: Tensor, text_bias: Mask, layers: slice
    ) -> tuple[Tensor, Tensor]:
        for layer in self.text[layers]:
            (text,) = layer(text, text_bias)
        for layer in self.image[layers]:
            (image,) = layer(image, image_bias)
        return image, text

    def same(self) -> Parameters:
        same = dict(super().same())
        for level in range(len(self.connections)):
            same |= bert_layer(f"levels.{level}.image_layer", self.image[level])
            same |= bert_layer(f"levels.{level}.text_layer", self.text[level])
        return same


# --- Q-Former ------------------------------------------------------------------------------------------------------


class QFormer(Official):
    """transformers' Blip2Model: its query tokens and Blip2QFormerModel, in front of the text (BLIP-2's second stage)."""

    small: ClassVar = {
        "image": 7, "text": 5, "image_width": 28, "text_width": 24, "width": 24, "heads": 3, "depth": 3, "latents": 4,
    }  # fmt: skip
    with_text: ClassVar[bool] = False

    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        config = Blip2QFormerConfig(
            hidden_size=s.width,
            num_hidden_layers=s.depth,
            num_attention_heads=s.heads,
            intermediate_size=s.units(s.width),
            encoder_hidden_size=s.image_width,
            use_qformer_text_input=self.with_text,
        )
        config._attn_implementation = "eager"  # whose softmax stays in the dtype of the scores
        self.query_tokens = nn.Parameter(torch.zeros(1, case.design.latents, s.width))
        self.qformer = Blip2QFormerModel(config)

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        read: Tensor = self.qformer(
            query_embeds=self.query_tokens.expand(len(image), -1, -1),
            encoder_hidden_states=image,
            encoder_attention_mask=image_mask,
        ).last_hidden_state
        return torch.cat([read, text], dim=1)  # as the language model is given them

    def same(self) -> Parameters:
        same: dict[str, Tensor] = {"queries": self.query_tokens}
        same |= {f"norm.{name}": p for name, p in self.qformer.layernorm.named_parameters()}
        for i, layer in enumerate(self.qformer.encoder.layer):
            same |= _q_former_layer(f"layers.{i}", layer)
        return same


class QFormerWithText(QFormer):
    """The same with its text input: BLIP-2's first stage, and InstructBLIP."""

    with_text: ClassVar[bool] = True

    def forward(self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None) -> Tensor:
        """As Blip2ForImageTextRetrieval's matching head calls it."""
        n = self.query_tokens.shape[1]
        read: Tensor = self.qformer(
            query_embeds=torch.cat([self.query_tokens.expand(len(image), -1, -1), text], dim=1),
            query_length=n,
            attention_mask=None if text_mask is None else nn.functional.pad(text_mask, (n, 0), value=True),
            encoder_hidden_states=image,
            encoder_attention_mask=hiding(image_mask),  # it would give a mask [B, Li] a row for each token of text too
        ).last_hidden_state
        return read

    def text_alone(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """As Blip2ForImageTextRetrieval's contrastive head calls it."""
        read: Tensor = self.qformer(query_embeds=text, query_length=0, attention_mask=text_mask).last_hidden_state
        return read


def _q_former_layer(prefix: str, theirs: Blip2QFormerLayer) -> dict[str, Tensor]:
    same: dict[str, Tensor] = {}
    names = {
        "attention.q": "attention.query",
        "attention.k": "attention.key",
        "attention.v": "attention.value",
        "attention.out": "output.dense",
        "norm": "output.LayerNorm",
    }
    for ours, block in (("attention", "attention"), ("cross", "crossattention")):
        if hasattr(theirs, block):
            same |= found(f"{prefix}.{ours}", names, theirs.get_submodule(block))
    for ours, suffix in (("query_ffn", "_query"), ("text_ffn", "")):
        if hasattr(theirs, f"intermediate{suffix}"):
            up, down = f"intermediate{suffix}.dense", f"output{suffix}"
            ffn = {"ffn.up": up, "ffn.down": f"{down}.dense", "norm": f"{down}.LayerNorm"}
            same |= found(f"{prefix}.{ours}", ffn, theirs)
    return same
