"""Closed-form costs against what really runs: ops that are dispatched, parameters, tensors that autograd keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from unittest import mock

import msgspec
import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fusionbench import cost as costs
from fusionbench.blocks import mutual_layer_cost
from fusionbench.cost import Cost
from fusionbench.inputs import make_inputs
from fusionbench.meters.flops import count_flops
from fusionbench.registry import Inputs, Strategy, get, strategies
from fusionbench.spec import PLAIN, PROJECTORS, Case, Design, Shape

aten = torch.ops.aten


def shape(b: int, image: int, iw: int, text: int, tw: int, width: int, heads: int, depth: int, ffn: int) -> Shape:
    return Shape(
        batch=b,
        image=image,
        image_width=iw,
        text=text,
        text_width=tw,
        width=width,
        heads=heads,
        depth=depth,
        ffn=ffn,
    )


# Image widths are 3·P², so that early takes every shape; lengths are ugly and never equal.
SHAPES = (
    shape(2, 7, 12, 5, 12, 12, 3, depth=1, ffn=4),
    shape(1, 17, 27, 1, 10, 16, 4, depth=2, ffn=1),
    shape(3, 1, 48, 13, 20, 8, 1, depth=0, ffn=0),
    shape(2, 33, 12, 19, 24, 24, 2, depth=2, ffn=0),
    shape(5, 9, 3, 31, 7, 16, 2, depth=1, ffn=2),
    shape(1, 6, 12, 1, 12, 20, 5, depth=3, ffn=4),
    shape(1, 5, 12, 3, 12, 8, 1, depth=1, ffn=1),  # one sample, one head: what is copied elsewhere is a view here
)
CASES = [
    Case(shape=SHAPES[i], projector=projector, type_embedding=types, mode="fwd_bwd")
    for i, projector, types in (
        (0, "linear", False),
        (1, "linear", True),
        (2, "linear", False),
        (3, "linear", False),
        (4, "linear", True),
        (5, "linear", False),
        (6, "linear", False),
        (6, "identity", False),
        (0, "identity", False),
        (0, "identity", True),
        (1, "identity", False),
        (2, "identity", True),
        (5, "identity", False),
        (4, "linear_norm", False),
        (1, "linear_norm", True),
        (0, "mlp", True),
        (3, "mlp", False),
    )
]
# concat and the like refuse most projectors; these equal widths give them five shapes of their own.
SAME_WIDTH = [
    Case(shape=msgspec.structs.replace(s, image_width=s.width, text_width=s.width), projector="identity")
    for s in SHAPES[1:6]
]


WITH_UNITS = msgspec.structs.replace(SHAPES[4], image_width=48, hidden=20)

# A strategy whose layers a design cannot reach refuses it.
DESIGNS = {
    "llama": Design(norm="rms", activation="swiglu", kv_heads=1, qkv_bias=False, out_bias=False, ffn_bias=False,
                    causal=True, rope=1.0, projects="image"),
    "bert": Design(post_norm=True, eps=1e-12),
    "persimmon": Design(activation="relu2", qk_norm="layer", causal=True, rope=0.5, projects="image"),
    "mllama": Design(norm="rms", activation="swiglu", qk_norm="rms", gated=True, kv_heads=2, qkv_bias=False,
                     out_bias=False, ffn_bias=False),
    "unet": Design(activation="geglu", qkv_bias=False),
    "clip": Design(activation="quick_gelu"),
    "vaswani": Design(activation="relu", post_norm=True, causal=True),
    "gated_post": Design(activation="gelu_tanh", post_norm=True, gated=True, out_bias=False),
    "idefics": Design(activation="relu", qk_norm="layer", qkv_bias=False, out_bias=False, ffn_bias=False, latents=3),
    "q_former": Design(post_norm=True, eps=1e-12, latents=3),
    "vilbert": Design(post_norm=True, eps=1e-12, image_hidden=10, text_heads=4),
}  # fmt: skip
BY_DESIGN = [
    Case(shape=(SHAPES[3], WITH_UNITS)[i % 2], projector=("linear", "patch_merge")[i // 2 % 2], design=design)
    for i, design in enumerate(DESIGNS.values())
]


def accepted(impls: Iterable[str]) -> list[ParameterSet]:
    """Every strategy x impl with a share of the cases that the strategy does not refuse, with a readable id.

    All cases for all strategies would be 16,000 tests: a strategy takes every second one, a variant of one every
    fourth, each beginning elsewhere, so that neighbours in the registry cover what the other leaves out.
    """
    return [
        pytest.param(entry, impl, case, id=f"{name}-{impl}-{case.key.removesuffix('/fp32/cpu/' + case.mode)}")
        for start, (name, entry) in enumerate(strategies().items())
        for impl in impls
        if impl in entry.impls
        for case in share(entry, start)
        if not (impl == "triton" and case.design.causal)
    ]


def share(entry: Strategy, start: int) -> list[Case]:
    """The strategy's cases: every second or fourth of those it takes, plain ones and designs alike."""
    step = 4 if ":" in entry.name else 2
    plain_ones, designed = (
        [case for case in (with_gradient(entry, c) for c in cases) if not entry.refusal(case)]
        for cases in (CASES + SAME_WIDTH, BY_DESIGN)
    )
    return plain_ones[start % step :: step] + designed[start % step :: step]


def with_gradient(entry: Strategy, case: Case) -> Case:
    """The case in mode fwd_bwd, or in mode fwd for a strategy that has no gradient at all."""
    wanted = msgspec.structs.replace(case, mode="fwd_bwd")
    return wanted if not entry.refusal(wanted) else msgspec.structs.replace(case, mode="fwd")


def plain(impls: Iterable[str]) -> list[ParameterSet]:
    """As ``accepted``, without the cases that have a design: kernels with projections inside take none."""
    return [p for p in accepted(impls) if p.values[2].design == PLAIN]  # type: ignore[attr-defined]


INFERENCE = plain(("triton_projected", "triton_absorbed", "triton_int8"))
EVERYTHING = accepted(("eager", "sdpa", "triton"))
everything = pytest.mark.parametrize(("entry", "impl", "case"), EVERYTHING)
everything_with_a_gradient = pytest.mark.parametrize(
    ("entry", "impl", "case"), [p for p in EVERYTHING if p.values[2].mode == "fwd_bwd"]
)


def prepare(entry: Strategy, impl: str, case: Case) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    return entry.module(case, impl), make_inputs(entry, case, seed=1, dtype=torch.float32, device="cpu")


def total(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """One number that every element of the output takes part in."""
    return output.sum() if isinstance(output, Tensor) else torch.stack([x.sum() for x in output]).sum()


@pytest.mark.parametrize("name", strategies())
def test_every_strategy_is_checked_on_five_shapes_at_least(name: str) -> None:
    entry = get(name)
    seen = {case.shape for case in (with_gradient(entry, c) for c in CASES + SAME_WIDTH) if not entry.refusal(case)}
    assert len(seen) >= 5


@everything
def test_the_closed_form_counts_the_parameters_and_the_flops_that_run_forward_and_backward(
    entry: Strategy, impl: str, case: Case
) -> None:
    module, given = prepare(entry, impl, case)
    assert entry.costs(case, impl).params == sum(p.numel() for p in module.parameters())
    kept: list[Tensor] = []
    forward = count_flops(lambda: kept.append(total(module(*given.args()))))
    expected = entry.costs(case, impl)
    assert forward.flops == expected.flops
    if case.mode == "fwd_bwd":
        assert count_flops(kept[0].backward).flops == expected.backward_flops
    else:
        assert expected.backward_flops == expected.saved == expected.saved_bytes == 0


@pytest.mark.parametrize(("entry", "impl", "case"), INFERENCE)
def test_the_closed_form_counts_the_forward_flops_of_kernels_that_fuse_more(
    entry: Strategy, impl: str, case: Case
) -> None:
    module, given = prepare(entry, impl, case)
    with torch.no_grad():
        forward = count_flops(lambda: module(*given.args()))
    expected = entry.costs(case, impl)
    assert forward.flops == expected.flops
    assert expected.params == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", strategies())
def test_no_strategy_hides_weights_from_its_parameters(name: str) -> None:
    entry = get(name)
    case = next(c for c in (with_gradient(entry, c) for c in CASES + SAME_WIDTH) if not entry.refusal(c))
    module, given = prepare(entry, "eager", case)
    if case.mode == "fwd_bwd":
        total(module(*given.args())).backward()
        unused = [name for name, p in module.named_parameters() if p.grad is None]
        assert not unused


@everything_with_a_gradient
def test_the_closed_form_counts_the_bytes_that_autograd_keeps(entry: Strategy, impl: str, case: Case) -> None:
    module, given = prepare(entry, impl, case)
    expected = entry.costs(case, impl)
    assert kept_bytes(module, given) == expected.activation_bytes(itemsize=4)


def kept_bytes(module: nn.Module, given: Inputs) -> int:
    """Bytes of the distinct storages that the graph holds; inputs count where they are kept, parameters never."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Tensor] = {}  # by address, and alive, so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), fused_rms_norm():
        output = module(*given.args())
    assert output is not None
    return sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)


class FusedRmsNorm(torch.autograd.Function):
    """RMSNorm that keeps what CUDA's fused kernel keeps; on a CPU torch composes it of smaller ops."""

    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, scale)
        return x * scale * weight


@contextlib.contextmanager
def fused_rms_norm() -> Iterator[None]:
    with mock.patch.object(nn.functional, "rms_norm", lambda x, _, weight, eps: FusedRmsNorm.apply(x, weight, eps)):
        yield


def test_the_fused_rms_norm_is_torchs() -> None:
    norm, x = nn.RMSNorm(12, eps=1e-5), torch.randn(3, 12)
    expected = norm(x)
    with fused_rms_norm():
        torch.testing.assert_close(norm(x), expected)


RESULTS = {  # which outputs of an op are results, the others being statistics or ids
    "_scaled_dot_product_flash_attention_for_cpu": (0,),
    "attention_forward": (0,),
    "co_attention_forward": (0, 2),
    "topk": (0,),
}


class Traffic(TorchDispatchMode):
    """Elements that matrix products, attention, softmax and selection over scores, copies and look-ups read and write."""

    MOVERS = frozenset(
        {"mm", "addmm", "bmm", "convolution", "cat", "concat_tokens_forward", "concat_linear", "embedding"}
    )

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.parameters = {p.untyped_storage().data_ptr(): p for p in module.parameters()}
        self.moved = self.looked_up = 0
        self.read: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [x for a in args for x in (a if isinstance(a, (list, tuple)) else [a]) if isinstance(x, Tensor)]
        weights = [x for x in tensors if x.untyped_storage().data_ptr() in self.parameters]
        if name == "embedding":
            self.looked_up += out.numel()
        else:
            self.read |= {x.untyped_storage().data_ptr() for x in weights}
        over_scores = name == "_softmax" and out.dim() == 4
        results = RESULTS.get(name)
        if name == "index":  # each element that is written was read once
            self.moved += 2 * out.numel() * out.is_floating_point()
        elif name in self.MOVERS or over_scores or results:
            written = [out[i] for i in results] if results else [out]
            data = [x for x in [*tensors, *written] if x.is_floating_point() and not any(x is w for w in weights)]
            self.moved += sum(x.numel() for x in data if not self.is_mask(x))
        return out

    @staticmethod
    def is_mask(x: Tensor) -> bool:
        """A bias per key, the same for every query."""
        return x.dim() == 4 and x.shape[2] > 1 and x.stride(2) == 0

    @property
    def weights_read(self) -> int:
        return self.looked_up + sum(self.parameters[address].numel() for address in self.read)


@everything
def test_the_closed_form_counts_the_elements_that_must_move(entry: Strategy, impl: str, case: Case) -> None:
    module, given = prepare(entry, impl, case)
    with torch.no_grad(), Traffic(module) as traffic:
        module(*given.args())
    expected = entry.costs(case, impl)
    assert traffic.moved == expected.activations_moved
    assert traffic.weights_read == expected.weights_read


def test_attention_on_the_cpu_is_counted_and_named() -> None:
    q, k = torch.randn(2, 3, 7, 4, requires_grad=True), torch.randn(2, 3, 5, 4, requires_grad=True)
    kept: list[Tensor] = []
    forward = count_flops(lambda: kept.append(nn.functional.scaled_dot_product_attention(q, k, k).sum()))
    assert forward.flops == 4 * 2 * 7 * 5 * 12
    assert forward.ops == ("_scaled_dot_product_flash_attention_for_cpu",)
    backward = count_flops(kept[0].backward)
    assert backward.flops == 2 * forward.flops
    assert backward.ops == ("_scaled_dot_product_flash_attention_for_cpu_backward",)


def test_the_backward_pass_of_cuda_attention_is_counted_as_four_products() -> None:
    q, k = torch.empty(2, 3, 8, 4, device="meta"), torch.empty(2, 3, 6, 4, device="meta")
    lse = torch.empty(2, 3, 8, device="meta")
    seed = torch.empty(2, dtype=torch.uint64, device="meta")
    counted = count_flops(
        lambda: aten._scaled_dot_product_flash_attention_backward(
            q, q, k, k, q, lse, None, None, 8, 6, 0.0, False, seed, seed
        )
    )
    assert counted.flops == 2 * 4 * 2 * 8 * 6 * 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", ["sdpa", "triton"])
@pytest.mark.parametrize("name", [n for n, entry in strategies().items() if "sdpa" in entry.impls])
def test_a_gpu_runs_the_same_flops(name: str, impl: str, dtype: torch.dtype) -> None:
    entry = get(name)
    # 16 per head: SDPA pads other head dims to a multiple of 8, and the counter sees the padded ones
    case = with_gradient(entry, Case(shape=shape(2, 36, 48, 20, 32, 64, 4, depth=2, ffn=2), device="cuda"))
    module = entry.module(case, impl).to("cuda", dtype)
    given = make_inputs(entry, case, 0, dtype, "cuda")
    kept: list[Tensor] = []
    expected = entry.costs(case, impl)
    forward = count_flops(lambda: kept.append(total(module(*given.args()))))
    assert (forward.flops, bool(forward.ops)) == (expected.flops, True)
    if case.mode == "fwd_bwd":
        assert count_flops(kept[0].backward).flops == expected.backward_flops


def test_int8_products_are_counted_and_named() -> None:
    a, b = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 24, dtype=torch.int8)
    counted = count_flops(lambda: torch._int_mm(a, b))
    assert (counted.flops, counted.ops) == (2 * 32 * 16 * 24, ("_int_mm",))


def test_counting_leaves_torchs_own_formulas_alone() -> None:
    from torch.utils.flop_counter import flop_registry

    before = dict(flop_registry)
    count_flops(lambda: torch.ones(2, 2) @ torch.ones(2, 2))
    assert flop_registry == before


BIG = shape(2, 36, 64, 20, 64, 64, 8, depth=1, ffn=0)


def test_a_shared_affinity_costs_one_and_a_half_of_one_direction_and_two_calls_cost_two() -> None:
    one = costs.attention(2, 20, 36, 64, 8, "eager").flops
    case = Case(shape=BIG, projector="identity")
    projections = 6 * 2 * (36 + 20) * 64 * 64
    shared = get("co_attention_shared")
    assert shared.costs(case, "eager").flops - projections == 1.5 * one
    assert shared.costs(case, "sdpa").flops - projections == 2 * one


def test_attention_in_both_directions_costs_twice_one_direction() -> None:
    case = Case(shape=BIG, projector="identity")
    one, other = (get(f"cross_attention{v}").costs(case, "sdpa").flops for v in ("", ":image_to_text"))
    assert get("co_attention").costs(case, "sdpa").flops == one + other == 2 * one


def test_concat_costs_more_than_both_directions_by_the_scores_within_each_modality() -> None:
    case = Case(shape=msgspec.structs.replace(BIG, ffn=4), projector="identity")
    both = mutual_layer_cost(case, 64, 64, "sdpa").flops
    assert get("concat_attention").costs(case, "sdpa").flops - both == 4 * 2 * 64 * (36**2 + 20**2)


def test_costs_add_and_multiply_field_by_field() -> None:
    one = Cost(flops=1, params=2, saved=3, saved_bytes=4)
    assert one + one == one * 2 == Cost(flops=2, params=4, saved=6, saved_bytes=8)


def test_bytes_follow_the_itemsize_except_where_a_dtype_is_fixed() -> None:
    cost = Cost(weights_read=10, activations_moved=3, saved=5, saved_bytes=7)
    assert cost.min_bytes(2) == 26
    assert cost.min_bytes(2, weight_itemsize=1) == 16
    assert cost.activation_bytes(2) == 17


def test_the_cases_cover_every_projector() -> None:
    assert {case.projector for case in CASES + BY_DESIGN} == set(PROJECTORS)
