"""The strategies that fuse pooled vectors, and FiLM: each module against its paper's formula, written out, in fp64."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import Tensor, nn

from fusionbench.inputs import make_inputs
from fusionbench.registry import Inputs, get
from fusionbench.spec import Case, Shape
from fusionbench.strategies import bilinear
from fusionbench.strategies.tensor_fusion import outer_product

SHAPE = Shape(batch=3, image=7, text=5, image_width=9, text_width=6, width=8, heads=2, ffn=0)
POOLED = ("gmu", "tensor_fusion", "low_rank", "bilinear", "bilinear:mutan", "bilinear:mlb")
by_pooled = pytest.mark.parametrize("name", POOLED)


def prepare(name: str, *, impl: str = "eager", padding: float = 0.0, **sizes: int) -> tuple[nn.Module, Inputs]:
    """The module and inputs in fp64 at unequal widths, which projector ``identity`` leaves as they are."""
    case = Case(shape=msgspec.structs.replace(SHAPE, **sizes), projector="identity", mode="fwd_bwd", padding=padding)
    torch.manual_seed(0)
    entry = get(name)
    return entry.module(case, impl).double(), make_inputs(entry, case, 1, torch.float64, "cpu")


def pooled(given: Inputs) -> tuple[Tensor, Tensor]:
    assert given.image is not None
    assert given.text is not None
    return given.image.mean(1), given.text.mean(1)


def exactly(found: Tensor, expected: Tensor) -> None:
    """Equal up to rounding in fp64."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


# --- FiLM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ffn", [0, 2])
def test_film_scales_and_shifts_every_normalised_token_by_the_pooled_text(ffn: int) -> None:
    module, given = prepare("film", ffn=ffn)
    image, text = given.image, given.text
    assert image is not None
    assert text is not None
    found = module(*given.args())
    for b in range(3):
        both = affine(module.modulation, text[b].mean(0))
        gamma, beta = both[:9], both[9:]
        for token, result in zip(image[b], found[b], strict=True):
            modulated = (1 + gamma) * normalised(token) + beta
            exactly(result, token + (module.ffn(modulated) if ffn else modulated))


@pytest.mark.parametrize("ffn", [0, 2])
def test_adaln_zero_gates_every_channel(ffn: int) -> None:
    module, given = prepare("film:adaln_zero", ffn=ffn)
    image, text = given.image, given.text
    assert image is not None
    assert text is not None
    mean = text.mean(1)
    gamma, beta, alpha = affine(module.modulation, mean * mean.sigmoid())[:, None].chunk(3, dim=-1)
    modulated = (1 + gamma) * normalised(image) + beta
    exactly(module(*given.args()), image + alpha * (module.ffn(modulated) if ffn else modulated))


def test_adaln_zero_is_the_identity_where_its_training_starts() -> None:
    module, given = prepare("film:adaln_zero", ffn=2)
    nn.init.zeros_(module.modulation.weight)
    nn.init.zeros_(module.modulation.bias)
    assert given.image is not None
    assert torch.equal(module(*given.args()), given.image)


def test_film_with_a_text_that_says_nothing_is_the_plain_feed_forward_block() -> None:
    module, given = prepare("film", ffn=2)
    nn.init.zeros_(module.modulation.weight)
    nn.init.zeros_(module.modulation.bias)
    assert given.image is not None
    exactly(module(*given.args()), given.image + module.ffn(normalised(given.image)))


@pytest.mark.parametrize("name", ["film", "film:adaln_zero"])
def test_film_without_text_is_film_with_the_zero_vector(name: str) -> None:
    module, given = prepare(name)
    assert given.text is not None
    exactly(module(given.image, None), module(given.image, torch.zeros_like(given.text)))


# --- pooled vectors --------------------------------------------------------------------------------------------------


@by_pooled
def test_a_missing_modality_is_the_zero_vector_and_so_is_one_without_real_tokens(name: str) -> None:
    module, given = prepare(name, padding=0.5)
    image, text, image_mask, text_mask = given.args()
    assert text is not None
    assert text_mask is not None
    without = module(image, None, image_mask)
    exactly(without, module(image, torch.zeros_like(text), image_mask, text_mask))
    exactly(without, module(image, text, image_mask, torch.zeros_like(text_mask)))
    assert not torch.allclose(without, module(*given.args()))


@by_pooled
def test_padding_changes_nothing_but_the_tokens_that_are_pooled(name: str) -> None:
    module, given = prepare(name, padding=0.7, batch=1)
    image, text, image_mask, text_mask = given.args()
    assert image is not None
    assert text is not None
    assert image_mask is not None
    assert text_mask is not None
    exactly(module(*given.args()), module(image[:, image_mask[0]], text[:, text_mask[0]]))


@by_pooled
def test_the_feed_forward_block_follows_the_fused_vector(name: str) -> None:
    module, given = prepare(name, ffn=2)
    found = module(*given.args())
    block, module.ffn = module.ffn, nn.Identity()
    exactly(found, block(module(*given.args())))


# --- gated multimodal unit -------------------------------------------------------------------------------------------


def test_gmu_weighs_both_modalities_per_feature() -> None:
    module, given = prepare("gmu")
    i, t = pooled(given)
    z = (torch.cat([i, t], 1) @ module.gate.weight.T).sigmoid()
    exactly(module(*given.args()), z * (i @ module.image.weight.T).tanh() + (1 - z) * (t @ module.text.weight.T).tanh())


def test_gmu_has_no_biases_and_a_missing_modality_adds_nothing() -> None:
    module, given = prepare("gmu")
    i, _ = pooled(given)
    assert {name for name, _ in module.named_parameters()} == {"image.weight", "text.weight", "gate.weight"}
    z = (i @ module.gate.weight[:, :9].T).sigmoid()
    exactly(module(given.image, None), z * (i @ module.image.weight.T).tanh())


def test_gmus_triton_impl_computes_the_same_result_and_gradients() -> None:
    found = []
    for impl in ("eager", "triton"):
        module, given = prepare("gmu", impl=impl, ffn=2)
        result = module(*given.args())
        result.sin().sum().backward()
        assert given.image is not None
        assert given.text is not None
        found.append([result, given.image.grad, given.text.grad, *(p.grad for p in module.parameters())])
    for eager, triton in zip(*found, strict=True):
        exactly(triton, eager)


# --- tensor fusion ---------------------------------------------------------------------------------------------------


def test_the_outer_product_holds_a_one_both_vectors_and_every_product_of_their_features() -> None:
    a, b = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0, 11.0]])
    assert outer_product(a, b).tolist() == [[1, 5, 7, 11, 2, 10, 14, 22, 3, 15, 21, 33]]


@pytest.mark.parametrize(("name", "features"), [("tensor_fusion", 32), ("tensor_fusion:64", 64)])
def test_tensor_fusion_mixes_the_outer_product_of_reduced_vectors(name: str, features: int) -> None:
    module, given = prepare(name)
    reduced = []
    for vector, layers in zip(pooled(given), (module.image, module.text), strict=True):
        linear = layers[1]
        reduced.append(torch.cat([torch.ones(3, 1).double(), affine(linear, normalised(vector)).relu()], dim=1))
    weight = module.mix.weight.view(8, features + 1, features + 1)
    exactly(module(*given.args()), torch.einsum("bi,bt,oit->bo", *reduced, weight) + module.mix.bias)


# --- low-rank fusion -------------------------------------------------------------------------------------------------


def whole_weight(module: nn.Module, rank: int) -> Tensor:
    """The weight [out, Di + 1, Dt + 1] of tensor fusion that the factors of a low-rank fusion stand for."""
    image, text = (
        torch.cat([layer.bias.unsqueeze(1), layer.weight], dim=1).view(rank, 8, -1)
        for layer in (module.factors.image, module.factors.text)
    )
    return torch.einsum("r,roi,rot->oit", module.weights, image, text)


@pytest.mark.parametrize(("name", "rank"), [("low_rank", 4), ("low_rank:rank1", 1), ("low_rank:rank16", 16)])
def test_low_rank_fusion_is_tensor_fusion_with_the_weight_that_its_factors_make(name: str, rank: int) -> None:
    module, given = prepare(name)
    nn.init.normal_(module.weights)
    nn.init.normal_(module.bias)
    expected = outer_product(*pooled(given)) @ whole_weight(module, rank).flatten(1).T + module.bias
    exactly(module(*given.args()), expected)


def test_the_factors_of_low_rank_fusion_are_parameters_that_an_optimiser_moves() -> None:
    module, given = prepare("low_rank")
    sizes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert sizes == {
        "weights": (4,), "bias": (8,), "factors.image.weight": (32, 9), "factors.image.bias": (32,),
        "factors.text.weight": (32, 6), "factors.text.bias": (32,),
    }  # fmt: skip
    before, was = module(*given.args()), whole_weight(module, 4)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    before.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    optimiser.step()
    after = module(*given.args())
    assert bool((whole_weight(module, 4) != was).all())
    assert after.square().sum() < before.square().sum()


# --- bilinear pooling ------------------------------------------------------------------------------------------------


def test_mfb_sums_factors_takes_signed_roots_and_gives_every_vector_length_one() -> None:
    module, given = prepare("bilinear")
    i, t = pooled(given)
    u, v = (layer.weight.view(5, 8, -1) for layer in (module.pooling.factors.image, module.pooling.factors.text))
    c, d = (layer.bias.view(5, 8) for layer in (module.pooling.factors.image, module.pooling.factors.text))
    z = sum((i @ u[k].T + c[k]) * (t @ v[k].T + d[k]) for k in range(5))
    roots = z / (z.abs() + bilinear.EPSILON).sqrt()
    unit = roots / roots.norm(dim=1, keepdim=True)
    exactly(module.pooling(i, t), unit)
    exactly(module(*given.args()), affine(module.out, unit))


def test_mutan_is_a_tucker_decomposition_whose_core_has_slices_of_rank_ten() -> None:
    module, given = prepare("bilinear:mutan", width=16)
    layers, core = (module.pooling.image, module.pooling.text), module.pooling.core
    i, t = (affine(layer, x).tanh() for layer, x in zip(layers, pooled(given), strict=True))
    # slice o of the core is Σ_r m_ro n_roᵀ over vectors with a 1 appended
    m, n = (torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1).view(10, 16, 17) for layer in (core.image, core.text))
    slices = torch.einsum("roi,rot->oit", m, n)
    assert torch.linalg.matrix_rank(slices).tolist() == [10] * 16
    ones = torch.ones(3, 1).double()
    z = torch.einsum("bi,oit,bt->bo", torch.cat([i, ones], 1), slices, torch.cat([t, ones], 1))
    exactly(module(*given.args()), affine(module.out, z))


def test_mlb_is_the_hadamard_product_of_two_projections() -> None:
    module, given = prepare("bilinear:mlb")
    i, t = pooled(given)
    joint = affine(module.pooling.image, i).tanh() * affine(module.pooling.text, t).tanh()
    exactly(module(*given.args()), affine(module.out, joint))


def test_the_signed_root_is_odd_and_near_the_root_of_numbers_above_epsilon() -> None:
    x = torch.tensor([0.5, 4.0, 400.0], dtype=torch.float64)
    assert torch.equal(bilinear.signed_sqrt(-x), -bilinear.signed_sqrt(x))
    # x / √(x + ε) = √x · (1 + ε/x)^-½, which is off by ε/2x at most
    assert bool(((bilinear.signed_sqrt(x) / x.sqrt() - 1).abs() <= bilinear.EPSILON / (2 * x)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_signed_root_has_its_largest_slope_at_zero_and_that_is_finite(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([0.0, tiny, -tiny, 1e-3, -1e-3, 1.0, 1000.0], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(bilinear.signed_sqrt(x).sum(), x)
    assert bool(slope.isfinite().all())
    assert bool((slope > 0).all())
    assert float(slope.max()) <= (1 + 4 * torch.finfo(dtype).eps) / math.sqrt(bilinear.EPSILON)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mfb_of_vectors_whose_products_vanish_is_zero_with_finite_gradients(dtype: torch.dtype) -> None:
    pooling = bilinear.Mfb((9, 6), 8).to(dtype)
    nn.init.zeros_(pooling.factors.image.bias)
    a, b = torch.zeros(2, 9, dtype=dtype, requires_grad=True), torch.ones(2, 6, dtype=dtype, requires_grad=True)
    result = pooling(a, b)
    assert not result.any()
    result.sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (a, b, *pooling.parameters()))
