"""Attention over int8 scores: its quantisation bit by bit, its error against bounds derived from the scales."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fusionbench_kernels import QuantizedKV, int8_attention, int8_reference, quantize_kv, reference, runtime
from fusionbench_kernels.device.int8 import to_int8

ops = sys.modules["fusionbench_kernels.int8_attention"]  # the package's attribute of that name is the function
NATIVE = torch.cuda.device_count() > 0
GRAIN = {"token": 1, "block": 64}


def qkv(batch=1, heads=2, kv_heads=1, queries=9, keys=33, d=40, dtype=torch.float32, device="cpu", seed=0):
    made = torch.Generator().manual_seed(seed)
    sizes = (batch, heads, queries, d), (batch, kv_heads, keys, d), (batch, kv_heads, keys, d)
    return [torch.randn(size, generator=made).to(device, dtype) for size in sizes]


def exact(q: Tensor, k: Tensor, v: Tensor, mask=None, lens=None) -> tuple[Tensor, Tensor]:
    return reference.attention(q.double(), k.double(), v.double(), mask, lens, None, q.shape[-1] ** -0.5)


def worst_score_error(q: Tensor, k: Tensor, mask, lens, granularity: str, smooth: bool = True) -> Tensor:
    """By how much rounding can move any score of a row, [B, H, Lq]: half a step of k times |q|, and of q times |k|."""
    grain, group = GRAIN[granularity], q.shape[1] // k.shape[1]
    k8, k_scale, _ = int8_reference.quantize_keys(k, mask, lens, smooth, grain)
    _, q_scale = int8_reference.quantize_blocks(q, grain)
    q_scale = q_scale.repeat_interleave(grain, -1)[..., : q.shape[2]].double()
    k_scale = k_scale.repeat_interleave(grain, -1)[..., : k.shape[2]].double().repeat_interleave(group, 1)
    k_hat = k8.double().abs().sum(-1).repeat_interleave(group, 1) * k_scale
    error = q.double().abs().sum(-1)[..., None] * k_scale[:, :, None] / 2 + q_scale[..., None] / 2 * k_hat[:, :, None]
    keep = reference.keep_mask(mask, lens, k.shape[2], k.device)
    if keep is not None:
        error = error.masked_fill(~keep[:, None, None, :], 0)
    # 1e-5: the scales' own rounding and the sums in fp32.
    return error.amax(-1) * q.shape[-1] ** -0.5 * (1 + 1e-5) + 1e-5


def assert_within_bounds(q, k, v, out, lse, mask=None, lens=None, granularity="token", smooth=True) -> None:
    true, true_lse = exact(q, k, v, mask, lens)
    spread = exact(q, k, v.abs(), mask, lens)[0].amax(-1)  # Σ p·|v| of the row's worst channel
    delta = worst_score_error(q, k, mask, lens, granularity, smooth)
    there = true_lse > -math.inf
    assert torch.equal(lse > -math.inf, there)
    slack = 1e-6 * true_lse[there].abs()
    assert ((lse.double() - true_lse)[there].abs() <= delta[there] + slack).all()
    # Scores off by at most δ change a probability by a factor of at most exp(2δ); then 16 bits round P and the result.
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(out.dtype, 1e-6)
    error = (out.double() - true).abs().amax(-1)
    assert (error <= (torch.expm1(2 * delta) + rounding) * spread + 1e-7).all()


def assert_fp8_within_bounds(q, k, v, out, lse, mask=None, lens=None, granularity="token") -> None:
    true, true_lse = exact(q, k, v, mask, lens)
    spread = exact(q, k, v.abs(), mask, lens)[0]
    delta = worst_score_error(q, k, mask, lens, granularity)
    assert ((lse - true_lse).abs() <= delta + 1e-5).all()
    # e4m3 keeps 3 bits: P and V are each off by 2⁻⁴ of themselves, small V by half of its smallest step.
    step = v.abs().amax(2).double().repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, None] / 448 * 2.0**-10
    bound = (torch.expm1(2 * delta)[..., None] + 2 * 2.0**-4 + 2.0**-7) * spread + step + 1e-3
    assert ((out.double() - true).abs() <= bound).all()


def assert_accurate(out: Tensor, true: Tensor) -> None:
    """What SageAttention reports, for the worst row, and the relative L1 of the whole."""
    out = out.double()
    assert torch.nn.functional.cosine_similarity(out, true, dim=-1).min() >= 0.999
    assert (out - true).abs().sum() / true.abs().sum() <= 0.02


@pytest.mark.parametrize("granularity", ["token", "block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("keys", "d"), [(keys, 40) for keys in (1, 15, 16, 17, 63, 64, 65, 77)] + [(33, d) for d in (8, 24, 64, 80)]
)
def test_it_is_as_close_to_attention_as_its_scales_allow(device, dtype, granularity, keys, d):
    q, k, v = qkv(keys=keys, d=d, dtype=dtype, device=device)
    out, lse = int8_attention(q, k, v, granularity=granularity, return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_within_bounds(q, k, v, out, lse, granularity=granularity)
    assert_accurate(out, exact(q, k, v)[0])


@pytest.mark.parametrize("granularity", ["token", "block"])
def test_masks_lengths_and_grouped_heads_hold_to_the_same_bounds(device, granularity):
    q, k, v = qkv(batch=2, heads=4, kv_heads=2, queries=5, keys=70, d=24, device=device)
    mask = torch.rand((2, 70), generator=torch.Generator().manual_seed(1)).to(device) > 0.3
    lens = torch.tensor([66, 31], device=device)
    for given in ({"key_padding_mask": mask}, {"kv_lens": lens}, {"key_padding_mask": mask, "kv_lens": lens.int()}):
        out, lse = int8_attention(q, k, v, granularity=granularity, return_lse=True, **given)
        both = given.get("key_padding_mask"), given.get("kv_lens")
        assert_within_bounds(q, k, v, out, lse, *both, granularity=granularity)
        assert_accurate(out, exact(q, k, v, *both)[0])


@pytest.mark.parametrize("granularity", ["token", "block"])
@pytest.mark.parametrize("keys", [13, 77])  # in one program, and after key_statistics
def test_keys_are_quantised_bit_for_bit_as_the_reference_does(device, granularity, keys):
    _, k, v = qkv(batch=2, kv_heads=2, keys=keys, device=device)
    mask = torch.rand((2, keys), generator=torch.Generator().manual_seed(2)).to(device) > 0.2
    grain = GRAIN[granularity]
    # Whole numbers, as many of them as a power of two: their mean is exact in any order of summation.
    whole = (k * 50).round()
    count = torch.zeros_like(mask)
    count[:, :8] = True
    for given, chosen, smooth in ((k, mask, False), (whole, count, True)):
        found = ops.quantize(given, v, chosen, None, smooth, grain, False)
        keys8, scale, mean = int8_reference.quantize_keys(given, chosen, None, smooth, grain)
        assert torch.equal(found[0][..., :40], keys8)
        assert torch.equal(found[1], scale)
        assert not found[0][..., 40:].any()  # what pads a row
        if smooth:
            assert torch.equal(found[2], mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("granularity", ["token", "block"])
def test_attention_equals_the_reference_of_the_same_quantisation(device, dtype, granularity):
    q, k, v = qkv(queries=21, keys=45, dtype=dtype, device=device)
    cache = quantize_kv(k, v, granularity=granularity)
    out, lse = int8_attention(q, cache, return_lse=True)
    wanted, wanted_lse = int8_reference.attention(
        q, cache.keys, cache.key_scale, cache.key_mean, v, None, None, 40**-0.5, cache.grain
    )
    torch.testing.assert_close(out, wanted, atol=2e-6 if dtype == torch.float32 else 1e-3, rtol=0)
    torch.testing.assert_close(lse, wanted_lse, atol=2e-5, rtol=0)


@pytest.mark.parametrize("granularity", ["token", "block"])
def test_channels_of_k_far_from_zero_need_smoothing(device, granularity):
    q, k, v = qkv(queries=20, keys=48, d=64, device=device)
    k[..., [3, 17, 40]] += torch.tensor([10.0, 30.0, 50.0], device=device)
    true = exact(q, k, v)[0]
    smooth, lse = int8_attention(q, k, v, granularity=granularity, return_lse=True)
    assert_accurate(smooth, true)
    assert_within_bounds(q, k, v, smooth, lse, granularity=granularity)
    rough = int8_attention(q, k, v, granularity=granularity, smooth_k=False).double()
    # Both measures that the smoothed result has to pass fail.
    assert torch.nn.functional.cosine_similarity(rough, true, dim=-1).min() < 0.999
    assert (rough - true).abs().sum() / true.abs().sum() > 0.02


def test_smoothing_leaves_lse_that_of_the_given_keys(device):
    q, k, v = qkv(keys=20, device=device)
    k += 3 * torch.randn(40, generator=torch.Generator().manual_seed(4)).to(device)
    lse = int8_attention(q, k, v, return_lse=True)[1]
    assert ((lse - exact(q, k, v)[1]).abs() <= worst_score_error(q, k, None, None, "token")).all()


@pytest.mark.parametrize("granularity", ["token", "block"])
@pytest.mark.parametrize("which", ["q", "k", "v", "some rows"])
def test_zeros_do_not_divide_by_zero(device, granularity, which):
    q, k, v = qkv(keys=70, queries=5, d=8, device=device)
    if which == "some rows":
        q[:, :, :3] = 0
        k[:, :, 64:] = 0
    else:
        {"q": q, "k": k, "v": v}[which].zero_()
    for smooth in (True, False):
        out, lse = int8_attention(q, k, v, granularity=granularity, smooth_k=smooth, return_lse=True)
        assert_within_bounds(q, k, v, out, lse, granularity=granularity, smooth=smooth)


@pytest.mark.parametrize("granularity", ["token", "block"])
@pytest.mark.parametrize("value", [1e30, math.nan, math.inf])
@pytest.mark.parametrize("keys", [12, 70])
def test_what_keys_that_take_no_part_hold_changes_nothing(device, granularity, value, keys):
    q, k, v = qkv(keys=keys, d=8, device=device)
    mask = torch.arange(keys, device=device)[None] % 3 != 1
    lens = torch.tensor([keys - 2], device=device)
    keep = reference.keep_mask(mask, lens, keys, k.device)[:, None, :, None]
    given = {"key_padding_mask": mask, "kv_lens": lens, "granularity": granularity, "return_lse": True}
    clean = int8_attention(q, k.masked_fill(~keep, 0), v.masked_fill(~keep, 0), **given)
    dirty = int8_attention(q, k.masked_fill(~keep, value), v.masked_fill(~keep, value), **given)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert clean[0].isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:All-NaN slice")  # numpy in the interpreter
def test_what_is_not_finite_shows_where_it_takes_part(device, bad):
    q, k, v = qkv(queries=4, keys=20, d=8, device=device)
    q[0, 0, 2, 3] = bad
    out = int8_attention(q, k, v)
    rows = torch.zeros(1, 2, 4, dtype=torch.bool, device=device)
    rows[0, 0, 2] = True
    assert torch.equal(out.isnan().all(-1), rows)
    assert torch.equal(out.isnan().any(-1), rows)
    q, k, v = qkv(kv_heads=2, queries=4, keys=20, d=8, device=device)
    k[0, 1, 7, 3] = bad
    out = int8_attention(q, k, v)
    assert out[0, 0].isfinite().all()
    assert out[0, 1].isnan().all()


def test_rows_without_keys_give_zero_and_minus_infinity(device):
    q, k, v = qkv(batch=2, keys=20, device=device)
    mask = torch.ones(2, 20, dtype=torch.bool, device=device)
    mask[1] = False
    for given in ({"key_padding_mask": mask}, {"kv_lens": torch.tensor([20, 0], device=device)}):
        out, lse = int8_attention(q, k, v, return_lse=True, **given)
        assert not out[1].any()
        assert (lse[1] == -math.inf).all()
        assert out[0].any()
        assert lse[0].isfinite().all()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("granularity", ["token", "block"])
def test_no_keys_no_queries_and_no_samples_are_legal(device, smooth, granularity):
    for sizes in ({"keys": 0}, {"queries": 0}, {"batch": 0}):
        q, k, v = qkv(**sizes, device=device)
        out, lse = int8_attention(q, k, v, smooth_k=smooth, granularity=granularity, return_lse=True)
        assert out.shape == q.shape
        assert lse.shape == q.shape[:3]
        if "keys" in sizes:
            assert not out.any()
            assert (lse == -math.inf).all()


def test_any_strides_give_the_same_bits(device):
    q, k, v = qkv(batch=2, heads=2, kv_heads=2, keys=20, d=24, device=device)
    wanted = int8_attention(q, k, v)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    spaced = [torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0] for x in (q, k, v)]
    for given in (transposed, spaced):
        assert not given[0].is_contiguous()
        assert torch.equal(int8_attention(*given), wanted)
    one = int8_attention(q, k[:1].expand(2, -1, -1, -1), v[:1].expand(2, -1, -1, -1))
    assert torch.equal(one, int8_attention(q, k[:1].repeat(2, 1, 1, 1), v[:1].repeat(2, 1, 1, 1)))
    mask = torch.rand(20, 2, generator=torch.Generator().manual_seed(3)).to(device).t() > 0.3
    masked = int8_attention(q, k, v, key_padding_mask=mask)
    assert torch.equal(masked, int8_attention(q, k, v, key_padding_mask=mask.contiguous()))


def test_few_queries_split_the_keys_over_programs(device, monkeypatch):
    q, k, v = qkv(heads=1, queries=1, keys=150, d=8, device=device)
    seen = []
    monkeypatch.setattr(ops, "split_count", lambda *sizes: seen.append(sizes) or 3)
    mask = torch.ones(1, 150, dtype=torch.bool, device=device)
    mask[:, 40:130] = False  # a split without a key among them
    for given in ({}, {"key_padding_mask": mask}):
        out, lse = int8_attention(q, k, v, return_lse=True, **given)
        assert_within_bounds(q, k, v, out, lse, given.get("key_padding_mask"))
    assert seen


@pytest.mark.parametrize("granularity", ["token", "block"])
def test_every_run_gives_the_same_bits(device, granularity):
    q, k, v = qkv(keys=70, d=8, device=device)
    first, *others = (int8_attention(q, k, v, granularity=granularity, return_lse=True) for _ in range(3))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_keys_quantised_once_serve_many_queries(device):
    q, k, v = qkv(batch=2, keys=20, device=device)
    mask = torch.arange(20, device=device)[None] < torch.tensor([[20], [11]], device=device)
    cache = quantize_kv(k, v, key_padding_mask=mask, granularity="block")
    assert isinstance(cache, QuantizedKV)
    assert cache.keys.dtype == torch.int8
    assert cache.values is v
    for some in (q, q[:, :, :3]):
        wanted = int8_attention(some, k, v, key_padding_mask=mask, granularity="block")
        torch.testing.assert_close(int8_attention(some, cache), wanted, atol=0, rtol=0)


@triton.jit
def _round(x_ptr, out_ptr):
    at = tl.arange(0, 16)
    tl.store(out_ptr + at, to_int8(tl.load(x_ptr + at)))


def test_rounding_is_half_to_even_and_saturates(device):
    numbers = [
        200.0,
        -200.0,
        127.6,
        128.0,
        -128.0,
        1e20,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        -2.5,
        126.5,
        125.5,
        0.49999997,
        0.0,
    ]
    wanted = [127, -127, 127, 127, -127, 127, 0, 2, 2, 0, -2, -2, 126, 126, 0, 0]
    x = torch.tensor(numbers, device=device)
    out = torch.zeros(16, dtype=torch.int8, device=device)
    _round[(1,)](x, out)
    assert out.tolist() == wanted
    assert int8_reference.to_int8(x).tolist() == wanted


def test_bf16_runs_in_plain_pytorch_on_a_cpu():
    q, k, v = qkv(dtype=torch.bfloat16)
    assert not runtime.uses_triton(q)
    out = int8_attention(q, k, v)
    true = exact(q, k, v)[0]
    assert (out.double() - true).abs().sum() / true.abs().sum() <= 0.02


def test_a_backward_pass_says_what_trains(device):
    q, k, v = (x.requires_grad_() for x in qkv(d=8, device=device))
    for out in (int8_attention(q, k, v), int8_attention(q.detach(), k, v.detach())):
        with pytest.raises(RuntimeError, match="for inference and has no gradients: train through cross_attention"):
            out.sum().backward()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pv": "int4"}, ValueError, r"no pv 'int4' \(has: fp16, fp8\)"),
        ({"granularity": "row"}, ValueError, r"no granularity 'row' \(has: token, block\)"),
        ({"v": None}, ValueError, "v is missing"),
        ({"q": torch.zeros(1, 3, 9, 8)}, None, None),
        ({"q": torch.zeros(2, 2, 9, 8)}, ValueError, r"q has shape \[2, 2, 9, 8\]; it must be \[1, any, any, 8\]"),
        ({"q": torch.zeros(1, 2, 9, 8).half()}, ValueError, "v is float32 and q is float16; they must be the same"),
        ({"v": torch.zeros(1, 1, 4, 8)}, ValueError, r"v has shape \[1, 1, 4, 8\]; it must be \[1, 1, 5, 8\]"),
        ({"key_padding_mask": torch.ones(1, 9).bool()}, ValueError, "key_padding_mask has shape"),
        ({"kv_lens": torch.ones(1)}, ValueError, "kv_lens is float32; it must be int32 or int64"),
    ],
)
def test_what_does_not_fit_is_named(given, error, message):
    q, k, v = qkv(keys=5, d=8)
    call = {"q": q, "k": k, "v": v, **given}
    if error is None:
        assert int8_attention(**call).shape == call["q"].shape
        return
    with pytest.raises(error, match=message):
        int8_attention(**call)


def test_what_the_cache_settled_is_not_given_twice():
    q, k, v = qkv(keys=5, d=8)
    cache = quantize_kv(k, v)
    with pytest.raises(ValueError, match="are in the QuantizedKV"):
        int8_attention(q, cache, kv_lens=torch.tensor([3]))
    with pytest.raises(ValueError, match="are settled in the QuantizedKV"):
        int8_attention(q, cache, smooth_k=False)


def test_fp8_is_refused_without_the_hardware():
    q, k, v = qkv(keys=5, d=8)
    with pytest.raises(NotImplementedError, match="pv 'fp8'"):
        int8_attention(q, k, v, pv="fp8")
    for arch in ("sm_80", "gfx942"):
        meta = torch.empty(1, 1, 5, 8, device="meta", dtype=torch.float16)
        with (
            runtime.compiling_for(runtime.Target(arch, 100), lambda launch: None),
            pytest.raises(NotImplementedError, match=f"not {arch}; use 'fp16'"),
        ):
            ops.quantize_forward(meta, meta, None, None, True, 1, True)


@pytest.mark.skipif(not NATIVE, reason="casts to fp8 are wrong in Triton's interpreter; needs a GPU")
@pytest.mark.parametrize("keys", [1, 77, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp8_values_stay_within_the_rounding_of_e4m3(device, keys, dtype):
    q, k, v = qkv(batch=2, queries=70, keys=keys, d=64, dtype=dtype, device=device)
    v[..., 5] *= 100
    lens = torch.tensor([keys, max(1, keys - 9)], device=device)
    out, lse = int8_attention(q, k, v, kv_lens=lens, pv="fp8", return_lse=True)
    assert_fp8_within_bounds(q, k, v, out, lse, None, lens)


def test_the_operators_keep_what_they_declare(device):
    q, k, v = qkv(keys=5, d=8, device=device)
    mask = torch.ones(1, 5, dtype=torch.bool, device=device)
    torch.library.opcheck(ops.quantize, (k, v, mask, None, True, 1, False))
    cache = quantize_kv(k, v, key_padding_mask=mask)
    torch.library.opcheck(
        ops.attend, (q, cache.keys, cache.key_scale, cache.key_mean, v, None, mask, None, 0.3, cache.grain)
    )


def test_it_compiles_and_exports_without_a_graph_break(device):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, mask):
            return int8_attention(q, k, v, key_padding_mask=mask, granularity="block", return_lse=True)

    given = *qkv(keys=5, d=8, device=device), torch.ones(1, 5, dtype=torch.bool, device=device)
    wanted = Layer()(*given)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")(*given)
    exported = torch.export.export(Layer(), given).module()(*given)
    for found in (compiled, exported):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    cache = quantize_kv(*given[1:3])
    held = torch.compile(lambda q: int8_attention(q, cache), fullgraph=True, backend="aot_eager")
    assert torch.equal(held(given[0]), int8_attention(given[0], cache))


def test_flops_are_those_of_attention(device):
    q, k, v = qkv(keys=5, d=8, device=device)
    with FlopCounterMode(display=False) as counter:
        int8_attention(q, k, v)
    assert counter.get_total_flops() == 4 * q.numel() * 5


def test_a_cache_may_be_sliced(device: str) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, tokens, 24, generator=random).to(device) for tokens in (5, 40, 40))
    cache = quantize_kv(k, v)
    cut = replace(
        cache, keys=cache.keys[:, :, :19], key_scale=cache.key_scale[:, :, :19], values=cache.values[:, :, :19]
    )
    dense = replace(cut, keys=cut.keys.contiguous(), key_scale=cut.key_scale.contiguous())
    assert torch.equal(int8_attention(q, cut), int8_attention(q, dense))
