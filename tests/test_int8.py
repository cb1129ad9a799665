"""W8A8 linears: exact products, bounded rounding, ugly sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusionbench.int8 import Int8Linear, quantize, quantize_linears


def test_quantising_is_off_by_at_most_half_a_step() -> None:
    x = torch.randn(50, 33)
    values, scale = quantize(x)
    assert values.dtype == torch.int8
    assert ((values * scale - x).abs() <= scale / 2 * (1 + 1e-6)).all()


def test_rows_of_zeros_stay_zero() -> None:
    values, scale = quantize(torch.zeros(2, 5))
    assert not values.any()
    assert scale.isfinite().all()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (7, 63, 65), (17, 64, 64), (33, 77, 257)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_equals_that_of_the_dequantised_operands(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(2, rows, inputs)
    quantised = Int8Linear(layer)
    xq, xs = quantize(x.flatten(0, 1))
    wq, ws = quantize(layer.weight.detach())
    expected = (xq.double() * xs) @ (wq.double() * ws).T + (layer.bias.detach().double() if bias else 0)
    found = quantised(x)
    assert found.shape == (2, rows, outputs)
    # The integer product is exact; what is left are the fp32 roundings of two scales, a product and a sum.
    torch.testing.assert_close(found.double(), expected.unflatten(0, (2, rows)), rtol=4 * 2**-23, atol=1e-6)


def test_every_linear_of_a_module_is_replaced() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 4)), nn.LayerNorm(4))
    assert quantize_linears(module) == 2
    assert not any(isinstance(part, nn.Linear) for part in module.modules())


def test_the_weights_shrink_to_a_byte_each() -> None:
    quantised = Int8Linear(nn.Linear(64, 64))
    assert quantised.weight.element_size() == 1
    assert sum(p.numel() for p in quantised.parameters()) == 0
