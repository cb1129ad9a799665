"""Co-attention against fp64: both outputs and all gradients, with masks, NaN, odd sizes, and as PyTorch operators."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fusionbench_kernels import co_attention, co_attention_choice, cross_attention, table
from fusionbench_kernels.runtime import Target, compiling_for
from fusionbench_kernels.table import Config

module = sys.modules["fusionbench_kernels.co_attention"]  # the package's attribute of this name is the function

needs_gpu = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="bf16 is wrong in Triton's interpreter")
SHAPES = [(1, 1), (13, 70), (7, 63), (77, 33), (16, 16), (1, 50), (50, 1)]
LOW = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=needs_gpu)]


@dataclass
class Case:
    """Inputs of one call, and the gradients that its four results receive."""

    tensors: list[Tensor]  # x_text, x_image, v_text, v_image
    text_mask: Tensor | None
    image_mask: Tensor | None
    gradients: list[Tensor]  # of out_text, out_image, lse_text, lse_image

    @property
    def masks(self) -> dict[str, Tensor | None]:
        return {"text_mask": self.text_mask, "image_mask": self.image_mask}


def case(
    text: int, image: int, d: int, dtype: torch.dtype = torch.float32, device: str = "cpu", *, batch: int = 1,
    heads: int = 2, masks: bool = False, amplify: float = 1.0, seed: int = 0,
) -> Case:  # fmt: skip
    random = torch.Generator().manual_seed(seed + 1000 * text + image + d)

    def normal(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=random).to(device, of)

    def mask(tokens: int) -> Tensor | None:
        return (torch.rand(batch, tokens, generator=random) < 0.7).to(device) if masks else None

    sizes = [(batch, heads, tokens, d) for tokens in (text, image, text, image)]
    tensors = [normal(*size) for size in sizes]
    tensors[0], tensors[1] = tensors[0] * amplify, tensors[1] * amplify
    gradients = [normal(*size) for size in sizes[:2]]
    gradients += [normal(*size[:3], of=torch.float32) for size in sizes[:2]]
    return Case(tensors, mask(text), mask(image), gradients)


def eager(
    x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Tensor | None = None,
    image_mask: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The plain maths in the inputs' own type, the scale applied to one operand."""
    scores = (x_text * x_text.shape[-1] ** -0.5) @ x_image.transpose(-2, -1)

    def read(scores: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        p = torch.softmax(scores, -1)
        empty = torch.isneginf(scores).all(-1)
        if mask is not None:
            p = p.masked_fill(empty[..., None], 0)
        lse = torch.logsumexp(scores.masked_fill(empty[..., None], 0), -1).masked_fill(empty, -torch.inf)
        return p @ values, lse

    out_text, lse_text = read(scores, v_image, image_mask)
    out_image, lse_image = read(scores.transpose(-2, -1), v_text, text_mask)
    return out_text, out_image, lse_text, lse_image


def run(call: Callable[..., tuple[Tensor, ...]], c: Case, kind: torch.dtype | None = None) -> list[Tensor]:
    """The four results and the four gradients of ``call``, in another type where asked for."""
    tensors = [x.detach().to(kind or x.dtype).requires_grad_() for x in c.tensors]
    results = call(*tensors, **c.masks)
    gradients = torch.autograd.grad(
        results, tensors, [g.to(r.dtype) for g, r in zip(c.gradients, results, strict=True)]
    )
    return [*(r.detach() for r in results), *gradients]


def kernels(c: Case, **options: object) -> list[Tensor]:
    return run(lambda *x, **masks: co_attention(*x, **masks, return_lse=True, **options), c)  # type: ignore[arg-type]


def assert_as_good_as_eager(found: list[Tensor], c: Case) -> None:
    """Against fp64: at most twice (results) or three times (gradients) eager's own error in the same type.

    The floor: eight roundings of a value, for sums taken in another order where eager happens to be exact. Gradients
    are of P = exp(S - lse), not of a stored P: one rounding each of S and lse in fp32 changes P by eps·|lse|.
    """
    true, same = run(eager, c, torch.float64), run(eager, c)
    names = ("out_text", "out_image", "lse_text", "lse_image", "dx_text", "dx_image", "dv_text", "dv_image")
    exact = torch.finfo(torch.float32).eps
    of_lse = exact * max(
        (lse[lse.isfinite()].abs().max().item() for lse in true[2:4] if lse.isfinite().any()), default=0
    )
    for name, got, want, theirs in zip(names, found, true, same, strict=True):
        assert torch.equal(got.isneginf(), want.isneginf()), name
        got, want, theirs = (x.double().masked_fill(want.isneginf(), 0) for x in (got, want, theirs))
        assert got.isfinite().all(), name
        roundings = 8 * (exact if name.startswith("lse") else torch.finfo(c.tensors[0].dtype).eps)
        times, roundings = (3, roundings + of_lse) if name.startswith("d") else (2, roundings)
        error, allowed = (got - want).abs().max(), times * (theirs - want).abs().max() + roundings * want.abs().max()
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


# --- right -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("masks", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize(("text", "image"), SHAPES, ids=str)
def test_odd_sizes(text: int, image: int, masks: bool, dtype: torch.dtype, device: str) -> None:
    c = case(text, image, 24, dtype, device, masks=masks)
    assert co_attention_choice(*c.tensors[:2]).variant == "fused"
    assert_as_good_as_eager(kernels(c), c)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("d", [8, 16, 40, 64, 80, 192, 256])  # 80 takes the backward in two passes
def test_head_dims(d: int, dtype: torch.dtype, device: str) -> None:
    c = case(13, 37, d, dtype, device, masks=True)
    assert_as_good_as_eager(kernels(c), c)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("d", [24, 80])
def test_large_scores(d: int, dtype: torch.dtype, device: str) -> None:
    c = case(20, 50, d, dtype, device, amplify=6.0)
    assert_as_good_as_eager(kernels(c), c)


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("d", [16, 80])
def test_any_number_of_programs_may_share_a_head(splits: int, d: int, device: str) -> None:
    c = case(21, 70, d, device=device, masks=True)
    text, image = (module.Side(c.tensors[i], c.tensors[i + 2], mask) for i, mask in enumerate(c.masks.values()))
    scale = d**-0.5
    out_text, lse_text, out_image, lse_image = module.forward(text, image, scale, "fused", splits)
    of_text = module.Output(out_text, lse_text, c.gradients[0], c.gradients[2])
    of_image = module.Output(out_image, lse_image, c.gradients[1], c.gradients[3])
    gradients = module.backward(text, image, of_text, of_image, scale, "fused", splits)
    assert_as_good_as_eager([out_text, out_image, lse_text, lse_image, *gradients], c)


@pytest.mark.parametrize("amplify", [1.0, 6.0], ids=["one exp", "falls back to two"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_one_exp_per_score(dtype: torch.dtype, amplify: float, device: str) -> None:
    c = case(13, 40, 64, dtype, device, masks=True, amplify=amplify)
    with table.forced(co_forward=Config({"BLOCK_S": 16, "ONE_EXP": 1}, 4, 1)):
        assert_as_good_as_eager(kernels(c), c)


@pytest.mark.parametrize("spread", [10.0, 30.0, 59.0])
def test_one_exp_holds_up_to_its_guard(spread: float, device: str) -> None:
    # Rows and columns whose maxima lie up to `spread` bits below the tile's, which E has to carry.
    c = case(16, 16, 16, device=device)
    c.tensors[0] *= torch.linspace(0, spread / 4, 16, device=device)[:, None]
    with table.forced(co_forward=Config({"BLOCK_S": 16, "ONE_EXP": 1}, 4, 1)):
        assert_as_good_as_eager(kernels(c), c)


@pytest.mark.parametrize("variant", ["fused", "two_calls"])
@pytest.mark.parametrize("which", ["text", "image", "both"])
def test_a_fully_masked_side_gives_zeros(which: str, variant: str, device: str) -> None:
    c = case(9, 35, 16, device=device, batch=2, masks=True)
    if which != "image":
        c.text_mask[1] = False
    if which != "text":
        c.image_mask[1] = False
    assert_as_good_as_eager(found := kernels(c, variant=variant), c)
    out_text, out_image, lse_text, lse_image, *gradients = (x[1] for x in found)
    if which != "text":
        assert not out_text.any()
        assert lse_text.isneginf().all()
    if which != "image":
        assert not out_image.any()
        assert lse_image.isneginf().all()
    if which == "both":
        assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["fused", "two_calls"])
@pytest.mark.parametrize(("text", "image"), [(0, 5), (5, 0), (0, 0)])
def test_an_empty_side_is_legal(text: int, image: int, variant: str, dtype: torch.dtype, device: str) -> None:
    c = case(text, image, 16, dtype, device)
    for x in kernels(c, variant=variant):
        assert not x.masked_fill(x.isneginf(), 0).any()


def test_no_batch_is_legal(device: str) -> None:
    assert all(x.numel() == 0 for x in kernels(case(5, 9, 16, device=device, batch=0)))


# --- as two attention calls ------------------------------------------------------------------------------------------


def two_calls(x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor, text_mask: Tensor, image_mask: Tensor):  # type: ignore[no-untyped-def]
    text = cross_attention(x_text, x_image, v_image, key_padding_mask=image_mask, return_lse=True)
    image = cross_attention(x_image, x_text, v_text, key_padding_mask=text_mask, return_lse=True)
    return text[0], image[0], text[1], image[1]


@pytest.mark.parametrize("variant", ["fused", "two_calls"])
def test_it_is_two_attention_calls_masked_rows_included(variant: str, device: str) -> None:
    c = case(13, 50, 40, device=device, batch=2, masks=True)
    for got, want in zip(kernels(c, variant=variant), run(two_calls, c), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("text", "image", "d"), [(13, 50, 24), (40, 21, 80), (16, 16, 16)])
def test_swapping_the_sides_swaps_the_results(text: int, image: int, d: int, device: str) -> None:
    c = case(text, image, d, device=device, masks=True)
    swap = [1, 0, 3, 2]
    other = Case([c.tensors[i] for i in swap], c.image_mask, c.text_mask, [c.gradients[i] for i in swap])
    forth, back = kernels(c), kernels(other)
    for got, want in zip(forth, [back[i] for i in (1, 0, 3, 2, 5, 4, 7, 6)], strict=True):
        # Sides of one length have no shorter one, so each is once the resident side and once the streamed.
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5 if text == image else 0)


def test_two_runs_are_bit_equal(device: str) -> None:
    for d in (16, 80):
        c = case(20, 70, d, torch.float16, device, masks=True)
        assert all(torch.equal(a, b) for a, b in zip(kernels(c), kernels(c), strict=True))


# --- NaN and strides -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, which is the interpreter's matmul
@pytest.mark.parametrize("loss_takes", ["every token", "tokens that take part"])
@pytest.mark.parametrize("d", [16, 80])
@pytest.mark.parametrize(
    ("variant", "dtype"), [("fused", torch.float32), ("two_calls", torch.float32), ("fused", torch.float64)]
)
def test_masked_tokens_may_hold_nan(variant: str, dtype: torch.dtype, d: int, loss_takes: str, device: str) -> None:
    clean, dirty = (case(11, 37, d, dtype, device, batch=2, masks=True) for _ in range(2))
    for i, mask in enumerate([clean.text_mask, clean.image_mask] * 2):
        poison = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device, dtype=dtype)[torch.arange(d) % 3]
        dirty.tensors[i] = torch.where(mask[:, None, :, None], dirty.tensors[i], poison)
        keep = mask[:, None, :, None] if i < 2 else mask[:, None, :]
        clean.gradients[i] = clean.gradients[i] * keep
        if loss_takes != "every token":
            dirty.gradients[i] = dirty.gradients[i] * keep
    sides = [clean.text_mask, clean.image_mask] * 4
    for got, want, mask in zip(kernels(dirty, variant=variant), kernels(clean, variant=variant), sides, strict=True):
        taking_part = mask[:, None, :].expand(got.shape[:3])
        assert torch.equal(got[taking_part], want[taking_part])


@pytest.mark.parametrize("d", [24, 80])
def test_nothing_beyond_the_tensors_is_read(d: int, device: str) -> None:
    c = case(13, 35, d, device=device, masks=True)
    amid = case(13, 35, d, device=device, masks=True)
    for tensors in (amid.tensors, amid.gradients[:2]):
        for i, x in enumerate(tensors):
            b, h, tokens, _ = x.shape
            tensors[i] = x.new_full((b + 1, h + 1, tokens + 40, d + 50), torch.nan)[:b, :h, 20 : 20 + tokens, 8 : 8 + d]
            tensors[i].copy_(x)
    found = kernels(Case(amid.tensors, c.text_mask, c.image_mask, [*amid.gradients[:2], *c.gradients[2:]]))
    assert all(torch.equal(a, b) for a, b in zip(found, kernels(c), strict=True))


@pytest.mark.parametrize("d", [24, 80])
def test_any_strides(d: int, device: str) -> None:
    c = case(13, 35, d, device=device, batch=2, masks=True)
    straight = Case([*c.tensors], c.text_mask, c.image_mask, [*c.gradients])
    c.tensors[0] = c.tensors[0].transpose(2, 3).contiguous().transpose(2, 3)
    c.tensors[1] = straight.tensors[1] = c.tensors[1][:, :1].expand(-1, 2, -1, -1)  # stride 0
    c.tensors[2] = c.tensors[2].transpose(1, 2).contiguous().transpose(1, 2)
    c.gradients[0] = straight.gradients[0] = c.gradients[0][:, :, :1].expand(-1, -1, 13, -1)
    c.gradients[1] = c.gradients[1].transpose(2, 3).contiguous().transpose(2, 3)
    c.image_mask = c.image_mask.t().contiguous().t()
    straight.tensors, straight.gradients = (
        [x.contiguous() for x in xs] for xs in (straight.tensors, straight.gradients)
    )
    leaves = [x.detach().requires_grad_() for x in c.tensors]  # detach keeps strides
    results = co_attention(*leaves, **c.masks, return_lse=True)
    found = [*results, *torch.autograd.grad(results, leaves, c.gradients)]
    assert all(torch.equal(a, b) for a, b in zip(found, kernels(straight), strict=True))


def test_one_output_alone_can_be_differentiated(device: str) -> None:
    c = case(9, 21, 16, device=device)
    for output in range(4):
        tensors = [x.requires_grad_() for x in c.tensors]
        got = torch.autograd.grad(co_attention(*tensors, return_lse=True)[output].sum(), tensors, allow_unused=True)
        want = torch.autograd.grad(eager(*tensors)[output].sum(), tensors, allow_unused=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-5, atol=1e-5)


# --- as PyTorch operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_an_operator(dtype: torch.dtype) -> None:
    c = case(5, 19, 16, dtype, masks=True)
    tensors = [x.requires_grad_() for x in c.tensors]
    operator = torch.ops.fusionbench_kernels.co_attention_forward.default
    torch.library.opcheck(operator, (*tensors, c.text_mask, c.image_mask, 0.25, "auto"))
    torch.library.opcheck(operator, (*tensors, None, None, 0.25, "two_calls"))


@pytest.mark.parametrize("variant", ["fused", "two_calls"])
def test_gradients_lie_where_the_fake_operator_says(variant: str) -> None:
    def heads_split(tokens: int) -> Tensor:
        return torch.empty(2, tokens, 3, 16, dtype=torch.float16, device="meta").transpose(1, 2)

    def rows(tokens: int) -> Tensor:
        return torch.empty(2, 3, tokens, device="meta")

    text, image = heads_split(5), heads_split(40)
    masks = (torch.empty(2, tokens, dtype=torch.bool, device="meta") for tokens in (5, 40))
    sides = module.Side(text, text, next(masks)), module.Side(image, image, next(masks))
    outputs = module.Output(text, rows(5), text, rows(5)), module.Output(image, rows(40), image, rows(40))
    with compiling_for(Target("sm_90", 132), lambda launch: None):
        found = module.backward(*sides, *outputs, 0.25, variant)
    for got, like in zip(found, (text, image, text, image), strict=True):
        assert got.stride() == torch.empty_like(like).stride()  # what torch.compile's code takes for granted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_compiles_without_a_break(dtype: torch.dtype) -> None:
    compiled = torch.compile(co_attention, fullgraph=True, backend="aot_eager")
    for tokens in (19, 23):  # the second length makes the size dynamic
        c = case(5, tokens, 16, dtype, masks=True)
        found = run(lambda *x, **masks: compiled(*x, **masks, return_lse=True), c)
        assert all(torch.equal(a, b) for a, b in zip(found, kernels(c), strict=True))


def test_it_exports() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x_text: Tensor, x_image: Tensor, v_text: Tensor, v_image: Tensor) -> tuple[Tensor, ...]:
            return co_attention(x_text, x_image, v_text, v_image)

    c = case(5, 19, 16, torch.float64)
    exported = torch.export.export(Layer(), tuple(c.tensors)).module()
    assert all(torch.equal(a, b) for a, b in zip(exported(*c.tensors), co_attention(*c.tensors), strict=True))


def test_gradients_are_those_of_finite_differences() -> None:
    c = case(3, 5, 8, torch.float64, masks=True, heads=1)
    c.text_mask[0, 0] = c.image_mask[0, 0] = True
    tensors = [x.requires_grad_() for x in c.tensors]
    assert torch.autograd.gradcheck(lambda *x: co_attention(*x, **c.masks, return_lse=True), tensors)


@pytest.mark.parametrize("variant", ["fused", "two_calls"])
def test_flops_are_those_of_the_shared_affinity(variant: str) -> None:
    c = case(5, 19, 16, batch=2)
    with FlopCounterMode(display=False) as counter:
        kernels(c, variant=variant)
    assert counter.get_total_flops() == (6 + 14) * 2 * 2 * 5 * 19 * 16


# --- which kernel, and what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [*table.architectures(), "interpreter"])
@pytest.mark.parametrize("text", [0, 1, 16, 64, 77, 128, 256])
@pytest.mark.parametrize("d", [8, 40, 64, 80, 128, 256])
@pytest.mark.parametrize("size", [2, 4])
def test_what_runs_fused_has_a_backward(arch: str, text: int, d: int, size: int) -> None:
    if module.choose(text, 4096, d, size, Target(arch, 100)).variant == "fused":
        given = {"head_dim": d, "bytes": size, "short": text}
        assert table.find("co_backward", arch, **given) or table.find("co_backward_side", arch, **given)


@pytest.mark.parametrize("arch", table.architectures())
def test_the_common_case_is_fused_and_the_long_one_is_not(arch: str) -> None:
    on = Target(arch, 100)
    assert module.choose(128, 4096, 64, 2, on).variant == "fused"
    assert module.choose(4096, 77, 64, 2, on).variant == "fused"
    assert module.choose(257, 4096, 64, 2, on).variant == "two_calls"
    assert module.choose(128, 4096, 256, 2, on).variant == "two_calls"


def test_what_cannot_run_fused_is_refused_when_asked_for() -> None:
    x, y = torch.zeros(1, 1, 300, 16), torch.zeros(1, 1, 301, 16)
    with pytest.raises(
        ValueError, match="'fused' holds up to 256 tokens of the shorter side in one program and has no"
    ):
        co_attention_choice(x, y, variant="fused")
    assert "300 tokens of head dim 16 do not fit" in co_attention_choice(x, y).reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_image": torch.zeros(1, 2, 5, 8)}, r"x_image has shape \[1, 2, 5, 8\]; it must be \[1, 2, any, 16\]"),
        ({"v_text": torch.zeros(1, 2, 4, 16)}, r"v_text has shape \[1, 2, 4, 16\]; it must be \[1, 2, 3, 16\]"),
        ({"v_image": torch.zeros(1, 2, 5, 16).half()}, "v_image is float16 and x_text is float32"),
        ({"text_mask": torch.ones(1, 5, dtype=torch.bool)}, r"text_mask has shape \[1, 5\]; it must be \[1, 3\]"),
        ({"image_mask": torch.ones(1, 5)}, "image_mask is float32; it must be bool, True at tokens that take part"),
        ({"variant": "fusedd"}, r"no co-attention kernel 'fusedd' \(has: auto, fused, two_calls\)"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    text, image = torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 5, 16)
    good = {"x_text": text, "x_image": image, "v_text": text, "v_image": image}
    with pytest.raises(ValueError, match=message):
        co_attention(**{**good, **change})  # type: ignore[arg-type]
