"""What is trained: everything, nothing, or low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from .cost import Cost
from .generation import CACHING
from .spec import Case


def rank(adapt: str) -> int:
    """8 for ``lora:8``, 0 for ``full`` and ``frozen``."""
    return int(adapt.partition(":")[2] or 0)


class LoraLinear(nn.Module):
    """A frozen Linear and a product of two narrow ones beside it: Wx + b + BAx, A [r, in], B [out, r].

    Training starts at B = 0, where the adapter adds nothing; here B is random, so that the adapter shows in results.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.up(self.down(x))
        return y

    def merged(self) -> nn.Linear:
        """One Linear with the product of the adapter in its weight."""
        layer = nn.Linear(self.layer.in_features, self.layer.out_features, bias=self.layer.bias is not None)
        with torch.no_grad():
            layer.weight.copy_(self.layer.weight + self.up.weight @ self.down.weight)
            if self.layer.bias is not None:
                layer.bias.copy_(self.layer.bias)
        return layer.to(self.layer.weight)


def adapted(module: nn.Module, adapt: str) -> nn.Module:
    """The module with its weights frozen and, for LoRA, an adapter at each of its Linears, in place."""
    if adapt == "full":
        return module
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if rank(adapt):
        _add_adapters(module, rank(adapt))
    return module


def _add_adapters(module: nn.Module, rank: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, LoraLinear(child, rank))
        else:
            _add_adapters(child, rank)


def refusal(case: Case, cost: Cost, own_inputs: bool) -> str | None:
    """Why the case cannot be adapted, or trained, as it asks; or None."""
    if case.mode == "step" and (case.adapt == "frozen" or not cost.params):
        return "a training step needs weights that it may change"
    if case.adapt == "full":
        return None
    if case.mode in CACHING:
        return f"'{case.adapt}' is about training, and mode '{case.mode}' generates, with adapters merged (use 'full')"
    if not cost.linear_sides:
        return f"'{case.adapt}' is about Linear layers, and this strategy has none"
    if own_inputs:
        return f"'{case.adapt}' needs inputs with a gradient, and pixels and ids are data"
    if case.adapt == "frozen" and case.mode != "fwd_bwd":
        return "frozen weights change only the backward pass (use mode 'fwd_bwd')"
    return None


def adapted_cost(cost: Cost, adapt: str) -> Cost:
    """What remains of the cost of training, and what adapters add; a strategy with learned queries needs no more.

    Frozen weights need no gradient and no inputs kept for one; adapters add 2·rows·r·(in + out) FLOPs to each
    Linear, in every forward pass, until they are merged.
    """
    if adapt == "full":
        return msgspec.structs.replace(cost, trainable=cost.params)
    r = rank(adapt)
    kept = cost.saved - cost.other_inputs - (0 if r else cost.linear_inputs)
    frozen = msgspec.structs.replace(
        cost,
        trainable=r * cost.linear_sides,
        backward_flops=cost.backward_flops - cost.linear_flops - cost.other_flops if cost.backward_flops else 0,
        saved=kept if cost.backward_flops else 0,
    )
    flops, params = 2 * r * cost.linear_traffic, r * cost.linear_sides
    return frozen + Cost(
        flops=flops,
        backward_flops=2 * flops if cost.backward_flops else 0,
        params=params,
        weights_read=params,
        activations_moved=cost.linear_traffic + 2 * r * cost.linear_rows if r else 0,
        saved=r * cost.linear_rows if cost.backward_flops else 0,
    )
