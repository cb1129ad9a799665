"""What users of attention kernels ask for or break on: one test or more for each of the 23 rows of the checklist.

The rows were gathered from the issues of FlashAttention, PyTorch, SageAttention, Triton and others.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from fusionbench_kernels import attention_launch, attention_weights, choice, cross_attention, dispatch, runtime, table
from fusionbench_kernels.dispatch import Sizes
from fusionbench_kernels.runtime import Target
from tests.kernels.attention_cases import (
    PATHS,
    Case,
    Results,
    check,
    differentiate,
    judge,
    kernels_launched,
    make,
    module,
    tiled,
)

HOPPER = Target("sm_90", 132)
VARIANTS = ("streaming", "split", "resident")


def run(case: Case, **options: Any) -> Results:
    """Outputs and gradients of ``cross_attention``."""

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        found = cross_attention(
            q, k, v, key_padding_mask=case.mask, kv_lens=case.lens, bias=bias, scale=case.scale,
            return_lse=True, **options,
        )  # fmt: skip
        assert isinstance(found, tuple)
        return found

    return differentiate(case, ours)


def assert_equal(a: Results, b: Results) -> None:
    """The same bits."""
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def memory_starts_as_nan() -> Iterator[None]:
    """Every ``torch.empty`` holds NaN, so that a number no kernel has written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("queries", "keys"), [(1, 33), (5, 33), (33, 1), (33, 5), (20, 19)])
@pytest.mark.parametrize("path", PATHS)
def test_row_01_queries_and_keys_of_different_length(path: str, queries: int, keys: int, device: str) -> None:
    with tiled(path):
        found = check(make(queries, keys, 16, device=device))
    assert found["out"].shape[2] == found["dq"].shape[2] == queries
    assert found["dk"].shape[2] == found["dv"].shape[2] == keys


@pytest.mark.parametrize("variant", VARIANTS)
def test_row_02_a_key_padding_mask_is_about_keys_and_equals_leaving_them_out(variant: str, device: str) -> None:
    case = make(9, 37, 16, mask=True, device=device)
    kept = case.keep[0]
    with tiled("two-pass"):
        masked = run(case, variant=variant)
        shorter = run(replace(case, k=case.k[:, :, kept], v=case.v[:, :, kept], mask=None), variant=variant)
    for name in ("out", "lse", "dq"):
        torch.testing.assert_close(masked[name], shorter[name])
    for name in ("dk", "dv"):
        torch.testing.assert_close(masked[name][:, :, kept], shorter[name])
        assert not masked[name][:, :, ~kept].any()


@pytest.mark.parametrize("shape", [(2, 2, 9, 20), (1, 1, 9, 20), (2, 1, 1, 20), (1, 2, 1, 1), (1, 1, 9, 1)])
def test_row_03_a_bias_broadcasts_and_its_gradient_is_summed(shape: tuple[int, ...], device: str) -> None:
    case = make(9, 20, 16, batch=2, bias=shape, device=device)
    assert case.bias is not None
    found = check(case)
    assert found["dbias"].shape == shape
    # Written out, the bias is the same call: the kernels read the small one through strides of 0.
    full = run(replace(case, bias=case.bias.expand(2, 2, 9, 20).contiguous()))
    torch.testing.assert_close(found["dbias"], full["dbias"].sum_to_size(shape))
    assert torch.equal(found["out"], full["out"])


def test_row_03_a_bias_of_minus_infinity_is_a_mask_of_scores(device: str) -> None:
    case = make(9, 20, 16, bias=(1, 2, 9, 20), device=device)
    assert case.bias is not None
    case.bias[:, :, :, 5:] = -math.inf
    case.bias[:, :, 3] = -math.inf
    found = run(case)
    assert all(x.isfinite().all() for name, x in found.items() if name != "lse")
    assert not found["out"][:, :, 3].any()
    assert bool((found["lse"][:, :, 3] == -math.inf).all())
    assert not found["dbias"][:, :, :, 5:].any()
    rows = [i for i in range(9) if i != 3]
    short = check(replace(case, q=case.q[:, :, rows], k=case.k[:, :, :5], v=case.v[:, :, :5],
                          bias=case.bias[:, :, rows, :5], dout=case.dout[:, :, rows], dlse=case.dlse[:, :, rows]))  # fmt: skip
    torch.testing.assert_close(found["out"][:, :, rows], short["out"])
    torch.testing.assert_close(found["dk"][:, :, :5], short["dk"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("memory_starts_as_nan")
def test_row_04_a_sample_without_keys_gives_zeros_and_no_nan(variant: str, path: str, device: str) -> None:
    case = make(21, 20, 16, batch=3, mask=True, lens=(0, 20, 20), device=device)
    assert case.mask is not None
    case.mask[1] = False
    # The gradient of a logaddexp of two such rows is NaN; it must not get past them.
    case.dlse[:2] = math.nan
    with tiled(path):
        found = run(case, variant=variant)
    for sample in (0, 1):
        assert bool((found["lse"][sample] == -math.inf).all())
        assert not any(found[name][sample].any() for name in ("out", "dq", "dk", "dv"))
    judge(
        replace(case, q=case.q[2:], k=case.k[2:], v=case.v[2:], mask=case.mask[2:], lens=None,
                dout=case.dout[2:], dlse=case.dlse[2:]),
        {name: x[2:] for name, x in found.items()},
    )  # fmt: skip


@pytest.mark.parametrize("head_dim", [40, 72, 80, 96, 160])
def test_row_05_odd_head_dims_need_no_padded_copy(head_dim: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(9, 20, head_dim, device=device)
    for name in ("pad", "scaled_dot_product_attention"):
        monkeypatch.delattr(torch.nn.functional, name)
    found = run(case)
    monkeypatch.undo()
    judge(case, found)
    width = runtime.power_of_two(head_dim) - head_dim
    q, k, v, dout = (torch.nn.functional.pad(x, (0, width)) for x in (case.q, case.k, case.v, case.dout))
    padded = run(replace(case, q=q, k=k, v=v, dout=dout, scale=head_dim**-0.5))
    for name in found:
        torch.testing.assert_close(found[name], padded[name][..., :head_dim] if name != "lse" else padded[name])


@pytest.mark.parametrize("keys", [1, 4, 16, 64])
def test_row_06_very_short_keys_stay_in_one_program(keys: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = kernels_launched(monkeypatch)
    case = make(40, keys, 16, device=device, dtype=torch.float16)
    assert choice(case.q, case.k).variant == "resident"
    check(case)
    assert names[0] == "resident_forward"


def test_row_06_hopper_holds_up_to_256_keys() -> None:
    for keys, head_dim in ((77, 40), (77, 160), (128, 256), (256, 64)):
        assert dispatch.choose(Sizes(2, 8, 8, 4096, keys, head_dim, 2), HOPPER).variant == "resident"
    assert dispatch.choose(Sizes(2, 8, 8, 4096, 257, 64, 2), HOPPER).variant == "streaming"


def test_row_07_few_queries_with_many_keys_fill_the_device() -> None:
    # LTX-2's audio attention, TabPFN's context, a decoder's one query: the calls that FlashAttention left idle.
    for sizes in (
        Sizes(1, 32, 32, 126, 15360, 64, 2), Sizes(1, 8, 1, 64, 10000, 64, 2), Sizes(1, 8, 8, 1, 4096, 128, 2),
    ):  # fmt: skip
        picked = dispatch.choose(sizes, HOPPER)
        block = picked.config.blocks["BLOCK_Q"]
        programs = sizes.batch * sizes.heads * runtime.cdiv(sizes.queries, block)
        assert picked.variant == "split"
        assert programs * picked.splits > HOPPER.multiprocessors / 2
    assert dispatch.choose(Sizes(8, 16, 16, 4096, 4096, 64, 2), HOPPER).variant == "streaming"


def test_row_07_a_choice_to_split_is_right(device: str) -> None:
    with tiled("two-pass"):
        case = make(2, 270, 16, heads=1, device=device)  # more than any program holds
        picked = dispatch.choose(Sizes.of(case.q, case.k), HOPPER, "auto")
        assert picked.variant == "split"
        assert picked.splits > 1
        check(case, variant="split", splits=picked.splits)


@pytest.mark.parametrize("keys", [33, 65, 97])
@pytest.mark.parametrize("variant", VARIANTS)
def test_row_08_one_key_beyond_a_block_with_expanded_keys(variant: str, keys: int, device: str) -> None:
    case = make(5, keys, 16, kv_heads=1, heads=1, device=device)
    case = replace(case, k=case.k.expand(2, 3, keys, 16), v=case.v.expand(2, 3, keys, 16),
                   q=torch.randn(2, 3, 5, 16, device=device), dout=torch.randn(2, 3, 5, 16, device=device),
                   dlse=torch.zeros(2, 3, 5, device=device))  # fmt: skip
    with tiled("two-pass", 32):
        check(case, variant=variant)


def surrounded(x: Tensor) -> Tensor:
    """The same numbers inside of a larger tensor of NaN: beside, before and after them."""
    ring = x.new_full([size + 2 * 16 for size in x.shape], math.nan)
    inner = ring[tuple(slice(16, 16 + size) for size in x.shape)]
    return inner.copy_(x)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("memory_starts_as_nan")
def test_row_09_nan_around_inputs_and_in_padded_keys_never_leaks(variant: str, path: str, device: str) -> None:
    case = make(21, 19, 24, batch=2, mask=True, lens=(19, 13), device=device)
    outside = ~case.keep[:, None, :, None]
    poisoned = replace(
        case,
        q=surrounded(case.q),
        k=surrounded(case.k.masked_fill(outside, math.nan)),
        v=surrounded(case.v.masked_fill(outside, math.nan)),
        dout=surrounded(case.dout),
    )
    with tiled(path):
        assert_equal(run(poisoned, variant=variant), run(case, variant=variant))
        judge(case, run(poisoned, variant=variant))


@pytest.mark.usefixtures("memory_starts_as_nan")
def test_row_09_nan_in_the_bias_of_padded_keys_never_leaks(device: str) -> None:
    case = make(21, 19, 24, batch=2, lens=(0, 13), bias=(2, 2, 21, 19), device=device)
    assert case.bias is not None
    poisoned = replace(case, bias=surrounded(case.bias.masked_fill(~case.keep[:, None, None, :], math.nan)))
    found = run(poisoned)
    assert_equal(found, run(case))
    assert not found["dbias"].masked_fill(case.keep[:, None, None, :], 0).any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_row_09_kernels_write_every_output_and_nothing_beside_it(
    variant: str, path: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings: list[tuple[Tensor, Tensor]] = []

    def ringed(x: Tensor) -> Tensor:
        # lse and dS are written without strides: rings before and after, the others one on each side.
        if x.numel() == 0:
            return x
        ring = torch.full((x.numel() + 512,), 7.0, dtype=x.dtype, device=x.device)
        inner = ring[256 : 256 + x.numel()].view(x.shape)
        rings.append((ring, inner.fill_(math.nan)))
        return inner

    empty, gradients = attention_launch.empty, attention_launch.empty_gradients
    monkeypatch.setattr(attention_launch, "empty", lambda *a: tuple(ringed(x) for x in empty(*a)))
    monkeypatch.setattr(attention_launch, "empty_gradients", lambda *a: tuple(ringed(x) for x in gradients(*a)))
    with tiled(path):
        found = run(
            make(21, 19, 24, device=device, bias=(1, 2, 21, 19) if path == "two-pass" else None), variant=variant
        )
    assert len(rings) == (6 if path == "two-pass" else 5)
    assert not any(x.isnan().any() for x in found.values())
    for ring, inner in rings:
        assert not inner.isnan().any()
        assert bool((ring[:256] == 7).all())
        assert bool((ring[256 + inner.numel() :] == 7).all())


HUGE_STRIDES = {
    "keys": lambda far: (far(1, 1, 5, 16, dim=2), None),
    "batch": lambda far: (far(5, 1, 3, 16, dim=0), None),
    "heads": lambda far: (far(1, 5, 3, 16, dim=1), None),
    "queries": lambda far: (None, far(1, 1, 5, 16, dim=2)),
}


@pytest.mark.parametrize("where", HUGE_STRIDES)
@pytest.mark.parametrize("path", PATHS)
def test_row_10_offsets_beyond_32_bits(where: str, path: str, device: str) -> None:
    # Five rows 2^29 numbers apart end at 2^31. Linux gives out pages when they are written to: a few of the 4 GiB.
    storage = torch.empty(2**31 + 2**10, dtype=torch.float16, device=device)

    def far(*shape: int, dim: int) -> Tensor:
        strides = [math.prod(shape[i + 1 :]) for i in range(4)]
        strides[dim] = 2**29
        view = storage.as_strided(shape, strides)
        return view.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(1)).half())

    kv, q = HUGE_STRIDES[where](far)
    k = kv if kv is not None else torch.randn(1, 1, 5, 16).half().to(device)
    q = q if q is not None else torch.randn(k.shape[0], k.shape[1], 5, 16).half().to(device)
    case = Case(q, k, k, None, None, None, None, torch.randn_like(q), torch.zeros(q.shape[:3], device=device))
    near = replace(case, q=q.contiguous(), k=k.contiguous(), v=k.contiguous())
    with tiled(path):
        assert_equal(run(case), run(near))


def test_row_10_an_output_beyond_32_bits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = torch.empty(2**31 + 2**10, dtype=torch.float16, device=device)
    case = make(5, 7, 16, heads=1, dtype=torch.float16, device=device)
    near = run(case)
    real = attention_launch.empty

    def far(q: Tensor) -> tuple[Tensor, Tensor]:
        return storage.as_strided(q.shape, (1, 1, 2**29, 1)), real(q)[1]

    monkeypatch.setattr(attention_launch, "empty", far)
    for variant in VARIANTS:
        assert torch.equal(
            attention_launch.forward(case.q, case.k, case.v, None, None, None, 0.25, variant)[0], near["out"]
        )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tokens before heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "features before tokens": lambda x: x.mT.contiguous().mT,
    "every second feature": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "backwards in memory order": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "part of a projection": lambda x: torch.cat([x, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_row_11_strides_and_offsets_do_not_matter(path: str, layout: str, device: str) -> None:
    case = make(21, 19, 24, batch=2, device=device, dtype=torch.float16)
    lay = LAYOUTS[layout]
    other = replace(case, q=lay(case.q), k=lay(case.k), v=lay(case.v), dout=lay(case.dout))
    with tiled(path, 32):
        for variant in VARIANTS:
            assert_equal(run(other, variant=variant), run(case, variant=variant))


@pytest.mark.parametrize("path", PATHS)
def test_row_11_expanded_tensors_and_gradients_without_strides(path: str, device: str) -> None:
    case = make(21, 19, 24, device=device, heads=1)
    wide = replace(
        case,
        q=case.q.expand(2, 3, 21, 24), k=case.k.expand(2, 3, 19, 24), v=case.v.expand(2, 3, 19, 24),
        dout=torch.ones((), device=device).expand(2, 3, 21, 24), dlse=torch.ones((), device=device).expand(2, 3, 21),
    )  # fmt: skip
    written = replace(wide, **{name: getattr(wide, name).contiguous() for name in ("q", "k", "v", "dout", "dlse")})
    with tiled(path, 32):
        assert_equal(run(wide), run(written))


def test_row_11_masks_lengths_and_bias_with_strides(device: str) -> None:
    case = make(9, 20, 16, batch=2, mask=True, lens=(20, 11), bias=(2, 2, 9, 20), device=device)
    assert case.mask is not None
    assert case.lens is not None
    assert case.bias is not None
    other = replace(
        case,
        mask=case.mask.mT.contiguous().mT,
        lens=case.lens.repeat_interleave(2)[::2],
        bias=case.bias.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    )
    assert other.mask is not None
    assert other.lens is not None
    assert not other.mask.is_contiguous()
    assert not other.lens.is_contiguous()
    assert_equal(run(other), run(case))
    same_length = replace(case, lens=torch.tensor([11], device=device).expand(2))
    assert_equal(run(same_length), run(replace(case, lens=torch.tensor([11, 11], device=device))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_row_12_parts_of_the_keys_merge_by_their_lse_also_backwards(variant: str, device: str) -> None:
    case = make(9, 40, 16, device=device)

    def halves(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = [
            cross_attention(q, k[:, :, part], v[:, :, part], return_lse=True, variant=variant)
            for part in (slice(0, 13), slice(13, 40))
        ]
        lse = torch.logaddexp(parts[0][1], parts[1][1])  # natural logarithms, or this is wrong
        return sum(out * (one - lse).exp()[..., None] for out, one in parts), lse

    with tiled("two-pass"):
        judge(case, differentiate(case, halves))


def test_row_13_attention_weights_sum_to_one_and_give_the_output(device: str) -> None:
    case = make(9, 20, 16, heads=4, kv_heads=2, batch=2, mask=True, lens=(20, 0), bias=(1, 4, 9, 20), device=device)
    options = {"key_padding_mask": case.mask, "kv_lens": case.lens, "bias": case.bias}
    out, lse = cross_attention(case.q, case.k, case.v, return_lse=True, **options)
    weights = attention_weights(case.q, case.k, lse, **options)
    assert weights.shape == (2, 4, 9, 20)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(4, 9, device=device))
    assert not weights[1].any()
    assert not weights.masked_fill(case.keep[:, None, None, :], 0).any()
    torch.testing.assert_close(weights @ case.v.repeat_interleave(2, 1), out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_row_14_every_repeat_gives_the_same_bits(variant: str, path: str, device: str) -> None:
    case = make(35, 33, 24, batch=2, device=device, dtype=torch.float16)
    with tiled(path, 32):
        first = run(case, variant=variant)
        # The interpreter runs programs one after another: only a GPU can show a race, and it repeats more often.
        for _ in range(50 if device == "cuda" else 2):
            assert_equal(run(case, variant=variant), first)


def test_row_14_no_kernel_of_attention_uses_atomics() -> None:
    for name in ("attention_forward", "attention_backward", "tiles"):
        source = inspect.getsource(importlib.import_module(f"fusionbench_kernels.device.{name}"))
        assert "tl.atomic" not in source


def test_row_14_the_batch_a_sample_is_in_does_not_change_its_bits(device: str) -> None:
    case = make(21, 19, 24, batch=3, device=device)
    with tiled("two-pass"):
        whole = run(case)
        for i in range(3):
            one = replace(case, **{name: getattr(case, name)[i : i + 1] for name in ("q", "k", "v", "dout", "dlse")})
            assert_equal({name: x[i : i + 1] for name, x in whole.items()}, run(one))


@pytest.mark.parametrize("kind", ["plain", "everything", "expanded"])
def test_row_15_opcheck(kind: str, device: str) -> None:
    case = make(5, 7, 16, heads=4, kv_heads=2, batch=2, mask=True, lens=(7, 3), bias=(2, 4, 5, 7), device=device)
    tensors = [case.q, case.k, case.v]
    extra = [case.mask, case.lens, case.bias] if kind == "everything" else [None, None, None]
    if kind == "expanded":
        tensors = [x[:1].expand(2, -1, -1, -1) for x in tensors]
    else:
        tensors = [x.requires_grad_() for x in tensors]
    torch.library.opcheck(module.attention_forward, (*tensors, *extra, 0.25, "auto", 0))
    detached = [x.detach() for x in tensors]
    out, lse = module.attention_forward(*detached, *extra, 0.25, "auto", 0)
    torch.library.opcheck(
        module.attention_backward, (*detached, out, lse, case.dout, case.dlse, *extra, 0.25, kind == "everything")
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_row_15_compiles_into_one_graph(dynamic: bool, device: str) -> None:
    compiled = torch.compile(cross_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries, keys in ((5, 20), (9, 33)):
        case = make(queries, keys, 16, batch=2, mask=True, lens=(keys, 3), bias=(1, 2, 1, keys), device=device)

        def call(function: Callable[..., Any], case: Case = case) -> Results:
            return differentiate(
                case,
                lambda q, k, v, bias: function(
                    q, k, v, key_padding_mask=case.mask, kv_lens=case.lens, bias=bias, return_lse=True
                ),
            )

        assert_equal(call(compiled), call(cross_attention))
    torch.compiler.reset()


def test_row_15_expanded_keys_do_not_run_what_was_compiled_for_contiguous_ones(device: str) -> None:
    compiled = torch.compile(cross_attention, fullgraph=True, backend="aot_eager")
    q, kv = torch.randn(2, 2, 5, 16, device=device), torch.randn(2, 2, 20, 16, device=device)
    for k in (kv, kv[:1, :1].expand(2, 2, 20, 16), kv.mT.contiguous().mT):
        found, wanted = compiled(q, k, k), cross_attention(q, k, k)
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()
    torch.compiler.reset()


def test_row_15_exports_with_dynamic_lengths(device: str) -> None:
    class Fuse(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, lens: Tensor) -> Tensor:
            out = cross_attention(q, k, v, kv_lens=lens)
            assert isinstance(out, Tensor)
            return out

    case = make(5, 20, 16, batch=2, lens=(20, 3), device=device)
    queries, keys = torch.export.Dim("queries", min=2, max=4096), torch.export.Dim("keys", min=2, max=4096)
    shapes = {"q": {2: queries}, "k": {2: keys}, "v": {2: keys}, "lens": None}
    program = torch.export.export(Fuse(), (case.q, case.k, case.v, case.lens), dynamic_shapes=shapes)
    assert "fusionbench_kernels.attention_forward" in program.graph_module.code
    other = make(9, 33, 16, batch=2, lens=(33, 3), device=device)
    wanted = cross_attention(other.q, other.k, other.v, kv_lens=other.lens)
    assert torch.equal(program.module()(other.q, other.k, other.v, other.lens), wanted)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_row_16_each_sample_has_its_own_length(dtype: torch.dtype, variant: str, path: str, device: str) -> None:
    lens = (0, 1, 19, 33, 1000, -5)  # lengths outside of 0 … Lk count as the nearest inside
    case = make(34, 33, 16, batch=6, heads=1, lens=lens, device=device)
    assert case.lens is not None
    with tiled(path, 32):
        found = run(replace(case, lens=case.lens.to(dtype)), variant=variant)
        for i, length in enumerate(lens):
            inside = max(0, min(length, 33))
            one = {name: x[i : i + 1] for name, x in found.items()}
            assert not any(one[name][:, :, inside:].any() for name in ("dk", "dv"))
            for name in ("dk", "dv"):
                one[name] = one[name][:, :, :inside]
            judge(
                replace(case, q=case.q[i : i + 1], k=case.k[i : i + 1, :, :inside], v=case.v[i : i + 1, :, :inside],
                        lens=None, dout=case.dout[i : i + 1], dlse=case.dlse[i : i + 1]),
                one,
            )  # fmt: skip


def test_row_16_padded_queries_without_a_gradient_leave_the_keys_alone(device: str) -> None:
    case = make(20, 19, 16, device=device)
    case.dout[:, :, 11:], case.dlse[:, :, 11:] = 0, 0
    short = replace(case, q=case.q[:, :, :11], dout=case.dout[:, :, :11], dlse=case.dlse[:, :, :11])
    whole, part = run(case), run(short)
    for name in ("dk", "dv"):
        torch.testing.assert_close(whole[name], part[name])
    assert not whole["dq"][:, :, 11:].any()


EMPTY = {
    "no keys": (2, 2, 5, 0), "no queries": (2, 2, 0, 7), "no samples": (0, 2, 5, 7), "nothing": (0, 2, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", EMPTY)
@pytest.mark.usefixtures("memory_starts_as_nan")
def test_row_17_empty_sizes(sizes: str, dtype: torch.dtype, device: str) -> None:
    batch, heads, queries, keys = EMPTY[sizes]
    for variant in ("auto", "streaming", "split"):
        found = run(make(queries, keys, 16, batch=batch, heads=heads, dtype=dtype, device=device), variant=variant)
        assert not any(x.any() for name, x in found.items() if name != "lse")
        assert bool((found["lse"] == -math.inf).all())


def test_row_17_a_split_without_keys_weighs_nothing(device: str) -> None:
    with tiled("two-pass"):
        check(make(3, 65, 16, batch=2, lens=(0, 17), device=device), variant="split", splits=5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_row_18_blocks_of_zeros_are_averaged(variant: str, device: str) -> None:
    # A quantiser divides by a block's largest value; these kernels have none, and the quantised ones own tests.
    case = make(9, 20, 16, device=device)
    zeros = replace(case, k=torch.zeros_like(case.k))
    with tiled("two-pass"):
        found = check(zeros, variant=variant)
        torch.testing.assert_close(found["out"], case.v.mean(2, keepdim=True).expand_as(found["out"]))
        nothing = run(replace(zeros, q=torch.zeros_like(case.q), v=torch.zeros_like(case.v)), variant=variant)
    assert all(x.isfinite().all() for x in nothing.values())


KERNELS = {"streaming": "streaming_forward", "split": "streaming_forward", "resident": "resident_forward"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_row_19_the_kernel_that_was_asked_for_is_the_one_that_runs(
    variant: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which kernel a baseline of the benchmark launched is read from its trace by fusionbench itself (meters/memory).
    names = kernels_launched(monkeypatch)
    with tiled("two-pass"):
        case = make(9, 40, 16, device=device)
        picked = choice(case.q, case.k, variant=variant, splits=3 if variant == "split" else 0)
        assert picked.variant == variant
        assert picked.reason
        cross_attention(case.q, case.k, case.v, variant=variant, splits=3 if variant == "split" else 0)
    assert names == [KERNELS[variant], *(["combine"] if variant == "split" else [])]


def test_row_19_a_variant_that_cannot_run_says_so(device: str) -> None:
    q, k = torch.randn(1, 1, 5, 16, device=device), torch.randn(1, 1, 257, 16, device=device)
    with pytest.raises(ValueError, match=r"variant 'resident' holds 1 to 256 keys .* no room for 257 keys"):
        cross_attention(q, k, k, variant="resident")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "q of three sizes": ({"q": torch.zeros(2, 5, 16)}, r"q has shape \[2, 5, 16\]"),
    "k of another batch": ({"k": torch.zeros(3, 2, 7, 16)}, r"k has shape \[3, 2, 7, 16\]; it must be \[2, any, any, 16\]"),
    "k of another head dim": ({"k": torch.zeros(2, 2, 7, 8)}, "k has shape"),
    "v of another length": ({"v": torch.zeros(2, 2, 6, 16)}, r"v has shape \[2, 2, 6, 16\]; it must be \[2, 2, 7, 16\]"),
    "v of other heads": ({"v": torch.zeros(2, 1, 7, 16)}, "v has shape"),
    "v of another head dim": ({"v": torch.zeros(2, 2, 7, 8)}, "v has shape"),
    "heads that do not divide": ({"q": torch.zeros(2, 3, 5, 16)}, "q has 3 heads and k has 2"),
    "no heads": ({"q": torch.zeros(2, 0, 5, 16)}, "q has 0 heads"),
    "no key heads": ({"k": torch.zeros(2, 0, 7, 16), "v": torch.zeros(2, 0, 7, 16)}, "k has 0"),
    "no head dim": ({name: torch.zeros(2, 2, 7, 0) for name in "qkv"}, "head dim 0 is not supported; it must be 1 to 256"),
    "a wide head": ({name: torch.zeros(2, 2, 7, 264) for name in "qkv"}, "head dim 264"),
    "whole numbers": ({name: torch.zeros(2, 2, 7, 16, dtype=torch.int32) for name in "qkv"}, "q is int32"),
    "mixed types": ({"v": torch.zeros(2, 2, 7, 16, dtype=torch.float16)}, "v is float16 and q is float32"),
    "mixed devices": ({"k": torch.zeros(2, 2, 7, 16, device="meta")}, "k is on meta and q is on"),
    "a mask of queries": ({"key_padding_mask": torch.ones(2, 5).bool()}, r"key_padding_mask has shape \[2, 5\]"),
    "a mask of numbers": ({"key_padding_mask": torch.ones(2, 7)}, "key_padding_mask is float32; it must be bool"),
    "a mask elsewhere": ({"key_padding_mask": torch.ones(2, 7, device="meta").bool()}, "key_padding_mask is on meta"),
    "lengths of another batch": ({"kv_lens": torch.ones(3).int()}, r"kv_lens has shape \[3\]"),
    "lengths of queries and keys": ({"kv_lens": torch.ones(2, 2).int()}, "kv_lens has shape"),
    "fractional lengths": ({"kv_lens": torch.ones(2)}, "kv_lens is float32; it must be int32 or int64"),
    "lengths elsewhere": ({"kv_lens": torch.ones(2, device="meta").int()}, "kv_lens is on meta"),
    "a bias of three sizes": ({"bias": torch.zeros(2, 5, 7)}, r"bias has shape \[2, 5, 7\]"),
    "a bias of other keys": ({"bias": torch.zeros(2, 2, 5, 6)}, r"each size must be 1 or that of \[2, 2, 5, 7\]"),
    "a bias that is a mask": ({"bias": torch.ones(1, 1, 5, 7).bool()}, "use key_padding_mask"),
    "a bias elsewhere": ({"bias": torch.zeros(1, 1, 5, 7, device="meta")}, "bias is on meta"),
    "an unknown variant": ({"variant": "fast"}, r"no attention kernel 'fast' \(has: auto, streaming"),
    "negative splits": ({"variant": "split", "splits": -1}, "splits is -1"),
    "splits of another variant": ({"variant": "streaming", "splits": 3}, "splits is 3 with variant 'streaming'"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_row_20_what_does_not_fit_is_named(what: str, device: str) -> None:
    changes, message = WRONG[what]
    given: dict[str, Any] = {
        "q": torch.zeros(2, 2, 5, 16),
        "k": torch.zeros(2, 2, 7, 16),
        "v": torch.zeros(2, 2, 7, 16),
    }
    given = {
        name: x.to(device) if isinstance(x, Tensor) and x.device.type != "meta" else x
        for name, x in {**given, **changes}.items()
    }
    with pytest.raises(ValueError, match=message):
        cross_attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_row_20_attention_weights_name_what_does_not_fit(device: str) -> None:
    q, k, lse = (torch.zeros(shape, device=device) for shape in ((2, 2, 5, 16), (2, 2, 7, 16), (2, 2, 6)))
    with pytest.raises(ValueError, match=r"lse has shape \[2, 2, 6\]; it must be \[2, 2, 5\]"):
        attention_weights(q, k, lse)
    with pytest.raises(ValueError, match="key_padding_mask has shape"):
        attention_weights(q, k, lse[:, :, :5], key_padding_mask=torch.ones(2, 5, dtype=torch.bool, device=device))


def test_row_21_softmax_over_the_other_axis_is_the_call_with_roles_swapped(device: str) -> None:
    # Both directions of one affinity matrix; what computes them in one pass over it is ``co_attention``.
    text, image = make(7, 20, 16, device=device), make(20, 7, 16, device=device)
    scores = torch.einsum("bhqd,bhkd->bhqk", text.q, text.k) / 4
    from_image = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), text.v)
    from_text = torch.einsum("bhqk,bhqd->bhkd", scores.softmax(-2), image.v)
    torch.testing.assert_close(cross_attention(text.q, text.k, text.v), from_image, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cross_attention(text.k, text.q, image.v), from_text, rtol=1e-5, atol=1e-6)


def test_row_22_nothing_is_tuned_at_a_users_first_call(device: str) -> None:
    for name in ("attention_forward", "attention_backward"):
        kernels = vars(importlib.import_module(f"fusionbench_kernels.device.{name}")).values()
        assert not any(isinstance(kernel, Autotuner) for kernel in kernels)


@pytest.mark.parametrize("arch", table.architectures())
def test_row_22_the_choice_depends_on_the_sizes_alone(arch: str) -> None:
    target = Target(arch, 100)
    for sizes in (Sizes(2, 8, 8, 4096, 77, 40, 2), Sizes(1, 8, 1, 3, 9999, 128, 2), Sizes(1, 1, 1, 1, 1, 256, 4)):
        first = dispatch.choose(sizes, target)
        with table.forced(streaming_forward=None, resident_forward=None), pytest.raises(NotImplementedError):
            dispatch.choose(sizes, target)
        assert dispatch.choose(sizes, target) == first


def test_row_22_an_unknown_chip_gets_what_fits_everywhere() -> None:
    sizes = Sizes(2, 8, 8, 4096, 77, 40, 2)
    assert dispatch.choose(sizes, Target("sm_999", 100)) == dispatch.choose(sizes, Target("sm_80", 100))
    assert dispatch.choose(sizes, Target("gfx1300", 100)) == dispatch.choose(sizes, Target("gfx942", 100))


ONE_PRODUCT = {"combine", "backward_delta"}  # in fact none: elementwise kernels


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [8, 16, 32, 40, 64, 80, 128, 160, 256])
def test_row_23_no_16_bit_tile_on_hopper_is_narrower_than_64(head_dim: int, dtype: torch.dtype) -> None:
    launches: list[runtime.Launch] = []
    with runtime.compiling_for(HOPPER, launches.append):
        for queries, keys in ((1, 1), (16, 33), (40, 20), (20, 40), (4096, 77), (300, 300), (1, 5000)):
            q, k = (torch.empty(1, 2, n, head_dim, dtype=dtype, device="meta") for n in (queries, keys))
            out, lse = attention_launch.forward(q, k, k, None, None, None, 1.0)
            for wants_ds in (False, True):
                attention_launch.backward(q, k, k, out, lse, out, None, None, None, None, 1.0, wants_ds)
    seen = {launch.kernel.__name__ for launch in launches}
    assert seen >= {"streaming_forward", "backward_keys", "backward_queries", "combine"}
    for launch in launches:
        name = launch.kernel.__name__
        sizes = {**launch.constants, **launch.config.blocks}
        tiles = {
            key: sizes[key] for key in sizes if key in ("MAIN", "KEYS_MAIN", "KEYS", "QUERIES", "BLOCK_Q", "BLOCK_K")
        }
        tails = [sizes.get(key, 0) for key in ("TAIL", "KEYS_TAIL")]
        if name not in ONE_PRODUCT:
            assert min(tiles.values()) >= 64, (name, tiles)
            assert tails == [0, 0], name


def test_row_23_tiles_are_padded_and_split_only_where_the_table_says_so() -> None:
    rows = table.rows("sm_90")
    for kernel in [*KERNELS.values(), *(name for path in PATHS.values() for name in path)]:
        for bounds, config in rows[kernel]:
            if bounds.get("bytes") == 2:
                assert (config.edge, config.split_heads, config.split_keys) == (64, False, False), kernel
    hopper, other = (
        table.require("streaming_forward", arch, head_dim=24, bytes=2, queries=9, keys=9) for arch in ("sm_90", "sm_80")
    )
    assert dispatch.head_tiles(24, hopper) == (64, 0)
    assert dispatch.head_tiles(24, other) == (32, 0)


def test_the_checklist_is_complete() -> None:
    rows = {name[:11] for name in globals() if name.startswith("test_row_")}
    assert rows == {f"test_row_{number:02}" for number in range(1, 24)}
