"""Hold modules of ours against official ones: cases from the preset table, the same weights, the same results in fp64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fusionbench import presets
from fusionbench.cost import Cost
from fusionbench.presets import Extent, Part
from fusionbench.registry import Strategy, get
from fusionbench.spec import Case, Design, Shape

# fp64 rounds at 1.1e-16; the longest chains here (a dozen products of at most 1024 terms) stay below 1e-12.
TOLERANCE = 1e-10

Parameters = Mapping[str, Tensor | Sequence[Tensor]]
Outputs = Tensor | tuple[Tensor, ...]


class Official(nn.Module):
    """The official code for one preset, at the sizes of a case: called as ours is, with the outputs in our order.

    Built as ``cls(case)``. What is no size (norms, activations, biases, gates, masks) is the official code's or stands
    in the class, and never comes from the case, whose design is what is tested. ``small`` are sizes that tell lengths,
    widths and heads apart.
    """

    small: ClassVar[Mapping[str, int]]
    takes_masks: ClassVar[bool] = True
    least_image: ClassVar[int] = 1  # real image tokens of the padded sample that has fewest

    def same(self) -> Parameters:
        """Our parameters by name, each with the official one, or several that ours holds one below the other."""
        raise NotImplementedError

    def unused(self) -> Sequence[Tensor]:
        """Parameters that the official forward never reads."""
        return ()


# --- cases ---------------------------------------------------------------------------------------------------------

# Sizes that a preset may leave at 0, and sizes that are fields of a design.
OPTIONAL = ("hidden", "kv_heads", "latents", "image_hidden", "text_heads")


def part_of(label: str) -> Part:
    """The part of a preset that ``label`` names."""
    (found,) = (part for name, part in presets.parts([label]) if name == label)
    return found


def strategy_of(case: Case) -> Strategy:
    """The strategy by which the case's preset fuses."""
    return get(part_of(case.preset).strategy)


def costs(case: Case) -> Cost:
    return strategy_of(case).costs(case, "sdpa")


def real(label: str, extent: Extent = "layer", **sizes: int) -> Case:
    """The preset as the table has it, one layer or all of them, with ``sizes`` in place of its own."""
    part = part_of(label)
    return resized(replace(part.case(), preset=label), {"depth": part.depth(extent), **sizes})


def small(label: str, sizes: Mapping[str, int]) -> Case:
    """The preset with a batch of 3 and small ``sizes``; all else of it, its design above all, stays.

    Optional sizes must be those that the preset has.
    """
    case = real(label)
    given = {name for name in OPTIONAL if name in sizes}
    assert given == {name for name in OPTIONAL if getattr(case.shape, name, 0) or getattr(case.design, name, 0)}
    return resized(case, {"batch": 3, **sizes})


def resized(case: Case, sizes: Mapping[str, int]) -> Case:
    of_design = {name: n for name, n in sizes.items() if name in Design.__struct_fields__}
    of_shape = {name: n for name, n in sizes.items() if name in Shape.__struct_fields__}
    assert len(of_design) + len(of_shape) == len(sizes)
    return replace(case, shape=replace(case.shape, **of_shape), design=replace(case.design, **of_design))


def inputs(case: Case) -> list[Tensor]:
    """Image and text in fp64; patches that are merged come in fours."""
    s, generator = case.shape, torch.Generator().manual_seed(1)
    patches = s.image * (4 if case.projector == "patch_merge" else 1)
    return [
        torch.randn(s.batch, tokens, width, generator=generator, dtype=torch.float64)
        for tokens, width in ((patches, s.image_width), (s.text, s.text_width))
    ]


def masks(case: Case, least_image: int = 1) -> list[Tensor]:
    """True at real tokens of image and text, in a batch of 3; each modality is whole in one sample."""
    s = case.shape
    lengths = (s.image, [s.image, 2, least_image]), (s.text, [3, s.text, 1])
    return [torch.arange(tokens) < torch.tensor(real)[:, None] for tokens, real in lengths]


# --- comparison ----------------------------------------------------------------------------------------------------


def assert_preset_faithful(label: str, official: type[Official], impl: str = "sdpa", *, padded: bool = False) -> None:
    """Assert that the preset's strategy with the preset's design is ``official``."""
    case = small(label, official.small)
    entry = strategy_of(case)
    assert entry.refusal(case) is None
    assert_official(entry.module(case, impl), official(case), case, padded=padded)


def assert_official(ours: nn.Module, theirs: Official, case: Case, *, padded: bool = False) -> None:
    """``assert_faithful`` on inputs of the case, with the official norms in fp64."""
    exact_norms(theirs)
    given = inputs(case) + (masks(case, theirs.least_image) if padded else [])
    assert_faithful(ours, theirs, theirs.same(), ours, theirs, given, unused=theirs.unused())


def assert_faithful(
    ours: nn.Module,
    theirs: nn.Module,
    same: Parameters,
    call_ours: Callable[..., Outputs],
    call_theirs: Callable[..., Outputs],
    given: Sequence[Tensor],
    *,
    unused: Sequence[Tensor] = (),
) -> None:
    """Give both modules the same random weights and assert equal outputs, gradients and parameter counts.

    ``same`` is as of ``Official``; every parameter of both must take part, except those of theirs that ``unused``
    names. Both calls take ``given`` and return the tensors to compare.
    """
    ours.double(), theirs.double().eval()
    theirs_by_ours = {name: [t] if isinstance(t, Tensor) else list(t) for name, t in same.items()}
    named = dict(ours.named_parameters())
    assert set(theirs_by_ours) == set(named)
    mapped = [t for tensors in theirs_by_ours.values() for t in tensors]
    assert {id(t) for t in [*mapped, *unused]} == {id(p) for p in theirs.parameters()}
    assert len({id(t) for t in mapped}) == len(mapped)
    assert numel(ours) == numel(theirs) - sum(t.numel() for t in unused)

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
        leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in given]
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


def numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- what official code has in common ------------------------------------------------------------------------------


def hiding(mask: Tensor | None) -> Tensor | None:
    """What is added to scores [B, H, Lq, Lk] where ``mask`` [B, Lk] is False: the least fp64, which softmax makes 0."""
    if mask is None:
        return None
    lowest = torch.finfo(torch.float64).min
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, lowest)[:, None, None]


def joined(image_mask: Tensor | None, text_mask: Tensor | None) -> Tensor | None:
    """The mask of one stream, the image first."""
    return None if image_mask is None or text_mask is None else torch.cat([image_mask, text_mask], dim=1)


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


# --- maps from our parameters to theirs ----------------------------------------------------------------------------


def pairs(prefix: str, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The parameters of ours below ``prefix``, with those of the official modules that bear the same names."""
    return {f"{prefix}.{ours}.{name}": p for ours, module in modules.items() for name, p in module.named_parameters()}


def found(prefix: str, names: Mapping[str, str], theirs: nn.Module) -> dict[str, Tensor]:
    """``pairs`` of the modules that ``theirs`` has under ``names``."""
    return pairs(prefix, {ours: theirs.get_submodule(name) for ours, name in names.items()})


class _Parts(nn.Module):
    """The parametrization of a weight that is ``join(*parts)``, its first parts being ``split`` of it."""

    def __init__(self, split: Callable[[Tensor], Sequence[Tensor]], join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.split, self.join = split, join

    def forward(self, *parts: Tensor) -> Tensor:
        return self.join(*parts)

    def right_inverse(self, whole: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.contiguous() for part in self.split(whole))


def unfuse(
    module: nn.Module, name: str, split: Callable[[Tensor], Sequence[Tensor]], join: Callable[..., Tensor]
) -> list[Tensor]:
    """Let ``module`` hold its weight ``name`` as the parts that are returned, and use it as ``join(*parts)``.

    The module's own forward stays, so that its fused or transposed weights can be compared with ours one by one.
    """
    parametrize.register_parametrization(module, name, _Parts(split, join))
    return list(module.get_submodule(f"parametrizations.{name}").parameters())


def thirds(module: nn.Module, name: str) -> list[Tensor]:
    """``unfuse`` for a product that makes queries, keys and values, one below the other."""
    return unfuse(module, name, lambda whole: whole.chunk(3), lambda *parts: torch.cat(parts))


def rows(table: nn.Embedding) -> list[Tensor]:
    """``unfuse`` for a table of vectors, which the presets' type vectors are rows of."""
    return unfuse(table, "weight", lambda whole: whole.split(1), lambda *parts: torch.cat(parts))


def torch_attention(ours: str, theirs: nn.MultiheadAttention) -> dict[str, Tensor]:
    """torch makes queries, keys and values in one product."""
    same = pairs(ours, {"out": theirs.out_proj})
    for kind in ("weight", "bias"):
        parts = thirds(theirs, f"in_proj_{kind}")
        same |= {f"{ours}.{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    return same


def bert_layer(prefix: str, theirs: nn.Module) -> dict[str, Tensor]:
    """The parameters of a ``Layer`` of ours called ``prefix``, with those of BERT's layer under its many names."""
    names = {
        "attention.attention.q": "attention.self.query",
        "attention.attention.k": "attention.self.key",
        "attention.attention.v": "attention.self.value",
        "attention.attention.out": "attention.output.dense",
        "attention.norm": "attention.output.LayerNorm",
        "ffn.ffn.up": "intermediate.dense",
        "ffn.ffn.down": "output.dense",
        "ffn.norm": "output.LayerNorm",
    }
    return found(prefix, names, theirs)


def glu(ours: str, mlp: nn.Module) -> dict[str, Tensor | list[Tensor]]:
    """Llama's feed-forward; our gated product has the values above the gates."""
    up = [mlp.get_parameter("up_proj.weight"), mlp.get_parameter("gate_proj.weight")]
    return {f"{ours}.up.weight": up, **found(ours, {"down": "down_proj"}, mlp)}
