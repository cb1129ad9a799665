"""What every strategy promises about its output, its masks and a missing modality, and what each one means."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor, nn

from fusionbench.errors import MissingModalityError
from fusionbench.inputs import make_inputs, padding_mask
from fusionbench.registry import Inputs, Strategy, get, strategies
from fusionbench.spec import PROJECTORS, Case, Design, Projector, Shape
from fusionbench.strategies import attention_pooling, late, perceiver_resampler, q_former
from fusionbench.strategies.co_attention_shared import shared_attention

SHAPE = Shape(batch=3, image=11, text=6, image_width=12, text_width=12, width=12, heads=3, depth=2, ffn=2)
NO_DEPTH = msgspec.structs.replace(SHAPE, depth=0, ffn=0, heads=1)
Output = Tensor | tuple[Tensor | None, ...]

by_name = pytest.mark.parametrize("name", strategies())
by_attention = pytest.mark.parametrize("name", [n for n, entry in strategies().items() if "sdpa" in entry.impls])


def case_for(entry: Strategy, shape: Shape = SHAPE, **changes: object) -> Case:
    """The first projector and mode that the strategy accepts at this shape."""
    tried: list[Projector] = ["linear", "identity"]
    for mode in ("fwd_bwd", "fwd"):
        for projector in tried:
            case = msgspec.structs.replace(Case(shape=shape, projector=projector), **({"mode": mode} | changes))
            if not entry.refusal(case):
                return case
    raise AssertionError(f"{entry.name} refuses everything")


def prepare(name: str, impl: str = "eager", *, dtype: torch.dtype = torch.float64, **changes: object):  # type: ignore[no-untyped-def]
    """(module, inputs, case) for a strategy by name."""
    entry = get(name)
    case = case_for(entry, **changes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return entry.module(case, impl).to(dtype), make_inputs(entry, case, 1, dtype, "cpu"), case


def parts(output: Output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [x for x in output if x is not None]


def real(output: Output, given: Inputs) -> list[Tensor]:
    """The output at real tokens only; verdicts [B, C] have no tokens, and learned tokens are all real."""
    masks = {m.shape[1]: m for m in (given.image_mask, given.text_mask) if m is not None}
    if given.text_mask is not None:
        for learned in (perceiver_resampler.LATENTS, attention_pooling.QUERIES["image"], q_former.QUERIES):
            behind = nn.functional.pad(given.text_mask, (learned, 0), value=True)
            masks[behind.shape[1]] = behind
    if given.image_mask is not None and given.text_mask is not None:
        both = torch.cat([given.image_mask, given.text_mask], dim=1)
        masks[both.shape[1]] = both
    return [x[masks[x.shape[1]]] if x.dim() == 3 and x.shape[1] in masks else x for x in parts(output)]


def run(module: nn.Module, given: Inputs) -> Output:
    return module(*given.args())


@by_name
def test_every_element_of_the_output_is_finite_and_the_first_axis_is_the_batch(name: str) -> None:
    module, given, case = prepare(name)
    for x in parts(run(module, given)):
        assert x.shape[0] == case.shape.batch
        assert x.isfinite().all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("concat", (3, 17, 12)),
        ("concat_attention", (3, 17, 12)),
        ("concat_features", (3, 12)),
        ("cross_attention", (3, 6, 12)),
        ("cross_attention:image_to_text", (3, 11, 12)),
        ("linear_cross_attention", (3, 6, 12)),
        ("linear_cross_attention:image_to_text", (3, 11, 12)),
        ("topk_cross_attention", (3, 6, 12)),
        ("windowed_cross_attention", (3, 6, 12)),
        ("token_merge", (3, 17, 12)),
        ("gated_cross_attention", (3, 6, 12)),
        ("perceiver_resampler", (3, 64 + 6, 12)),
        ("perceiver", (3, 256, 12)),
        ("attention_pooling", (3, 1, 12)),
        ("attention_pooling:image", (3, 256 + 6, 12)),
        ("co_attention", ((3, 6, 12), (3, 11, 12))),
        ("co_attention:shared_out", ((3, 6, 12), (3, 11, 12))),
        ("co_attention_shared", ((3, 6, 12), (3, 11, 12))),
        ("hierarchical", ((3, 6, 12), (3, 11, 12))),
        ("lxmert", ((3, 6, 12), (3, 11, 12))),
        ("q_former", (3, 38, 12)),
        ("q_former:with_text", (3, 38, 12)),
        ("vilbert", ((3, 6, 12), (3, 11, 12))),
        ("vilbert:with_self", ((3, 6, 12), (3, 11, 12))),
        ("mid", (3, 17, 12)),
        ("mmdit", ((3, 6, 12), (3, 11, 12))),
        ("mixture_of_transformers", ((3, 6, 12), (3, 11, 12))),
        ("bottleneck", ((3, 6, 12), (3, 11, 12))),
        ("mult", ((3, 6, 12), (3, 11, 12))),
        ("multimodal_transformer", (3, 6, 12)),
        ("transformer_decoder", (3, 6, 12)),
        ("transformer_decoder:image_to_text", (3, 11, 12)),
        ("early", (3, 17, 12)),
        ("early:conv", (3, 17, 12)),
        ("late", (3, late.CLASSES)),
        ("late:concat_head", (3, late.CLASSES)),
        ("late:similarity", (3, 3)),
        ("film", (3, 11, 12)),
        ("film:adaln_zero", (3, 11, 12)),
        ("gmu", (3, 12)),
        ("tensor_fusion", (3, 12)),
        ("tensor_fusion:64", (3, 12)),
        ("low_rank", (3, 12)),
        ("bilinear", (3, 12)),
        ("bilinear:mutan", (3, 12)),
        ("bilinear:mlb", (3, 12)),
    ],
)
def test_the_output_has_the_shape_that_the_docstring_says(name: str, expected: tuple[object, ...]) -> None:
    module, given, _ = prepare(name)
    output = run(module, given)
    shapes = tuple(output.shape) if isinstance(output, Tensor) else tuple(tuple(x.shape) for x in parts(output))
    assert shapes == expected


@by_name
def test_half_precision_in_gives_half_precision_out(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        module, given, _ = prepare(name, dtype=dtype, padding=0.5)
        assert all(x.dtype == dtype and x.isfinite().all() for x in parts(run(module, given)))


@by_name
def test_one_seed_gives_one_result(name: str) -> None:
    first, second = (parts(run(module, given)) for module, given, _ in (prepare(name), prepare(name)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@by_attention
@pytest.mark.parametrize("padding", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_eager_and_sdpa_agree(name: str, padding: float, dtype: torch.dtype) -> None:
    results = []
    for impl in ("eager", "sdpa"):
        module, given, _ = prepare(name, impl, padding=padding, dtype=dtype)
        results.append(real(run(module, given), given))
    for eager, sdpa in zip(*results, strict=True):
        torch.testing.assert_close(eager, sdpa)


@by_attention
@pytest.mark.parametrize("padding", [0.0, 0.7])
def test_eager_and_sdpa_have_the_same_gradients(name: str, padding: float) -> None:
    results = []
    for impl in ("eager", "sdpa"):
        module, given, case = prepare(name, impl, padding=padding)
        if case.mode == "fwd":
            assert not any(x.requires_grad for x in parts(run(module, given)))
            return
        torch.stack([x.sin().sum() for x in real(run(module, given), given)]).sum().backward()
        results.append({n: p.grad for n, p in module.named_parameters()})
    assert all(grad is not None for grad in results[0].values())
    torch.testing.assert_close(*results)


def poisoned(given: Inputs) -> Inputs:
    """The same inputs with other, large content wherever a mask says padding."""

    def change(x: Tensor | None, mask: Tensor | None) -> Tensor | None:
        assert x is not None
        assert mask is not None
        if not x.is_floating_point():
            return x.where(mask, 7)
        if x.dim() == 3:
            return x.detach().where(mask.unsqueeze(-1), 1e4)
        size = x.shape[2]  # pixels [B, 3, P, P·L]
        return x.detach().where(mask.repeat_interleave(size, dim=1)[:, None, None, :], 1e4)

    image, text = change(given.image, given.image_mask), change(given.text, given.text_mask)
    return Inputs(image, text, given.image_mask, given.text_mask)


@by_name
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_what_stands_in_padded_tokens_does_not_reach_the_real_ones(name: str, impl: str) -> None:
    if impl not in get(name).impls:
        impl = "eager"
    module, given, _ = prepare(name, impl, padding=0.6)
    for clean, other in zip(real(run(module, given), given), real(run(module, poisoned(given)), given), strict=True):
        torch.testing.assert_close(other, clean)


@by_name
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_sample_that_is_all_padding_in_one_modality_stays_finite(name: str, impl: str, modality: str) -> None:
    if impl not in get(name).impls:
        impl = "eager"
    module, given, _ = prepare(name, impl, padding=0.5)
    mask = given.image_mask if modality == "image" else given.text_mask
    assert mask is not None
    mask[0] = False
    outputs = real(run(module, given), given)
    assert all(x.isfinite().all() for x in outputs)
    loss = torch.stack([x.sum() for x in outputs]).sum()
    if loss.requires_grad:
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
        for x in (given.image, given.text):
            assert x is not None
            assert x.grad is None or x.grad.isfinite().all()


ALONE = ("attention_core", "attention_core:image_to_text", "attention_core_shared")
REFUSED = {
    "image": (
        "cross_attention:image_to_text",
        "linear_cross_attention:image_to_text",
        "transformer_decoder:image_to_text",
        "late:similarity",
        "film",
        "film:adaln_zero",
        *ALONE,
    ),
    "text": (
        "cross_attention",
        "cross_attention:context_norm",
        "gated_cross_attention",
        "linear_cross_attention",
        "linear_cross_attention:efficient",
        "topk_cross_attention",
        "topk_cross_attention:k8",
        "windowed_cross_attention",
        "windowed_cross_attention:w16",
        "transformer_decoder",
        "multimodal_transformer",
        "late:similarity",
        *ALONE,
    ),
}


@by_name
@pytest.mark.parametrize("missing", ["image", "text", "both"])
@pytest.mark.parametrize("padding", [0.0, 0.5])
def test_a_missing_modality_is_served_or_refused_in_one_line(name: str, missing: str, padding: float) -> None:
    module, given, _ = prepare(name, padding=padding)
    image = given.image if missing == "text" else None
    text = given.text if missing == "image" else None
    if missing == "both" or name in REFUSED[missing]:
        with pytest.raises(MissingModalityError, match=rf"\A{name.partition(':')[0]}.*\Z"):
            module(image, text, given.image_mask, given.text_mask)
        return
    output = parts(module(image, text, given.image_mask, given.text_mask))
    assert output
    assert all(x.isfinite().all() for x in output)


@pytest.mark.parametrize("name", ["late", "late:weighted", "late:product", "late:vote"])
def test_late_fusion_without_one_modality_is_the_other_ones_verdict(name: str) -> None:
    module, given, _ = prepare(name)
    alone = module(given.image, None)
    logits = module.combine.image(module.image_encoder(module.project.image(given.image)).mean(1))
    torch.testing.assert_close(alone.argmax(-1), logits.argmax(-1))
    if name in ("late", "late:weighted"):
        torch.testing.assert_close(alone, logits)


@pytest.mark.parametrize(
    "name",
    [
        "cross_attention",
        "gated_cross_attention",
        "linear_cross_attention",
        "topk_cross_attention",
        "windowed_cross_attention",
        "co_attention",
        "co_attention:shared_out",
        "co_attention_shared",
        "q_former",
        "vilbert",
    ],
)
def test_a_fusion_layer_without_its_context_is_skipped(name: str) -> None:
    module, given, _ = prepare(name)
    output = module(None, given.text)
    assert torch.equal(parts(output)[0], module.project.text(given.text))
    if isinstance(output, tuple):
        assert output[1] is None


@by_name
@pytest.mark.parametrize("projector", PROJECTORS)
def test_a_case_is_refused_with_a_reason_or_runs_with_a_type_embedding_or_without(
    name: str, projector: Projector
) -> None:
    entry = get(name)
    for types in (False, True):
        case = Case(shape=NO_DEPTH, projector=projector, type_embedding=types)
        reason = entry.refusal(case)
        if reason is not None:
            assert "\n" not in reason
            continue
        module, given = entry.module(case, "eager"), make_inputs(entry, case, 0, torch.float32, "cpu")
        assert all(x.isfinite().all() for x in parts(run(module, given)))


@by_name
def test_widths_may_differ_except_where_both_modalities_enter_one_stream(name: str) -> None:
    entry = get(name)
    case = Case(shape=msgspec.structs.replace(SHAPE, text_width=20), projector="identity")
    if name in (
        "concat_attention",
        "mid",
        "lxmert",
        "bottleneck",
        "token_merge",
        "mult",
        "multimodal_transformer",
        "co_attention:shared_out",
        "token_merge:quarter",
        "perceiver",
        "attention_pooling",
    ):
        reason = "projector 'identity' leaves image at width 12 and text at 20; this strategy needs them equal"
        assert entry.refusal(case) == f"{reason} (use 'linear')"
    elif name == "concat":
        assert entry.refusal(case) == "concat is the cat alone and needs equal widths, not image 12 and text 20"
    elif name == "q_former:with_text":
        reason = "q_former:with_text puts text of width 20 beside queries of width 12 (use 'linear')"
        assert entry.refusal(case) == reason
    elif name == "vilbert:with_self":
        reason = "vilbert:with_self splits text of width 20 into heads, and 3 do not divide it"
        assert entry.refusal(case) == reason
    elif entry.inputs is None:
        module, given = entry.module(case, "eager"), make_inputs(entry, case, 0, torch.float32, "cpu")
        assert all(x.isfinite().all() for x in parts(run(module, given)))


def test_concat_alone_lets_nothing_interact_and_its_consumer_does() -> None:
    for name, interacts in (("concat", False), ("concat_attention", True)):
        module, given, case = prepare(name)
        assert given.text is not None
        image_part = module(given.image, given.text)[:, : case.shape.image]
        (gradient,) = torch.autograd.grad(image_part.sin().sum(), given.text, allow_unused=True, materialize_grads=True)
        assert bool(gradient.any()) is interacts


@pytest.mark.parametrize("name", [n for n in strategies() if n not in ("concat", "late:vote") and "early" not in n])
def test_the_gradient_of_the_result_reaches_both_modalities(name: str) -> None:
    module, given, _ = prepare(name)
    gradients = torch.autograd.grad(parts(run(module, given))[0].sin().sum(), (given.image, given.text))
    assert all(gradient.any() for gradient in gradients)


def test_the_order_of_image_tokens_does_not_matter_to_a_text_query() -> None:
    module, given, case = prepare("cross_attention", padding=0.5)
    order = torch.randperm(case.shape.image, generator=torch.Generator().manual_seed(0))
    assert given.image is not None
    assert given.image_mask is not None
    shuffled = module(given.image[:, order], given.text, given.image_mask[:, order], given.text_mask)
    torch.testing.assert_close(shuffled, run(module, given))


def test_cross_attention_of_a_sequence_with_itself_is_self_attention() -> None:
    module, given, _ = prepare("cross_attention:context_norm", projector="identity")
    layer = module.layer
    layer.attention.context_norm.load_state_dict(layer.attention.norm.state_dict())
    torch.testing.assert_close(module(given.text, given.text), layer(given.text))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_linear_and_convolutional_patch_embeddings_are_the_same_function(p: int) -> None:
    shape = msgspec.structs.replace(SHAPE, image_width=3 * p * p)
    linear, given, _ = prepare("early", shape=shape)
    conv, _, _ = prepare("early:conv", shape=shape)
    weights = linear.state_dict()
    weights["patches.weight"] = weights.pop("patches.embed.weight").view(-1, 3, p, p)
    weights["patches.bias"] = weights.pop("patches.embed.bias")
    conv.load_state_dict(weights)
    torch.testing.assert_close(run(conv, given), run(linear, given))


def test_early_takes_pixels_and_ids_and_asks_no_gradient_of_them() -> None:
    _, given, _ = prepare("early")
    assert given.image is not None
    assert given.text is not None
    assert given.image.shape == (3, 3, 2, 22)
    assert given.text.shape == (3, 6)
    assert given.text.dtype == torch.int64
    assert not given.image.requires_grad


def test_early_names_the_next_width_that_is_a_patch() -> None:
    case = Case(shape=msgspec.structs.replace(SHAPE, image_width=700))
    reason = "early cuts pixels into patches of 3·P² values, and image_width 700 is none (next: 768)"
    assert get("early").refusal(case) == reason


@pytest.mark.parametrize(
    ("name", "shape", "design", "reason"),
    [
        ("q_former", {"depth": 0}, {}, "q_former of depth 0 has no layer that reads the image"),
        ("q_former", {}, {"rope": 0.5}, "q_former's queries have no order, unlike in rope=0.5"),
        ("q_former", {}, {"causal": True}, "q_former's queries have no order, unlike in causal=1"),
        ("q_former", {"ffn": 0}, {}, None),
        (
            "q_former:with_text",
            {"ffn": 0},
            {},
            "q_former:with_text gives text a feed-forward part of its own, and the shape has none (ffn 0)",
        ),
    ],
)
def test_a_q_former_says_what_it_cannot_be(
    name: str, shape: dict[str, int], design: dict[str, float], reason: str | None
) -> None:
    case = Case(shape=msgspec.structs.replace(SHAPE, **shape), design=Design(**design))
    assert get(name).refusal(case) == reason


A = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
B = torch.tensor([[1.0, 0.0, 4.0], [0.0, 1.0, 0.0]])


def test_the_mean_of_logits_is_their_mean() -> None:
    assert late.mean([A, B]).tolist() == [[1.5, 0.0, 2.0], [0.0, 2.0, 0.0]]


def test_a_vote_shows_agreement_as_one_and_a_tie_as_two_halves() -> None:
    assert late.vote([A, B]).tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]


def test_a_voter_with_equal_maxima_splits_its_vote() -> None:
    undecided = torch.tensor([[1.0, 1.0, 0.0]])
    assert late.vote([undecided, A[:1]]).tolist() == [[0.75, 0.25, 0.0]]
    assert late.vote([torch.zeros(1, 4)]).tolist() == [[0.25] * 4]


def test_the_product_of_probabilities_is_their_renormalised_product() -> None:
    product = A.softmax(-1) * B.softmax(-1)
    torch.testing.assert_close(late.multiply([A, B]).exp(), product / product.sum(-1, keepdim=True))
    assert late.multiply([A * 1e4, B * -1e4]).isfinite().all()


def test_learned_weights_start_equal_and_move_the_result_from_one_modality_to_the_other() -> None:
    weighted = late.Weighted()
    torch.testing.assert_close(weighted([A, B]), late.mean([A, B]))
    with torch.no_grad():
        weighted.weights[0] = 100.0
    torch.testing.assert_close(weighted([A, B]), A)


def test_voting_has_no_gradient_and_says_so() -> None:
    reason = get("late:vote").refusal(Case(shape=SHAPE, mode="fwd_bwd"))
    assert reason == "late:vote counts votes, which have no gradient (use mode 'fwd')"


def test_similarity_is_a_scaled_cosine_of_every_pair() -> None:
    module, given, _ = prepare("late:similarity", shape=NO_DEPTH)
    assert given.image is not None
    assert given.text is not None
    image = module.combine.image(module.project.image(given.image).mean(1))
    text = module.combine.text(module.project.text(given.text).mean(1))
    expected = nn.functional.cosine_similarity(image.unsqueeze(1), text.unsqueeze(0), dim=-1) / 0.07
    torch.testing.assert_close(run(module, given), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_one_affinity_is_read_by_rows_and_by_columns_and_each_sums_to_one(masked: bool) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    text_mask = torch.arange(5) < torch.tensor([[5], [2]]) if masked else None
    image_mask = torch.arange(7) < torch.tensor([[3], [7]]) if masked else None
    # unit vectors as values: what each token reads is then its row of probabilities
    over_image, over_text = shared_attention(
        q, k, torch.eye(5).expand(2, 3, 5, 5), torch.eye(7).expand(2, 3, 7, 7), text_mask, image_mask
    )
    torch.testing.assert_close(over_image.sum(-1), torch.ones(2, 3, 5))
    torch.testing.assert_close(over_text.sum(-1), torch.ones(2, 3, 7))
    if masked:
        assert not over_image[0, :, :, 3:].any()
        assert not over_text[1, :, :, 2:].any()
    else:
        scores = q @ k.transpose(-2, -1) / 2
        torch.testing.assert_close(over_image, scores.softmax(-1))
        torch.testing.assert_close(over_text, scores.softmax(-2).transpose(-2, -1))


@pytest.mark.parametrize(("tokens", "padding", "shortest"), [(10, 0.7, 3), (7, 0.5, 4), (3, 0.99, 1), (100, 0.29, 71)])
def test_lengths_run_from_the_shortest_that_padding_allows_to_the_whole(
    tokens: int, padding: float, shortest: int
) -> None:
    mask = padding_mask(4, tokens, padding, "cpu")
    single = padding_mask(1, tokens, padding, "cpu")
    assert mask is not None
    assert single is not None
    lengths = mask.sum(1).tolist()
    assert (lengths[0], lengths[-1], sorted(lengths)) == (shortest, tokens, lengths)
    assert single.sum().item() == shortest
    assert padding_mask(4, tokens, 0.0, "cpu") is None


def test_inputs_follow_the_seed_the_dtype_and_the_mode() -> None:
    entry, case = get("co_attention"), Case(shape=SHAPE, mode="fwd_bwd")
    one, same, other = (make_inputs(entry, case, seed, torch.bfloat16, "cpu") for seed in (1, 1, 2))
    assert one.image is not None
    assert one.image.dtype == torch.bfloat16
    assert one.image.requires_grad
    assert same.image is not None
    assert torch.equal(one.image, same.image)
    assert other.image is not None
    assert not torch.equal(one.image, other.image)
    forward = make_inputs(entry, msgspec.structs.replace(case, mode="fwd"), 1, torch.float32, "cpu")
    assert forward.text is not None
    assert not forward.text.requires_grad
