"""What only a GPU can show: races, reads out of bounds, formats that the interpreter gets wrong, and the tuner at work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusionbench_kernels import cross_attention, reference, tune
from tests.kernels.gpu_calls import CALLS

ROOT = Path(__file__).parents[2]
REPEATS = 200
FREE_BYTES = 24 << 30  # what is left of the GPU's memory under pressure: other tests may run beside this one

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() == 0, reason="no CUDA device; these are a GPU's own ways to fail"
)


# --- the same bits every time --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pressure() -> Iterator[None]:
    """Most of the memory taken, so that allocations reuse what others have just left full of numbers."""
    free, _ = torch.cuda.mem_get_info()
    taken = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(max(0, free - FREE_BYTES) >> 30)]
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


def outputs(given: list[Tensor], mask: Tensor | None, dout: Tensor, *, ours: bool) -> list[Tensor]:
    q, k, v = given
    if ours:
        out = cross_attention(q, k, v, key_padding_mask=mask)
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
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    given = inputs(dtype, queries, keys, head_dim)
    mask = torch.arange(keys, device="cuda")[None, :] < torch.tensor([[max(1, keys // 2)], [keys]], device="cuda")
    dout = torch.randn(given[0].shape, device="cuda").to(dtype)
    exact = [x.detach().double().requires_grad_() for x in given]
    used = mask if padded else None
    truth = outputs(exact, used, dout, ours=False)
    with tf32(kind == "tf32"):
        found, eager = outputs(given, used, dout, ours=True), outputs(given, used, dout, ours=False)
    unit = 2**-8 if kind == "bf16" else 2**-11
    for number, (x, y, z) in enumerate(zip(found, truth, eager, strict=True)):
        error, own = (x.double() - y).abs(), (z.double() - y).abs()
        factor, size = (3 if number else 2), y.abs().max()
        assert error.max() <= factor * own.max() + unit * size + FLOOR[kind], ("out", "dq", "dk", "dv")[number]
        assert error.mean() <= factor * own.mean() + (unit * size + FLOOR[kind]) / 8, ("out", "dq", "dk", "dv")[number]


# --- out of bounds -------------------------------------------------------------------------------------------------


def surrounded(x: Tensor, rows: int = 300) -> Tensor:
    """The same numbers inside a larger buffer of NaN: rows before and behind, columns on both sides."""
    batch, heads, tokens, width = x.shape
    outer = torch.full((batch, heads, tokens + 2 * rows, width + 16), float("nan"), device=x.device, dtype=x.dtype)
    inner = outer[:, :, rows : rows + tokens, 8 : 8 + width]
    inner.copy_(x.detach())
    return inner.requires_grad_(x.requires_grad)


@pytest.mark.parametrize("variant", ["streaming", "resident", "split"])
@pytest.mark.parametrize(
    ("queries", "keys", "head_dim"), [(1, 1, 64), (77, 65, 40), (130, 77, 64), (129, 255, 64), (63, 100, 80)]
)
def test_nothing_around_the_inputs_is_read_into_a_result(variant: str, queries: int, keys: int, head_dim: int) -> None:
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
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    assert SANITIZER
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "99"]
    script = [sys.executable, str(ROOT / "tests" / "kernels" / "sanitized.py")]
    try:
        done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{tool} found nothing in 120 s and had not finished")
    said = (done.stdout + done.stderr)[-4000:]
    if "not supported" in said.lower():
        pytest.skip("compute-sanitizer does not support this device here (gVisor)")
    assert done.returncode == 0, said


# --- the tuner -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["resident_forward", "combine", "backward_keys_resident"])
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
