"""Two modalities on their way into a strategy: projected, joined into one stream, pooled. Each with its cost."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from .cost import Cost, copy, layer_norm, linear
from .errors import MissingModalityError
from .generation import Step, whole
from .parts import norm, norm_cost
from .spec import Case

Mask = Tensor | None


MERGED = 4  # tokens, 2 x 2 of them, that ``patch_merge`` makes one of (Qwen2.5-VL)


def projected_widths(case: Case) -> tuple[int, int]:
    """The widths of image and text after their projectors."""
    shape, text = case.shape, case.shape.text_width
    if case.projector == "identity":
        return shape.image_width, text
    common = {"both": shape.width, "image": text, "text": shape.image_width}[case.design.projects]
    return common, common


def joint_width(case: Case) -> int:
    """The width of both modalities in one stream, which ``equal_widths`` sees to."""
    return projected_widths(case)[1]


def equal_widths(case: Case, **options: object) -> str | None:
    """The refusal of strategies that put both modalities into one stream: their widths must meet."""
    image, text = projected_widths(case)
    if image != text:
        return (
            f"projector 'identity' leaves image at width {image} and text at {text}; "
            "this strategy needs them equal (use 'linear')"
        )
    return None


def image_case(case: Case) -> Case:
    """The case as the image's feed-forward layers see it: with the design's ``image_hidden`` units, if it has any.

    A shape without feed-forward layers stays without.
    """
    hidden = case.design.image_hidden if case.shape.units(1) else 0
    return msgspec.structs.replace(case, shape=msgspec.structs.replace(case.shape, hidden=hidden)) if hidden else case


class PatchMerge(nn.Module):
    """Normalise, put 4 neighbouring tokens into one, 2-layer MLP (Qwen2.5-VL): [B, 4·L, width] -> [B, L, out]."""

    def __init__(self, width: int, out: int, case: Case) -> None:
        super().__init__()
        self.norm = norm(width, case)
        self.mlp = nn.Sequential(nn.Linear(MERGED * width, MERGED * width), nn.GELU(), nn.Linear(MERGED * width, out))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.norm(x).unflatten(1, (-1, MERGED)).flatten(2))
        return y


class Projector(nn.Module):
    """Bring one modality to the width ``out``: by nothing, a Linear, Linear + LayerNorm, a 2-layer MLP or PatchMerge.

    [B, L, width] -> [B, L, out] (``patch_merge``: [B, 4·L, width]); ``kind`` is one of ``spec.PROJECTORS``. Adds a
    learned modality-type vector when the case asks for one.
    """

    def __init__(self, kind: str, width: int, out: int, case: Case) -> None:
        super().__init__()
        layers: dict[str, list[nn.Module]] = {
            "identity": [],
            "linear": [nn.Linear(width, out)],
            "linear_norm": [nn.Linear(width, out), nn.LayerNorm(out, eps=case.design.eps)],
            "mlp": [nn.Linear(width, out), nn.GELU(), nn.Linear(out, out)],  # LLaVA-1.5's mlp2x_gelu
            "patch_merge": [PatchMerge(width, out, case)],
        }
        self.layers = nn.Sequential(*layers[kind])
        self.type_embedding = nn.Parameter(torch.randn(out) * 0.02) if case.type_embedding else None

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.layers(x)
        return projected if self.type_embedding is None else projected + self.type_embedding


def projector_cost(kind: str, rows: int, width: int, out: int, case: Case) -> Cost:
    """``rows`` = batch x tokens, after merging."""
    first, merged = linear(rows, width, out), MERGED * width
    costs = {
        "identity": Cost(),
        "linear": first,
        "linear_norm": first + layer_norm(rows, out),
        "mlp": first + Cost(saved=rows * out) + linear(rows, out, out),  # GELU keeps its input too
        "patch_merge": norm_cost(MERGED * rows, width, case)
        + linear(rows, merged, merged)
        + Cost(saved=rows * merged)
        + linear(rows, merged, out),
    }
    type_vector = Cost(params=out, weights_read=out) if case.type_embedding else Cost()
    return costs[kind] + type_vector


def projector_kinds(case: Case) -> tuple[str, str]:
    """Which projector image and text go through; text has no patches to merge."""
    of_text = "linear" if case.projector == "patch_merge" else case.projector
    both = {"both": (case.projector, of_text), "image": (case.projector, "identity"), "text": ("identity", of_text)}
    return both[case.design.projects]


class Projectors(nn.Module):
    """A projector for each modality; a missing one stays missing, and so do image tokens that have passed theirs."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        s, kinds, widths = case.shape, projector_kinds(case), projected_widths(case)
        self.image = Projector(kinds[0], s.image_width, widths[0], case)
        self.text = Projector(kinds[1], s.text_width, widths[1], case)
        self.passed = case.mode == "decode_uncached"

    def forward(self, image: Tensor | None, text: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if image is not None and not self.passed:
            image = self.image(image)
        return image, None if text is None else self.text(text)


def projectors_cost(case: Case, step: Step | None = None) -> Cost:
    """Both modalities through a projector each: all tokens, or those that a ``step`` takes in."""
    s, kinds, widths, given = case.shape, projector_kinds(case), projected_widths(case), step or whole(case)
    image = projector_cost(kinds[0], s.batch * given.image, s.image_width, widths[0], case)
    text = projector_cost(kinds[1], s.batch * given.text, s.text_width, widths[1], case)
    return (image if given.image else image.idle()) + (text if given.text else text.idle())


def join(image: Tensor | None, text: Tensor | None) -> Tensor:
    """One stream [B, Li + Lt, D], image tokens first; a missing modality adds no tokens."""
    present = [x for x in (image, text) if x is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)


def join_cost(case: Case) -> Cost:
    """``join`` of both projected modalities, whose widths are equal."""
    s = case.shape
    return copy(s.batch * (s.image + s.text) * joint_width(case))


def join_masks(image: Tensor | None, text: Tensor | None, image_mask: Mask, text_mask: Mask) -> Mask:
    """The key-padding mask of ``join(image, text)``; None when neither modality is padded."""
    if image_mask is None and text_mask is None:
        return None
    masks = []
    for tokens, mask in ((image, image_mask), (text, text_mask)):
        if tokens is not None:
            masks.append(torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask)
    return masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)


def cache_mask(tokens: int, image_mask: Mask, text_mask: Mask) -> Mask:
    """The key-padding mask [B, tokens] of a cache of image tokens, then text; None when neither modality is padded."""
    masks = []
    if image_mask is not None:
        masks.append(nn.functional.pad(image_mask, (0, tokens - image_mask.shape[1]), value=True))
    if text_mask is not None:
        masks.append(nn.functional.pad(text_mask, (tokens - text_mask.shape[1], 0), value=True))
    return masks[0] & masks[-1] if masks else None


def pool(x: Tensor, mask: Mask) -> Tensor:
    """The mean over a sample's real tokens: [B, L, D] -> [B, D]; a sample without any gives 0."""
    if mask is None:
        return x.mean(dim=1)
    weights = mask.to(x.dtype).unsqueeze(-1)
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def join_features(image: Tensor | None, text: Tensor | None, widths: tuple[int, int]) -> Tensor:
    """One vector [B, Di + Dt] of two; a missing modality is the zero vector, which is what pooling no tokens gives."""
    present = image if image is not None else text
    if present is None:
        raise MissingModalityError("features of no modality cannot be joined")
    given = zip((image, text), widths, strict=True)
    return torch.cat([present.new_zeros(present.shape[0], n) if x is None else x for x, n in given], dim=-1)
