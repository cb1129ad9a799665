"""The kernel package on a machine without Triton or a GPU: it imports alone, and plain PyTorch computes the same."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fusionbench_kernels
from fusionbench_kernels import attention_weights, cross_attention, runtime

ROOT = Path(__file__).parents[1]
module = importlib.import_module("fusionbench_kernels.cross_attention")

pytestmark = pytest.mark.skipif(runtime.INTERPRETED, reason="about plain PyTorch; TRITON_INTERPRET=1 runs the kernels")


def python(code: str) -> str:
    """What a fresh interpreter prints that finds both packages and is not told to interpret Triton's kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def tensors(*, dtype: torch.dtype = torch.float32, queries: int = 5, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    shapes = (2, 4, queries, 16), (2, 2, keys, 16), (2, 2, keys, 16)
    q, k, v = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return q, k, v


BLOCKED = """
import sys
sys.modules["triton"] = None  # any import of it now raises ModuleNotFoundError
import torch, fusionbench_kernels
from fusionbench_kernels import runtime
q = torch.randn(1, 2, 3, 16, requires_grad=True)
out, lse = fusionbench_kernels.cross_attention(q, q, q, return_lse=True)
out.sum().backward()
with runtime.compiling_for(runtime.Target("sm_90", 132), print):  # the one question that asks for Triton
    assert not runtime.has_triton() and not runtime.uses_triton(q)
wanted = torch.nn.functional.scaled_dot_product_attention(q, q, q)
print(float((out - wanted).abs().max()) < 1e-6, tuple(q.grad.shape), fusionbench_kernels.choice(q, q).variant)
"""


def test_the_package_works_where_triton_cannot_be_imported() -> None:
    assert python(BLOCKED) == "True (1, 2, 3, 16) pytorch"


LAZY = """
import sys
import torch.utils.flop_counter  # PyTorch's own import of Triton, for counting FLOPs of Triton kernels
before = {name for name in sys.modules if name.startswith("triton")}
import torch, fusionbench_kernels
from fusionbench_kernels import runtime
q = torch.randn(1, 1, 3, 16)
fusionbench_kernels.cross_attention(q, q, q)
fusionbench_kernels.choice(q, q)
print({name for name in sys.modules if name.startswith("triton")} == before, runtime.has_triton.cache_info().misses)
print([name for name in sys.modules if name.startswith("fusionbench_kernels.device")])
"""


def test_neither_import_nor_a_call_on_a_cpu_asks_for_triton() -> None:
    assert python(LAZY).splitlines() == ["True 0", "[]"]


def test_the_package_never_imports_the_benchmark() -> None:
    # device/ needs Triton; its imports are read from the source.
    modules = "checks, cross_attention, dispatch, names, reference, runtime, table"
    code = f"import sys; from fusionbench_kernels import {modules}; print('fusionbench' in sys.modules)"
    assert python(code) == "False"
    for path in (ROOT / "kernels" / "fusionbench_kernels").rglob("*.py"):
        pairs = set(itertools.pairwise(path.read_text(encoding="utf-8").replace(".", " ").split()))
        assert ("import", "fusionbench") not in pairs, path
        assert ("from", "fusionbench") not in pairs, path


def test_what_the_package_offers_is_there() -> None:
    for name in fusionbench_kernels.__all__:
        assert getattr(fusionbench_kernels, name).__doc__


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "mask", "lens", "bias", "scale"])
def test_a_cpu_computes_what_sdpa_computes(kind: str, dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(dtype=dtype))
    options: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if kind == "mask":
        mask = torch.arange(14).view(2, 7) % 3 > 0
        options, theirs = {"key_padding_mask": mask}, {"attn_mask": mask[:, None, None, :]}
    if kind == "lens":
        lens = torch.tensor([2, 7])
        options, theirs = {"kv_lens": lens}, {"attn_mask": (torch.arange(7) < lens[:, None])[:, None, None, :]}
    if kind == "bias":
        bias = torch.randn(2, 1, 5, 7, dtype=dtype)
        options, theirs = {"bias": bias}, {"attn_mask": bias.expand(2, 4, 5, 7)}
    if kind == "scale":
        options = theirs = {"scale": 0.7}
    found = cross_attention(q, k, v, **options)
    wanted = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **theirs)
    # Ours accumulates in fp32 and rounds once, SDPA rounds every step: a few roundings of the type between them.
    bound = 8 * torch.finfo(dtype).eps
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)
    weight = torch.randn_like(wanted)
    pairs = zip(
        torch.autograd.grad(found, (q, k, v), weight), torch.autograd.grad(wanted, (q, k, v), weight), strict=True
    )
    for ours, other in pairs:
        torch.testing.assert_close(ours, other, rtol=4 * bound, atol=4 * bound)


@pytest.mark.parametrize("sizes", [(5, 7), (1, 7), (7, 1)])
@pytest.mark.parametrize("kind", ["plain", "masked", "biased"])
def test_gradcheck(kind: str, sizes: tuple[int, int]) -> None:
    queries, keys = sizes
    q, k, v = (x.requires_grad_() for x in tensors(dtype=torch.float64, queries=queries, keys=keys))
    lens = torch.tensor([keys, max(1, keys // 2)]) if kind == "masked" else None
    bias = torch.randn(1, 4, queries, 1, dtype=torch.float64, requires_grad=True) if kind == "biased" else None

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        found = cross_attention(q, k, v, kv_lens=lens, bias=bias, return_lse=True)
        assert isinstance(found, tuple)
        return found

    assert torch.autograd.gradcheck(call, (q, k, v, bias), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("full", [False, True])
def test_opcheck(full: bool, dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(dtype=dtype))
    lens, mask = torch.tensor([7, 3]), torch.ones(2, 7, dtype=torch.bool)
    extra = (mask, lens, torch.randn(2, 4, 5, 7, dtype=dtype)) if full else (None, None, None)
    torch.library.opcheck(module.attention_forward, (q, k, v, *extra, 0.25, "auto", 0))
    q, k, v = (x.detach() for x in (q, k, v))
    out, lse = module.attention_forward(q, k, v, *extra, 0.25, "auto", 0)
    gradients = (q, k, v, out, lse, torch.randn_like(out), torch.randn_like(lse), *extra, 0.25, full)
    torch.library.opcheck(module.attention_backward, gradients)


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_compiled_graph(dynamic: bool) -> None:
    compiled = torch.compile(cross_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries, keys in ((5, 7), (6, 9)):
        q, k, v = (x.requires_grad_() for x in tensors(queries=queries, keys=keys))
        options: dict[str, Any] = {"kv_lens": torch.tensor([3, keys]), "return_lse": True}
        found, wanted = compiled(q, k, v, **options), cross_attention(q, k, v, **options)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        pairs = [torch.autograd.grad(out.sum() + lse.sum(), (q, k, v)) for out, lse in (found, wanted)]
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    torch.compiler.reset()


def test_export_keeps_the_operator() -> None:
    class Fuse(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return cross_attention(q, k, v)

    q, k, v = tensors()
    keys = torch.export.Dim("keys", min=2, max=4096)
    program = torch.export.export(Fuse(), (q, k, v), dynamic_shapes=(None, {2: keys}, {2: keys}))
    assert "fusionbench_kernels.attention_forward" in program.graph_module.code
    _, longer, values = tensors(keys=31)
    wanted = cross_attention(q, longer, values)
    assert isinstance(wanted, Tensor)
    assert torch.equal(program.module()(q, longer, values), wanted)


def test_vmap_over_a_stack_of_calls() -> None:
    q, k, v = (x[None] * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1) for x in tensors())
    found = torch.vmap(cross_attention)(q, k, v)
    for i in range(3):
        one = cross_attention(q[i], k[i], v[i])
        assert isinstance(one, Tensor)
        torch.testing.assert_close(found[i], one)


def test_a_second_derivative_is_refused() -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    out = cross_attention(q, k, v)
    assert isinstance(out, Tensor)
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), q)


def test_flops_count_useful_products() -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    product = 2 * math.prod(q.shape) * k.shape[2]
    with FlopCounterMode(display=False) as forward:
        out = cross_attention(q, k, v)
    assert isinstance(out, Tensor)
    assert forward.get_total_flops() == 2 * product
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 5 * product


def test_flops_equal_those_of_sdpa_with_the_same_heads() -> None:
    q, k, v = tensors()
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    counts = []
    for call in (cross_attention, F.scaled_dot_product_attention):
        # The CPU's flash kernel has no formula in PyTorch, its two products in the math backend have.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call(q, k, v)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


SCHEMAS = {
    "attention_forward": "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? lens, Tensor? bias, float scale, str variant, "
    "SymInt splits) -> (Tensor, Tensor)",
    "attention_backward": "(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor dout, Tensor? dlse, Tensor? mask, "
    "Tensor? lens, Tensor? bias, float scale, bool wants_ds) -> (Tensor, Tensor, Tensor, Tensor)",
}
"""As of version 0.1: a saved or exported program calls the operators by these."""


@pytest.mark.parametrize("name", SCHEMAS)
def test_operators_still_take_what_they_took(name: str) -> None:
    ours = getattr(torch.ops.fusionbench_kernels, name).default._schema
    assert ours.is_backward_compatible_with(torch._C.parse_schema(f"fusionbench_kernels::{name}{SCHEMAS[name]}"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(2, 2, 5, 0), (2, 2, 0, 7), (0, 2, 5, 7), (0, 2, 0, 0)])
def test_empty_sizes_have_zero_gradients(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, heads, queries, keys = sizes
    shapes = (batch, 2 * heads, queries, 16), (batch, heads, keys, 16), (batch, heads, keys, 16)
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    out, lse = cross_attention(q, k, v, return_lse=True)
    assert not out.any()
    assert bool((lse == -math.inf).all())
    assert not any(g.any() for g in torch.autograd.grad((out, lse), (q, k, v), (out + 1, torch.ones_like(lse))))


def test_samples_without_keys_and_nan_in_padding() -> None:
    q, k, v = (x.clone() for x in tensors())
    k[0], v[0], k[1, :, 4:], v[1, :, 4:] = math.nan, math.nan, math.nan, math.nan
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out, lse = cross_attention(q, k, v, kv_lens=torch.tensor([-1, 4]), return_lse=True)
    assert not out[0].any()
    assert bool((lse[0] == -math.inf).all())
    gradients = torch.autograd.grad((out, torch.logaddexp(lse, lse)), (q, k, v), (out + 1, torch.ones_like(lse)))
    for gradient in gradients:
        assert bool(gradient.isfinite().all())
        assert not gradient[0].any()
    weights = attention_weights(q, k, lse, kv_lens=torch.tensor([-1, 4]))
    torch.testing.assert_close(weights.sum(-1), torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 4, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.zeros(2, 2, 6, 16)}, r"v has shape \[2, 2, 7, 16\]; it must be \[2, 2, 6, 16\]"),
        ({"q": torch.zeros(2, 3, 5, 16)}, "q has 3 heads and k has 2; the first must be a multiple of the second"),
        ({"q": torch.zeros(2, 4, 5, 16).half()}, "k is float32 and q is float16; they must be the same"),
        ({"kv_lens": torch.zeros(2)}, "kv_lens is float32; it must be int32 or int64"),
        ({"key_padding_mask": torch.zeros(2, 7)}, "key_padding_mask is float32; it must be bool"),
        ({"bias": torch.zeros(4, 5, 7)}, r"bias has shape \[4, 5, 7\]; each size must be 1 or that of \[2, 4, 5, 7\]"),
        ({"variant": "quick"}, r"no attention kernel 'quick' \(has: auto, "),
        ({"splits": 2}, "splits is 2 with variant 'auto'; it must be 0, or at least 1 with 'split'"),
    ],
)
def test_messages_name_the_argument_also_on_a_cpu(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {**dict(zip("qkv", tensors(), strict=True)), **changes}
    with pytest.raises(ValueError, match=message):
        cross_attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)


PRECISION = """
import torch
from fusionbench_kernels.runtime import precision
settings, found = torch.backends.cuda.matmul, [precision(torch.float32)]
for name, value in (("allow_tf32", True), ("allow_tf32", False), ("fp32_precision", "tf32"), ("fp32_precision", "ieee")):
    setattr(settings, name, value)
    found.append(precision(torch.float32))
torch.set_float32_matmul_precision("high")
print(*found, precision(torch.float32), precision(torch.float16))
"""


def test_products_follow_pytorchs_precision_by_its_older_and_newer_names() -> None:
    assert python(PRECISION) == "ieee tf32 ieee tf32 ieee tf32 ieee"
