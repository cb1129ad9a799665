"""The descriptor variant against fp64, what it refuses, when dispatch prefers it, and its check."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import triton

from fusionbench_kernels import choice, cross_attention, descriptor, descriptor_check, reference, table
from fusionbench_kernels.dispatch import Sizes, choose
from fusionbench_kernels.runtime import Target, target
from tests.kernels.conftest import NATIVE

HAS_ROWS = bool(table.rows(target(torch.device("cuda" if NATIVE else "cpu")).arch).get("descriptor_forward"))
pytestmark = pytest.mark.skipif(not HAS_ROWS, reason="this GPU has no TMA unit")
# bf16 is wrong in the interpreter, and no GPU has rows for 4 bytes.
DTYPES = (torch.float16, torch.bfloat16) if NATIVE else (torch.float16, torch.float32)
SHAPES = [  # batch, heads, key heads, queries, keys, head dim
    (1, 2, 2, 32, 48, 16),
    (2, 2, 1, 33, 47, 24),
    (1, 1, 1, 1, 1, 64),
    (1, 4, 2, 17, 63, 40),
    (1, 2, 2, 15, 65, 64),
    (1, 1, 1, 77, 7, 80),
    (2, 1, 1, 16, 31, 128),
]


def tensors(batch, heads, kv_heads, queries, keys, d, dtype, device, grad=False):
    random = torch.Generator(device).manual_seed(queries * 1000 + keys)
    shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    return tuple(
        torch.randn(batch, h, n, d, generator=random, device=device).to(dtype).requires_grad_(grad) for h, n in shapes
    )


def close(found, true, eager, eps):
    """Within twice what PyTorch's own attention in this type is off by, and a few roundings."""
    allowed = 2 * (eager.double() - true).abs().max() + 4 * eps * true.abs().max()
    error = (found.double() - true).abs().max()
    assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"


def eager(q, k, v, scale):
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return (q @ k.mT * scale).softmax(-1) @ v


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_matches_fp64(shape, dtype, device):
    q, k, v = tensors(*shape, dtype, device)
    out, lse = cross_attention(q, k, v, variant="descriptor", return_lse=True)
    true, true_lse = reference.attention(q.double(), k.double(), v.double(), None, None, None, q.shape[-1] ** -0.5)
    close(out, true, eager(q, k, v, q.shape[-1] ** -0.5), torch.finfo(dtype).eps)
    torch.testing.assert_close(lse.double(), true_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_lengths_hide_poisoned_keys_and_a_row_without_keys_is_zero(kind, device):
    q, k, v = tensors(4, 2, 1, 19, 37, 32, torch.float16, device)
    lens = torch.tensor([0, 1, 20, 50], dtype=kind, device=device)  # more than there are count as all
    for sample, length in enumerate(lens.tolist()):
        k[sample, :, length:] = v[sample, :, length:] = math.nan
    out, lse = cross_attention(q, k, v, kv_lens=lens, variant="descriptor", return_lse=True, scale=0.3)
    true, true_lse = reference.attention(q.double(), k.double(), v.double(), None, lens, None, 0.3)
    assert not out[0].any()
    assert (lse[0] == -math.inf).all()
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out.double(), true, rtol=2e-3, atol=2e-3)  # two fp16 roundings: of P and of out
    torch.testing.assert_close(lse[1:].double(), true_lse[1:], rtol=1e-5, atol=1e-5)


def test_a_tail_never_reads_the_next_head(device):
    """The heads follow each other in memory, so a tile past the end of one would see the other's NaN."""
    q, k, v = tensors(1, 2, 2, 20, 20, 64, torch.float16, device)
    first = [x[:, :1] for x in (q, k, v)]
    before = cross_attention(*first, variant="descriptor")
    for x in (q, k, v):
        x[:, 1] = math.nan
    assert torch.equal(cross_attention(*first, variant="descriptor"), before)
    assert torch.isfinite(before).all()


@pytest.mark.parametrize(("queries", "keys", "batch"), [(0, 5, 1), (5, 0, 1), (5, 5, 0), (0, 0, 1)])
def test_sizes_of_zero(queries, keys, batch, device):
    q, k, v = tensors(batch, 2, 2, queries, keys, 16, torch.float16, device)
    out, lse = cross_attention(q, k, v, variant="descriptor", return_lse=True)
    assert out.shape == q.shape
    assert keys or (not out.any() and (lse == -math.inf).all())


def test_strides_of_other_layouts(device):
    """Tokens before heads, packed K and V, keys shared by the batch: all readable where they lie."""
    q = torch.randn(2, 20, 2, 64, device=device).half().transpose(1, 2)
    k, v = torch.randn(1, 2, 35, 128, device=device).half().expand(2, -1, -1, -1).split(64, dim=-1)
    out = cross_attention(q, k, v, variant="descriptor")
    same = cross_attention(*(x.contiguous() for x in (q, k, v)), variant="descriptor")
    assert torch.equal(out, same)
    one = q[:, :, :1]  # the stride of a single row may be anything
    assert torch.equal(cross_attention(one, k, v, variant="descriptor"), out[:, :, :1])


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_gradients_pass_through_the_generic_backward(kv_heads, device):
    dtype = DTYPES[-1] if not NATIVE else torch.float16
    given = tensors(1, 2, kv_heads, 17, 21, 32, dtype, device, grad=True)
    lens = torch.tensor([19], device=device)
    out, lse = cross_attention(*given, kv_lens=lens, variant="descriptor", return_lse=True)
    (out.square().sum() + lse.sum()).backward()
    wide = [x.detach().double().requires_grad_() for x in given]
    true, true_lse = reference.attention(*wide, None, lens, None, 32**-0.5)
    (true.square().sum() + true_lse.sum()).backward()
    bound = 100 * torch.finfo(dtype).eps  # sums of some 20 products of rounded values
    for x, y in zip(given, wide, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=bound, atol=bound)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_remedy(device):
    q, k, v = tensors(1, 2, 2, 16, 16, 32, torch.float16, device)

    def refusal(q=q, k=k, v=v, **options):
        with pytest.raises(ValueError, match=r"^variant 'descriptor' ") as caught:
            cross_attention(q, k, v, variant="descriptor", **options)
        assert "variant 'streaming'" in str(caught.value)
        return str(caught.value)

    flat = torch.zeros(2 * 16 * 32 + 8, dtype=torch.float16, device=device)
    assert "k begins 2 past one" in refusal(k=flat[1:][: 2 * 16 * 32].view(1, 2, 16, 32))
    assert "v has last stride 16" in refusal(v=v.mT.contiguous().mT)
    assert "q's row stride is 66" in refusal(q=q.new_zeros(1, 2, 16, 33)[..., :32])
    assert "k's head stride is 1026" in refusal(k=flat[: 2 * 513].view(1, 2, 513)[..., :512].unflatten(-1, (16, 32)))
    assert "k's row stride is 0" in refusal(k=k[:, :, :1].expand(-1, -1, 16, -1))
    assert "and q has 40" in refusal(*(x[..., :20].contiguous() for x in (q, k, v)))
    assert "takes no bias" in refusal(bias=q.new_zeros(1, 1, 1, 16))
    assert "takes no key_padding_mask; use kv_lens" in refusal(key_padding_mask=k.new_ones(1, 16, dtype=torch.bool))
    assert "positive scales, not -1" in refusal(scale=-1.0)
    cross_attention(q, k[:, :, :1].expand(-1, -1, 16, -1), v, variant="streaming")  # as the message says


def test_more_than_two_bytes_or_an_older_chip_have_no_row():
    for arch, size in (("sm_90", 4), ("sm_100", 4), ("sm_80", 2), ("gfx942", 2)):
        with pytest.raises(ValueError, match=f"head dim 64 of {size} bytes an element on {arch}"):
            choose(Sizes(1, 8, 8, 4096, 4096, 64, size), Target(arch, 132), "descriptor")


# --- dispatch ------------------------------------------------------------------------------------------------------

BIG = Sizes(4, 16, 16, 4096, 4096, 64, 2)
H200 = Target("sm_90", 132)


def test_dispatch_prefers_no_row_as_shipped():
    assert choose(BIG, H200, descriptor_usable=lambda config: True).variant == "streaming"
    assert choose(BIG, H200, "descriptor").config.blocks["WARP_SPECIALIZE"] == 1
    for arch in table.architectures():
        assert not any(config.preferred for _, config in table.rows(arch).get("descriptor_forward", ()))


def test_dispatch_takes_a_preferred_row_for_big_sizes_of_tensors_that_fit():
    preferred = replace(table.rows("sm_90")["descriptor_forward"][0][1], preferred=True)
    with table.forced(descriptor_forward=preferred):
        assert choose(BIG, H200, descriptor_usable=lambda config: True).config is preferred
        assert choose(BIG, H200, descriptor_usable=lambda config: False).variant == "streaming"
        assert choose(BIG, H200, "streaming", descriptor_usable=lambda config: True).variant == "streaming"
        for small in (replace(BIG, keys=511), replace(BIG, queries=127, batch=64)):
            assert choose(small, H200, descriptor_usable=lambda config: True).variant == "streaming"
        assert choose(replace(BIG, keys=77), H200, descriptor_usable=lambda config: True).variant == "resident"


@pytest.mark.skipif(NATIVE, reason="the interpreter's block sizes are small enough")
def test_a_call_runs_what_choice_says(device):
    q, k, v = tensors(2, 2, 2, 32, 65, 32, torch.float16, device)
    preferred = replace(table.find("descriptor_forward", "interpreter"), preferred=True)
    with table.forced(descriptor_forward=preferred):
        assert choice(q, k, v).variant == "descriptor"
        assert choice(q, k, v, bias=q.new_zeros(1, 1, 1, 65)).variant == "streaming"
        assert choice(q, k, v.mT.contiguous().mT).variant == "streaming"
        assert choice(q, k, v, key_padding_mask=q.new_ones(2, 65, dtype=torch.bool)).variant == "streaming"
        auto = cross_attention(q, k, v)
    assert torch.equal(auto, cross_attention(q, k, v, variant="descriptor"))


# --- the check -----------------------------------------------------------------------------------------------------

SMALL = [descriptor_check.Shape(1, 2, 1, 17, 33), descriptor_check.Shape(2, 1, 1, 16, 40, lens=(0, 21))]


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_the_check_passes_what_is_right_and_sees_what_is_not(shape, monkeypatch, device):
    config = table.require("descriptor_forward", target(torch.device(device)).arch, head_dim=24, bytes=2)
    q, k, v, lens = descriptor_check._inputs(shape, 24, torch.float16, torch.device(device))
    monkeypatch.setattr(descriptor_check, "REPEATS", 2)
    assert descriptor_check._wrong(q, k, v, lens, config) == []
    run, calls = descriptor.run, []

    def unlike_the_first(q, k, v, out, lse, *rest):
        run(q, k, v, out, lse, *rest)
        calls.append(out)
        if len(calls) > 1:
            out[..., 0] += 1
        else:
            out[0, 0, 3] = lse[0, 0, 3] = math.nan

    monkeypatch.setattr(descriptor, "run", unlike_the_first)
    out, lse, repeats = descriptor_check._wrong(q, k, v, lens, config)
    assert out.startswith("out differs by nan")
    assert lse.startswith("lse differs by")
    assert repeats == "2 repeats are not bit-equal"


def test_a_failed_check_refuses_the_variant_and_keeps_it_out_of_dispatch(monkeypatch, device):
    q, k, v = tensors(1, 1, 1, 16, 16, 32, torch.float16, device)
    config = table.require("descriptor_forward", target(q.device).arch, head_dim=32, bytes=2)
    monkeypatch.setattr(descriptor, "_checkable", lambda x: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(descriptor_check, "faults_on", lambda *key: ("no TMA load (UTMALDG) at some shape",))
    with pytest.raises(
        RuntimeError, match=r"failed its check on this \w+ device and is not used: no TMA load .*'streaming'"
    ):
        cross_attention(q, k, v, variant="descriptor")
    assert not descriptor.usable(q, k, v, None, None, 1.0)(config)
    monkeypatch.setattr(descriptor_check, "faults_on", lambda *key: ())
    assert descriptor.usable(q, k, v, None, None, 1.0)(config)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(descriptor_check, "known", lambda *key: False)
    assert not descriptor.usable(q, k, v, None, None, 1.0)(config), "a check cannot run in a CUDA graph"


def test_it_is_checked_once_and_not_while_capturing(monkeypatch):
    found = []
    monkeypatch.setattr(descriptor_check, "_checked", {})
    monkeypatch.setattr(descriptor_check, "_check", lambda *key: found.append(key) or [])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    key = (torch.device("cuda", 0), table.rows("sm_90")["descriptor_forward"][0][1], 64, torch.float16)
    with pytest.raises(RuntimeError, match="call it once before capturing"):
        descriptor_check.faults_on(*key)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert descriptor_check.faults_on(*key) == descriptor_check.faults_on(*key) == ()
    assert found == [key]
    assert descriptor_check.known(*key)
    assert not descriptor_check.known(*key[:2], 128, torch.float16)


def test_a_callers_own_allocator_stays(device):
    from triton.runtime import _allocation

    def own(size, alignment, stream):
        raise AssertionError("the kernel's workspace comes from elsewhere")

    before = _allocation._allocator.get()
    triton.set_allocator(own)
    try:
        q, k, v = tensors(1, 1, 1, 16, 16, 16, torch.float16, device)
        cross_attention(q, k, v, variant="descriptor")
        seen = []
        descriptor._with_workspace(lambda: seen.append(_allocation._allocator.get()))
        assert seen == [descriptor._workspace]
        assert _allocation._allocator.get() is own
    finally:
        triton.set_allocator(before)


@pytest.mark.skipif(not NATIVE, reason="needs a GPU")
def test_every_row_passes_its_check_on_this_gpu():
    found = descriptor_check.self_check()
    assert found
    assert not any(found.values()), found
