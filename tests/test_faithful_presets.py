"""Every preset against its model's own code: results and gradients in fp64, parameters, and what a wrong table would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from fusionbench import presets
from fusionbench.presets import Part, Preset
from fusionbench.spec import Design
from tests import faithful_bert as bert
from tests import faithful_cross as cross
from tests import faithful_decoders as decoders
from tests import faithful_latents as latents
from tests import faithful_streams as streams
from tests.faithful import Official, assert_preset_faithful, costs, numel, part_of, real, strategy_of

SD = ["sd15:64x64", "sd15:32x32", "sd15:16x16", "sd15:8x8", "sd21:96x96", "sd21:48x48", "sd21:24x24", "sd21:12x12",
      "sdxl:64x64", "sdxl:32x32"]  # fmt: skip

# The official code of each part; a class that is not of transformers, diffusers or torch says that it is transcribed.
COMPARED: Mapping[str, type[Official]] = {
    "llava-1.5-7b": decoders.Llava,
    "llava-1.5-13b": decoders.Llava,
    "qwen2.5-vl-3b": decoders.Qwen25VL,
    "qwen2.5-vl-7b": decoders.Qwen25VL,
    "qwen2.5-vl-72b": decoders.Qwen25VL,
    "seed-qwen": streams.DescribedQwen,
    "qwen-vl:resampler": latents.QwenVLResampler,
    "qwen-vl:decoder": decoders.QwenVLDecoder,
    "fuyu-8b": decoders.Fuyu,
    "gpt2-unified": decoders.Gpt2Unified,
    "llama-unified": decoders.LlamaUnified,
    "llama-3.2-11b-vision": cross.Mllama,
    "openflamingo-3b:gated": cross.OpenFlamingoGated,
    "openflamingo-9b:resampler": latents.OpenFlamingoResampler,
    "openflamingo-9b:gated": cross.OpenFlamingoGated,
    "idefics-9b:resampler": latents.IdeficsResampler,
    "idefics-9b:gated": cross.IdeficsGated,
    "transformer-base": cross.TorchDecoder,
    "multimodal-transformer": cross.JointEncoderDecoder,
    **dict.fromkeys(SD, cross.UNetBlock),
    "sd3-medium": cross.SD3,
    "clip-vit-b32": streams.Clip,
    "clip-vit-l14": streams.Clip,
    "vilbert-base-6x6": bert.Vilbert,
    "lxmert": bert.Lxmert,
    "uniter-base": bert.Uniter,
    "uniter-large": bert.Uniter,
    "visualbert": bert.VisualBert,
    "vilt-b32": bert.Vilt,
    "blip2-qformer": bert.QFormer,
    "perceiver": latents.Perceiver,
    "mbt-base": streams.MBT,
    "mult": streams.MulT,
}

# Why a part has nothing to be compared with.
NO_CODE = {
    "flamingo-9b:resampler": "DeepMind has not published Flamingo's code; OpenFlamingo and IDEFICS are others' readings",
    "flamingo-9b:gated": "as its resampler",
}


def test_every_part_is_compared_or_has_a_reason_why_not() -> None:
    labels = [label for label, _ in presets.parts(presets.presets())]
    assert sorted([*COMPARED, *NO_CODE]) == sorted(labels)


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("label", COMPARED)
def test_a_preset_computes_what_its_model_does(label: str, impl: str) -> None:
    assert_preset_faithful(label, COMPARED[label], impl)


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("label", [label for label, official in COMPARED.items() if official.takes_masks])
def test_a_preset_hides_padding_as_its_model_does(label: str, impl: str) -> None:
    assert_preset_faithful(label, COMPARED[label], impl, padded=True)


@pytest.mark.parametrize("label", COMPARED)
def test_a_layer_of_real_size_has_as_many_parameters_as_its_models(label: str) -> None:
    case = real(label)
    with torch.device("meta"):
        ours, theirs = strategy_of(case).module(case, "sdpa"), COMPARED[label](case)
    assert numel(ours) == costs(case).params == numel(theirs) - sum(p.numel() for p in theirs.unused())


# --- a table that is wrong -----------------------------------------------------------------------------------------

NEAREST: Mapping[str, Mapping[Any, Any]] = {  # a value that is nearly right, for each field that is no size
    "strategy": dict.fromkeys((part_of(label).strategy for label in COMPARED), "cross_attention"),
    "projector": {"identity": "linear", "linear": "linear_norm", "linear_norm": "linear", "mlp": "linear",
                  "patch_merge": "mlp"},
    "type_embedding": {False: True, True: False},
    "norm": {"layer": "rms", "rms": "layer"},
    "post_norm": {False: True, True: False},
    "activation": {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "quick_gelu": "gelu", "relu": "relu2", "relu2": "relu",
                   "swiglu": "geglu", "geglu": "swiglu"},
    "qk_norm": {"": "rms", "layer": "rms", "rms": "layer"},
    "gated": {False: True, True: False},
    "qkv_bias": {False: True, True: False},
    "out_bias": {False: True, True: False},
    "ffn_bias": {False: True, True: False},
    "causal": {False: True, True: False},
    "rope": {0.0: 0.5, 0.5: 1.0, 1.0: 0.5},
    "projects": {"both": "image", "image": "both", "text": "both"},
    "eps": {1e-5: 1e-6, 1e-6: 1e-5, 1e-12: 1e-6},
}  # fmt: skip

NO_OWN_ATTENTION = {"causal", "rope"}
NO_FEED_FORWARD = {"activation", "ffn_bias"}
UNREAD = {  # the fields that decide nothing in a strategy, or in a part without layers
    "co_attention:shared_out": NO_OWN_ATTENTION | NO_FEED_FORWARD | {"norm"},
    "attention_pooling:image": NO_OWN_ATTENTION | NO_FEED_FORWARD,
    "gated_cross_attention": NO_OWN_ATTENTION | {"gated"},  # which it is in any case
    "perceiver_resampler": NO_OWN_ATTENTION,
    "vilbert": NO_OWN_ATTENTION,
    "late:similarity": set(NEAREST) - {"strategy", "projector", "type_embedding"},
}
EACH_DESIGN = {replace(part_of(label), name="", layers=0, batch=1, image=1, image_width=1, text=1, text_width=1,
                       width=1, heads=1): label for label in COMPARED}.values()  # fmt: skip


@pytest.mark.parametrize("label", EACH_DESIGN)
def test_a_wrong_field_is_noticed(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, unnoticed = part_of(label), set()
    for name, nearest in NEAREST.items():
        of = part.design if name in Design.__struct_fields__ else part
        changed = replace(of, **{name: nearest[getattr(of, name)]})
        wrong = replace(part, design=changed) if isinstance(changed, Design) else changed
        with monkeypatch.context() as patched:
            patched.setattr(presets, "presets", lambda wrong=wrong: table_with(label, part, wrong))
            if passes(label):
                unnoticed.add(name)
    assert unnoticed == UNREAD.get(part.strategy, set()) | ({"projects"} if part.projector == "identity" else set())


TABLE = presets.presets()


def table_with(label: str, part: Part, wrong: Part) -> dict[str, Preset]:
    own = label.partition(":")[0]
    parts = tuple(wrong if p == part else p for p in TABLE[own].part)
    return {**TABLE, own: replace(TABLE[own], part=parts)}


def passes(label: str) -> bool:
    try:
        assert_preset_faithful(label, COMPARED[label])
    except Exception:  # whatever fails, the mistake was noticed
        return False
    return True
