"""Attention in both directions: MulT, and the fusion that is widely described as Qwen2.5-VL's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fusionbench.registry import get
from fusionbench.spec import Case, Design
from tests.faithful import assert_faithful
from tests.faithful_parts import inputs, masks, numel, padded, pairs, real, shape, torch_attention

# --- MulT ----------------------------------------------------------------------------------------------------------


class NaiveStack(nn.Module):
    """The loop of the authors' TransformerEncoder, without dropout: scale, positions, layers, norm."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(layers))
        self.first, self.second = (nn.ModuleList(nn.LayerNorm(width) for _ in range(layers)) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor | None, positions: Tensor, pad: Tensor | None) -> Tensor:
        x = math.sqrt(x.shape[-1]) * x + positions[: x.shape[1]]
        if context is not None:
            context = math.sqrt(context.shape[-1]) * context + positions[: context.shape[1]]
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
        same = pairs(f"{ours}.norm", self.last)
        for i, attention in enumerate(self.attention):
            name = f"{ours}.layers.{i}"
            assert isinstance(attention, nn.MultiheadAttention)
            same |= pairs(f"{name}.attention.norm", self.first[i]) | pairs(f"{name}.ffn.norm", self.second[i])
            same |= torch_attention(f"{name}.attention.attention", attention)
            same |= pairs(f"{name}.ffn.ffn.up", self.up[i]) | pairs(f"{name}.ffn.ffn.down", self.down[i])
        return same


def sinusoids(tokens: int, width: int) -> Tensor:
    """fairseq's table without its first row, which stands for padding."""
    half = width // 2
    rates = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(1, tokens + 1)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()] + [torch.zeros(tokens, 1)] * (width % 2), dim=1)


@padded
@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize(("width", "heads"), [(30, 5), (15, 3)])
def test_mult_is_the_loop_of_its_authors(width: int, heads: int, depth: int, pad: bool) -> None:
    # with equal widths the authors project nothing; their projection is a Linear without bias
    sizes = shape((9, width), (7, width), width, heads, depth=depth)
    case = Case(shape=sizes, projector="identity", design=Design(activation="relu"))
    ours = get("mult").module(case, "sdpa")
    stacks = {
        "text_from_image": depth, "image_from_text": depth, "text_memory": max(3, depth), "image_memory": max(3, depth),
    }  # fmt: skip
    theirs = nn.ModuleDict({name: NaiveStack(width, heads, layers) for name, layers in stacks.items()})
    same = {key: p for name, stack in theirs.items() for key, p in stack.same(name).items()}
    torch.testing.assert_close(ours.positioned.positions, sinusoids(9, width), rtol=0, atol=1e-5)
    image_mask, text_mask = masks(case) if pad else (None, None)
    image_pad, text_pad = (None if mask is None else ~mask for mask in (image_mask, text_mask))

    def call_theirs(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        positions = ours.positioned.positions
        fused_text = theirs["text_from_image"](text, image, positions, image_pad)
        fused_image = theirs["image_from_text"](image, text, positions, text_pad)
        return (
            theirs["text_memory"](fused_text, None, positions, text_pad),
            theirs["image_memory"](fused_image, None, positions, image_pad),
        )

    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, image_mask, text_mask), call_theirs, inputs(case))


# --- one output projection for both directions ---------------------------------------------------------------------


class DescribedFusion(nn.Module):
    """What is widely described as Qwen2.5-VL's fusion: Linear + LayerNorm on the image, then attention both ways."""

    def __init__(self, image_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection, self.norm = nn.Linear(image_width, width), nn.LayerNorm(width)
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


SEED_QWEN = Design(projects="image")


def test_one_shared_output_projection_is_the_fusion_widely_described_as_qwens() -> None:
    sizes = shape((9, 10), (7, 24), 24, heads=3, ffn=0)
    case = Case(shape=sizes, projector="linear_norm", design=SEED_QWEN)
    ours, theirs = get("co_attention:shared_out").module(case, "sdpa"), DescribedFusion(10, 24, 3)
    same = pairs("project.image.layers.0", theirs.projection) | pairs("project.image.layers.1", theirs.norm)
    for side, q, k, v in (
        ("image", theirs.q_visual, theirs.k_text, theirs.v_text),
        ("text", theirs.q_text, theirs.k_visual, theirs.v_visual),
    ):
        for name, theirs_linear in (("q", q), ("k", k), ("v", v)):
            same |= pairs(f"layer.{side}_attention.{name}", theirs_linear)
    same |= pairs("layer.out", theirs.out_proj)
    assert_faithful(ours, theirs, same, ours, theirs, inputs(case))


def test_the_fusion_widely_described_as_qwens_has_seven_products_of_weights() -> None:
    case = real(shape((256, 768), (64, 4096), 4096, heads=32, ffn=0), "linear_norm", SEED_QWEN)
    cost = get("co_attention:shared_out").costs(case, "sdpa")
    projection = 3_158_016
    assert cost.params == projection + 7 * (4096**2 + 4096)
    with torch.device("meta"):
        assert cost.params == numel(DescribedFusion(768, 4096, 32))
    # what it shares is weights: its products are those of two directions of their own
    separate = get("co_attention").costs(case, "sdpa")
    assert (separate.flops, separate.params - cost.params) == (cost.flops, 4096**2 + 4096 + 4 * 4096)
