"""Fused cross-attention against fp64 on ugly sizes: each forward variant, and each way through the backward pass."""

from __future__ import annotations

import math

import pytest
import torch

from fusionbench_kernels import choice, cross_attention, table
from fusionbench_kernels.dispatch import head_tiles, key_tiles
from tests.kernels.attention_cases import (
    PATHS,
    SMALL,
    check,
    differentiate,
    eager,
    judge,
    kernels_launched,
    make,
    tiled,
)
from tests.kernels.conftest import needs_gpu

KEYS = (0, 1, 15, 16, 17, 63, 64, 65, 76, 77, 78, 127, 128, 129)
HEAD_DIMS = (1, 7, 8, 24, 40, 64, 72, 80, 96, 128, 160, 192, 256)
DTYPES = (torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=needs_gpu))
# Every count in fp32; the other types share its tails and differ in their products.
TAILS = [
    *((keys, torch.float32) for keys in KEYS),
    *((keys, torch.float16) for keys in (1, 17, 77, 129)),
    *(pytest.param(keys, torch.bfloat16, marks=needs_gpu) for keys in (1, 17, 77, 129)),
]
VARIANTS = ("streaming", "split", "resident")
# From FlashAttention's own grid; what is larger there is scaled down to what the interpreter runs in a second.
SHAPES = ((1, 1), (2, 1), (1, 3), (64, 128), (128, 192), (113, 203), (203, 113), (239, 1), (108, 97))

SPLITS = {"split": {"splits": 3}}


@pytest.mark.parametrize(("keys", "dtype"), TAILS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_handles_tails_of_keys(variant: str, keys: int, dtype: torch.dtype, device: str) -> None:
    if variant == "resident" and keys == 0:
        with pytest.raises(ValueError, match="holds 1 to 256 keys"):
            check(make(17, keys, dtype=dtype, device=device), variant=variant)
        return
    with tiled("two-pass", 16, backward_edge=64):
        check(make(17, keys, dtype=dtype, device=device), variant=variant, **SPLITS.get(variant, {}))


def test_one_key_more_than_a_program_holds(device: str) -> None:
    case = make(17, 257, heads=1, device=device)
    with tiled("two-pass", 64):
        check(case, variant="auto")
        check(case, variant="streaming")
        with pytest.raises(ValueError, match="holds 1 to 256 keys"):
            check(case, variant="resident")


@pytest.mark.parametrize(("keys", "dtype"), TAILS[1:])
@pytest.mark.parametrize("path", PATHS)
def test_every_way_back_handles_tails(
    path: str, keys: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The short side stays in a program: keys there, queries here.
    queries = keys + 1 if path == "keys-resident" else 17
    names = kernels_launched(monkeypatch)
    with tiled(path, 64 if path == "keys-resident" else 16):
        check(make(queries, keys, dtype=dtype, device=device, heads=1))
    assert names[1:] == ["backward_delta", *PATHS[path]]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize(("variant", "path"), [*zip(VARIANTS, PATHS, strict=True)])
def test_shapes_of_flash_attentions_tests(variant: str, path: str, shape: tuple[int, int], device: str) -> None:
    queries, keys = shape
    if path == "keys-resident" and keys > queries:
        queries, keys = keys, queries
    with tiled(path, 64):
        check(make(queries, keys, 32, heads=1, device=device), variant=variant, **SPLITS.get(variant, {}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_handles_odd_head_dims(variant: str, head_dim: int, dtype: torch.dtype, device: str) -> None:
    with tiled("two-pass", 16, backward_edge=32):
        check(make(17, 35, head_dim, dtype=dtype, device=device), variant=variant, **SPLITS.get(variant, {}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("path", PATHS)
def test_every_way_back_handles_odd_head_dims(path: str, head_dim: int, dtype: torch.dtype, device: str) -> None:
    with tiled(path):
        check(make(35, 21, head_dim, heads=1, dtype=dtype, device=device))


def test_the_grid_has_split_heads_and_split_keys_and_neither() -> None:
    streaming, resident = SMALL["streaming_forward"], SMALL["resident_forward"]
    assert {d: head_tiles(d, streaming) for d in HEAD_DIMS} == {
        1: (16, 0), 7: (16, 0), 8: (16, 0), 24: (32, 0), 40: (32, 16), 64: (64, 0), 72: (64, 16), 80: (64, 16), 96: (64, 32), 128: (128, 0),
        160: (128, 32), 192: (128, 64), 256: (256, 0),
    }  # fmt: skip
    assert {n: key_tiles(n, resident) for n in (1, 17, 65, 77, 128, 129)} == {
        1: (16, 0), 17: (32, 0), 65: (64, 16), 77: (64, 16), 128: (128, 0), 129: (128, 16),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (6, 2)])
@pytest.mark.parametrize(
    ("variant", "path"), [("streaming", "two-pass"), ("split", "keys-resident"), ("resident", "keys-resident")]
)
def test_heads_share_keys(variant: str, path: str, heads: int, kv_heads: int, dtype: torch.dtype, device: str) -> None:
    case = make(19, 18, 24, heads=heads, kv_heads=kv_heads, batch=2, dtype=dtype, device=device)
    with tiled(path, 32):
        check(case, variant=variant)


def test_queries_resident_backward_leaves_shared_keys_to_two_passes(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = kernels_launched(monkeypatch)
    with tiled("queries-resident"):
        check(make(5, 20, 16, heads=4, kv_heads=2, device=device))
    assert names[-2:] == ["backward_keys", "backward_queries"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "queries"), [(4, 1, 1), (4, 2, 3), (3, 1, 7), (6, 2, 8), (5, 1, 8)])
@pytest.mark.parametrize("variant", ["streaming", "split"])
def test_heads_that_share_keys_are_packed_into_one_tile(
    variant: str, heads: int, kv_heads: int, queries: int, dtype: torch.dtype, device: str
) -> None:
    case = make(
        queries, 50, 24, heads=heads, kv_heads=kv_heads, batch=2, dtype=dtype, device=device, mask=True, lens=(31, 50),
        bias=(2, heads, queries, 50),
    )  # fmt: skip
    with tiled("two-pass"):
        assert choice(case.q, case.k, variant=variant).packed
        check(case, variant=variant)


MASKED = {
    "mask": {"mask": True},
    "lens": {"lens": (20, 0, 41)},
    "mask and lens": {"mask": True, "lens": (30, 1, 41)},
    "full bias": {"bias": (3, 2, 21, 41)},
    "bias of the batch": {"bias": (3, 1, 1, 41)},
    "bias of the heads": {"bias": (1, 2, 21, 1)},
    "one number": {"bias": (1, 1, 1, 1)},
    "all": {"mask": True, "lens": (20, 0, 41), "bias": (1, 2, 21, 41)},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_lengths_and_bias(variant: str, kind: str, dtype: torch.dtype, device: str) -> None:
    case = make(21, 41, 24, batch=3, dtype=dtype, device=device, **MASKED[kind])  # type: ignore[arg-type]
    with tiled("two-pass", 32):
        check(case, variant=variant)


@pytest.mark.parametrize("kind", [kind for kind in MASKED if "mask" in MASKED[kind] or "lens" in MASKED[kind]])
@pytest.mark.parametrize("path", ["keys-resident", "queries-resident"])
def test_one_pass_backward_with_masks_and_lengths(path: str, kind: str, device: str) -> None:
    case = make(43, 41, 24, batch=3, device=device, **{**MASKED[kind], "bias": None})  # type: ignore[arg-type]
    with tiled(path, 32):
        check(case)


@pytest.mark.parametrize("path", ["keys-resident", "queries-resident"])
def test_one_pass_backward_with_a_bias_that_needs_no_gradient(
    path: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make(43, 41, 24, device=device, bias=(1, 2, 1, 41))
    names = kernels_launched(monkeypatch)

    def ours(q, k, v, bias):  # type: ignore[no-untyped-def]
        return cross_attention(q, k, v, bias=bias.detach(), return_lse=True)

    with tiled(path, 32):
        leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
        out, lse = ours(*leaves, case.bias)
        found = torch.autograd.grad((out, lse), leaves, (case.dout, case.dlse))
    assert names[-1] == PATHS[path][0]
    judge(case, {"out": out, "lse": lse} | dict(zip(("dq", "dk", "dv"), found, strict=True)))


@pytest.mark.parametrize("splits", [1, 2, 4, 5, 8, 9, 100])
def test_any_number_of_splits(splits: int, device: str) -> None:
    # 129 keys are nine tiles of 16: five splits leave the last one without keys, a hundred are capped.
    with tiled("two-pass"):
        case = make(3, 129, 24, device=device)
        assert choice(case.q, case.k, variant="split", splits=splits).splits == min(splits, 9)
        check(case, variant="split", splits=splits)


def test_splits_beyond_a_samples_length_weigh_nothing(device: str) -> None:
    with tiled("two-pass"):
        check(make(3, 129, 24, batch=3, lens=(0, 17, 129), device=device), variant="split", splits=9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_hundreds_do_not_overflow(dtype: torch.dtype, variant: str, device: str) -> None:
    with tiled("two-pass", 32):
        results = check(make(17, 40, 64, gain=20.0, scale=1.0, dtype=dtype, device=device), variant=variant)
    assert float(results["lse"].max()) > 300


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(scale: float, device: str) -> None:
    check(make(17, 20, 24, scale=scale, device=device))


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_one_output_alone(path: str, device: str) -> None:
    case = make(21, 20, 24, device=device)
    leaves = [x.requires_grad_() for x in (case.q, case.k, case.v)]
    with tiled(path):
        out, lse = cross_attention(*leaves, return_lse=True)
        truth = eager(*(x.double() for x in leaves), case.keep, None, 24**-0.5)
        for ours, theirs in zip((out, lse), truth, strict=True):
            found = torch.autograd.grad(ours.sum(), leaves, retain_graph=True)
            wanted = torch.autograd.grad(theirs.sum(), leaves, retain_graph=True, allow_unused=True)
            for leaf, a, b in zip(leaves, found, wanted, strict=True):
                expected = torch.zeros_like(leaf) if b is None else b
                torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_by_finite_differences(path: str, device: str) -> None:
    # Independent of every formula here: (f(x + e·d) - f(x - e·d)) / 2e along one random direction, f in fp64.
    case = make(18, 17, 16, device=device)
    with tiled(path):
        found = check(case)
    torch.manual_seed(1)
    directions = [torch.randn_like(x, dtype=torch.float64) for x in (case.q, case.k, case.v)]

    def f(step: float) -> torch.Tensor:
        q, k, v = (x.double() + step * d for x, d in zip((case.q, case.k, case.v), directions, strict=True))
        out, lse = eager(q, k, v, case.keep, None, 0.25)
        return (out * case.dout).sum() + (lse * case.dlse).sum()

    slope = (f(1e-4) - f(-1e-4)) / 2e-4
    terms = torch.cat([(found[f"d{name}"].double() * d).flatten() for name, d in zip("qkv", directions, strict=True)])
    # fp32 gradients of about ten roundings each, and the step's own error of about 1e-8.
    assert float(terms.sum()) == pytest.approx(float(slope), abs=10 * 2**-24 * float(terms.abs().sum()))


@needs_gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_tf32_products_are_as_right_as_eagers(variant: str, device: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check(make(77, 129, 64, device=device), variant=variant, tf32=True)
    finally:
        torch.set_float32_matmul_precision(before)


# --- the comparison itself: what it must not let through ------------------------------------------------------------


FAULTS = {
    "a key is lost": lambda q, k, v: eager(q, k[:, :, :-1], v[:, :, :-1], torch.ones(1, k.shape[2] - 1) > 0, None, 40**-0.5),
    "a padded key counts": lambda q, k, v: eager(
        q, *(torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (k, v)), torch.ones(1, k.shape[2] + 1) > 0, None, 40**-0.5
    ),
    "the scale is that of a padded head": lambda q, k, v: eager(q, k, v, torch.ones(1, k.shape[2]) > 0, None, 41**-0.5),
    "lse is in units of log2": lambda q, k, v: (
        lambda pair: (pair[0], pair[1] / math.log(2)))(eager(q, k, v, torch.ones(1, k.shape[2]) > 0, None, 40**-0.5)
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_tolerance_sees(fault: str, dtype: torch.dtype) -> None:
    case = make(17, 129, dtype=dtype)
    results = differentiate(case, lambda q, k, v, bias: FAULTS[fault](q, k, v))
    with pytest.raises(AssertionError, match="error"):
        judge(case, results)


def test_the_tolerance_sees_one_rounding_too_many() -> None:
    case = make(64, 129)
    results = differentiate(case, lambda q, k, v, bias: eager(q, k, v, case.keep, None, 40**-0.5))
    judge(case, results)
    for name in results:
        with pytest.raises(AssertionError, match=f"^{name}: .*worst at"):
            judge(case, {name: results[name].half().float()})


def test_the_table_can_be_told_that_a_kernel_has_no_row() -> None:
    with table.forced(combine=None):
        assert table.find("combine", "sm_90", head_dim=64) is None
        with pytest.raises(NotImplementedError, match="'combine' for head_dim 64 on sm_90"):
            table.require("combine", "sm_90", head_dim=64)
    assert table.find("combine", "sm_90", head_dim=64) is not None
