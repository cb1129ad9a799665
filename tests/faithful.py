"""Compare a module of ours with the official one: the same weights must give the same results and gradients in fp64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionbench.spec import Shape

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
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / max([2, *p.shape[-1:]]) ** 0.5 + 0.1)
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


def pairs(prefix: str, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The parameters of ours below ``prefix``, with those of the official modules that bear the same names."""
    return {f"{prefix}.{ours}.{name}": p for ours, module in modules.items() for name, p in module.named_parameters()}


def bert_layer(prefix: str, theirs: nn.Module) -> dict[str, Tensor]:
    """The parameters of a ``Layer`` of ours called ``prefix``, with those of BERT's layer under its many names."""
    of = theirs.get_submodule
    return pairs(
        prefix,
        {
            "attention.attention.q": of("attention.self.query"),
            "attention.attention.k": of("attention.self.key"),
            "attention.attention.v": of("attention.self.value"),
            "attention.attention.out": of("attention.output.dense"),
            "attention.norm": of("attention.output.LayerNorm"),
            "ffn.ffn.up": of("intermediate.dense"),
            "ffn.ffn.down": of("output.dense"),
            "ffn.norm": of("output.LayerNorm"),
        },
    )


def padded_inputs(shape: Shape) -> list[Tensor]:
    """Image and text in fp64, then their masks: a batch of 3 of which each modality is whole in one sample."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.randn(3, tokens, width, generator=generator, dtype=torch.float64)
        for tokens, width in ((shape.image, shape.image_width), (shape.text, shape.text_width))
    )
    image_lengths, text_lengths = torch.tensor([[shape.image], [2], [3]]), torch.tensor([[3], [shape.text], [1]])
    return [image, text, torch.arange(shape.image) < image_lengths, torch.arange(shape.text) < text_lengths]


def hiding(mask: Tensor) -> Tensor:
    """What BERT's family adds to scores [B, H, Lq, Lk] where ``mask`` [B, Lk] is False."""
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -10_000.0)[:, None, None, :]


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
