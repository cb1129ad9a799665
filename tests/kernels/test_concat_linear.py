"""Projections without a concatenation are linear(cat) and cat(linear(LayerNorm)): values, gradients, manners as ops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fusionbench_kernels import concat_linear, concat_projected, project_into

BF16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not torch.cuda.device_count(), reason="bf16 is wrong in Triton's interpreter"),
)
DTYPES = [torch.float32, torch.float16, BF16]
LINEAR_SIZES = [((), 24, 40, 1), ((1,), 1, 7, 24), ((2, 7), 40, 24, 17), ((3, 17), 48, 80, 40), ((63,), 24, 33, 24)]
# B, La, Lb, Ka, Kb, D
SEQUENCE_SIZES = [(1, 1, 1, 24, 8, 24), (2, 7, 17, 40, 24, 17), (3, 17, 1, 80, 40, 40), (2, 16, 63, 24, 48, 24)]
EPS = 1e-5


def numbers(seed: int, dtype: torch.dtype, device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).to(dtype).to(device) for shape in shapes]


def sequences(sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """a, b, weight_a, weight_b, bias_a, bias_b, gamma_a, beta_a, gamma_b, beta_b."""
    batch, la, lb, ka, kb, d = sizes
    found = numbers(la, dtype, device, (batch, la, ka), (batch, lb, kb), (d, ka), (d, kb), (d,), (d,),
                    (ka,), (ka,), (kb,), (kb,))  # fmt: skip
    found[2] *= ka**-0.5
    found[3] *= kb**-0.5
    return found


def ours(a: Tensor, b: Tensor, wa: Tensor, wb: Tensor, ba: Tensor, bb: Tensor, *norms: Tensor) -> Tensor:
    return concat_projected(a, b, wa, wb, ba, bb, (norms[0], norms[1], EPS), (norms[2], norms[3], EPS))


def eager(a: Tensor, b: Tensor, wa: Tensor, wb: Tensor, ba: Tensor, bb: Tensor, *norms: Tensor) -> Tensor:
    first = F.linear(F.layer_norm(a, a.shape[-1:], norms[0], norms[1], EPS), wa, ba)
    return torch.cat([first, F.linear(F.layer_norm(b, b.shape[-1:], norms[2], norms[3], EPS), wb, bb)], 1)


def eager_linear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(torch.cat([a, b], -1), weight, bias)


def close(found: Tensor, plain: Tensor, truth: Tensor, factor: float) -> None:
    """Within ``factor`` of eager's largest error in this type, plus 4 eps of the largest value: order of summation."""
    assert found.shape == truth.shape
    floor = 4 * torch.finfo(found.dtype).eps * truth.abs().max().item()
    error, allowed = ((y.double() - truth).abs().max().item() for y in (found, plain))
    assert error <= factor * allowed + floor, (error, allowed, floor)


def all_close(function: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Output and every gradient against fp64."""
    outputs, gradients = [], []
    cotangent = None
    for run, dtype in ((function, inputs[0].dtype), (plain, inputs[0].dtype), (plain, torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        out = run(*leaves)
        if cotangent is None:
            cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        outputs.append(out.detach())
        gradients.append(torch.autograd.grad(out, leaves, cotangent.to(dtype)))
    close(*outputs, 2)  # type: ignore[call-arg]
    for found, lower, truth in zip(*gradients, strict=True):
        close(found, lower, truth, 3)


@pytest.mark.parametrize("sizes", LINEAR_SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_features_are_projected_as_if_concatenated(
    dtype: torch.dtype, sizes: tuple[tuple[int, ...], int, int, int], device: str
) -> None:
    lead, ka, kb, outputs = sizes
    a, b, weight, bias = numbers(ka, dtype, device, (*lead, ka), (*lead, kb), (outputs, ka + kb), (outputs,))
    all_close(concat_linear, eager_linear, [a, b, weight * (ka + kb) ** -0.5, bias])


@pytest.mark.parametrize("sizes", SEQUENCE_SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequences_are_normed_projected_and_concatenated(
    dtype: torch.dtype, sizes: tuple[int, ...], device: str
) -> None:
    all_close(ours, eager, sequences(sizes, dtype, device))


def test_a_mean_of_100_deviations_costs_no_digits(device: str) -> None:
    inputs = sequences((2, 17, 7, 80, 40, 24), torch.float32, device)
    inputs[0] += 100
    inputs[1] += 100
    truth = eager(*(x.double() for x in inputs))
    # Twice eager's own error, without any floor: a one-pass variance is off by some 1e-3 here.
    found, plain = ours(*inputs), eager(*inputs)
    assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max() < 2e-4


def test_without_norms_and_biases_it_is_two_products(device: str) -> None:
    a, b, wa, wb, *_ = sequences(SEQUENCE_SIZES[1], torch.float32, device)
    all_close(lambda *y: concat_projected(*y), lambda a, b, wa, wb: torch.cat([a @ wa.T, b @ wb.T], 1), [a, b, wa, wb])


def test_project_into_writes_its_slice_and_nothing_else(device: str) -> None:
    a, _, wa, _, ba, _, gamma, beta, *_ = sequences(SEQUENCE_SIZES[1], torch.float32, device)
    whole = torch.full((2, 40, 20), 7.0, device=device)
    out = whole[:, ::2, 1:18]
    project_into(out, a, wa, ba, 5, (gamma, beta, EPS))
    expected = F.linear(F.layer_norm(a, a.shape[-1:], gamma, beta, EPS), wa, ba)
    assert torch.allclose(out[:, 5:12], expected, atol=1e-5)
    out[:, 5:12] = 7.0
    assert (whole == 7).all()


def test_strides_do_not_matter_and_repeats_are_equal(device: str) -> None:
    inputs = sequences(SEQUENCE_SIZES[2], torch.float32, device)
    turned = [x.transpose(-2, -1).contiguous().transpose(-2, -1) for x in inputs[:4]]
    spread = [torch.stack([x, x], -1)[:, 0] for x in inputs[4:]]
    expected = ours(*inputs)
    assert torch.equal(ours(*turned, *spread), expected)
    assert torch.equal(ours(*inputs), expected)
    a, b, weight, bias = numbers(0, torch.float32, device, (3, 7, 24), (3, 7, 40), (17, 64), (17,))
    expected = concat_linear(a, b, weight, bias)
    across = a.transpose(0, 1).contiguous().transpose(0, 1)  # leading sizes that do not merge
    assert torch.equal(concat_linear(across, b, weight.T.contiguous().T, bias), expected)
    assert torch.equal(concat_linear(a, b, weight, bias), expected)


def test_rows_further_apart_than_32_bits_reach_are_copied_first(device: str) -> None:
    a, b, weight = numbers(0, torch.float32, device, (3, 24), (3, 8), (5, 32))
    far = torch.empty(3, 2**22, device=device)[:, :24]
    far.copy_(a)
    assert torch.equal(concat_linear(far, b, weight), concat_linear(a, b, weight))


def test_nothing_gives_nothing(device: str) -> None:
    a, b, weight = numbers(0, torch.float32, device, (0, 24), (0, 8), (5, 32))
    assert concat_linear(a, b, weight).shape == (0, 5)


def test_fp64_passes_gradcheck_in_plain_torch() -> None:
    inputs = [x.requires_grad_() for x in sequences((2, 2, 3, 5, 4, 3), torch.float64, "cpu")]
    assert torch.autograd.gradcheck(ours, inputs)
    a, b, weight, bias = (
        x.requires_grad_() for x in numbers(0, torch.float64, "cpu", (2, 3, 4), (2, 3, 5), (3, 9), (3,))
    )
    assert torch.autograd.gradcheck(concat_linear, (a, b, weight, bias))


def test_arguments_that_do_not_fit_are_named() -> None:
    a, b, weight = numbers(0, torch.float32, "cpu", (2, 3, 4), (2, 3, 5), (6, 9))
    with pytest.raises(ValueError, match=r"weight has shape \[6, 8\]; it must be \[any, 9\]"):
        concat_linear(a, b, weight[:, 1:])
    with pytest.raises(ValueError, match=r"a has shape \[2, 2, 4\] and b \[2, 3, 5\]"):
        concat_linear(a[:, 1:], b, weight)
    out = torch.empty(2, 7, 6)
    with pytest.raises(ValueError, match="offset 5 is not possible; 3 tokens must end within out's 7"):
        project_into(out, a, weight[:, :4], None, 5)
    with pytest.raises(ValueError, match=r"norm's gamma has shape \[5\]; it must be \[4\]"):
        project_into(out, a, weight[:, :4], None, 0, (torch.ones(5), torch.ones(4), EPS))
    with pytest.raises(RuntimeError, match=r"x requires a gradient; project_into has none \(use concat_projected\)"):
        project_into(out, a.requires_grad_(), weight[:, :4], None, 0)
    for name, bias, norm in (
        ("bias", torch.ones(6, requires_grad=True), None),
        ("gamma", None, (torch.ones(4, requires_grad=True), torch.ones(4), EPS)),
        ("beta", None, (torch.ones(4), torch.ones(4, requires_grad=True), EPS)),
    ):
        with pytest.raises(RuntimeError, match=f"{name} requires a gradient"):
            project_into(out, a.detach(), weight[:, :4], bias, 0, norm)
    with pytest.raises(ValueError, match=r"weight_b has shape \[5, 5\]; it must be \[6, any\]"):
        concat_projected(a, b, weight[:, :4], weight[:5, 4:])


def test_they_pass_opcheck(device: str) -> None:
    ops = torch.ops.fusionbench_kernels
    a, b, weight = (x.requires_grad_() for x in numbers(0, torch.float32, device, (2, 3, 4), (2, 3, 5), (6, 9)))
    torch.library.opcheck(ops.concat_linear.default, (a, b, weight, None))
    inputs = [x.requires_grad_() for x in sequences((2, 3, 2, 8, 5, 6), torch.float32, device)]
    torch.library.opcheck(ops.concat_projected.default, (*inputs, EPS, EPS))
    x, wa, gamma, beta = (inputs[i].detach() for i in (0, 2, 6, 7))
    out = torch.zeros(2, 7, 6, device=device)
    torch.library.opcheck(ops.project_into.default, (out, x, wa, None, 2, gamma, beta, EPS))


def test_they_compile_and_export_in_one_graph(device: str) -> None:
    inputs = [x.requires_grad_() for x in sequences(SEQUENCE_SIZES[1], torch.float32, device)]

    def run(*y: Tensor) -> Tensor:
        out = ours(*y)
        return concat_linear(out, out, torch.cat([out[0, :5], out[0, :5]], -1))

    class Module(torch.nn.Module):
        def forward(self, *y: Tensor) -> Tensor:
            sequence = torch.zeros(2, 9, 17, device=y[0].device)
            project_into(sequence, y[0], y[2], y[4], 1, (y[6], y[7], EPS))
            return run(*y).sum() + sequence

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), run(*inputs))
    for one, other in zip(*(torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, run)), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    plain = [x.detach() for x in inputs]
    expected = Module()(*plain)
    assert torch.equal(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*plain), expected)
    assert torch.equal(torch.export.export(Module(), tuple(plain)).module()(*plain), expected)


def test_flops_are_those_of_the_products(device: str) -> None:
    a, b, weight, bias = numbers(0, torch.float32, device, (2, 7, 24), (2, 7, 40), (17, 64), (17,))
    inputs = sequences(SEQUENCE_SIZES[1], torch.float32, device)
    for fused, plain, args in ((concat_linear, eager_linear, [a, b, weight, bias]), (ours, eager, inputs)):
        totals = []
        for run in (fused, plain):
            leaves = [x.detach().requires_grad_() for x in args]
            with FlopCounterMode(display=False) as counter:
                run(*leaves).sum().backward()
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1] > 0
