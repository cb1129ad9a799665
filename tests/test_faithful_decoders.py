"""One stream through a language model, beside the official code: LLaVA, Qwen2.5-VL, Fuyu, GPT-2."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from fusionbench.blocks import encoder_cost
from fusionbench.registry import get
from fusionbench.spec import Case, Design
from fusionbench.streams import projector_cost
from tests.faithful import Parameters, assert_faithful, exact_norms
from tests.faithful_parts import inputs, masks, numel, padded, pairs, real, shape, thirds, unfuse

LLAMA = Design(
    norm="rms", activation="swiglu", qkv_bias=False, out_bias=False, ffn_bias=False, causal=True, rope=1.0,
    projects="image",
)  # fmt: skip
QWEN = Design(
    norm="rms", activation="swiglu", kv_heads=2, out_bias=False, ffn_bias=False, causal=True, rope=1.0,
    projects="image", eps=1e-6,
)  # fmt: skip
PERSIMMON = Design(activation="relu2", qk_norm="layer", causal=True, rope=0.5, projects="image")
GPT2 = Design(activation="gelu_tanh", causal=True, projects="image")


def llama_layer(ours: str, theirs: nn.Module) -> dict[str, Tensor | list[Tensor]]:
    """Llama's names, which Qwen's decoder has too; our gated product has the values above the gates."""
    attention, mlp = theirs.get_submodule("self_attn"), theirs.get_submodule("mlp")
    same: dict[str, Tensor | list[Tensor]] = {}
    for name, other in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
        same |= pairs(f"{ours}.attention.attention.{name}", attention.get_submodule(other))
    same |= pairs(f"{ours}.attention.norm", theirs.get_submodule("input_layernorm"))
    same |= pairs(f"{ours}.ffn.norm", theirs.get_submodule("post_attention_layernorm"))
    same[f"{ours}.ffn.ffn.up.weight"] = [mlp.get_parameter("up_proj.weight"), mlp.get_parameter("gate_proj.weight")]
    return same | pairs(f"{ours}.ffn.ffn.down", mlp.get_submodule("down_proj"))


def assert_faithful_stream(
    case: Case,
    projector: nn.Module,
    layers: nn.ModuleList,
    project: Parameters,
    layer: Callable[[str, nn.Module], Parameters],
    pad: bool,
) -> None:
    """concat_attention is ``projector`` on the image, ``cat``, and the decoder's ``layers``.

    Positions are given to the official layers as ours has them: both tables are fp32, and differ in the last bit.
    """
    ours, theirs = get("concat_attention").module(case, "sdpa"), nn.ModuleList([projector, *layers])
    same = dict(project)
    for i, official in enumerate(exact_norms(layers).children()):
        same |= layer(f"encoder.layers.{i}", official)
    image_mask, text_mask = masks(case) if pad else (None, None)
    seen = None  # [B, 1, L, L], True at keys that a query sees
    if image_mask is not None and text_mask is not None:
        keys = torch.cat([image_mask, text_mask], dim=1)
        seen = keys[:, None, None] & torch.ones(keys.shape[1], keys.shape[1], dtype=torch.bool).tril()

    def call_theirs(image: Tensor, text: Tensor) -> Tensor:
        stream = torch.cat([projector(image).view(text.shape[0], -1, text.shape[-1]), text], dim=1)
        turn = ours.encoder.layers[0].attention.attention.turn
        placed = {} if not case.design.rope else {"position_embeddings": (turn.cos[None], turn.sin[None])}
        for official in layers:
            stream = official(stream, attention_mask=seen, **placed)
        return stream

    assert_faithful(ours, theirs, same, lambda i, t: ours(i, t, image_mask, text_mask), call_theirs, inputs(case))


@padded
@pytest.mark.parametrize("groups", [3, 1], ids=["llava-1.5", "grouped"])
def test_a_projector_and_concat_attention_are_llava(groups: int, pad: bool) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    text = transformers.LlamaConfig(
        hidden_size=24, intermediate_size=40, num_attention_heads=3, num_key_value_heads=groups, rms_norm_eps=1e-5,
        attn_implementation="sdpa",  # eager's softmax is in fp32
    )  # fmt: skip
    vision = {"model_type": "clip_vision_model", "hidden_size": 20, "num_attention_heads": 2}
    # a copy of text's config: LlavaConfig takes its attention's implementation away
    config = transformers.LlavaConfig(text_config=text.to_dict(), vision_config=vision)
    projector = LlavaMultiModalProjector(config)
    layers = nn.ModuleList(LlamaDecoderLayer(text, i) for i in range(2))
    design = LLAMA if groups == 3 else replace(LLAMA, kv_heads=groups)
    case = Case(shape=shape((9, 20), (7, 24), 24, heads=3, hidden=40), projector="mlp", design=design)
    project = pairs("project.image.layers.0", projector.linear_1) | pairs("project.image.layers.2", projector.linear_2)
    assert_faithful_stream(case, projector, layers, project, llama_layer, pad)


@padded
def test_patch_merge_and_concat_attention_are_qwen_2_5_vl(pad: bool) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLPatchMerger

    # of the three position axes each token has the same position here: the layer takes any table
    config = transformers.Qwen2_5_VLTextConfig(
        hidden_size=24, intermediate_size=40, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-6,
        attn_implementation="sdpa",
    )  # fmt: skip
    merger = exact_norms(Qwen2_5_VLPatchMerger(dim=24, context_dim=10))
    layers = nn.ModuleList(Qwen2_5_VLDecoderLayer(config, i) for i in range(2))
    case = Case(shape=shape((5, 10), (7, 24), 24, heads=6, hidden=40), projector="patch_merge", design=QWEN)
    mlp = merger.get_submodule("mlp")
    project = pairs("project.image.layers.0.norm", merger.get_submodule("ln_q"))
    for i in (0, 2):
        project |= pairs(f"project.image.layers.0.mlp.{i}", mlp.get_submodule(str(i)))
    assert_faithful_stream(case, merger, layers, project, llama_layer, pad)


def persimmon_layer(ours: str, theirs: nn.Module) -> dict[str, Tensor]:
    """Persimmon makes queries, keys and values in one product, each head's three together."""
    attention, mlp = theirs.get_submodule("self_attn"), theirs.get_submodule("mlp")
    heads = attention.num_heads
    fused = attention.get_submodule("query_key_value")
    same = pairs(f"{ours}.attention.attention.out", attention.get_submodule("dense"))
    for kind in ("weight", "bias"):
        parts = unfuse(
            fused,
            kind,
            lambda whole: [x.flatten(0, 1) for x in whole.unflatten(0, (heads, 3, -1)).unbind(1)],
            lambda *qkv: torch.stack([x.unflatten(0, (heads, -1)) for x in qkv], dim=1).flatten(0, 2),
        )
        same |= {f"{ours}.attention.attention.{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    for name in "qk":
        same |= pairs(f"{ours}.attention.attention.{name}_norm.norm", attention.get_submodule(f"{name}_layernorm"))
    same |= pairs(f"{ours}.attention.norm", theirs.get_submodule("input_layernorm"))
    same |= pairs(f"{ours}.ffn.norm", theirs.get_submodule("post_attention_layernorm"))
    same |= pairs(f"{ours}.ffn.ffn.up", mlp.get_submodule("dense_h_to_4h"))
    return same | pairs(f"{ours}.ffn.ffn.down", mlp.get_submodule("dense_4h_to_h"))


def persimmon_config(**sizes: int):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    return transformers.PersimmonConfig(rope_parameters=rope, attn_implementation="sdpa", **sizes)


@padded
def test_linear_patches_and_concat_attention_are_fuyu(pad: bool) -> None:
    transformers = pytest.importorskip("transformers")
    text = persimmon_config(
        hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2, vocab_size=64, pad_token_id=0
    )
    model = transformers.FuyuModel(transformers.FuyuConfig(text_config=text.to_dict(), patch_size=2, vocab_size=64))
    language = model.language_model
    assert (text.hidden_act, text.layer_norm_eps) == ("relu2", PERSIMMON.eps)
    language.config._attn_implementation = "sdpa"  # which FuyuConfig has taken away
    case = Case(shape=shape((9, 12), (7, 24), 24, heads=3, hidden=40), projector="linear", design=PERSIMMON)
    project = pairs("project.image.layers.0", model.vision_embed_tokens)
    assert_faithful_stream(case, model.vision_embed_tokens, language.layers, project, persimmon_layer, pad)


def gpt2_layer(ours: str, theirs: nn.Module) -> dict[str, Tensor]:
    """GPT-2's products have their weights transposed, and make queries, keys and values in one."""
    c_attn = theirs.get_submodule("attn.c_attn")
    weights = unfuse(c_attn, "weight", lambda w: w.T.chunk(3), lambda *parts: torch.cat(parts).T)
    biases = thirds(c_attn, "bias")
    same: dict[str, Tensor] = {}
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        same |= {f"{ours}.attention.attention.{name}.weight": weight, f"{ours}.attention.attention.{name}.bias": bias}
    products = (("attention.attention.out", "attn.c_proj"), ("ffn.ffn.up", "mlp.c_fc"), ("ffn.ffn.down", "mlp.c_proj"))
    for own, other in products:
        conv = theirs.get_submodule(other)
        (same[f"{ours}.{own}.weight"],) = unfuse(conv, "weight", lambda w: (w.T,), lambda part: part.T)
        same[f"{ours}.{own}.bias"] = conv.get_parameter("bias")
    same |= pairs(f"{ours}.attention.norm", theirs.get_submodule("ln_1"))
    return same | pairs(f"{ours}.ffn.norm", theirs.get_submodule("ln_2"))


@padded
def test_a_linear_projector_and_concat_attention_are_a_unified_gpt2(pad: bool) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = transformers.GPT2Config(n_embd=24, n_head=3, attn_implementation="sdpa")
    assert (config.activation_function, config.layer_norm_epsilon) == ("gelu_new", GPT2.eps)
    projector, layers = nn.Linear(10, 24), nn.ModuleList(GPT2Block(config, i) for i in range(2))
    case = Case(shape=shape((9, 10), (7, 24), 24, heads=3), projector="linear", design=GPT2)
    project = pairs("project.image.layers.0", projector)
    assert_faithful_stream(case, projector, layers, project, gpt2_layer, pad)


@pytest.mark.parametrize("model", ["llama", "persimmon"])
def test_our_rotary_table_is_the_official_one(model: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_attention_heads": 3}
    if model == "llama":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Official

        config, design = transformers.LlamaConfig(**sizes), LLAMA
    else:
        from transformers.models.persimmon.modeling_persimmon import PersimmonRotaryEmbedding as Official

        config, design = persimmon_config(**sizes), PERSIMMON
    case = Case(shape=shape((9, 20), (7, 24), 24, heads=3), design=design)
    cos, sin = Official(config)(torch.zeros(1), torch.arange(16)[None])
    turn = get("concat_attention").module(case, "sdpa").encoder.layers[0].attention.attention.turn
    torch.testing.assert_close((turn.cos, turn.sin), (cos[0], sin[0]), rtol=0, atol=1e-5)


LLAVA_7B = real(shape((576, 1024), (64, 4096), 4096, heads=32, depth=32, hidden=11008), "mlp", LLAMA)


def test_the_products_and_parameters_of_llava() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    projector = projector_cost("mlp", 576, 1024, 4096, LLAVA_7B)
    assert (round(projector.flops / 1e9, 2), projector.params) == (24.16, 20_979_712)
    stack = encoder_cost(LLAVA_7B, 640, 4096, "sdpa")
    assert (round(stack.flops / 32e9, 2), round(stack.flops / 1e12, 3)) == (265.75, 8.504)
    assert round(encoder_cost(LLAVA_7B, 64, 4096, "sdpa").flops / 1e12, 3) == 0.831
    whole = get("concat_attention").costs(LLAVA_7B, "sdpa")
    assert (whole.flops, whole.params) == (projector.flops + stack.flops, projector.params + stack.params)
    with torch.device("meta"):
        config = transformers.LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
        assert stack.params == 32 * numel(LlamaDecoderLayer(config, 0))


@pytest.mark.parametrize(
    ("width", "heads", "groups", "units"), [(3584, 28, 4, 18944), (8192, 64, 8, 29568)], ids=["7b", "72b"]
)
def test_the_parameters_of_qwen_2_5_vl(width: int, heads: int, groups: int, units: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLPatchMerger

    sizes = shape((256, 1280), (64, width), width, heads, depth=1, hidden=units)
    case = real(sizes, "patch_merge", replace(QWEN, kv_heads=groups))
    config = transformers.Qwen2_5_VLTextConfig(
        hidden_size=width, intermediate_size=units, num_attention_heads=heads, num_key_value_heads=groups
    )
    with torch.device("meta"):
        merger, layer = numel(Qwen2_5_VLPatchMerger(width, 1280)), numel(Qwen2_5_VLDecoderLayer(config, 0))
    assert merger == 44_574_464 or width != 3584
    assert projector_cost("patch_merge", 256, 1280, width, case).params == merger
    assert get("concat_attention").costs(case, "sdpa").params == merger + layer


def test_the_parameters_of_fuyu_and_gpt2() -> None:
    pytest.importorskip("transformers")
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block
    from transformers.models.persimmon.modeling_persimmon import PersimmonDecoderLayer

    fuyu = real(shape((300, 2700), (64, 4096), 4096, heads=64, depth=1), "linear", PERSIMMON)
    gpt2 = real(shape((197, 768), (64, 768), 768, heads=12, depth=1), "linear", GPT2)
    with torch.device("meta"):
        persimmon = numel(PersimmonDecoderLayer(persimmon_config(), 0))
        block = numel(GPT2Block(GPT2Config(), 0))
    assert get("concat_attention").costs(fuyu, "sdpa").params == 2701 * 4096 + persimmon
    assert get("concat_attention").costs(gpt2, "sdpa").params == 769 * 768 + block
