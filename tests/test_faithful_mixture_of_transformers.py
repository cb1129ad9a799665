"""mixture_of_transformers against a layer that routes tokens by modality, and against concat_attention."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.inputs import make_inputs
from fusionbench.registry import get
from fusionbench.spec import PLAIN, Case, Design, Shape
from tests.faithful import Parameters, assert_faithful

SHAPE = Shape(batch=2, image=7, text=5, image_width=12, text_width=12, width=24, heads=4, depth=2, hidden=20)
CHAMELEON = Design(
    norm="rms", activation="swiglu", qk_norm="rms", qkv_bias=False, out_bias=False, ffn_bias=False, causal=True
)
LLAMA = Design(
    norm="rms", activation="swiglu", kv_heads=2, qkv_bias=False, out_bias=False, ffn_bias=False, causal=True, rope=1.0
)


class Untied(nn.Module):
    """A pre-norm layer over one sequence whose tokens are routed to the weights of their modality.

    Written after facebookresearch/Mixture-of-Transformers, simple_ModalityUntied{Attention,FeedForward}.py: gather
    by ``modality`` [B, L], Linear, merge. There each norm follows its sub-layer; here it precedes it.
    """

    def __init__(self, width: int, inner: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, head_dim = heads, inner // heads

        def experts(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(2))

        def norms(width: int) -> nn.ModuleList:
            return nn.ModuleList(nn.RMSNorm(width, eps=1e-5) for _ in range(2))

        self.attention_norm, self.ffn_norm = norms(width), norms(width)
        self.q_norm, self.k_norm = norms(head_dim), norms(head_dim)
        self.wq, self.wk, self.wv = (experts(width, inner) for _ in range(3))
        self.wo = experts(inner, width)
        self.w1, self.w3, self.w2 = experts(width, hidden), experts(width, hidden), experts(hidden, width)

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        def route(layers: nn.ModuleList, x: Tensor) -> Tensor:
            parts = [layer(x[modality == i]) for i, layer in enumerate(layers)]
            merged = parts[0].new_zeros(*modality.shape, *parts[0].shape[1:])
            for i, part in enumerate(parts):
                merged = merged.index_put((modality == i).nonzero(as_tuple=True), part)
            return merged

        normed = route(self.attention_norm, x)
        q, k, v = (route(w, normed).unflatten(-1, (self.heads, -1)) for w in (self.wq, self.wk, self.wv))
        q, k, v = route(self.q_norm, q).transpose(1, 2), route(self.k_norm, k).transpose(1, 2), v.transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + route(self.wo, attended)
        normed = route(self.ffn_norm, x)
        return x + route(self.w2, F.silu(route(self.w1, normed)) * route(self.w3, normed))


class Stack(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        s = case.shape
        self.layers = nn.ModuleList(Untied(12, s.width, s.heads, s.hidden) for _ in range(s.depth))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([image, text], dim=1)
        modality = (torch.arange(x.shape[1]) >= image.shape[1]).long().expand(x.shape[0], -1)
        for layer in self.layers:
            x = layer(x, modality)
        return x[:, image.shape[1] :], x[:, : image.shape[1]]


def same(theirs: Stack) -> Parameters:
    found: dict[str, list[Tensor]] = {}
    named = dict(theirs.named_parameters())
    for layer, (i, modality) in itertools.product(range(len(theirs.layers)), enumerate(("image", "text"))):
        for ours, official in {
            f"norms.{modality}": ["attention_norm"],
            f"attention.projections.{modality}.q": ["wq"],
            f"attention.projections.{modality}.k": ["wk"],
            f"attention.projections.{modality}.v": ["wv"],
            f"attention.projections.{modality}.q_norm.norm": ["q_norm"],
            f"attention.projections.{modality}.k_norm.norm": ["k_norm"],
            f"attention.out.{modality}": ["wo"],
            f"ffns.{modality}.norm": ["ffn_norm"],
            f"ffns.{modality}.ffn.up": ["w3", "w1"],  # value and gate in one product
            f"ffns.{modality}.ffn.down": ["w2"],
        }.items():
            found[f"layers.{layer}.{ours}.weight"] = [named[f"layers.{layer}.{n}.{i}.weight"] for n in official]
    return found


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_each_token_goes_through_the_weights_of_its_modality_and_sees_all_tokens(impl: str) -> None:
    case = Case(shape=SHAPE, projector="identity", design=CHAMELEON)
    ours, theirs = get("mixture_of_transformers").module(case, impl), Stack(case)
    inputs = [torch.randn(2, tokens, 12, dtype=torch.float64) for tokens in (7, 5)]
    assert_faithful(ours, theirs, same(theirs), ours, theirs, inputs)


@pytest.mark.parametrize("design", [PLAIN, LLAMA, Design(post_norm=True, gated=True)], ids=lambda d: d.key or "plain")
@pytest.mark.parametrize("padding", [0.0, 0.6])
def test_with_equal_weights_for_both_modalities_it_is_concat_attention(design: Design, padding: float) -> None:
    case = Case(shape=SHAPE, padding=padding, design=design)
    torch.manual_seed(0)
    untied, joint = (
        get(name).module(case, "sdpa").double() for name in ("mixture_of_transformers", "concat_attention")
    )
    weights = {}
    for name, weight in joint.state_dict().items():
        for modality in ("image", "text"):
            moved = name.replace("encoder.", "").replace("attention.norm", f"norms.{modality}")
            moved = moved.replace("attention.gate", f"gates.{modality}").replace("ffn.", f"ffns.{modality}.", 1)
            moved = moved.replace("attention.attention.out", f"attention.out.{modality}")
            moved = moved.replace("attention.attention.turn", "attention.turn")
            weights[moved.replace("attention.attention", f"attention.projections.{modality}")] = weight
    untied.load_state_dict(weights)
    given = make_inputs(get("concat_attention"), case, 1, torch.float64, "cpu")
    text, image = untied(*given.args())
    torch.testing.assert_close(torch.cat([image, text], dim=1), joint(*given.args()))


@pytest.mark.parametrize("design", [PLAIN, LLAMA], ids=lambda d: d.key or "plain")
def test_it_costs_concat_attentions_flops_and_twice_its_parameters(design: Design) -> None:
    shape = Shape(batch=2, image=576, text=64, image_width=1024, text_width=1024, width=1024, heads=16, depth=24)
    case = Case(shape=shape, projector="identity", design=design)
    untied, joint = (get(name).costs(case, "sdpa") for name in ("mixture_of_transformers", "concat_attention"))
    assert (untied.flops, untied.backward_flops) == (joint.flops, joint.backward_flops)
    assert untied.params == 2 * joint.params


def test_streams_may_differ_in_width_and_in_hidden_units() -> None:
    shape = Shape(batch=2, image=7, text=5, image_width=20, text_width=12, width=24, heads=4, depth=2)
    case = Case(shape=shape, projector="identity", design=Design(image_hidden=9), mode="fwd_bwd")
    entry = get("mixture_of_transformers")
    module, given = entry.module(case, "sdpa"), make_inputs(entry, case, 0, torch.float32, "cpu")
    text, image = module(*given.args())
    assert (text.shape, image.shape) == ((2, 5, 12), (2, 7, 20))
    hidden = [module.layers[0].ffns[name].ffn.up.out_features for name in ("image", "text")]
    assert hidden == [9, 48]
    assert entry.costs(case, "sdpa").params == sum(p.numel() for p in module.parameters())
