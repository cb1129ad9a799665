"""Self-attention, then the other modality, then feed-forward: Stable Diffusion's block and torch's own decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fusionbench.blocks import attention_block_cost
from fusionbench.parts import feed_forward_block_cost
from fusionbench.registry import get
from fusionbench.spec import Case, Design
from tests.faithful import assert_faithful
from tests.faithful_parts import inputs, masks, numel, padded, pairs, real, shape, torch_attention

UNET = Design(activation="geglu", qkv_bias=False)
VASWANI = Design(activation="relu", post_norm=True, causal=True)


def unet_block(case: Case) -> nn.Module:
    attention = pytest.importorskip("diffusers.models.attention")
    s = case.shape
    block: nn.Module = attention.BasicTransformerBlock(
        s.image_width, s.heads, s.width // s.heads, cross_attention_dim=s.text_width
    )
    return block


@padded
@pytest.mark.parametrize(
    "case",
    [
        Case(shape=shape((15, 32), (7, 24), 32, heads=4, depth=1), projector="identity", design=UNET),
        Case(shape=shape((9, 24), (11, 40), 24, heads=3, depth=2), projector="identity", design=UNET),
    ],
    ids=["sd15", "sdxl"],
)
def test_image_queries_are_stable_diffusions_block(case: Case, pad: bool) -> None:
    ours = get("transformer_decoder:image_to_text").module(case, "sdpa")
    theirs = nn.ModuleList(unet_block(case) for _ in range(case.shape.depth))
    same: dict[str, Tensor] = {}
    for i, block in enumerate(theirs):
        name = f"decoder.layers.{i}"
        for part, norm, attention in (("self", block.norm1, block.attn1), ("cross", block.norm2, block.attn2)):
            same |= pairs(f"{name}.{part}_attention.norm", norm)
            for own, other in (("q", attention.to_q), ("k", attention.to_k), ("v", attention.to_v)):
                same |= pairs(f"{name}.{part}_attention.attention.{own}", other)
            same |= pairs(f"{name}.{part}_attention.attention.out", attention.to_out[0])
        same |= pairs(f"{name}.ffn.norm", block.norm3) | pairs(f"{name}.ffn.ffn.up", block.ff.net[0].proj)
        same |= pairs(f"{name}.ffn.ffn.down", block.ff.net[2])
    text_mask = masks(case)[1] if pad else None
    hidden = None if text_mask is None else (~text_mask).double().mul(-1e9)[:, None]  # [B, 1, Lt], added to scores

    def call_theirs(image: Tensor, text: Tensor) -> Tensor:
        for block in theirs:
            image = block(image, encoder_hidden_states=text, encoder_attention_mask=hidden)
        return image

    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, None, text_mask), call_theirs, inputs(case))


def torch_feed_forward(ours: str, theirs: nn.Module, norm: nn.Module) -> dict[str, Tensor]:
    up, down = theirs.get_submodule("linear1"), theirs.get_submodule("linear2")
    return pairs(f"{ours}.norm", norm) | pairs(f"{ours}.ffn.up", up) | pairs(f"{ours}.ffn.down", down)


def torch_decoder(ours: str, theirs: nn.TransformerDecoder) -> dict[str, Tensor]:
    same: dict[str, Tensor] = {}
    for i, layer in enumerate(theirs.layers):
        name = f"{ours}.layers.{i}"
        same |= pairs(f"{name}.self_attention.norm", layer.norm1)
        same |= pairs(f"{name}.cross_attention.norm", layer.norm2)
        same |= torch_attention(f"{name}.self_attention.attention", layer.self_attn)
        same |= torch_attention(f"{name}.cross_attention.attention", layer.multihead_attn)
        same |= torch_feed_forward(f"{name}.ffn", layer, layer.norm3)
    return same


def layer_options(case: Case) -> dict[str, object]:
    s = case.shape
    return {
        "d_model": s.width, "nhead": s.heads, "dim_feedforward": s.units(s.width), "dropout": 0.0,
        "activation": case.design.activation, "batch_first": True, "norm_first": not case.design.post_norm,
    }  # fmt: skip


@padded
@pytest.mark.parametrize("design", [VASWANI, Design(activation="relu")], ids=["post_norm_causal", "pre_norm"])
def test_text_queries_are_torchs_decoder(design: Design, pad: bool) -> None:
    case = Case(shape=shape((9, 24), (7, 24), 24, heads=3, hidden=40), projector="identity", design=design)
    ours = get("transformer_decoder").module(case, "sdpa")
    theirs = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer_options(case)), 2)  # type: ignore[arg-type]
    image_mask, text_mask = masks(case) if pad else (None, None)
    behind = torch.ones(7, 7, dtype=torch.bool).triu(1) if design.causal else None

    def call_theirs(image: Tensor, text: Tensor) -> Tensor:
        decoded: Tensor = theirs(
            text,
            image,
            tgt_mask=behind,
            tgt_key_padding_mask=None if text_mask is None else ~text_mask,
            memory_key_padding_mask=None if image_mask is None else ~image_mask,
        )
        return decoded

    same = torch_decoder("decoder", theirs)
    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, image_mask, text_mask), call_theirs, inputs(case))


class JointEncoderDecoder(nn.Module):
    """The popular MultiModalTransformer: project both, concatenate, encode, decode, of torch's own parts."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        s, options = case.shape, layer_options(case)
        self.image, self.text = nn.Linear(s.image_width, s.width), nn.Linear(s.text_width, s.width)
        encoder = nn.TransformerEncoderLayer(**options)  # type: ignore[arg-type]
        self.encoder = nn.TransformerEncoder(encoder, s.depth, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options), s.depth)  # type: ignore[arg-type]

    def forward(self, image: Tensor, text: Tensor, image_pad: Tensor | None, text_pad: Tensor | None) -> Tensor:
        image, text = self.image(image), self.text(text)
        pad = None if image_pad is None or text_pad is None else torch.cat([image_pad, text_pad], dim=1)
        memory = self.encoder(torch.cat([image, text], dim=1), src_key_padding_mask=pad)
        behind = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).triu(1)
        decoded: Tensor = self.decoder(
            text, memory, tgt_mask=behind, tgt_key_padding_mask=text_pad, memory_key_padding_mask=pad
        )
        return decoded


@padded
def test_the_joint_encoder_and_its_decoder_are_torchs(pad: bool) -> None:
    case = Case(shape=shape((9, 16), (7, 10), 24, heads=3, ffn=2), design=VASWANI)
    ours, theirs = get("multimodal_transformer").module(case, "sdpa"), JointEncoderDecoder(case)
    same = pairs("project.image.layers.0", theirs.image) | pairs("project.text.layers.0", theirs.text)
    for i, layer in enumerate(theirs.encoder.layers):
        name = f"encoder.layers.{i}"
        same |= pairs(f"{name}.attention.norm", layer.norm1)
        same |= torch_attention(f"{name}.attention.attention", layer.self_attn)
        same |= torch_feed_forward(f"{name}.ffn", layer, layer.norm2)
    same |= torch_decoder("decoder", theirs.decoder)
    image_mask, text_mask = masks(case) if pad else (None, None)
    pads = [None if mask is None else ~mask for mask in (image_mask, text_mask)]
    assert_faithful(
        ours,
        theirs,
        same,
        lambda i, t: ours(i, t, image_mask, text_mask),
        lambda i, t: theirs(i, t, *pads),
        inputs(case),
    )


def test_torchs_decoder_without_its_memory_does_not_run() -> None:
    # the popular snippet of a MultiModalTransformer ends in self.decoder(encoded)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, batch_first=True), 1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'memory'"):
        decoder(torch.zeros(1, 3, 8))


@pytest.mark.parametrize(
    ("tokens", "width", "cross", "own", "units"),
    [
        (4096, 320, 2.157, 24.83, 10.07),
        (1024, 640, 2.031, 6.04, 10.07),
        (256, 1280, 2.081, 3.69, 10.07),
        (64, 1280, 0.747, 0.86, 2.52),
    ],
)
def test_the_products_of_sd15_per_level(tokens: int, width: int, cross: float, own: float, units: float) -> None:
    case = real(shape((tokens, width), (77, 768), width, heads=8, depth=1), "identity", UNET)
    assert_products(case, cross, own, units)


@pytest.mark.parametrize(("tokens", "width", "own"), [(4096, 640, 56.4), (1024, 1280, 18.8)])
def test_the_products_of_sdxl_per_block(tokens: int, width: int, own: float) -> None:
    case = real(shape((tokens, width), (77, 2048), width, heads=width // 64, depth=1), "identity", UNET)
    assert_products(case, 7.92, own, None)


def assert_products(case: Case, cross: float, own: float, units: float | None) -> None:
    """GFLOPs of the sub-layers, which together are the strategy's; and the official block's parameters."""
    s = case.shape
    parts = (
        attention_block_cost(case, s.image, s.width, "sdpa", keys=s.text, context_width=s.text_width).flops,
        attention_block_cost(case, s.image, s.width, "sdpa").flops,
        feed_forward_block_cost(case, s.image, s.width).flops,
    )
    for flops, golden in zip(parts, (cross, own, units), strict=True):
        assert golden is None or round(flops / 1e9, digits(golden)) == golden
    cost = get("transformer_decoder:image_to_text").costs(case, "sdpa")
    assert cost.flops == sum(parts)
    with torch.device("meta"):
        assert cost.params == numel(unet_block(case))


def digits(golden: float) -> int:
    return len(str(golden).partition(".")[2])
