"""Weights taken away: single ones, two of every four, or whole heads and hidden units."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from .spec import Case

TWO_OF_FOUR = "2:4"


def parse(prune: str) -> tuple[str, float]:
    """("structured", 0.5) of ``structured:0.5``; 2:4 takes away half of the weights."""
    kind, _, share = prune.partition(":")
    return (TWO_OF_FOUR, 0.5) if prune == TWO_OF_FOUR else (kind, float(share or 0))


def refusal(case: Case) -> str | None:
    """Why the case cannot be pruned as it asks, or None."""
    kind, share = parse(case.prune)
    if kind != "structured":
        return None
    s, d = case.shape, case.design
    if case.projector != "identity" and d.projects == "both":
        return "structured pruning narrows attention alone, and this projector the stream with it (use 'identity')"
    if _kept(s.heads, share) is None or (d.kv_heads and _kept(d.kv_heads, share) is None):
        return f"structured pruning cannot take {share:.0%} of {s.heads} heads ({d.kv_heads or s.heads} of keys)"
    if _kept(s.hidden or s.ffn, share) is None or _kept(d.image_hidden, share) is None:
        return f"structured pruning cannot take {share:.0%} of a feed-forward layer of {s.hidden or f'{s.ffn} x width'}"
    return None


def narrowed(case: Case) -> Case:
    """The case with the heads and hidden units that structured pruning leaves; any other case as it is."""
    kind, share = parse(case.prune)
    if kind != "structured":
        return case
    s, d = case.shape, case.design
    heads = _kept(s.heads, share) or s.heads
    shape = msgspec.structs.replace(
        s,
        heads=heads,
        width=s.width // s.heads * heads,
        hidden=_kept(s.hidden, share) or 0,
        ffn=s.ffn if s.hidden else _kept(s.ffn, share) or 0,
    )
    design = msgspec.structs.replace(
        d, kv_heads=_kept(d.kv_heads, share) or 0, image_hidden=_kept(d.image_hidden, share) or 0
    )
    return msgspec.structs.replace(case, shape=shape, design=design)


def _kept(count: int, share: float) -> int | None:
    """What is left of ``count``; None where that is no whole number, or nothing."""
    left = round(count * (1 - share), 6)
    return int(left) if left == int(left) and (left or not count) else None


def mask_weights(module: nn.Module, prune: str) -> None:
    """Set the smallest weights of every Linear to 0, in place: a share of each matrix, or two of every four inputs."""
    kind, share = parse(prune)
    if kind not in ("unstructured", TWO_OF_FOUR):
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            keep = two_of_four if kind == TWO_OF_FOUR else _largest
            with torch.no_grad():
                layer.weight.mul_(keep(layer.weight, share))


def two_of_four(weight: Tensor, share: float = 0.5) -> Tensor:
    """True at the two largest of every four neighbouring inputs [out, in]; a rest of fewer than four stays whole."""
    whole = weight.shape[1] // 4 * 4
    groups = weight[:, :whole].abs().view(len(weight), -1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(2, dim=2).indices, True)
    return torch.cat([kept.flatten(1), torch.ones_like(weight[:, whole:], dtype=torch.bool)], dim=1)


def _largest(weight: Tensor, share: float) -> Tensor:
    """True at the weights [out, in] of the largest magnitude, all but ``share`` of them."""
    gone = int(share * weight.numel())
    order = weight.abs().flatten().argsort(stable=True)
    kept = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    kept[order[:gone]] = False
    return kept.view_as(weight)


def compress(module: nn.Module) -> int:
    """Store the 2:4 weights of every Linear as NVIDIA's sparse tensor cores read them; returns how many there were."""
    found = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = nn.Parameter(packed, requires_grad=False)
            found += 1
    return found
