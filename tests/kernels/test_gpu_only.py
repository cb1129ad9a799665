"""What only a GPU can show: races, reads out of bounds, formats that the interpreter gets wrong, and the tuner at work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusionbench_kernels import (
    AbsorbedContext,
    Int8Weight,
    absorbed_cross_attention,
    concat_linear,
    concat_projected,
    concat_tokens,
    cross_attention,
    int8_attention,
    int8_linear,
    projected_cross_attention,
    projected_reference,
    reference,
    tune,
)
from fusionbench_kernels.int8_attention import _FP8 as FP8_ARCHES
from fusionbench_kernels.names import Variant
from fusionbench_kernels.projected import ProjectedVariant
from tests.kernels.gpu_calls import CALLS, SANITIZED, numbers
from tests.kernels.test_int8_attention import assert_fp8_within_bounds, assert_within_bounds

ROOT = Path(__file__).parents[2]
REPEATS = 200
FREE_BYTES = 32 << 30  # what is left of the GPU's memory under pressure: other tests run beside this one

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() == 0, reason="no CUDA device; these are a GPU's own ways to fail"
)


@pytest.fixture(autouse=True)
def without_fp8(request: pytest.FixtureRequest) -> None:
    """Skip what is named after values of 8 bits where there are no such products."""
    name = request.node.name.replace("_", " ")
    if "values of 8 bits" in name and tune._device_arch() not in FP8_ARCHES:
        pytest.skip("this GPU has no e4m3 products")


# --- the same bits every time --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pressure() -> Iterator[None]:
    """Most of the memory taken, so that allocations reuse what others have just left full of numbers."""
    taken = []
    while torch.cuda.mem_get_info()[0] > FREE_BYTES:  # asked each time: processes beside this one take their part
        taken.append(torch.empty(1 << 30, dtype=torch.uint8, device="cuda"))
    yield
    taken.clear()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", CALLS)
def test_two_hundred_runs_give_the_same_bits(name: str, pressure: None) -> None:
    torch.manual_seed(0)
    call = CALLS[name].make(False)
    first = [x.clone() for x in call()]
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for repeat in range(REPEATS):
        # NaN where the next call's buffers will be; other sizes each time, so that they move.
        torch.full((1 + repeat % 7, 1 << 20), float("nan"), device="cuda")
        for x, y in zip(call(), first, strict=True):
            different += (x.view(torch.uint8) != y.view(torch.uint8)).sum()
    assert int(different) == 0
    assert all(bool(x.isfinite().all()) for x in first)


# --- formats -------------------------------------------------------------------------------------------------------


def inputs(dtype: torch.dtype, queries: int, keys: int, head_dim: int) -> list[Tensor]:
    shapes = ((2, 3, queries, head_dim), *((2, 3, keys, head_dim),) * 2)
    torch.manual_seed(queries + keys)
    found = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    found[0].mul_(3)  # scores of deviation 3: where softmax is flat, wrong scores hide in rounding
    return [x.requires_grad_() for x in found]


def outputs(
    given: list[Tensor], mask: Tensor | None, dout: Tensor, *, ours: bool, variant: Variant = "auto"
) -> list[Tensor]:
    q, k, v = given
    if ours:
        out = cross_attention(q, k, v, key_padding_mask=mask, variant=variant)
    else:  # eager PyTorch in the dtype of the inputs
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        out = scores.softmax(-1) @ v
    assert isinstance(out, Tensor)
    return [out.detach(), *torch.autograd.grad(out, given, dout.to(out.dtype))]


# Over a single key eager's dq is exactly 0; ours is the difference of two sums of 64 products, rounded to the format.
FLOOR = {"bf16": 2e-3, "tf32": 8e-3}


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize(("queries", "keys"), [(64, 128), (113, 203), (239, 1), (1023, 77), (126, 1025)])
@pytest.mark.parametrize(("kind", "head_dim"), [("bf16", 64), ("bf16", 40), ("bf16", 128), ("tf32", 64)])
def test_bf16_and_tf32_are_as_right_as_eager_pytorch(
    kind: str, head_dim: int, queries: int, keys: int, padded: bool
) -> None:
    judge(kind, head_dim, queries, keys, padded, "auto")


@pytest.mark.parametrize(("queries", "keys"), [(113, 203), (239, 1), (1023, 128), (300, 1025)])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 256])
def test_bf16_through_descriptors_is_as_right_as_eager_pytorch(head_dim: int, queries: int, keys: int) -> None:
    if not tune.table.rows(str(tune._device_arch())).get("descriptor_forward"):
        pytest.skip("this GPU has no TMA unit")
    judge("bf16", head_dim, queries, keys, False, "descriptor")


def judge(kind: str, head_dim: int, queries: int, keys: int, padded: bool, variant: Variant) -> None:
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    given = inputs(dtype, queries, keys, head_dim)
    mask = torch.arange(keys, device="cuda")[None, :] < torch.tensor([[max(1, keys // 2)], [keys]], device="cuda")
    dout = torch.randn(given[0].shape, device="cuda").to(dtype)
    exact = [x.detach().double().requires_grad_() for x in given]
    used = mask if padded else None
    truth = outputs(exact, used, dout, ours=False)
    with tf32(kind == "tf32"):
        found = outputs(given, used, dout, ours=True, variant=variant)
        eager = outputs(given, used, dout, ours=False)
    unit = 2**-8 if kind == "bf16" else 2**-11
    for number, (x, y, z) in enumerate(zip(found, truth, eager, strict=True)):
        error, own = (x.double() - y).abs(), (z.double() - y).abs()
        factor, size = (3 if number else 2), y.abs().max()
        assert error.max() <= factor * own.max() + unit * size + FLOOR[kind], ("out", "dq", "dk", "dv")[number]
        assert error.mean() <= factor * own.mean() + (unit * size + FLOOR[kind]) / 8, ("out", "dq", "dk", "dv")[number]


@dataclass(frozen=True)
class Way:
    """A kernel's call on bf16 tensors of these shapes, the first times ``factor``, and the same in plain PyTorch."""

    shapes: tuple[tuple[int, ...], ...]
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor] | None = None  # int8 has bounds of its own
    factor: float = 1.0

    def given(self) -> list[Tensor]:
        first, *others = numbers(*self.shapes)
        return [first * self.factor, *others]


def projected(variant: ProjectedVariant, heads: int, width: int) -> Way:
    kv, d = (2, heads, 77, width // heads), width // heads
    return Way(
        ((2, 130, width), kv, kv, (width, width), (width, width)),
        lambda x, k, v, wq, wo: projected_cross_attention(x, k, v, wq, None, wo, None, heads=heads, variant=variant),
        lambda x, k, v, wq, wo: projected_reference.projected(x, k, v, None, wq, None, wo, None, d**-0.5),
    )


def absorbed(heads: int, width: int, keys: int) -> Way:
    shape = (2, heads, keys, width)

    def zeros(a: Tensor) -> Tensor:
        return torch.zeros(a.shape[:3], device=a.device)

    return Way(
        ((2, 130, width), shape, shape),
        lambda x, a, v: absorbed_cross_attention(x, AbsorbedContext(a, zeros(a), v)),
        lambda x, a, v: projected_reference.absorbed(x, a, zeros(a), v, None),
        factor=2 * width**-0.5,
    )


WAYS = {
    "projections inside, one kernel": projected("one_kernel", 8, 320),
    "projections inside, a program per head": projected("heads", 8, 640),
    "projections absorbed": absorbed(8, 320, 77),
    "features joined": Way(
        ((130, 72), (130, 40), (90, 112)), concat_linear, lambda a, b, w: F.linear(torch.cat([a, b], -1), w)
    ),
    "sequences joined": Way(
        ((2, 130, 72), (2, 33, 40), (88, 72), (88, 40)),
        lambda a, b, wa, wb: concat_projected(a, b, wa, wb),
        lambda a, b, wa, wb: torch.cat([F.linear(a, wa), F.linear(b, wb)], 1),
    ),
    "tokens joined": Way(((2, 130, 72), (2, 33, 72)), concat_tokens, lambda a, b: torch.cat([a, b], 1)),
    "int8": Way(((2, 4, 130, 40), *((2, 4, 77, 40),) * 2), int8_attention),
    "int8, keys in parts": Way(((2, 4, 70, 64), *((2, 4, 1100, 64),) * 2), int8_attention),
    "int8, values of 8 bits": Way(
        ((2, 4, 130, 64), *((2, 4, 150, 64),) * 2), lambda q, k, v: int8_attention(q, k, v, pv="fp8")
    ),
    "int8 linear": Way(((130, 200), (90, 200)), lambda x, w: int8_linear(x, Int8Weight.quantize(w))),
}


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.plain])
def test_bf16_is_as_right_as_pytorch_in_every_kernel(name: str) -> None:
    way = WAYS[name]
    assert way.plain
    torch.manual_seed(0)
    given = way.given()
    found, eager, truth = way.ours(*given), way.plain(*given), way.plain(*(x.double() for x in given))
    error, own, size = (found.double() - truth).abs(), (eager.double() - truth).abs(), truth.abs()
    # As often as bf16 rounds on the way (q, P, o, out), so often an error of one rounding.
    assert error.max() <= 2 * own.max() + 2 * 2**-8 * size.max()
    assert error.mean() <= 2 * own.mean() + 2 * 2**-8 * size.mean()


@pytest.mark.parametrize("granularity", ["token", "block"])
@pytest.mark.parametrize(
    ("queries", "keys", "head_dim"), [(130, 77, 40), (63, 1030, 64), (300, 255, 128), (64, 8190, 64)]
)
def test_int8_of_bf16_stays_within_what_its_scales_allow(
    queries: int, keys: int, head_dim: int, granularity: str
) -> None:
    q, k, v, mask = masked(torch.bfloat16, queries, keys, head_dim)
    out, lse = int8_attention(q, k, v, key_padding_mask=mask, granularity=granularity, return_lse=True)  # type: ignore[arg-type]
    assert_within_bounds(q, k, v, out, lse, mask, granularity=granularity)


@pytest.mark.parametrize("granularity", ["token", "block"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "keys", "head_dim"), [(130, 77, 40), (300, 255, 128), (64, 8190, 64)])
def test_values_of_8_bits_stay_within_their_rounding(
    queries: int, keys: int, head_dim: int, dtype: torch.dtype, granularity: str
) -> None:
    q, k, v, mask = masked(dtype, queries, keys, head_dim)
    out, lse = int8_attention(
        q, k, v, key_padding_mask=mask, pv="fp8", granularity=granularity, return_lse=True  # type: ignore[arg-type]
    )  # fmt: skip
    assert_fp8_within_bounds(q, k, v, out, lse, mask, granularity=granularity)


def masked(dtype: torch.dtype, queries: int, keys: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, the keys away from zero, and a mask that leaves the second sample half of them."""
    torch.manual_seed(queries + keys)
    q, k, v = (torch.randn(2, 4, n, head_dim, device="cuda").to(dtype) for n in (queries, keys, keys))
    mask = torch.arange(keys, device="cuda")[None] < torch.tensor([[keys], [keys // 2]], device="cuda")
    return q, k + 2, v, mask


# --- out of bounds -------------------------------------------------------------------------------------------------


def surrounded(x: Tensor, rows: int = 300) -> Tensor:
    """The same numbers inside a larger buffer of NaN: rows before and behind, columns on both sides."""
    *others, tokens, width = x.shape
    outer = torch.full((*others, tokens + 2 * rows, width + 16), float("nan"), device=x.device, dtype=x.dtype)
    inner = outer[..., rows : rows + tokens, 8 : 8 + width]
    inner.copy_(x.detach())
    return inner.requires_grad_(x.requires_grad)


@pytest.mark.parametrize("name", WAYS)
def test_nothing_around_the_inputs_of_any_kernel_is_read_into_a_result(name: str) -> None:
    torch.manual_seed(1)
    given = WAYS[name].given()
    plain, inside = WAYS[name].ours(*given), WAYS[name].ours(*(surrounded(x) for x in given))
    assert bool(inside.isfinite().all())
    torch.testing.assert_close(inside, plain, rtol=1.6e-2, atol=1e-2)


@pytest.mark.parametrize("variant", ["streaming", "resident", "split", "descriptor"])
@pytest.mark.parametrize(
    ("queries", "keys", "head_dim"), [(1, 1, 64), (77, 65, 40), (130, 77, 64), (129, 255, 64), (63, 100, 80)]
)
def test_nothing_around_the_inputs_is_read_into_a_result(variant: str, queries: int, keys: int, head_dim: int) -> None:
    if variant == "descriptor" and not tune.table.rows(str(tune._device_arch())).get("descriptor_forward"):
        pytest.skip("this GPU has no TMA unit")
    clean = inputs(torch.bfloat16, queries, keys, head_dim)
    found = []
    for given in (clean, [surrounded(x) for x in clean]):
        out = cross_attention(*given, variant=variant)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        dout = torch.ones_like(out)
        found.append([out.detach(), *torch.autograd.grad(out, given, surrounded(dout).detach())])
    for plain, inside in zip(*found, strict=True):
        assert bool(inside.isfinite().all())
        torch.testing.assert_close(inside, plain, rtol=1.6e-2, atol=1e-2)  # other strides may compile to another order


def test_padded_keys_may_hold_nan_forward_and_backward() -> None:
    given = inputs(torch.bfloat16, 130, 77, 64)
    mask = torch.arange(77, device="cuda")[None, :] < torch.tensor([[50], [77]], device="cuda")
    poisoned = [given[0], *(x.detach().where(mask[:, None, :, None], float("nan")).requires_grad_() for x in given[1:])]
    dout = torch.randn(given[0].shape, device="cuda")
    for plain, other in zip(
        outputs(given, mask, dout, ours=True), outputs(poisoned, mask, dout, ours=True), strict=True
    ):
        assert torch.equal(plain, other)


SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("name", SANITIZED)
def test_the_sanitizer_finds_nothing(name: str, tool: str) -> None:
    assert SANITIZER
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "99"]
    script = [sys.executable, str(ROOT / "tests" / "kernels" / "sanitized.py"), name]
    try:
        done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=35)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{tool} found nothing in 35 s and had not finished")
    said = (done.stdout + done.stderr)[-4000:]
    if "not supported" in said.lower():
        pytest.skip("compute-sanitizer does not support this device here (gVisor)")
    assert done.returncode == 0, said


# --- the tuner -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["resident_forward", "combine", "backward_keys_resident", "int8_forward"])
def test_the_tuner_finds_the_shipped_rows_right_and_times_them(kernel: str) -> None:
    arch = tune._device_arch()
    bucket = next(iter(tune.buckets([arch], [kernel])), None) if arch in tune.table.architectures() else None
    if bucket is None:
        pytest.skip(f"no row of {kernel} for {arch}")
    first, *others = tune.compete(bucket, ["", *("not asked",) * (len(tune.candidates(bucket)) - 1)], seconds=0.1)
    assert first.reason == ""
    assert min(first.samples_ns) > 0
    assert {other.reason for other in others} <= {"not asked"}


def test_the_reference_and_the_kernels_agree_on_the_log_sum_exp() -> None:
    q, k, v = inputs(torch.bfloat16, 130, 77, 64)
    _, lse = cross_attention(q, k, v, return_lse=True)
    truth = reference.attention(q.double(), k.double(), v.double(), None, None, None, 64**-0.5)[1]
    torch.testing.assert_close(lse.double(), truth, rtol=1e-2, atol=1e-2)
