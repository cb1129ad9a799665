"""What the comparisons with official code share: small cases, real ones, and maps from our parameters to theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fusionbench.spec import Case, Design, Projector, Shape

# --- cases ---------------------------------------------------------------------------------------------------------


def shape(image: tuple[int, int], text: tuple[int, int], width: int, heads: int, **more: int) -> Shape:
    """``image`` and ``text`` are tokens and width; a batch of 2."""
    return Shape(
        **{"batch": 2, "depth": 2} | more,
        image=image[0],
        image_width=image[1],
        text=text[0],
        text_width=text[1],
        width=width,
        heads=heads,
    )


def inputs(case: Case) -> list[Tensor]:
    """Image and text in fp64; patches that are merged come in fours."""
    s, generator = case.shape, torch.Generator().manual_seed(1)
    patches = s.image * (4 if case.projector == "patch_merge" else 1)
    return [
        torch.randn(s.batch, tokens, width, generator=generator, dtype=torch.float64)
        for tokens, width in ((patches, s.image_width), (s.text, s.text_width))
    ]


def masks(case: Case) -> tuple[Tensor, Tensor]:
    """True at real tokens: the second sample is shorter, in both modalities."""
    s = case.shape
    short = torch.tensor([[0], [2]])
    return torch.arange(s.image) < s.image - short, torch.arange(s.text) < s.text - short


padded = pytest.mark.parametrize("pad", [False, True], ids=["whole", "padded"])


def real(sizes: Shape, projector: Projector, design: Design) -> Case:
    """One sample of a real system; nothing of it is allocated."""
    return Case(shape=replace(sizes, batch=1), projector=projector, design=design)


def numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- parameters ----------------------------------------------------------------------------------------------------


def pairs(ours: str, theirs: nn.Module) -> dict[str, Tensor]:
    """The parameters of a Linear or a norm of ours, by name, with those of the official one."""
    return {f"{ours}.{name}": p for name, p in theirs.named_parameters(recurse=False)}


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


def torch_attention(ours: str, theirs: nn.MultiheadAttention) -> dict[str, Tensor]:
    """torch makes queries, keys and values in one product."""
    same = pairs(f"{ours}.out", theirs.out_proj)
    for kind in ("weight", "bias"):
        parts = thirds(theirs, f"in_proj_{kind}")
        same |= {f"{ours}.{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    return same
