"""Gated cross-attention beside the official code: Llama-3.2-Vision, IDEFICS, OpenFlamingo; and what its gates mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from fusionbench.strategies.gated_cross_attention import GatedCrossAttention
from tests.faithful import Parameters, assert_faithful, exact_norms

LLAMA = Design(
    norm="rms", activation="swiglu", kv_heads=8, qk_norm="rms", gated=True, qkv_bias=False, out_bias=False,
    ffn_bias=False, eps=1e-5, projects="image",
)  # fmt: skip
IDEFICS = Design(
    norm="rms", activation="swiglu", qk_norm="rms", gated=True, qkv_bias=False, out_bias=False, ffn_bias=False,
    eps=1e-6,
)  # fmt: skip
OPEN_FLAMINGO = Design(gated=True, qkv_bias=False, out_bias=False, ffn_bias=False)


def shape(image: tuple[int, int], text: tuple[int, int], width: int, heads: int, **more: int) -> Shape:
    """``image`` and ``text`` are tokens and width."""
    lengths = {"image": image[0], "image_width": image[1], "text": text[0], "text_width": text[1]}
    return Shape(**lengths, **({"batch": 3} | more), width=width, heads=heads)


def fused(case: Case) -> GatedCrossAttention:
    module = get("gated_cross_attention").module(case, "eager")
    assert isinstance(module, GatedCrossAttention)
    return module


def inputs(s: Shape) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    image = torch.randn(s.batch, s.image, s.image_width, dtype=torch.float64)
    return image, torch.randn(s.batch, s.text, s.text_width, dtype=torch.float64)


def added(mask: Tensor) -> Tensor:
    """The mask [B, Li] as what is added to scores [B, 1, 1, Li]."""
    lowest = torch.finfo(torch.float64).min
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, lowest)[:, None, None]


# --- Llama-3.2-Vision ----------------------------------------------------------------------------------------------


def test_layers_are_llama_3_2_visions() -> None:
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig
    from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

    s = shape((9, 48), (5, 48), 48, 8, depth=2, hidden=88)
    config = MllamaTextConfig(
        hidden_size=48, num_attention_heads=8, num_key_value_heads=2, intermediate_size=88, rms_norm_eps=1e-5,
        num_hidden_layers=4, cross_attention_layers=[1, 3],
    )  # fmt: skip
    config._attn_implementation = "sdpa"  # eager makes its softmax in fp32
    theirs = exact_norms(nn.ModuleList(MllamaCrossAttentionDecoderLayer(config, i) for i in (1, 3)))
    design = Design(
        norm="rms", activation="swiglu", kv_heads=2, qk_norm="rms", qkv_bias=False, out_bias=False, ffn_bias=False,
        eps=1e-5,
    )  # fmt: skip
    ours = fused(Case(shape=s, projector="identity", design=design))
    same: dict[str, Tensor | list[Tensor]] = {}
    for i, layer in enumerate(theirs):
        attention, mlp = layer.cross_attn, layer.mlp
        same |= {
            f"layers.{i}.attention.norm.weight": layer.input_layernorm.weight,
            f"layers.{i}.attention.attention.q.weight": attention.q_proj.weight,
            f"layers.{i}.attention.attention.k.weight": attention.k_proj.weight,
            f"layers.{i}.attention.attention.v.weight": attention.v_proj.weight,
            f"layers.{i}.attention.attention.out.weight": attention.o_proj.weight,
            f"layers.{i}.attention.attention.q_norm.norm.weight": attention.q_norm.weight,
            f"layers.{i}.attention.attention.k_norm.norm.weight": attention.k_norm.weight,
            f"layers.{i}.attention.gate.gate": layer.cross_attn_attn_gate,
            f"layers.{i}.ffn.norm.weight": layer.post_attention_layernorm.weight,
            f"layers.{i}.ffn.ffn.up.weight": [mlp.up_proj.weight, mlp.gate_proj.weight],
            f"layers.{i}.ffn.ffn.down.weight": mlp.down_proj.weight,
            f"layers.{i}.ffn.gate.gate": layer.cross_attn_mlp_gate,
        }
    # A sample without any image token is left out: there mllama averages over all keys, where ours attends to nothing.
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])

    def stack(image: Tensor, text: Tensor) -> Tensor:
        for layer in theirs:
            text = layer(text, image, added(mask), None, None)
        return text

    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, mask), stack, inputs(s))


# --- IDEFICS -------------------------------------------------------------------------------------------------------


def test_layers_are_those_of_idefics() -> None:
    from transformers.models.idefics.configuration_idefics import IdeficsConfig
    from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

    s = shape((7, 40), (6, 48), 48, 6, depth=2, hidden=66)
    config = IdeficsConfig(
        hidden_size=48, num_attention_heads=6, intermediate_size=66, rms_norm_eps=1e-6, qk_layer_norms=True,
        vision_config={"embed_dim": 40},
    )  # fmt: skip
    config._attn_implementation = "sdpa"  # eager makes its softmax in fp32
    theirs = exact_norms(nn.ModuleList(IdeficsGatedCrossAttentionLayer(config, i) for i in (0, 4)))
    ours = fused(Case(shape=s, projector="identity", design=IDEFICS))
    same: dict[str, Tensor | list[Tensor]] = {}
    for i, layer in enumerate(theirs):
        attention, mlp = layer.cross_attn, layer.mlp
        same |= {
            f"layers.{i}.attention.norm.weight": layer.input_layernorm.weight,
            f"layers.{i}.attention.attention.q.weight": attention.q_proj.weight,
            f"layers.{i}.attention.attention.k.weight": attention.k_proj.weight,
            f"layers.{i}.attention.attention.v.weight": attention.v_proj.weight,
            f"layers.{i}.attention.attention.out.weight": attention.o_proj.weight,
            f"layers.{i}.attention.attention.q_norm.norm.weight": attention.q_layer_norm.weight,
            f"layers.{i}.attention.attention.k_norm.norm.weight": attention.k_layer_norm.weight,
            f"layers.{i}.attention.gate.gate": layer.alpha_cross_attn,
            f"layers.{i}.ffn.norm.weight": layer.post_attention_layernorm.weight,
            f"layers.{i}.ffn.ffn.up.weight": [mlp.up_proj.weight, mlp.gate_proj.weight],
            f"layers.{i}.ffn.ffn.down.weight": mlp.down_proj.weight,
            f"layers.{i}.ffn.gate.gate": layer.alpha_dense,
        }
    mask = torch.arange(7) < torch.tensor([[7], [3], [0]])  # the last sample has no image: its gate is closed
    gate = mask.any(1, keepdim=True).expand(3, 6).double()

    def stack(image: Tensor, text: Tensor) -> Tensor:
        for layer in theirs:
            text = layer(text, image_hidden_states=image, image_attention_mask=added(mask), cross_attention_gate=gate)
        return text

    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, mask), stack, inputs(s))


# --- OpenFlamingo --------------------------------------------------------------------------------------------------


class FlamingoBlock(nn.Module):
    """The formula of ``GatedCrossAttentionBlock`` in open_flamingo/src/helpers.py, for text behind its only image.

    There keys and values are one product, ``to_kv``; here they are two, as its halves.
    """

    def __init__(self, width: int, media_width: int, head_dim: int, heads: int) -> None:
        super().__init__()
        inner, self.heads, self.scale = head_dim * heads, heads, head_dim**-0.5
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


def test_a_layer_is_open_flamingos() -> None:
    s = shape((4, 24), (7, 40), 16, 2)  # heads x head dim is half of the text's width; an eighth in the 9b model
    ours, theirs = fused(Case(shape=s, projector="identity", design=OPEN_FLAMINGO)), FlamingoBlock(40, 24, 8, 2)
    same: Parameters = {
        "layers.0.attention.norm.weight": theirs.norm.weight,
        "layers.0.attention.norm.bias": theirs.norm.bias,
        "layers.0.attention.attention.q.weight": theirs.to_q.weight,
        "layers.0.attention.attention.k.weight": theirs.to_k.weight,
        "layers.0.attention.attention.v.weight": theirs.to_v.weight,
        "layers.0.attention.attention.out.weight": theirs.to_out.weight,
        "layers.0.attention.gate.gate": theirs.attn_gate,
        "layers.0.ffn.norm.weight": theirs.ff_norm.weight,
        "layers.0.ffn.norm.bias": theirs.ff_norm.bias,
        "layers.0.ffn.ffn.up.weight": theirs.up.weight,
        "layers.0.ffn.ffn.down.weight": theirs.down.weight,
        "layers.0.ffn.gate.gate": theirs.ff_gate,
    }
    assert_faithful(ours, theirs, same, ours, theirs, inputs(s))


# --- What the gates mean -------------------------------------------------------------------------------------------


def small() -> tuple[GatedCrossAttention, Tensor, Tensor]:
    s = shape((5, 12), (4, 20), 16, 2, depth=3)
    return fused(Case(shape=s)).double(), *inputs(s)


def test_a_plain_design_is_gated_too() -> None:
    assert sum(name.endswith("gate.gate") for name, _ in small()[0].named_parameters()) == 2 * 3


def test_with_gates_at_zero_the_layers_are_the_identity_and_open_gates_are_not() -> None:
    module, image, text = small()
    assert not torch.equal(module(image, text), module.project.text(text))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("gate.gate"):
                parameter.zero_()
    assert torch.equal(module(image, text), module.project.text(text))
    module(image, text).sum().backward()
    open_up = [p.grad for n, p in module.named_parameters() if n.endswith("gate.gate")]
    assert all(grad is not None and grad.any() for grad in open_up)  # training starts all the same


def test_text_without_an_image_is_the_text_alone() -> None:
    module, _, text = small()
    assert torch.equal(module(None, text), module.project.text(text))


def test_no_layer_at_all_is_refused() -> None:
    case = Case(shape=shape((5, 12), (4, 20), 16, 2, depth=0))
    reason = "gated_cross_attention of depth 0 has no layer that reads the image"
    assert get("gated_cross_attention").refusal(case) == reason


# --- Sizes of the real models --------------------------------------------------------------------------------------


def llama(tiles: int, layers: int = 1) -> Shape:
    return shape((1601 * tiles, 4096), (64, 4096), 4096, 32, batch=1, hidden=14336, depth=layers)


NINE_B = shape((64, 1024), (64, 4096), 512, 8, batch=1)


@pytest.mark.parametrize(
    ("design", "size", "gigaflops", "parameters"),
    [
        pytest.param(LLAMA, llama(1), 55.38, 218_112_258, id="llama-3.2-11b, one tile"),
        pytest.param(LLAMA, llama(4), 141.00, 218_112_258, id="llama-3.2-11b, four tiles"),
        pytest.param(OPEN_FLAMINGO, NINE_B, 17.86, 139_476_994, id="openflamingo-9b"),
    ],
)
def test_a_layer_costs_what_the_real_one_does(design: Design, size: Shape, gigaflops: float, parameters: int) -> None:
    case = Case(shape=size, projector="identity", design=design)
    cost = get("gated_cross_attention").costs(case, "sdpa")
    with torch.device("meta"):
        module = fused(case)
    assert round(cost.flops / 1e9, 2) == gigaflops
    assert sum(p.numel() for p in module.parameters()) == cost.params == parameters


def test_llama_3_2s_eight_layers_and_projector_have_1_776_billion_parameters() -> None:
    size = shape((1601, 7680), (64, 4096), 4096, 32, batch=1, hidden=14336, depth=8)
    cost = get("gated_cross_attention").costs(Case(shape=size, projector="linear", design=LLAMA), "sdpa")
    assert cost.params == 8 * 218_112_258 + 7680 * 4096 + 4096 == 1_776_359_440


@pytest.mark.parametrize(("tiles", "mebibytes"), [(1, 50.0), (4, 200.1)])
def test_keys_and_values_of_llama_3_2s_image_take_as_much_memory_as_in_the_real_one(
    tiles: int, mebibytes: float
) -> None:
    with torch.device("meta"):
        module = fused(Case(shape=llama(tiles, layers=8), projector="identity", design=LLAMA)).bfloat16()
        image = torch.empty(1, 1601 * tiles, 4096, dtype=torch.bfloat16)
        cached = [layer.attention.attention.keys_and_values(image) for layer in module.layers]
    assert round(sum(x.nbytes for pair in cached for x in pair) / 2**20, 1) == mebibytes
