"""Compare a module of ours with the official one: the same weights must give the same results and gradients in fp64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

# fp64 rounds at 1.1e-16; the longest chains here (a dozen products of at most 1024 terms) stay below 1e-12.
TOLERANCE = 1e-10

Parameters = Mapping[str, Tensor | Sequence[Tensor]]
Outputs = Tensor | tuple[Tensor, ...]


def assert_faithful(
    ours: nn.Module,
    theirs: nn.Module,
    same: Parameters,
    call_ours: Callable[..., Outputs],
    call_theirs: Callable[..., Outputs],
    inputs: Sequence[Tensor],
    *,
    unused: Sequence[Tensor] = (),
) -> None:
    """Give both modules the same random weights and assert equal outputs, gradients and parameter counts.

    ``same`` maps each parameter of ours to theirs, or to several of theirs that ours holds one below the other;
    every parameter of both must take part, except those of theirs that ``unused`` names because their own
    forward never reads them. Both calls take ``inputs`` and return the tensors to compare.
    """
    ours.double(), theirs.double().eval()
    theirs_by_ours = {name: [t] if isinstance(t, Tensor) else list(t) for name, t in same.items()}
    named = dict(ours.named_parameters())
    assert set(theirs_by_ours) == set(named)
    mapped = [t for tensors in theirs_by_ours.values() for t in tensors]
    assert {id(t) for t in [*mapped, *unused]} == {id(p) for p in theirs.parameters()}
    assert len({id(t) for t in mapped}) == len(mapped)
    counted = sum(p.numel() for p in theirs.parameters()) - sum(t.numel() for t in unused)
    assert sum(p.numel() for p in named.values()) == counted

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            # neither ones nor zeros, so that a forgotten scale, bias or gate shows
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / max(2, p.shape[-1]) ** 0.5 + 0.1)
        for name, tensors in theirs_by_ours.items():
            named[name].copy_(torch.cat([t.reshape(t.shape or (1,)) for t in tensors]).view_as(named[name]))

    results = []
    for module, call in ((ours, call_ours), (theirs, call_theirs)):
        module.zero_grad()
        leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
        found = call(*leaves)
        outputs = list(found) if isinstance(found, tuple) else [found]
        torch.stack([x.sin().sum() for x in outputs]).sum().backward()
        results.append((outputs, [x.grad for x in leaves]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=TOLERANCE, atol=TOLERANCE)
    for own, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(own, other, rtol=TOLERANCE, atol=TOLERANCE)
    for name, tensors in theirs_by_ours.items():
        expected = torch.cat([t.grad.reshape(t.shape or (1,)) for t in tensors if t.grad is not None])
        grad = named[name].grad
        assert grad is not None, name
        torch.testing.assert_close(grad, expected.view_as(grad), rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def exact_norms(module: nn.Module) -> nn.Module:
    """Put nn.RMSNorm with the same weights in place of classes that compute in fp32 whatever they are given."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("RMSNorm") and not isinstance(child, nn.RMSNorm):
            eps = getattr(child, "variance_epsilon", getattr(child, "eps", None))
            exact = nn.RMSNorm(child.weight.shape[0], eps=eps)
            exact.weight = child.weight
            setattr(module, name, exact)
        else:
            exact_norms(child)
    return module
