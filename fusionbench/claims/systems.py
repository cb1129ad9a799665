"""Claims about published models: held against their code where transformers is installed, else against their
published sizes, which are written down here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import Attention, Layer
from ..ledger import Figure
from ..registry import get
from ..spec import Case, Shape
from .check import Answer, Check, Lab, judged, runs, times
from .costs import case

# Qwen2.5-VL 7B: 2 × 2 patches of width 1280 are merged into one token of width 3584.
QWEN_VISION, QWEN_MERGED, QWEN_TEXT = 1280, 4 * 1280, 3584
# Llama 3.2 11B Vision: 8 of its 40 layers ask an image of 1,601 tokens, K and V have 8 heads of 128.
LLAMA_CROSS = (3, 8, 13, 18, 23, 28, 33, 38)
LLAMA_LAYERS, LLAMA_WIDTH, LLAMA_KV, LLAMA_FFN, LLAMA_IMAGE, LLAMA_TEXT = 40, 4096, 1024, 14336, 1601, 64

_FROM_CODE = "read from the model's code in transformers {}"
_FROM_PAPER = "from the published sizes; with the package transformers the model's own code is read"


def _transformers(model: str) -> Any:
    """The module that holds a model's code, or None where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def _note() -> str:
    if importlib.util.find_spec("transformers") is None:
        return _FROM_PAPER
    return _FROM_CODE.format(importlib.import_module("transformers").__version__)


def _crossing(modules: Sequence[nn.Module]) -> list[int]:
    """Which of these are cross-attention by the name of their class."""
    return [number for number, module in enumerate(modules) if "cross" in type(module).__name__.lower()]


def qwen(lab: Lab) -> Answer:
    """C15: what stands between Qwen2.5-VL's vision encoder and its language model."""
    claimed = nn.Sequential(nn.Linear(768, 4096), nn.LayerNorm(4096))
    merger, modules = _qwen()
    linears = [(m.in_features, m.out_features) for m in merger.modules() if isinstance(m, nn.Linear)]
    crossing = _crossing(modules)
    chain = ", then ".join(f"Linear {i}→{o}" for i, o in linears)
    return Answer(
        judged([(768, 4096) in linears, bool(crossing)]),
        (
            Figure(what="parameters of the projector as claimed", value=_parameters(claimed)),
            Figure(what="parameters of the 7B model's patch merger", value=_parameters(merger)),
            Figure(what="modules of the model that are cross-attention", value=len(crossing),
                   unit=f"of {len(modules)}"),
        ),
        f"the 7B model merges 2 × 2 patches ({chain}) and puts the image tokens into the text stream: concatenation",
        _note(),
    )  # fmt: skip


def _qwen() -> tuple[nn.Module, list[nn.Module]]:
    """The merger, and all modules of the model."""
    code = _transformers("qwen2_5_vl")
    with torch.device("meta"):
        if code is None:
            first, second = nn.Linear(QWEN_MERGED, QWEN_MERGED), nn.Linear(QWEN_MERGED, QWEN_TEXT)
            merger = nn.Sequential(nn.RMSNorm(QWEN_VISION), first, nn.GELU(), second)
            return merger, list(merger.modules())
        vision = {"hidden_size": QWEN_VISION, "intermediate_size": 3420, "out_hidden_size": QWEN_TEXT}
        text = {"hidden_size": QWEN_TEXT, "num_attention_heads": 28, "num_key_value_heads": 4,
                "intermediate_size": 18944, "num_hidden_layers": 28}  # fmt: skip
        model = code.Qwen2_5_VLModel(code.Qwen2_5_VLConfig(vision_config=vision, text_config=text))
    return model.visual.merger, list(model.modules())


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def vilbert(lab: Lab) -> Answer:
    """C16: image regions of width 1024 and words of width 768, each with weights of its own."""
    image_width, text_width = 1024, 768
    shape = Shape(batch=1, image=6, text=4, image_width=image_width, text_width=text_width, width=1024, heads=8)
    of = Case(shape=shape, projector="identity")
    image, text = torch.randn(1, 6, image_width), torch.randn(1, 4, text_width)
    shared_layer = Layer(of, image_width, "eager")
    takes_both = runs(lambda: shared_layer(image)) and runs(lambda: shared_layer(text))
    streams = get("vilbert").module(of, "eager")
    matrices = [p for p in streams.parameters() if p.dim() == 2]
    reached = [_reached(output, matrices) for output in streams(image, text)]
    shared = reached[0] & reached[1]
    return Answer(
        judged([takes_both, bool(shared)]),
        (Figure(what="weight matrices that both streams' outputs depend on", value=len(shared),
                unit=f"of {len(matrices)}"),),
        f"two streams of widths {image_width} and {text_width} that attend to each other, with separate weights",
        "the layer is the strategy vilbert, held against a transcription of the authors' code",
    )  # fmt: skip


def _reached(output: Tensor, parameters: Sequence[nn.Parameter]) -> set[int]:
    """The numbers of the parameters that ``output`` depends on."""
    gradients = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
    return {number for number, gradient in enumerate(gradients) if gradient is not None}


def uniter(lab: Lab) -> Answer:
    """C17: whether any attention of the 12 layers is called with a context that is not its own stream."""
    of = case(36, 20, 768, 12, depth=12)
    with torch.device("meta"):
        module = get("concat_attention").module(of, "eager")
        bert = nn.TransformerEncoderLayer(768, 12, 3072)
        image, text = torch.empty(1, 36, 768), torch.empty(1, 20, 768)
    across: list[bool] = []

    def watch(attention: nn.Module, args: tuple[Tensor, ...]) -> None:
        across.append(args[0] is not args[1])

    for attention in (m for m in module.modules() if isinstance(m, Attention)):
        attention.register_forward_pre_hook(watch)
    module(image, text)
    layer = _parameters(module) // 12
    return Answer(
        judged([any(across)]),
        (
            Figure(what="attention calls with a context of their own", value=sum(across), unit=f"of {len(across)}"),
            Figure(what="parameters of one layer", value=layer),
            times("parameters of one layer over those of a BERT layer", layer / _parameters(bert)),
            times("the same with cross-attention added", (layer + 4 * 768**2 + 4 * 768) / _parameters(bert)),
        ),
        "one stream: image and text are concatenated, and self-attention is all there is",
        "the module is fusionbench's concat_attention, built after the paper (arXiv 1909.11740)",
    )


def llama(lab: Lab) -> Answer:
    """C26: the text model is a decoder that image tokens can be put into; the Vision model is the other design."""
    crossing = _llama()
    vision = crossing["Llama 3.2 Vision"]
    unified = LLAMA_LAYERS - len(vision)
    design = unified * _self_layer(LLAMA_TEXT) + len(vision) * _cross_layer(LLAMA_TEXT, LLAMA_IMAGE)
    concatenated = unified * _self_layer(LLAMA_TEXT + LLAMA_IMAGE)
    fits = [name for name, layers in crossing.items() if not layers]
    return Answer(
        judged(not layers for layers in crossing.values()),
        (
            *(Figure(what=f"layers with cross-attention, {name}", value=len(x)) for name, x in crossing.items()),
            Figure(what="forward FLOPs of Llama 3.2 Vision 11B, 64 text and 1,601 image tokens", value=design / 1e12,
                   unit="TFLOP"),
            times(f"its {unified} self-attention layers over all tokens, over that", concatenated / design),
        ),
        f"of {' and '.join(fits)}; Llama 3.2 Vision attends to the image in layers {', '.join(map(str, vision))}",
        _note(),
    )  # fmt: skip


def _llama() -> dict[str, list[int]]:
    """Which layers of either model are cross-attention."""
    vision, text = _transformers("mllama"), _transformers("llama")
    if vision is None or text is None:
        return {"Llama 3.2": [], "Llama 3.2 Vision": list(LLAMA_CROSS)}
    with torch.device("meta"):
        models = {"Llama 3.2": text.LlamaModel(text.LlamaConfig()),
                  "Llama 3.2 Vision": vision.MllamaTextModel(vision.MllamaTextConfig())}  # fmt: skip
    return {name: _crossing(list(model.layers)) for name, model in models.items()}


def _self_layer(tokens: int) -> int:
    """Forward FLOPs of a layer with grouped K and V and a gated FFN; no discount for causality."""
    projections = 4 * LLAMA_WIDTH**2 + 4 * LLAMA_WIDTH * LLAMA_KV + 6 * LLAMA_WIDTH * LLAMA_FFN
    return tokens * projections + 4 * tokens**2 * LLAMA_WIDTH


def _cross_layer(text: int, image: int) -> int:
    asking = text * (4 * LLAMA_WIDTH**2 + 6 * LLAMA_WIDTH * LLAMA_FFN)
    return asking + 4 * image * LLAMA_WIDTH * LLAMA_KV + 4 * text * image * LLAMA_WIDTH


CHECKS: Mapping[str, Check] = {"C15": qwen, "C16": vilbert, "C17": uniter, "C26": llama}
