"""What the strategies that read less than all of the context compute, against naive formulas in fp64."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import Tensor, nn

from fusionbench.inputs import make_inputs
from fusionbench.registry import Inputs, get
from fusionbench.spec import Case, Shape
from fusionbench.strategies.linear_cross_attention import LinearCrossAttention, efficient_attention, linear_attention
from fusionbench.strategies.token_merge import TokenMerge, match, staying
from fusionbench.strategies.topk_cross_attention import TopKCrossAttention, topk_attention
from fusionbench.strategies.windowed_cross_attention import WindowedCrossAttention, count_blocks, first_keys

SHAPE = Shape(batch=3, image=19, text=6, image_width=12, text_width=12, width=12, heads=3, depth=2, ffn=2)


def given(padding: float = 0.0, shape: Shape = SHAPE, seed: int = 1) -> tuple[Case, Inputs]:
    case = Case(shape=shape, padding=padding, mode="fwd_bwd")
    return case, make_inputs(get("cross_attention"), case, seed, torch.float64, "cpu")


def built(kind: type[nn.Module], case: Case, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(case, "eager", **options).double()


def dense(case: Case, weights: nn.Module) -> nn.Module:
    """``cross_attention`` with the weights of a module that has the same ones."""
    module = get("cross_attention").module(case, "eager").double()
    module.load_state_dict(weights.state_dict())
    return module


def heads(*lengths: int, d: int = 4, seed: int = 0) -> list[Tensor]:
    """Operands [2, 3, L, d] with scores of deviation 3."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, d, generator=generator, dtype=torch.float64) * 3**0.5 for n in lengths]


MASK = torch.arange(9) < torch.tensor([[9], [4]])


def same_with_gradients(module: nn.Module, other: nn.Module, case: Inputs) -> None:
    """Equal outputs, and equal gradients of parameters and inputs."""
    results = []
    for m in (module, other):
        output = m(*case.args())
        leaves = [case.image, case.text, *m.parameters()]
        results.append((output, torch.autograd.grad(output.sin().sum(), leaves)))  # type: ignore[arg-type]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TopKCrossAttention, {"k": 19}),
        (TopKCrossAttention, {"k": 1000}),
        (WindowedCrossAttention, {"window": 19}),
        (WindowedCrossAttention, {"window": 1000}),
    ],
)
@pytest.mark.parametrize("padding", [0.0, 0.6])
def test_what_may_read_all_of_the_context_is_cross_attention(
    kind: type[nn.Module], options: dict[str, int], padding: float
) -> None:
    case, inputs = given(padding)
    module = built(kind, case, **options)
    same_with_gradients(module, dense(case, module), inputs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LinearCrossAttention, {}),
        (LinearCrossAttention, {"features": "softmax"}),
        (TopKCrossAttention, {"k": 4}),
        (TokenMerge, {}),
        (TokenMerge, {"ratio": 0.25}),
        (TokenMerge, {"ratio": 0.1}),
    ],
)
def test_a_padded_sample_gives_what_it_gives_alone(kind: type[nn.Module], options: dict[str, object]) -> None:
    case, inputs = given(padding=0.8)
    module = built(kind, case, **options)
    together = module(*inputs.args())
    assert inputs.image is not None
    assert inputs.text is not None
    assert inputs.image_mask is not None
    assert inputs.text_mask is not None
    for b in range(case.shape.batch):
        image_length, text_length = int(inputs.image_mask[b].sum()), int(inputs.text_mask[b].sum())
        alone = module(inputs.image[b : b + 1, :image_length], inputs.text[b : b + 1, :text_length])
        both = torch.cat([inputs.image_mask[b], inputs.text_mask[b]])
        real = together[b, both if kind is TokenMerge else inputs.text_mask[b]]
        torch.testing.assert_close(real, alone[0])


# --- linear --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_linear_attention_is_attention_with_products_of_features_as_weights(mask: Tensor | None) -> None:
    q, k, v = heads(5, 9, 9)
    features_q, features_k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    weights = features_q @ features_k.transpose(-2, -1)
    weights = weights if mask is None else weights * mask[:, None, None, :]
    expected = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(linear_attention(q, k, v, mask), expected)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_efficient_attention_is_a_product_of_two_softmaxes(mask: Tensor | None) -> None:
    q, k, v = heads(5, 9, 9)
    k = k if mask is None else k.masked_fill(~mask[:, None, :, None], -math.inf)
    expected = (q.softmax(-1) @ k.softmax(-2).transpose(-2, -1)) @ v
    torch.testing.assert_close(efficient_attention(q, heads(5, 9, 9)[1], v, mask), expected)


@pytest.mark.parametrize("read", [linear_attention, efficient_attention])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_without_any_key_linear_attention_gives_zero_and_finite_gradients(read, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    q, k, v = (x.to(dtype).requires_grad_() for x in heads(5, 9, 9))
    out = read(q, k, v, torch.tensor([[False], [True]]).expand(2, 9))
    assert not out[0].any()
    assert out[1].any()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("read", [linear_attention, efficient_attention])
def test_sums_over_many_keys_do_not_overflow_in_fp16(read) -> None:  # type: ignore[no-untyped-def]
    q, k, v = heads(3, 2**14, 2**14, d=16)
    q, k, v = q.half(), k.half() + 2, v.half() + 8
    assert ((k.double() + 1).clamp(min=0).transpose(-2, -1) @ v.double()).max() > torch.finfo(torch.float16).max
    out, truth = read(q, k, v, None), read(q.double(), k.double(), v.double(), None)
    assert (out - truth).abs().max() < 8 * 2**-11 * truth.abs().max()  # eight roundings on the way


# --- top-k ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("chosen", [1, 3, 6])
def test_topk_attention_is_attention_over_the_highest_scores_alone(chosen: int, mask: Tensor | None) -> None:
    q, k, v = heads(5, 9, 9)
    scores = q @ k.transpose(-2, -1) / 2
    scores = scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -math.inf)
    threshold = scores.sort(-1, descending=True).values[..., chosen - 1 : chosen]
    expected = scores.masked_fill(scores < threshold, -math.inf).softmax(-1) @ v
    torch.testing.assert_close(topk_attention(q, k, v, chosen, mask), expected)


def test_of_equal_scores_exactly_k_are_read() -> None:
    q, k, _ = heads(5, 9, 9)
    units = torch.eye(9, dtype=torch.float64).expand(2, 3, 9, 9)  # as values: each query reads its own weights
    weights = topk_attention(q, torch.zeros_like(k), units, 4, None)
    assert (weights > 0).sum(-1).eq(4).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))


def test_a_query_with_fewer_keys_than_k_reads_those_it_has_and_without_any_gives_zero() -> None:
    q, k, v = (x.requires_grad_() for x in heads(5, 9, 9))
    mask = torch.arange(9) < torch.tensor([[0], [2]])
    out = topk_attention(q, k, v, 4, mask)
    torch.testing.assert_close(out[1], topk_attention(q[1:, :], k[1:, :, :2], v[1:, :, :2], 2, None)[0])
    assert not out[0].any()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


def test_what_a_padded_key_scores_is_never_chosen() -> None:
    q, k, v = heads(5, 9, 9)
    expected = topk_attention(q, k, v, 3, MASK)
    k = k.masked_fill(~MASK[:, None, :, None], math.nan)
    torch.testing.assert_close(topk_attention(q, k, v, 3, MASK), expected)


# --- windowed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0.0, 0.5])
@pytest.mark.parametrize("impl", ["eager", "sdpa", "triton"])
@pytest.mark.parametrize(("queries", "keys", "window"), [(6, 19, 7), (8, 40, 20), (7, 19, 4), (1, 19, 5), (24, 9, 6)])
def test_each_block_of_queries_reads_its_window_alone(
    queries: int, keys: int, window: int, impl: str, padding: float
) -> None:
    case, inputs = given(padding, msgspec.structs.replace(SHAPE, text=queries, image=keys))
    module = WindowedCrossAttention(case, impl, window).double()
    layer = dense(case, module).layer
    text, image = module.project.text(inputs.text), module.project.image(inputs.image)
    found = module(*inputs.args())
    block = queries // count_blocks(queries, keys, window)
    for b in range(case.shape.batch):
        text_length = queries if inputs.text_mask is None else int(inputs.text_mask[b].sum())
        image_length = keys if inputs.image_mask is None else int(inputs.image_mask[b].sum())
        for i in range(text_length):
            middle = (i // block + 0.5) * block * image_length / text_length
            first = max(0, min(math.floor(middle) - window // 2, image_length - window))
            near = image[b : b + 1, first : min(first + window, image_length)]
            torch.testing.assert_close(found[b, i], layer(text[b : b + 1, i : i + 1], near)[0, 0])


@pytest.mark.parametrize("queries", [1, 2, 8, 31, 32, 64, 77, 196])
@pytest.mark.parametrize("keys", [9, 64, 65, 196, 577, 6404])
@pytest.mark.parametrize("window", [1, 16, 64])
def test_a_window_holds_a_quarter_of_itself_on_either_side_of_its_queries(queries: int, keys: int, window: int) -> None:
    blocks = count_blocks(queries, keys, window)
    block = queries // blocks
    assert blocks * block == queries
    first = first_keys(blocks, block, window, torch.tensor([[queries]]), torch.tensor([[keys]]))[0].tolist()
    for j, start in enumerate(first):
        low, high = j * block * keys / queries, (j + 1) * block * keys / queries
        assert window >= keys or 0 <= start <= keys - window
        if window < keys and block > 1:
            assert start == 0 or start <= low - window / 4 + 1
            assert start == keys - window or start + window >= high + window / 4 - 1


# --- token merging -------------------------------------------------------------------------------------------------


def merged_naively(image: Tensor, ratio: float) -> tuple[list[set[int]], list[int]]:
    """(groups of positions that become one, the group of each position) of one sample [L, W], token by token."""
    odd, even = range(1, len(image), 2), range(0, len(image), 2)
    cosine = nn.functional.cosine_similarity(image[:, None], image[None], dim=-1)
    nearest = {s: max(even, key=lambda d: float(cosine[s, d])) for s in odd}
    stay = sorted(odd, key=lambda s: float(cosine[s, nearest[s]]))[: int(len(odd) * (1 - 2 * ratio))]
    groups = [{d} | {s for s in odd if nearest[s] == d and s not in stay} for d in even] + [{s} for s in stay]
    return groups, [next(n for n, group in enumerate(groups) if p in group) for p in range(len(image))]


@pytest.mark.parametrize("length", [1, 2, 7, 18, 19])
@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.1])
def test_merging_is_bipartite_soft_matching(length: int, ratio: float) -> None:
    image = torch.randn(1, length, 5, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    groups, places = merged_naively(image[0], ratio)
    merging = match(image, None, ratio)
    assert merging.sizes.tolist() == [[len(group) for group in groups]]
    assert merging.place.tolist() == [places]
    expected = torch.stack([image[0, sorted(group)].mean(0) for group in groups])
    torch.testing.assert_close(merging.apply(image)[0], expected)
    assert len(groups) == length - length // 2 + staying(length // 2, ratio)


@pytest.mark.parametrize("impl", ["eager", "sdpa", "triton"])
def test_merging_copies_changes_nothing(impl: str) -> None:
    case, inputs = given(shape=msgspec.structs.replace(SHAPE, image=14))
    assert inputs.image is not None
    # each token three times at odd and even places: all copies meet
    image = inputs.image.detach()[:, :4].repeat_interleave(3, dim=1)
    torch.manual_seed(0)
    module, full = TokenMerge(case, impl).double(), get("concat_attention").module(case, "eager").double()
    full.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(image, inputs.text), full(image, inputs.text))
    assert not torch.allclose(module(inputs.image, inputs.text), full(inputs.image, inputs.text))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_the_reference_merges_the_tokens_that_any_dtype_merges(dtype: torch.dtype, ratio: float) -> None:
    image = torch.randn(4, 196, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    own, reference = match(image, None, ratio), match(image.double(), None, ratio)
    assert torch.equal(own.place, reference.place)
    assert torch.equal(own.stay, reference.stay)


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_padding_is_never_merged_however_much_it_looks_like_a_token(ratio: float) -> None:
    case, inputs = given(padding=0.7)
    assert inputs.image is not None
    assert inputs.image_mask is not None
    module = built(TokenMerge, case, ratio=ratio)
    twins = inputs.image.detach().clone()
    for b, length in enumerate(inputs.image_mask.sum(1).tolist()):
        for p in range(length, twins.shape[1]):
            twins[b, p] = twins[b, p % length]
    real = torch.cat([inputs.image_mask, inputs.text_mask], dim=1)  # type: ignore[list-item]
    found = module(twins, inputs.text, inputs.image_mask, inputs.text_mask)[real]
    torch.testing.assert_close(found, module(*inputs.args())[real])


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_no_token_is_lost_whatever_the_mask(ratio: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image, mask = torch.randn(64, 13, 5, generator=generator), torch.rand(64, 13, generator=generator) < 0.5
    mask[0], mask[1] = False, torch.arange(13) % 2 == 1  # nothing real; real tokens at odd places alone
    merging = match(image, mask, ratio)
    assert torch.equal(merging.sizes.sum(1), mask.sum(1))
    total = (merging.apply(image) * merging.sizes.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(total, (image * mask.unsqueeze(-1)).sum(1))
    torch.testing.assert_close(merging.sizes.gather(1, merging.place)[mask] > 0, torch.ones(int(mask.sum())) > 0)


def test_merging_half_of_the_tokens_nearly_halves_the_cost_of_concatenation() -> None:
    llava = Shape(batch=1, image=576, text=64, image_width=1024, text_width=4096, width=4096, heads=32)
    case = Case(shape=llava)
    merged, full = (get(name).costs(case, "sdpa").flops for name in ("token_merge", "concat_attention"))
    assert 1.75 < full / merged < 1.85
