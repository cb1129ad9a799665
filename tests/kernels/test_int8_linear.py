"""The W8A8 linear layer: exact against integer products, its error against a bound derived from the scales."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fusionbench_kernels import Int8Weight, int8_linear, int8_reference

ops = sys.modules["fusionbench_kernels.int8_linear"]  # the package's attribute of that name is the function
NATIVE = torch.cuda.device_count() > 0
SIZES = [(1, 1, 1), (7, 5, 3), (17, 33, 20), (33, 100, 65), (16, 64, 16), (40, 130, 48)]  # M, K, N


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


def assert_within_bound(out: Tensor, x: Tensor, weight: Tensor, extra: Tensor | float = 0.0) -> None:
    """|error| ≤ Σ |x|·(step of w)/2 + |ŵ|·(step of x)/2, and what the output's type rounds; x in float64."""
    row_scale = int8_reference.quantize_rows(x)[1]
    values, scale = int8_reference.quantize_rows(weight)
    w_hat = values.double().abs().sum(-1) * scale
    bound = x.abs().sum(-1)[:, None] * scale / 2 + w_hat * row_scale[:, None].double() / 2
    wanted = x @ weight.double().t() + extra
    rounding = torch.finfo(out.dtype).eps * wanted.abs()
    assert ((out.double() - wanted).abs() <= bound * (1 + 1e-5) + rounding + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_it_is_as_close_to_the_product_as_its_scales_allow(device, dtype, m, k, n):
    x, w = normal(m, k, dtype=dtype, device=device), normal(n, k, seed=1, device=device)
    out = int8_linear(x, Int8Weight.quantize(w))
    assert out.dtype == dtype
    assert out.shape == (m, n)
    assert_within_bound(out, x.double(), w)


@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_products_are_those_of_integers_exactly(device, m, k, n):
    x, w, bias, residual = (normal(*size, device=device) for size in ((m, k), (n, k), (n,), (m, n)))
    weight = Int8Weight.quantize(w)
    rows, row_scale = ops.quantize_forward(x, False, None, None, 0.0)
    wanted_rows, wanted_scale = int8_reference.quantize_rows(x)
    assert torch.equal(rows[:, :k], wanted_rows)
    assert torch.equal(row_scale, wanted_scale)
    assert not rows[:, k:].any()
    product = torch._int_mm(rows.cpu(), weight.values.t().cpu()).to(device)
    wanted = product.float() * row_scale[:, None] * weight.scale
    assert torch.equal(int8_linear(x, weight), wanted)
    # A GPU may contract the product with the sum that follows.
    close = {"atol": 1e-5, "rtol": 1e-6} if NATIVE else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(int8_linear(x, weight, bias), wanted + bias, **close)
    torch.testing.assert_close(int8_linear(x, weight, bias, residual), wanted + bias + residual, **close)
    torch.testing.assert_close(int8_linear(x, weight, None, residual), wanted + residual, **close)


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("k", [24, 64, 150])  # the last is longer than one chunk of the interpreter's rows
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_joins_the_pass_that_quantises(device, mean, k, affine):
    x, w = normal(9, k, device=device) + mean, normal(20, k, seed=1, device=device)
    gamma, beta = (normal(k, seed=2, device=device) + 1, normal(k, seed=3, device=device)) if affine else (None, None)
    out = int8_linear(x, Int8Weight.quantize(w), norm=(gamma, beta, 1e-5))
    wide = (None if y is None else y.double() for y in (gamma, beta))
    true = F.layer_norm(x.double(), (k,), *wide, 1e-5)
    # fp32 holds a mean of 100σ to 100·2⁻²⁴·√k or so of σ: far below a step of int8, so the bound stays that of int8.
    assert_within_bound(out, true, w, 0.0)
    rows, row_scale = ops.quantize_forward(x, True, gamma, beta, 1e-5)
    wanted, wanted_scale = int8_reference.quantize_rows(true)
    assert (rows[:, :k].int() - wanted.int()).abs().max() <= 1
    assert not rows[:, k:].any()
    assert (rows[:, :k] != wanted).float().mean() < 0.01  # those that lay between two numbers
    torch.testing.assert_close(row_scale, wanted_scale, rtol=1e-4, atol=0)


def test_any_shape_and_strides_give_the_same_bits(device):
    x, w, residual = normal(2, 3, 24, device=device), normal(10, 24, device=device), normal(2, 3, 10, device=device)
    weight = Int8Weight.quantize(w)
    wanted = int8_linear(x, weight, None, residual)
    assert wanted.shape == (2, 3, 10)
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(int8_linear(turned, weight, None, residual.mT.contiguous().mT), wanted)
    flat, columns = x.flatten(0, 1), x.flatten(0, 1).t().contiguous().t()
    assert torch.equal(int8_linear(columns, weight), int8_linear(flat, weight))
    assert torch.equal(int8_linear(flat[0], weight), int8_linear(flat, weight)[0])
    assert int8_linear(x[:0], weight).shape == (0, 3, 10)


def test_zero_rows_give_the_bias_and_zero_weights_zero(device):
    x, w, bias = normal(5, 20, device=device), normal(6, 20, device=device), normal(6, device=device)
    x[2], w[4] = 0, 0
    out = int8_linear(x, Int8Weight.quantize(w), bias)
    assert torch.equal(out[2], bias)
    assert torch.equal(out[:, 4], bias[4].expand(5))
    assert out.isfinite().all()
    half = (x * 1e-7).half()  # subnormal, and nothing
    assert_within_bound(int8_linear(half, Int8Weight.quantize(w)), half.double(), w)


@pytest.mark.parametrize("k", [20, 100])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's inf · 0, in the interpreter
def test_a_row_that_is_not_finite_gives_nan_and_no_other(device, k, bad):
    x, weight = normal(5, k, device=device), Int8Weight.quantize(normal(6, k, device=device))
    x[3, 7] = bad
    out = int8_linear(x, weight)
    assert out[3].isnan().all()
    assert out[[0, 1, 2, 4]].isfinite().all()


def test_rounding_is_half_to_even(device):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5, -127.0]], device=device)  # scale 1
    rows, scale = ops.quantize_forward(x, False, None, None, 0.0)
    assert scale.item() == 1.0
    assert rows[0, :9].tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -127]
    assert Int8Weight.quantize(x).values[0, :9].tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -127]


def test_every_run_gives_the_same_bits(device):
    x, weight = normal(17, 100, device=device), Int8Weight.quantize(normal(20, 100, device=device))
    first = int8_linear(x, weight, norm=(None, None, 1e-5))
    assert all(torch.equal(int8_linear(x, weight, norm=(None, None, 1e-5)), first) for _ in range(2))


def test_bf16_runs_in_plain_pytorch_on_a_cpu():
    x, w = normal(7, 40, dtype=torch.bfloat16), normal(9, 40)
    assert_within_bound(int8_linear(x, Int8Weight.quantize(w)), x.double(), w)


def test_a_backward_pass_says_what_trains(device):
    x = normal(3, 20, device=device).requires_grad_()
    out = int8_linear(x, Int8Weight.quantize(normal(4, 20, device=device)))
    with pytest.raises(RuntimeError, match=r"for inference and has no gradients: train through torch\.nn"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": torch.zeros(3, 7)}, r"x has shape \[3, 7\]; it must be \[any, 8\]"),
        ({"x": torch.zeros(3, 8, dtype=torch.int8)}, "x is int8; it must be floating"),
        ({"bias": torch.zeros(8)}, r"bias has shape \[8\]; it must be \[4\]"),
        ({"residual": torch.zeros(4)}, r"residual has shape \[4\]; it must be \[3, 4\]"),
        ({"norm": (torch.zeros(4), None, 1e-5)}, r"gamma has shape \[4\]; it must be \[8\]"),
    ],
)
def test_what_does_not_fit_is_named(given, message):
    call = {"x": torch.zeros(3, 8), "weight": Int8Weight.quantize(torch.zeros(4, 8)), **given}
    with pytest.raises(ValueError, match=message):
        int8_linear(**call)


@pytest.mark.parametrize("inputs", [0, ops.MAX_INPUTS + 1])
def test_more_inputs_than_int32_holds_are_refused(inputs):
    with pytest.raises(ValueError, match=f"weight has {inputs} inputs; it must have 1 to 131072"):
        Int8Weight.quantize(torch.zeros(1, inputs))


def test_the_operator_keeps_what_it_declares(device):
    x, weight = normal(3, 20, device=device), Int8Weight.quantize(normal(4, 20, device=device))
    bias, residual = normal(4, device=device), normal(3, 4, device=device)
    torch.library.opcheck(ops.linear, (x, weight.values, weight.scale, bias, residual, True, None, None, 1e-5))


def test_it_compiles_and_exports_without_a_graph_break(device):
    weight = Int8Weight.quantize(normal(4, 20, device=device))

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("values", weight.values)
            self.register_buffer("scale", weight.scale)

        def forward(self, x, bias):
            return int8_linear(x, Int8Weight(self.values, self.scale, 20), bias, norm=(None, None, 1e-5))

    given = normal(2, 3, 20, device=device), normal(4, device=device)
    wanted = Layer()(*given)
    assert torch.equal(torch.compile(Layer(), fullgraph=True, backend="aot_eager")(*given), wanted)
    assert torch.equal(torch.export.export(Layer(), given).module()(*given), wanted)


def test_flops_are_those_of_the_product(device):
    x, weight = normal(3, 20, device=device), Int8Weight.quantize(normal(4, 20, device=device))
    with FlopCounterMode(display=False) as counter:
        int8_linear(x, weight)
    assert counter.get_total_flops() == 2 * 3 * 20 * 4
