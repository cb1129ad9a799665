"""Attention with its projections inside is linear, attention, linear: values, gradients, and its manners as an op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fusionbench_kernels import cross_attention, projected_choice, projected_cross_attention
from fusionbench_kernels.projected_reference import merge_heads, split_heads
from tests.kernels.projected_cases import made, padding

BF16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not torch.cuda.device_count(), reason="bf16 is wrong in Triton's interpreter"),
)
DTYPES = [torch.float32, torch.float16, BF16]
NAMES = ("x", "k", "v", "q_weight", "q_bias", "out_weight", "out_bias")
# Lq, Lk, Dx, Dx', heads, d, padded
SIZES = [
    (1, 1, 24, 24, 1, 8, False),
    (7, 7, 40, 24, 2, 16, False),
    (17, 16, 48, 40, 3, 24, True),
    (17, 17, 80, 80, 2, 40, False),
    (63, 17, 24, 48, 1, 40, True),
    (7, 77, 40, 40, 2, 16, True),
]


def eager(
    x: Tensor, k: Tensor, v: Tensor, wq: Tensor, bq: Tensor, wo: Tensor, bo: Tensor, mask: Tensor | None = None
) -> Tensor:
    q = split_heads(F.linear(x, wq, bq), k.shape[1])
    scores = (q @ k.transpose(-2, -1)) * k.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    p = torch.softmax(scores, -1)
    if mask is not None:
        p = p.masked_fill(~mask.any(1)[:, None, None, None], 0)
    return F.linear(merge_heads(p @ v), wo, bo)


def close(found: Tensor, plain: Tensor, truth: Tensor, factor: float) -> None:
    """Within ``factor`` of eager's largest error in this type, plus 4 eps of the largest value: order of summation."""
    assert found.shape == truth.shape
    floor = 4 * torch.finfo(found.dtype).eps * truth.abs().max().item()
    error, allowed = ((y.double() - truth).abs().max().item() for y in (found, plain))
    assert error <= factor * allowed + floor, (error, allowed, floor)


@pytest.mark.parametrize("variant", ["one_kernel", "heads", "separate"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_is_as_close_to_fp64_as_eager(
    dtype: torch.dtype, sizes: tuple[int, ...], variant: str, device: str
) -> None:
    inputs = made(sizes, dtype, device)
    mask = padding(sizes[1], device) if sizes[6] else None
    truth = eager(*(y.double() for y in inputs), mask)
    found = projected_cross_attention(*inputs, heads=sizes[4], key_padding_mask=mask, variant=variant)
    close(found, eager(*inputs, mask), truth, 2)


@pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_as_close_to_fp64_as_eager(dtype: torch.dtype, sizes: tuple[int, ...], device: str) -> None:
    inputs = made(sizes, dtype, device)
    mask = padding(sizes[1], device) if sizes[6] else None
    cotangent = torch.randn(2, sizes[0], sizes[3], generator=torch.Generator().manual_seed(1)).to(dtype).to(device)

    def gradients(function, kind: torch.dtype) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        leaves = [y.to(kind).requires_grad_() for y in inputs]
        return torch.autograd.grad(function(*leaves), leaves, cotangent.to(kind))

    def ours(*y: Tensor) -> Tensor:
        return projected_cross_attention(*y, heads=sizes[4], key_padding_mask=mask)

    def plain(*y: Tensor) -> Tensor:
        return eager(*y, mask)

    results = zip(NAMES, gradients(ours, dtype), gradients(plain, dtype), gradients(plain, torch.float64), strict=True)
    for name, found, lower, truth in results:
        # A row without keys has NaN gradients in eager's softmax; the truth there is zero, as for masked keys.
        lower, truth = lower.nan_to_num(), truth.nan_to_num()
        assert found.isfinite().all(), name
        close(found, lower, truth, 3)


@pytest.mark.parametrize("variant", ["one_kernel", "heads"])
def test_what_masked_keys_hold_is_never_read(variant: str, device: str) -> None:
    sizes = SIZES[2]
    x, k, v, *weights = made(sizes, torch.float32, device)
    mask = padding(sizes[1], device)
    poisoned = [torch.where(mask[:, None, :, None], y, torch.nan).requires_grad_() for y in (k, v)]
    clean = projected_cross_attention(x, k, v, *weights, heads=3, key_padding_mask=mask, variant=variant)
    found = projected_cross_attention(x, *poisoned, *weights, heads=3, key_padding_mask=mask, variant=variant)
    assert torch.equal(found, clean)
    found.sum().backward()
    for y in poisoned:
        assert y.grad is not None
        assert (y.grad.masked_select(~mask[:, None, :, None]) == 0).all()


@pytest.mark.parametrize("variant", ["one_kernel", "heads", "separate"])
def test_a_sample_without_keys_gives_the_output_bias(variant: str, device: str) -> None:
    sizes = SIZES[2]
    inputs = made(sizes, torch.float32, device)
    found = projected_cross_attention(*inputs, heads=3, key_padding_mask=padding(sizes[1], device), variant=variant)
    assert torch.equal(found[1], inputs[-1].expand_as(found[1]))


@pytest.mark.parametrize("variant", ["one_kernel", "heads"])
def test_strides_do_not_matter_and_repeats_are_equal(variant: str, device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[3], torch.float32, device)

    def run(*inputs: Tensor) -> Tensor:
        return projected_cross_attention(*inputs, heads=2, variant=variant)

    expected = run(x, k, v, wq, bq, wo, bo)
    turned = [y.transpose(-2, -1).contiguous().transpose(-2, -1) for y in (x, k, v, wq, wo)]
    every_second = torch.stack([bq, bq], -1).flatten()[::2]
    assert torch.equal(run(*turned[:4], every_second, turned[4], bo), expected)
    assert torch.equal(run(x, k, v, wq, bq, wo, bo), expected)


def test_biases_may_be_missing(device: str) -> None:
    x, k, v, wq, bq, wo, bo = made(SIZES[1], torch.float32, device)
    for variant in ("one_kernel", "heads", "separate"):
        found = projected_cross_attention(x, k, v, wq, None, wo, None, heads=2, variant=variant)
        expected = projected_cross_attention(x, k, v, wq, 0 * bq, wo, 0 * bo, heads=2, variant=variant)
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("batch", "queries"), [(2, 0), (0, 5)])
@pytest.mark.parametrize("variant", ["separate", "heads", "one_kernel"])
def test_no_samples_or_no_queries_give_an_empty_result(variant: str, batch: int, queries: int, device: str) -> None:
    x, k, v, *weights = made((queries, 7, 40, 24, 2, 16, False), torch.float32, device, batch)
    leaves = [y.requires_grad_() for y in (x, k, v, *weights)]
    out = projected_cross_attention(*leaves, heads=2, variant=variant)  # type: ignore[arg-type]
    assert out.shape == (batch, queries, 24)
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert all(g.shape == y.shape and not g.any() for g, y in zip(gradients, leaves, strict=True))


@pytest.mark.parametrize("variant", ["separate", "heads"])
def test_autocast_casts_what_comes_in_and_does_not_reach_inside(variant: str, device: str) -> None:
    leaves = [y.requires_grad_() for y in made((7, 7, 40, 24, 2, 16, False), torch.float32, device)]

    def values(*inputs: Tensor) -> list[Tensor]:
        out = projected_cross_attention(*inputs, heads=2, variant=variant)  # type: ignore[arg-type]
        return [out, *torch.autograd.grad(out.sum(), leaves)]

    want = values(*(y.half() for y in leaves))
    with torch.autocast(device, torch.float16):
        found = values(*leaves)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_fp64_passes_gradcheck_in_plain_torch() -> None:
    inputs = [y.double().requires_grad_() for y in made((3, 5, 6, 7, 2, 8), torch.float64, "cpu")]
    mask = padding(5, "cpu")
    assert torch.autograd.gradcheck(lambda *y: projected_cross_attention(*y, heads=2, key_padding_mask=mask), inputs)


def test_the_choice_follows_keys_widths_and_tiles(device: str) -> None:
    x, k, _, _, _, wo, _ = made((64, 16, 24, 24, 2, 8), torch.float32, "cpu")
    if device != "cpu":
        pytest.skip("the rows of the interpreter's table")
    assert projected_choice(x, k, wo).variant == "one_kernel"
    assert projected_choice(x[:1, :1], k[:1], wo).variant == "heads"  # one tile for four multiprocessors
    assert projected_choice(x, k, wo.expand(5, -1, -1).flatten(0, 1)).variant == "heads"
    assert projected_choice(x, k.repeat(1, 1, 20, 1), wo).variant == "separate"
    with pytest.raises(ValueError, match="'one_kernel' has no room for 320 keys of head dim 8"):
        projected_choice(x, k.repeat(1, 1, 20, 1), wo, variant="one_kernel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, r"k has shape \[2, 2, 7, 16\]; it must be \[2, 3, any, any\]"),
        ({"q_weight": torch.ones(32, 41)}, r"q_weight has shape \[32, 41\]; it must be \[32, 40\]"),
        ({"out_bias": torch.ones(3)}, r"out_bias has shape \[3\]; it must be \[24\]"),
        ({"v": torch.ones(2, 2, 7, 16).half()}, "v is float16 and x is float32"),
        ({"key_padding_mask": torch.ones(2, 7)}, "key_padding_mask is float32; it must be bool"),
        ({"variant": "one"}, r"no projected attention 'one' \(has: auto, one_kernel, heads, separate\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    given = dict(zip(NAMES, made(SIZES[1], torch.float32, "cpu"), strict=True)) | {"heads": 2} | change
    with pytest.raises(ValueError, match=message):
        projected_cross_attention(**given)  # type: ignore[arg-type]


def test_it_passes_opcheck(device: str) -> None:
    inputs = [y.requires_grad_() for y in made(SIZES[1], torch.float32, device)]
    x, k, v, *weights = inputs
    torch.library.opcheck(
        torch.ops.fusionbench_kernels.projected_forward.default,
        (x, k, v, padding(7, device), *weights, 0.25, "auto"),
    )


def test_it_compiles_and_exports_in_one_graph(device: str) -> None:
    inputs = [y.requires_grad_() for y in made(SIZES[1], torch.float32, device)]

    def run(*y: Tensor) -> Tensor:
        return projected_cross_attention(*y, heads=2)

    class Module(torch.nn.Module):
        def forward(self, *y: Tensor) -> Tensor:
            return run(*y)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), run(*inputs))
    for one, other in zip(*(torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, run)), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    exported = torch.export.export(Module(), tuple(y.detach() for y in inputs))
    assert torch.equal(exported.module()(*inputs), run(*inputs))


def test_flops_are_those_of_the_unfused_composition(device: str) -> None:
    x, k, v, wq, bq, wo, bo = (y.requires_grad_() for y in made(SIZES[1], torch.float32, device))

    def unfused() -> Tensor:
        q = split_heads(F.linear(x, wq, bq), 2)
        return F.linear(merge_heads(cross_attention(q, k, v)), wo, bo)  # type: ignore[arg-type]

    with FlopCounterMode(display=False) as ours:
        projected_cross_attention(x, k, v, wq, bq, wo, bo, heads=2)
    with FlopCounterMode(display=False) as theirs:
        unfused()
    assert ours.get_total_flops() == theirs.get_total_flops() > 0
