"""Learned latents and queries beside the official code: IDEFICS, Idefics2, OpenFlamingo, Perceiver, CoCa, Qwen-VL."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from fusionbench.registry import get
from fusionbench.spec import Case, Design, Shape
from tests.faithful import Parameters, assert_faithful, exact_norms

IDEFICS = Design(activation="relu", qk_norm="layer", qkv_bias=False, out_bias=False, ffn_bias=False)
OPEN_FLAMINGO = Design(qkv_bias=False, out_bias=False, ffn_bias=False)
IDEFICS2 = Design(
    norm="rms", activation="swiglu", kv_heads=4, qkv_bias=False, out_bias=False, ffn_bias=False, eps=1e-6,
    projects="image",
)  # fmt: skip
QWEN_VL = Design(eps=1e-6, projects="image")


def shape(image: tuple[int, int], text: tuple[int, int], width: int, heads: int, **more: int) -> Shape:
    """``image`` and ``text`` are tokens and width."""
    lengths = {"image": image[0], "image_width": image[1], "text": text[0], "text_width": text[1]}
    return Shape(**lengths, **({"batch": 3} | more), width=width, heads=heads)


def inputs(s: Shape) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    image = torch.randn(s.batch, s.image, s.image_width, dtype=torch.float64)
    return image, torch.randn(s.batch, s.text, s.text_width, dtype=torch.float64)


# --- Perceiver resampler -------------------------------------------------------------------------------------------


def test_the_resampler_is_that_of_idefics() -> None:
    from transformers.models.idefics.configuration_idefics import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    s = shape((9, 20), (5, 28), 24, 3, depth=2)  # inner width 3 x 8 over a stream of 20; 16 x 96 over 1280 in the 9b
    config = IdeficsConfig(
        vision_config={"embed_dim": 20}, perceiver_config={"qk_layer_norms_perceiver": True}, hidden_size=28
    )
    theirs = IdeficsPerceiverResampler(config, 20, depth=2, n_heads=3, head_dim=8, n_latents=4)
    ours = get("perceiver_resampler").module(
        Case(shape=s, projector="identity", design=replace(IDEFICS, latents=4)), "eager"
    )
    same: dict[str, Tensor] = {
        "resample.latents": theirs.latents,
        "resample.norm.weight": theirs.layer_norm.weight,
        "resample.norm.bias": theirs.layer_norm.bias,
    }
    for i, (attention, mlp) in enumerate(theirs.blocks):
        layer = f"resample.layers.{i}"
        norms = {
            "image_norm": attention.context_layer_norm,
            "latent_norm": attention.latents_layer_norm,
            "attention.q_norm.norm": attention.q_layer_norm,
            "attention.k_norm.norm": attention.k_layer_norm,
            "ffn.norm": mlp.ln,
        }
        linears = {
            "attention.q": attention.q_proj,
            "attention.k": attention.k_proj,
            "attention.v": attention.v_proj,
            "attention.out": attention.output_proj,
            "ffn.ffn.up": mlp.fc,
            "ffn.ffn.down": mlp.c_proj,
        }
        same |= {f"{layer}.{name}.weight": module.weight for name, module in (norms | linears).items()}
        same |= {f"{layer}.{name}.bias": module.bias for name, module in norms.items()}
    assert_faithful(ours, theirs, same, ours, lambda image, text: (text, theirs(image)), inputs(s))


def test_the_resampler_is_that_of_idefics2_in_front_of_its_text_with_padding() -> None:
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

    s = shape((9, 20), (5, 20), 32, 4, depth=3, hidden=80)
    config = Idefics2PerceiverConfig(
        hidden_size=20, resampler_n_latents=6, resampler_depth=3, resampler_n_heads=4, resampler_head_dim=8,
        num_key_value_heads=2, rms_norm_eps=1e-6,
    )  # fmt: skip
    config._attn_implementation = "sdpa"  # eager makes its softmax in fp32
    theirs = exact_norms(Idefics2PerceiverResampler(config))
    ours = get("perceiver_resampler").module(
        Case(shape=s, projector="identity", design=replace(IDEFICS2, latents=6, kv_heads=2)), "eager"
    )
    same: dict[str, Tensor | list[Tensor]] = {
        "resample.latents": theirs.latents,
        "resample.norm.weight": theirs.norm.weight,
    }
    for i, layer in enumerate(theirs.layers):
        same |= {
            f"resample.layers.{i}.image_norm.weight": layer.input_context_norm.weight,
            f"resample.layers.{i}.latent_norm.weight": layer.input_latents_norm.weight,
            f"resample.layers.{i}.attention.q.weight": layer.self_attn.q_proj.weight,
            f"resample.layers.{i}.attention.k.weight": layer.self_attn.k_proj.weight,
            f"resample.layers.{i}.attention.v.weight": layer.self_attn.v_proj.weight,
            f"resample.layers.{i}.attention.out.weight": layer.self_attn.o_proj.weight,
            f"resample.layers.{i}.ffn.norm.weight": layer.post_attention_layernorm.weight,
            f"resample.layers.{i}.ffn.ffn.up.weight": [layer.mlp.up_proj.weight, layer.mlp.gate_proj.weight],
            f"resample.layers.{i}.ffn.ffn.down.weight": layer.mlp.down_proj.weight,
        }
    mask = torch.arange(9) < torch.tensor([[9], [4], [0]])  # latents read themselves where there is no image

    def joined(image: Tensor, text: Tensor) -> Tensor:
        return torch.cat([theirs(image, mask), text], dim=1)

    assert_faithful(ours, theirs, same, lambda image, text: ours(image, text, mask), joined, inputs(s))


class FlamingoResampler(nn.Module):
    """The formula of ``PerceiverResampler`` in open_flamingo/src/helpers.py, for one image of one frame.

    There keys and values are one product, ``to_kv``; here they are two, as its halves.
    """

    def __init__(self, width: int, depth: int, head_dim: int, heads: int, latents: int) -> None:
        super().__init__()
        inner, self.heads, self.scale = head_dim * heads, heads, head_dim**-0.5
        self.latents, self.norm = nn.Parameter(torch.randn(latents, width)), nn.LayerNorm(width)
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
            for _ in range(depth)
        )

    def forward(self, media: Tensor) -> Tensor:
        latents = self.latents.repeat(media.shape[0], 1, 1)
        for layer in self.layers:
            x = layer["norm_latents"](latents)
            both = torch.cat([layer["norm_media"](media), x], dim=-2)
            q, k, v = (
                y.unflatten(-1, (self.heads, -1))
                for y in (layer["to_q"](x) * self.scale, layer["to_k"](both), layer["to_v"](both))
            )
            p = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
            latents = layer["to_out"](torch.einsum("bhij,bjhd->bihd", p, v).flatten(2)) + latents
            latents = layer["down"](nn.functional.gelu(layer["up"](layer["ff_norm"](latents)))) + latents
        y: Tensor = self.norm(latents)
        return y


def test_the_resampler_is_that_of_open_flamingo() -> None:
    s = shape((9, 20), (5, 28), 16, 2, depth=2)
    theirs = FlamingoResampler(20, depth=2, head_dim=8, heads=2, latents=3)
    ours = get("perceiver_resampler").module(
        Case(shape=s, projector="identity", design=replace(OPEN_FLAMINGO, latents=3)), "eager"
    )
    names = {
        "image_norm": "norm_media",
        "latent_norm": "norm_latents",
        "attention.q": "to_q",
        "attention.k": "to_k",
        "attention.v": "to_v",
        "attention.out": "to_out",
        "ffn.norm": "ff_norm",
        "ffn.ffn.up": "up",
        "ffn.ffn.down": "down",
    }
    same: dict[str, Tensor] = {"resample.latents": theirs.latents}
    same |= {f"resample.norm.{name}": parameter for name, parameter in theirs.norm.named_parameters()}
    for i, layer in enumerate(theirs.layers):
        assert isinstance(layer, nn.ModuleDict)
        for own, other in names.items():
            same |= {f"resample.layers.{i}.{own}.{n}": p for n, p in layer[other].named_parameters()}
    assert_faithful(ours, theirs, same, ours, lambda image, text: (text, theirs(image)), inputs(s))


# --- Perceiver -----------------------------------------------------------------------------------------------------


def test_the_perceiver_is_transformers() -> None:
    from transformers import PerceiverConfig, PerceiverModel

    s = shape((9, 24), (5, 24), 40, 4, depth=3, ffn=2)
    config = PerceiverConfig(
        num_latents=6, d_latents=40, d_model=24, num_self_attends_per_block=3, num_self_attention_heads=4,
        num_cross_attention_heads=4, self_attention_widening_factor=2, cross_attention_widening_factor=2,
    )  # fmt: skip
    theirs = PerceiverModel(config)
    ours = get("perceiver").module(Case(shape=s, projector="identity", design=Design(latents=6)), "eager")
    same: dict[str, Tensor] = {"latents": theirs.embeddings.latents}
    encoder = theirs.encoder
    layers = {"read": encoder.cross_attention}
    layers |= {f"encoder.layers.{i}": layer for i, layer in enumerate(encoder.self_attends)}
    for name, layer in layers.items():
        reading = layer.attention.self
        parts = {
            "attention.norm": reading.layernorm1,
            "attention.context_norm": reading.layernorm2,  # nothing in self-attention, here and there
            "attention.attention.q": reading.query,
            "attention.attention.k": reading.key,
            "attention.attention.v": reading.value,
            "attention.attention.out": layer.attention.output.dense,
            "ffn.norm": layer.layernorm,
            "ffn.ffn.up": layer.mlp.dense1,
            "ffn.ffn.down": layer.mlp.dense2,
        }
        for part, module in parts.items():
            same |= {f"{name}.{part}.{n}": p for n, p in module.named_parameters()}
    image_mask = torch.arange(9) < torch.tensor([[9], [4], [0]])
    text_mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
    mask = torch.cat([image_mask, text_mask], dim=1)

    def perceive(image: Tensor, text: Tensor) -> Tensor:
        found: Tensor = theirs(torch.cat([image, text], dim=1), attention_mask=mask.double()).last_hidden_state
        return found

    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, image_mask, text_mask), perceive, inputs(s))


# --- Attention pooling ---------------------------------------------------------------------------------------------


class OfficialPooler(nn.Module):
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

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x, q = self.ln_k(x).transpose(0, 1), self.ln_q(self.query).unsqueeze(1).repeat(1, x.shape[0], 1)
        pooled, _ = nn.functional.multi_head_attention_forward(
            q, x, x, q.shape[-1], self.heads, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None,
            False, 0.0, self.out.weight, self.out.bias, key_padding_mask=~mask, need_weights=False,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )  # fmt: skip
        y: Tensor = self.ln_post(pooled.transpose(0, 1))
        return y


def pooler_weights(theirs: OfficialPooler) -> dict[str, Tensor]:
    modules = {
        "query_norm": theirs.ln_q,
        "norm": theirs.ln_k,
        "pooled_norm": theirs.ln_post,
        "attention.q": theirs.q,
        "attention.k": theirs.k,
        "attention.v": theirs.v,
        "attention.out": theirs.out,
    }
    named = {f"pool.{own}.{n}": p for own, module in modules.items() for n, p in module.named_parameters()}
    return {"pool.queries": theirs.query, **named}


@pytest.mark.parametrize("queries", [1, 6])
def test_the_pooled_stream_is_cocas(queries: int) -> None:
    s = shape((9, 20), (5, 20), 24, 3)
    theirs = OfficialPooler(queries, 24, 20, 3, eps=1e-5)
    ours = get("attention_pooling").module(Case(shape=s, projector="identity", design=Design(latents=queries)), "eager")
    image_mask = torch.arange(9) < torch.tensor([[9], [4], [0]])
    text_mask = torch.arange(5) < torch.tensor([[5], [1], [3]])

    def pooled(image: Tensor, text: Tensor) -> Tensor:
        return theirs(torch.cat([image, text], dim=1), torch.cat([image_mask, text_mask], dim=1))

    same = pooler_weights(theirs)
    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, image_mask, text_mask), pooled, inputs(s))


class QwenVL(nn.Module):
    """Projector and pooler, and the text behind them; ``kv_proj`` has no bias there, and ours has one."""

    def __init__(self, queries: int, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.kv_proj = nn.Linear(context_width, width)
        self.pool = OfficialPooler(queries, width, width, heads, eps=1e-6)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([self.pool(self.kv_proj(image), mask), text], dim=1)


def test_the_pooled_image_in_front_of_text_is_qwen_vls() -> None:
    s = shape((16, 20), (5, 24), 24, 3)
    theirs = QwenVL(4, 24, 20, 3)
    ours = get("attention_pooling:image").module(Case(shape=s, design=replace(QWEN_VL, latents=4)), "eager")
    mask = torch.arange(16) < torch.tensor([[16], [4], [1]])
    same: Parameters = {
        **pooler_weights(theirs.pool),
        "project.image.layers.0.weight": theirs.kv_proj.weight,
        "project.image.layers.0.bias": theirs.kv_proj.bias,
    }
    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, mask), lambda i, t: theirs(i, t, mask), inputs(s))


# --- What is promised beside that ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["perceiver_resampler", "attention_pooling:image"])
def test_image_and_text_stay_apart_where_their_widths_differ(name: str) -> None:
    s = shape((9, 20), (5, 28), 24, 3)
    module = get(name).module(Case(shape=s, projector="identity", design=Design(latents=4)), "eager").double()
    image, text = inputs(s)
    apart, resampled = module(image, text)
    assert apart is text
    assert resampled.shape[:2] == (3, 4)
    assert module(None, text) == (text, None)
    assert torch.equal(module(image, None)[1], resampled)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("perceiver_resampler", {"depth": 0}, "perceiver_resampler of depth 0 has no layer that reads the image"),
        (
            "perceiver_resampler",
            {"post_norm": True},
            "perceiver_resampler normalises what attention reads, not its result (design post_norm)",
        ),
        (
            "perceiver",
            {"causal": True},
            "perceiver normalises what attention reads, and its latents have no order (causal=1)",
        ),
        (
            "perceiver",
            {"heads": 8},
            "perceiver's cross-attention is as wide as its inputs, and 20 is not a multiple of 8 heads",
        ),
        (
            "attention_pooling",
            {"gated": True},
            "attention_pooling has no residual stream to normalise or to gate (gated=1)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(name: str, changes: dict[str, int], reason: str) -> None:
    sizes = {name: value for name, value in changes.items() if name in Shape.__struct_fields__}
    s = shape((9, 20), (5, 20), 24, sizes.pop("heads", 4), **sizes)
    built = Design(**{name: value for name, value in changes.items() if name in Design.__struct_fields__})  # type: ignore[arg-type]
    assert get(name).refusal(Case(shape=s, projector="identity", design=built)) == reason


# --- Sizes of the real models --------------------------------------------------------------------------------------


def test_open_flamingos_resampler_costs_what_the_real_one_does() -> None:
    case = Case(
        shape=shape((256, 1024), (64, 4096), 512, 8, batch=1, depth=6), projector="identity", design=OPEN_FLAMINGO
    )
    cost = get("perceiver_resampler").costs(case, "sdpa")
    assert round(cost.flops / 1e9, 2) == 11.53
    theirs = FlamingoResampler(1024, depth=6, head_dim=64, heads=8, latents=64)
    assert cost.params == sum(p.numel() for p in theirs.parameters())


def test_the_default_perceiver_has_as_many_parameters_as_transformers() -> None:
    from transformers import PerceiverConfig, PerceiverModel

    with torch.device("meta"):
        theirs = PerceiverModel(PerceiverConfig())
    s = shape((1000, 768), (48, 768), 1280, 8, batch=1, depth=26, ffn=1)
    cost = get("perceiver").costs(Case(shape=s, projector="identity"), "sdpa")
    assert cost.params == sum(p.numel() for p in theirs.parameters())


def test_idefics_resampler_has_as_many_parameters_as_the_real_one() -> None:
    from transformers.models.idefics.configuration_idefics import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = IdeficsConfig(vision_config={"embed_dim": 1280}, perceiver_config={"qk_layer_norms_perceiver": True})
    with torch.device("meta"):
        theirs = IdeficsPerceiverResampler(config, 1280, depth=6, n_heads=16, head_dim=96, n_latents=64)
    s = shape((257, 1280), (64, 4096), 1536, 16, batch=1, depth=6)
    cost = get("perceiver_resampler").costs(Case(shape=s, projector="identity", design=IDEFICS), "sdpa")
    assert cost.params == sum(p.numel() for p in theirs.parameters())


def test_qwen_vls_resampler_costs_what_its_formula_says() -> None:
    s = shape((1024, 1664), (64, 4096), 4096, 32, batch=1)
    cost = get("attention_pooling:image").costs(Case(shape=s, design=QWEN_VL), "sdpa")
    projections = 2 * 1024 * 1664 * 4096 + (2 * 2 * 1024 + 2 * 2 * 256) * 4096**2
    assert cost.flops == projections + 4 * 256 * 1024 * 4096
    bias_of_the_projector = 4096
    assert cost.params == 256 * 4096 + 1664 * 4096 + 4 * (4096**2 + 4096) + 3 * 2 * 4096 + bias_of_the_projector
