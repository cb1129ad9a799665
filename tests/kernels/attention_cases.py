"""Inputs of attention tests, their fp64 truth and eager yardstick, and the comparison of all outputs and gradients."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fusionbench_kernels import attention_launch, cross_attention, table
from fusionbench_kernels.table import Config
from tests.kernels.tolerance import compare

module = importlib.import_module("fusionbench_kernels.cross_attention")  # the package's name for it is the function

SMALL = {
    "streaming_forward": Config({"BLOCK_Q": 16, "BLOCK_K": 16}, 4, 1, split_heads=True),
    "resident_forward": Config({"BLOCK_Q": 16}, 4, 1, split_heads=True, split_keys=True),
    "backward_keys": Config({"BLOCK_Q": 16, "BLOCK_K": 16}, 4, 1, split_heads=True),
    "backward_queries": Config({"BLOCK_Q": 16, "BLOCK_K": 16}, 4, 1, split_heads=True),
    "backward_keys_resident": Config({"BLOCK_Q": 16}, 4, 1),
    "backward_queries_resident": Config({"BLOCK_K": 16}, 4, 1),
}
"""Tiles of 16, so that small tensors have several and a tail. The interpreter's time goes by the tile, not its size."""


PATHS: dict[str, tuple[str, ...]] = {
    "two-pass": ("backward_keys", "backward_queries"),
    "keys-resident": ("backward_keys_resident",),
    "queries-resident": ("backward_queries_resident",),
}
"""The ways through the backward pass, and the kernels each launches."""


@contextmanager
def tiled(path: str, edge: int = 16, backward_edge: int = 0) -> Iterator[None]:
    """Square tiles of this edge, for the backward pass of another one if given, which goes by ``path`` alone."""
    configs: dict[str, Config | None] = {}
    for name, config in SMALL.items():
        backward = name.startswith("backward")
        tile = (backward_edge or edge) if backward else edge
        off = name.endswith("resident") and backward and name not in PATHS[path]
        configs[name] = None if off else replace(config, blocks=dict.fromkeys(config.blocks, tile))
    with table.forced(**configs):
        yield


def kernels_launched(monkeypatch: Any) -> list[str]:
    """A list that the name of every kernel launched from now on is added to."""
    names: list[str] = []
    launch: Callable[..., None] = attention_launch.launch

    def noting(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        if programs:
            names.append(kernel.__name__)
        launch(kernel, programs, *arguments, **constants)

    monkeypatch.setattr(attention_launch, "launch", noting)
    return names


@dataclass(frozen=True)
class Case:
    """The arguments of one call, and the cotangents of its two outputs."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    lens: Tensor | None
    bias: Tensor | None
    scale: float | None
    dout: Tensor
    dlse: Tensor

    @property
    def keep(self) -> Tensor:
        """The keys that take part, [B, Lk]."""
        batch, keys = self.k.shape[0], self.k.shape[2]
        keep = torch.ones(batch, keys, dtype=torch.bool, device=self.k.device)
        if self.lens is not None:
            keep &= torch.arange(keys, device=self.k.device) < self.lens[:, None]
        return keep if self.mask is None else keep & self.mask


def make(
    queries: int,
    keys: int,
    head_dim: int = 40,
    *,
    batch: int = 1,
    heads: int = 2,
    kv_heads: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    mask: bool = False,
    lens: tuple[int, ...] | None = None,
    bias: tuple[int, ...] | None = None,
    scale: float | None = None,
    gain: float = 1.0,
) -> Case:
    """Normal random tensors of these sizes, always the same; ``bias`` is its shape, ``gain`` multiplies q."""
    generator = torch.Generator().manual_seed(1000 * queries + keys)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    kv = (batch, kv_heads or heads, keys, head_dim)
    return Case(
        q=normal(batch, heads, queries, head_dim) * gain,
        k=normal(*kv),
        v=normal(*kv),
        mask=(torch.rand(batch, keys, generator=generator) < 0.7).to(device) if mask else None,
        lens=None if lens is None else torch.tensor(lens, dtype=torch.int32, device=device),
        bias=None if bias is None else normal(*bias),
        scale=scale,
        dout=normal(batch, heads, queries, head_dim),
        dlse=torch.randn(batch, heads, queries, generator=generator).to(device),
    )


def eager(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(out, lse) by PyTorch's own operators in the dtype of q, every step rounded to it; the scale goes to k."""
    group = q.shape[1] // k.shape[1]
    outside = ~keep[:, None, :, None]
    k, v = (x.masked_fill(outside, 0).repeat_interleave(group, 1) for x in (k, v))
    scores = q @ (k * scale).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~keep[:, None, None, :], -math.inf)
    # A softmax over nothing is NaN, also in its gradient: give it zeros and drop the result.
    empty = (scores == -math.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(empty, 0)
    out = scores.softmax(-1).masked_fill(empty, 0) @ v
    return out, scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -math.inf)


Results = dict[str, Tensor]


def differentiate(case: Case, call: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype | None = None) -> Results:
    """Outputs and gradients of ``call(q, k, v, bias)``, in ``dtype`` if given."""
    given = {"q": case.q, "k": case.k, "v": case.v, "bias": case.bias}
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in given.items() if x is not None}
    out, lse = call(leaves["q"], leaves["k"], leaves["v"], leaves.get("bias"))
    # lse is -inf in rows without keys, where its cotangent must not matter.
    found = torch.autograd.grad((out, lse), list(leaves.values()), (case.dout.to(out.dtype), case.dlse.to(lse.dtype)))
    return {"out": out.detach(), "lse": lse.detach()} | {f"d{name}": g for name, g in zip(leaves, found, strict=True)}


def sensitivities(case: Case, truth: Results) -> Results:
    """The standard deviation of every number, in roundings, to first order, as ``tolerance`` defines it; fp64.

    Variances add up: a sum's own rounding is (sum of absolute values)², an operand's passes on by the derivative.
    """
    group, scale = case.q.shape[1] // case.k.shape[1], _scale(case)
    q, dout, dlse = case.q.double(), case.dout.double(), case.dlse.double()[..., None]
    outside = ~case.keep[:, None, :, None]
    k, v = (x.double().masked_fill(outside, 0).repeat_interleave(group, 1) for x in (case.k, case.v))
    bias = torch.zeros((), dtype=torch.float64, device=q.device) if case.bias is None else case.bias.double()
    lse = truth["lse"].masked_fill(truth["lse"] == -math.inf, math.inf)[..., None]
    p = (scale * q @ k.mT + bias - lse).exp().masked_fill(~case.keep[:, None, None, :], 0)
    dp, out = dout @ v.mT, truth["out"]
    ds = p * (dp - (dout * out).sum(-1, keepdim=True) + dlse)
    lse = lse.masked_fill(lse == math.inf, 0)

    var_s = (abs(scale) * q.abs() @ k.abs().mT + bias.abs()) ** 2 + 1  # 1: the exponential rounds its result
    var_lse = (p**2 * var_s).sum(-1, keepdim=True) + lse**2 + 1
    var_out = (p**2 * (var_s + var_lse)) @ v**2 + (p @ v.abs()) ** 2
    var_delta = (dout * out).abs().sum(-1, keepdim=True) ** 2 + (dout**2 * var_out).sum(-1, keepdim=True) + dlse**2
    var_ds = ds**2 * (var_s + 1) + p**2 * (dout.abs() @ v.abs().mT) ** 2
    # An error of lse or delta is shared by a row, so it does not average out over the keys.
    var_dq = var_ds @ k**2 + var_delta * (p @ k.abs()) ** 2 + var_lse * (ds @ k) ** 2 + (ds.abs() @ k.abs()) ** 2
    var_ds = var_ds + p**2 * var_delta + ds**2 * var_lse
    found = {
        "out": var_out,
        "lse": var_lse.squeeze(-1),
        "dq": scale**2 * var_dq,
        "dk": scale**2 * _grouped(var_ds.mT @ q**2 + (ds.mT.abs() @ q.abs()) ** 2, group),
        "dv": _grouped((p**2 * (var_s + var_lse)).mT @ dout**2 + (p.mT @ dout.abs()) ** 2, group),
    }
    if case.bias is not None:
        found["dbias"] = var_ds.sum_to_size(case.bias.shape) + ds.abs().sum_to_size(case.bias.shape) ** 2
    return {name: variance.sqrt() for name, variance in found.items()}


def check(case: Case, *, tf32: bool = False, **options: Any) -> Results:
    """Compare outputs and gradients of ``cross_attention`` with truth and yardstick; returns them."""

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        pair = cross_attention(
            q, k, v, key_padding_mask=case.mask, kv_lens=case.lens, bias=bias, scale=case.scale,
            return_lse=True, **options,
        )  # fmt: skip
        assert isinstance(pair, tuple)
        return pair

    results = differentiate(case, ours)
    judge(case, results, tf32=tf32)
    return results


def judge(case: Case, results: Results, *, tf32: bool = False) -> None:
    """Compare outputs and gradients, however they were computed, with truth and yardstick."""

    def theirs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return eager(q, k, v, case.keep, bias, _scale(case))

    truth, yardstick = differentiate(case, theirs, torch.float64), differentiate(case, theirs)
    sizes = sensitivities(case, truth)
    for name, result in results.items():
        compare(
            name, result, truth[name], yardstick[name],
            sensitivity=sizes[name], gradient=name.startswith("d"), tf32=tf32,
        )  # fmt: skip


def _scale(case: Case) -> float:
    return case.q.shape[-1] ** -0.5 if case.scale is None else case.scale


def _grouped(x: Tensor, group: int) -> Tensor:
    """Sum over the heads that share keys: [B, H, …] to [B, H / group, …]."""
    return x.unflatten(1, (x.shape[1] // group, group)).sum(2)
