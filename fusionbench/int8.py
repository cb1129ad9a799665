"""W8A8: Linear layers over int8 products, weights per output channel, activations per token, both symmetric.

``Int8Linear`` is PyTorch's product with its scales around it, ``TritonInt8Linear`` two kernels of fusionbench_kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# cuBLAS wants more than 16 rows and inner and outer sizes that are multiples of 8.
_MIN_ROWS, _MULTIPLE = 32, 8


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [N, K] as int8 with one fp32 scale each: x ≈ values · scale. An all-zero row keeps scale 1."""
    largest = x.abs().amax(dim=-1, keepdim=True).float()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale


class Int8Linear(nn.Module):
    """``nn.Linear`` with weights quantised once and activations quantised on every call (that time counts).

    [..., in_features] -> [..., out_features] in the dtype of the input. Inference only.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize(layer.weight.detach())
        self.outputs = weight.shape[0]
        # Held as [out, in] and used transposed: the column-major operand is 3x faster in CPU _int_mm.
        self.register_buffer("weight", _pad(weight, _MULTIPLE, _MULTIPLE))
        self.register_buffer("scale", scale.flatten())  # [out]
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        values, scale = quantize(x.flatten(0, -2))
        rows = values.shape[0]
        padded = _pad(values, _MIN_ROWS if values.is_cuda and rows <= 16 else 1, _MULTIPLE)
        product = torch._int_mm(padded, self.weight.t())[:rows, : self.outputs]
        y = product * (scale * self.scale)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call,no-any-return]


def _pad(x: Tensor, rows: int, columns: int) -> Tensor:
    """x with zeros up to the next multiples of ``rows`` and ``columns``."""
    extra = (-x.shape[0] % rows, -x.shape[1] % columns)
    return nn.functional.pad(x, (0, extra[1], 0, extra[0])) if any(extra) else x


class TritonInt8Linear(nn.Module):
    """As ``Int8Linear``, by a kernel that quantises and one whose epilogue applies scales and bias. Inference only."""

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        from fusionbench_kernels import Int8Weight

        quantized = Int8Weight.quantize(layer.weight.detach())
        self.inputs = quantized.inputs
        self.register_buffer("values", quantized.values)
        self.register_buffer("scale", quantized.scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        from fusionbench_kernels import Int8Weight, int8_linear

        return int8_linear(x, Int8Weight(self.values, self.scale, self.inputs), self.bias)


def quantize_linears(module: nn.Module, kind: type[nn.Module] = Int8Linear) -> int:
    """Replace every nn.Linear below ``module`` in place by ``kind(layer)``; returns how many there were."""
    found = 0
    for name, child in module.named_children():
        if type(child) is nn.Linear:  # a subclass has a forward of its own
            setattr(module, name, kind(child))
            found += 1
        else:
            found += quantize_linears(child, kind)
    return found
