"""The small parts of a layer as the case's design wants them: norms, positions, gates, feed-forward; with costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cost import Cost, copy, layer_norm, linear, rms_norm
from .spec import Activation, Case


def norm(width: int, case: Case) -> nn.Module:
    """The normalisation of the case's design."""
    kind: type[nn.LayerNorm] | type[nn.RMSNorm] = nn.RMSNorm if case.design.norm == "rms" else nn.LayerNorm
    return kind(width, eps=case.design.eps)


def norm_cost(rows: int, width: int, case: Case) -> Cost:
    return rms_norm(rows, width) if case.design.norm == "rms" else layer_norm(rows, width)


class HeadNorm(nn.Module):
    """The norm of each head's queries or keys, [..., d] -> same, as the design's ``qk_norm`` says."""

    def __init__(self, head_dim: int, case: Case) -> None:
        super().__init__()
        kinds: dict[str, Callable[[], nn.Module]] = {
            "": nn.Identity,
            "layer": lambda: nn.LayerNorm(head_dim, eps=case.design.eps),
            "rms": lambda: nn.RMSNorm(head_dim, eps=case.design.eps),
        }
        self.norm = kinds[case.design.qk_norm]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


def head_norm_cost(batch: int, tokens: int, heads: int, head_dim: int, case: Case) -> Cost:
    rows = batch * tokens * heads
    costs = {"": Cost(), "layer": layer_norm(rows, head_dim), "rms": rms_norm(rows, head_dim)}
    return costs[case.design.qk_norm]


class Rotary(nn.Module):
    """Rotary position embedding of the first share of each head dim (Su et al. 2021, arXiv 2104.09864).

    [B, L, H, d] -> same; token i has position ``start`` + ``first`` + i. ``case.design.rope`` is the share: 1 Llama,
    0.5 Persimmon.
    """

    def __init__(self, tokens: int, head_dim: int, case: Case, start: int = 0) -> None:
        super().__init__()
        self.width = rotated(head_dim, case)
        frequencies = 10_000.0 ** -(torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        angles = torch.outer(torch.arange(start, start + tokens, dtype=torch.float64), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # [L, width]
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        tokens = slice(first, first + x.shape[1])
        cos, sin = self.cos[tokens, None], self.sin[tokens, None]  # type: ignore[index]
        if self.width == x.shape[-1]:
            return rotate(x, cos, sin)
        return torch.cat([rotate(x[..., : self.width], cos, sin), x[..., self.width :]], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x·cos + (−x₂, x₁)·sin, the two halves of the last axis being x₁ and x₂."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotated(head_dim: int, case: Case) -> int:
    """How many of a head's dims are rotated: an even number."""
    return 2 * round(case.design.rope * head_dim / 2)


def rotary_cost(batch: int, tokens: int, heads: int, head_dim: int, case: Case) -> Cost:
    """Two copies, of the halves that change places and of the parts that do not turn; keeps no more than its tables."""
    if not case.design.rope:
        return Cost()
    width = rotated(head_dim, case)
    rows = batch * tokens * heads
    return copy(rows * width) + (copy(rows * head_dim) if width != head_dim else Cost())


class Gate(nn.Module):
    """x·tanh(g) with one learned scalar, of gated designs (Flamingo); x itself in all others.

    Models start their training at g = 0, where the layer is the identity; here it starts at 0.5, so that what
    it gates can be seen in the result.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((1,), 0.5)) if case.design.gated else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.gate is None else x * self.gate.tanh()


def gate_cost(rows: int, width: int, case: Case) -> Cost:
    """Keeps what it gates, and tanh(g)."""
    gated = rows * width
    gate = Cost(params=1, weights_read=1, saved=gated + 1, other_inputs=gated)
    return gate if case.design.gated else Cost()


def quick_gelu(x: Tensor) -> Tensor:
    """x·sigmoid(1.702·x), CLIP's."""
    return x * torch.sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)², Persimmon's and Flamingo's."""
    return nn.functional.relu(x).square()


@dataclass(frozen=True)
class Nonlinearity:
    """What stands between the two products of a feed-forward layer.

    ``halves`` is 2 where half of the first product's outputs gate the other half; ``kept`` how many tensors of
    the hidden width autograd keeps for it, beside the one that the second product keeps.
    """

    apply: Callable[[Tensor], Tensor]
    halves: int
    kept: int


def _gating(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * function(gate)

    return apply


NONLINEARITIES: dict[Activation, Nonlinearity] = {
    "gelu": Nonlinearity(nn.functional.gelu, 1, 1),
    "gelu_tanh": Nonlinearity(functools.partial(nn.functional.gelu, approximate="tanh"), 1, 1),
    "quick_gelu": Nonlinearity(quick_gelu, 1, 2),
    "relu": Nonlinearity(nn.functional.relu, 1, 0),
    "relu2": Nonlinearity(relu_squared, 1, 1),
    "swiglu": Nonlinearity(_gating(nn.functional.silu), 2, 3),
    "geglu": Nonlinearity(_gating(nn.functional.gelu), 2, 3),
}


class FeedForward(nn.Module):
    """Linear, the design's activation, Linear, with a hidden layer of ``hidden`` units.

    Gated activations take value and gate from one product, value first, as diffusers' GEGLU does.
    """

    def __init__(self, width: int, hidden: int, case: Case) -> None:
        super().__init__()
        self.act, bias = NONLINEARITIES[case.design.activation], case.design.ffn_bias
        self.up = nn.Linear(width, self.act.halves * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act.apply(self.up(x)))
        return y


def feed_forward_cost(rows: int, width: int, hidden: int, case: Case) -> Cost:
    act, bias = NONLINEARITIES[case.design.activation], case.design.ffn_bias
    up = linear(rows, width, act.halves * hidden, bias=bias)
    return up + Cost(saved=act.kept * rows * hidden) + linear(rows, hidden, width, bias=bias)


class FeedForwardBlock(nn.Module):
    """x + FFN(norm(x)) over x [B, L, D], or norm(x + FFN(x)) in a post-norm design; x itself without hidden units.

    ``hidden`` is the shape's feed-forward width unless given.
    """

    def __init__(self, case: Case, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = case.shape.units(width) if hidden is None else hidden
        self.ffn = FeedForward(width, hidden, case) if hidden else None
        self.norm = norm(width, case) if hidden else nn.Identity()
        self.gate, self.post = Gate(case) if hidden else nn.Identity(), case.design.post_norm

    def forward(self, x: Tensor) -> Tensor:
        if self.ffn is None:
            return x
        y: Tensor = x + self.gate(self.ffn(x if self.post else self.norm(x)))
        fused: Tensor = self.norm(y) if self.post else y
        return fused


def feed_forward_block_cost(case: Case, tokens: int, width: int, hidden: int | None = None) -> Cost:
    rows, hidden = case.shape.batch * tokens, case.shape.units(width) if hidden is None else hidden
    if not hidden:
        return Cost()
    return norm_cost(rows, width, case) + feed_forward_cost(rows, width, hidden, case) + gate_cost(rows, width, case)
