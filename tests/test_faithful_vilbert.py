"""ViLBERT's layers beside a transcription of jiasenlu/vilbert_beta, which no package ships, and beside BERT's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import VisualBertConfig
from transformers.models.visual_bert.modeling_visual_bert import VisualBertLayer

from fusionbench.presets import shrunk
from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from tests.faithful import assert_faithful, bert_layer, hiding, padded_inputs, pairs

# Head dim 8 in the co-attention and in the image's own layers, 4 in the text's: 128 and 64 in the model.
SMALL = Shape(batch=3, image=7, text=5, image_width=24, text_width=20, width=32, heads=4, depth=2, hidden=36)
DESIGN = Design(post_norm=True, eps=1e-12, image_hidden=28, text_heads=5)
REAL = Shape(batch=1, image=100, text=16, image_width=1024, text_width=768, width=1024, heads=8, hidden=3072)
REAL_DESIGN = Design(post_norm=True, eps=1e-12, image_hidden=1024, text_heads=12)


class Connection(nn.Module):
    """vilbert/vilbert.py's BertConnectionLayer: BertBiAttention, BertBiOutput and both feed-forward parts.

    Stream 1 is the image, 2 the text. As there, scores 1 are those of the text's queries over the image's keys.
    """

    def __init__(self, shape: Shape, design: Design) -> None:
        super().__init__()
        self.heads = shape.heads
        streams = ((1, shape.image_width, design.image_hidden), (2, shape.text_width, shape.hidden))
        for i, width, hidden in streams:
            for name in ("query", "key", "value"):
                self.add_module(f"{name}{i}", nn.Linear(width, shape.width))
            self.add_module(f"dense{i}", nn.Linear(shape.width, width))
            self.add_module(f"q_dense{i}", nn.Linear(shape.width, width))
            self.add_module(f"intermediate{i}", nn.Linear(width, hidden))
            self.add_module(f"output{i}", nn.Linear(hidden, width))
            for name in ("LayerNorm", "output_LayerNorm"):
                self.add_module(f"{name}{i}", nn.LayerNorm(width, eps=1e-12))

    def forward(self, image: Tensor, image_bias: Tensor, text: Tensor, text_bias: Tensor) -> tuple[Tensor, Tensor]:
        made = {
            f"{name}{i}": self.get_submodule(f"{name}{i}")(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for i, x in ((1, image), (2, text))
            for name in ("query", "key", "value")
        }
        attended = {}
        for i, other, bias in ((1, 2, image_bias), (2, 1, text_bias)):
            query, key = made[f"query{other}"], made[f"key{i}"]
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
            attended[i] = (scores.softmax(-1) @ made[f"value{i}"]).transpose(1, 2).flatten(2)
        return self.after(1, image, attended[2]), self.after(2, text, attended[1])

    def after(self, i: int, x: Tensor, attended: Tensor) -> Tensor:
        """BertBiOutput, which reads neither q_dense1 nor q_dense2, and the feed-forward part of stream ``i``."""
        of = self.get_submodule
        x = of(f"LayerNorm{i}")(of(f"dense{i}")(attended) + x)
        hidden = nn.functional.gelu(of(f"intermediate{i}")(x))
        y: Tensor = of(f"output_LayerNorm{i}")(of(f"output{i}")(hidden) + x)
        return y

    @property
    def dead(self) -> list[Tensor]:
        return [p for name, p in self.named_parameters() if name.startswith("q_dense")]


class Encoder(nn.Module):
    """BertEncoder: in each stream, own layers up to where a connection stands, the connection, and the rest after all.

    The ids 0, 1, ... of both streams: what is left of the text's 6, 7, ... when its first layers ran before.
    """

    def __init__(self, shape: Shape, design: Design, own: bool) -> None:
        super().__init__()
        self.connections = nn.ModuleList(Connection(shape, design) for _ in range(shape.depth))
        image, text = (
            VisualBertConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=hidden)
            for width, heads, hidden in (
                (shape.image_width, shape.heads, design.image_hidden),
                (shape.text_width, design.text_heads, shape.hidden),
            )
        )
        self.image = nn.ModuleList(VisualBertLayer(image) for _ in range(shape.depth * own))
        self.text = nn.ModuleList(VisualBertLayer(text) for _ in range(shape.depth * own))

    def forward(self, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        image_bias, text_bias, start = hiding(image_mask), hiding(text_mask), 0
        for end, connection in enumerate(self.connections):
            image, text = self.own(image, image_bias, text, text_bias, slice(start, end))
            image, text = connection(image, image_bias, text, text_bias)
            start = end
        image, text = self.own(image, image_bias, text, text_bias, slice(start, None))
        return text, image

    def own(
        self, image: Tensor, image_bias: Tensor, text: Tensor, text_bias: Tensor, layers: slice
    ) -> tuple[Tensor, Tensor]:
        for layer in self.text[layers]:
            (text,) = layer(text, text_bias)
        for layer in self.image[layers]:
            (image,) = layer(image, image_bias)
        return image, text


def connection(prefix: str, theirs: Connection) -> dict[str, Tensor]:
    same = {}
    for i, other, stream in ((1, 2, "image"), (2, 1, "text")):
        modules = {
            "attention.q": f"query{i}",
            "attention.k": f"key{other}",
            "attention.v": f"value{other}",
            "attention.out": f"dense{i}",
            "norm": f"LayerNorm{i}",
            "ffn.ffn.up": f"intermediate{i}",
            "ffn.ffn.down": f"output{i}",
            "ffn.norm": f"output_LayerNorm{i}",
        }
        same |= pairs(prefix, {f"{stream}_{ours}": theirs.get_submodule(name) for ours, name in modules.items()})
    return same


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("own", [False, True], ids=["co-TRM", "with_self"])
def test_a_stack_of_co_attentional_layers_is_the_authors(own: bool, impl: str) -> None:
    case = Case(shape=SMALL, projector="identity", design=DESIGN)
    ours = get("vilbert:with_self" if own else "vilbert").module(case, impl)
    theirs = Encoder(SMALL, DESIGN, own)
    same: dict[str, Tensor] = {}
    for i, layer in enumerate(theirs.connections):
        same |= connection(f"levels.{i}.exchange", layer)
        if own:
            same |= bert_layer(f"levels.{i}.image_layer", theirs.image[i])
            same |= bert_layer(f"levels.{i}.text_layer", theirs.text[i])
    unused = [p for layer in theirs.connections for p in layer.dead]
    assert_faithful(ours, theirs, same, ours, theirs, padded_inputs(SMALL), unused=unused)


def test_a_layer_at_the_size_of_the_model_has_its_figures() -> None:
    entry, case = get("vilbert"), Case(shape=REAL, projector="identity", design=REAL_DESIGN)
    with torch.device("meta"):
        used = sum(p.numel() for p in entry.module(case, "sdpa").parameters())
        theirs = Connection(REAL, REAL_DESIGN)
    assert entry.costs(case, "sdpa").params == used == 14_176_768
    assert sum(p.numel() for p in theirs.dead) == 1_836_800
    assert sum(p.numel() for p in theirs.parameters()) == 14_176_768 + 1_836_800
    assert entry.costs(case, "sdpa").flops == 1_523_056_640  # 1.523 GF


def test_a_quarter_of_the_model_keeps_the_head_dims_of_both_streams() -> None:
    case = shrunk(Case(shape=REAL, projector="identity", design=REAL_DESIGN), 4)
    assert (case.shape.width // case.shape.heads, case.shape.text_width // case.design.text_heads) == (128, 64)
    assert get("vilbert:with_self").refusal(case) is None
