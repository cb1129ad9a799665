"""bottleneck against the loop of the authors' code (google-research/scenic, projects/mbt/model.py), and its cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fusionbench.registry import get
from fusionbench.spec import PLAIN, Case, Design, Shape
from tests.faithful import Parameters, assert_faithful

# flax's GELU is the approximation by tanh, and its LayerNorm has this eps
MBT = Design(activation="gelu_tanh", eps=1e-6)


class EncoderBlock(nn.Module):
    """scenic's, without its dropout: pre-norm, multi-head self-attention, two Dense layers."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.norm1(inputs)
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = self.out((weights @ v).transpose(1, 2).flatten(2)) + inputs
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """scenic's loop over fused layers with ``use_bottleneck`` and without ``share_encoder``."""

    def __init__(self, case: Case, n: int) -> None:
        super().__init__()
        s = case.shape
        self.bottleneck = nn.Parameter(torch.zeros(1, n, s.width))
        self.layers = nn.ModuleList(
            nn.ModuleDict({m: EncoderBlock(s.width, s.heads, s.hidden) for m in ("rgb", "spectrogram")})
            for _ in range(s.depth)
        )

    def forward(self, rgb: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        x = {"rgb": rgb, "spectrogram": spectrogram}
        bottleneck = self.bottleneck.tile(rgb.shape[0], 1, 1)
        for encoders in self.layers:
            bottle = []
            for modality in x:
                t_mod = x[modality].shape[1]
                in_mod = torch.cat([x[modality], bottleneck], dim=1)
                out_mod = encoders[modality](in_mod)
                x[modality] = out_mod[:, :t_mod]
                bottle.append(out_mod[:, t_mod:])
            bottleneck = torch.stack(bottle, dim=-1).mean(dim=-1)
        return x["spectrogram"], x["rgb"]


def same(theirs: Encoder) -> Parameters:
    named = dict(theirs.named_parameters())
    found = {"bottlenecks": named["bottleneck"]}
    for i in range(len(theirs.layers)):
        for ours, official in (("image", "rgb"), ("text", "spectrogram")):
            for part, name in {
                "attention.norm": "norm1",
                "attention.attention.q": "query",
                "attention.attention.k": "key",
                "attention.attention.v": "value",
                "attention.attention.out": "out",
                "ffn.norm": "norm2",
                "ffn.ffn.up": "mlp.0",
                "ffn.ffn.down": "mlp.2",
            }.items():
                for kind in ("weight", "bias"):
                    found[f"{ours}_layers.{i}.{part}.{kind}"] = named[f"layers.{i}.{official}.{name}.{kind}"]
    return found


@pytest.mark.parametrize(("latents", "n"), [(0, 4), (3, 3)])
@pytest.mark.parametrize("depth", [1, 3])
def test_layers_are_those_of_the_authors_loop(latents: int, n: int, depth: int) -> None:
    shape = Shape(batch=2, image=7, text=5, image_width=24, text_width=24, width=24, heads=3, depth=depth, hidden=20)
    design = Design(activation="gelu_tanh", eps=1e-6, latents=latents)
    case = Case(shape=shape, projector="identity", design=design)
    ours, theirs = get("bottleneck").module(case, "sdpa"), Encoder(case, n)
    inputs = [torch.randn(2, tokens, 24, dtype=torch.float64) for tokens in (7, 5)]
    assert_faithful(ours, theirs, same(theirs), ours, theirs, inputs)


def base(depth: int, design: Design) -> Case:
    shape = Shape(batch=1, image=1568, text=400, image_width=768, text_width=768, width=768, heads=12, depth=depth)
    return Case(shape=shape, projector="identity", design=design)


def test_a_fused_layer_of_mbt_base_saves_nine_percent_of_full_attention() -> None:
    bottleneck, full = (get(n).costs(base(1, MBT), "sdpa") for n in ("bottleneck", "concat_attention"))
    assert (round(bottleneck.flops / 1e9, 2), round(full.flops / 1e9, 2)) == (36.06, 39.76)
    assert bottleneck.params == 2 * full.params + 4 * 768


def test_the_four_fused_layers_of_mbt_base_have_the_parameters_of_eight_encoder_blocks() -> None:
    with torch.device("meta"):
        module, block = get("bottleneck").module(base(4, MBT), "sdpa"), EncoderBlock(768, 12, 3072)
    count = sum(p.numel() for p in module.parameters())
    assert count == get("bottleneck").costs(base(4, MBT), "sdpa").params
    assert count == 8 * sum(p.numel() for p in block.parameters()) + 4 * 768


@pytest.mark.parametrize(("depth", "reached"), [(1, False), (2, True)])
def test_it_takes_two_layers_for_one_modality_to_reach_the_other(depth: int, reached: bool) -> None:
    shape = Shape(batch=2, image=7, text=5, image_width=12, text_width=12, width=12, heads=3, depth=depth)
    torch.manual_seed(0)
    module = get("bottleneck").module(Case(shape=shape, projector="identity"), "sdpa")
    image, text = torch.randn(2, 7, 12, requires_grad=True), torch.randn(2, 5, 12)
    output, _ = module(image, text)
    (gradient,) = torch.autograd.grad(output.sin().sum(), image, allow_unused=True, materialize_grads=True)
    assert bool(gradient.any()) is reached


def test_a_modality_alone_goes_on_with_the_bottlenecks() -> None:
    shape = Shape(batch=2, image=7, text=5, image_width=12, text_width=12, width=12, heads=3, depth=2)
    torch.manual_seed(0)
    module = get("bottleneck").module(Case(shape=shape, projector="identity"), "sdpa").double()
    image = torch.randn(2, 7, 12, dtype=torch.float64)
    x = torch.cat([image, module.bottlenecks.expand(2, -1, -1)], dim=1)
    for layer in module.image_layers:
        x = layer(x)
    text, found = module(image, None)
    assert text is None
    torch.testing.assert_close(found, x[:, :7])


POSITIONS = "bottleneck tokens have no position, which a causal or rotary design needs"


@pytest.mark.parametrize(
    ("design", "reason"),
    [
        (Design(causal=True), f"{POSITIONS} (causal=1)"),
        (Design(rope=0.5), f"{POSITIONS} (rope=0.5)"),
        (Design(image_hidden=9), "bottleneck has one feed-forward width for both modalities (image_hidden=9)"),
        (PLAIN, None),
    ],
)
def test_a_design_that_bottlenecks_cannot_follow_is_refused(design: Design, reason: str | None) -> None:
    assert get("bottleneck").refusal(base(1, design)) == reason
