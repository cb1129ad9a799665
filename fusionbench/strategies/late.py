"""Late fusion: each modality is encoded and judged alone, and only the verdicts meet (CLIP: Radford et al. 2021)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from ..blocks import Encoder, encoder_cost
from ..cost import Cost, copy, linear, product
from ..errors import MissingModalityError
from ..registry import ATTENTION_IMPLS, strategy
from ..spec import Case
from ..streams import Mask, Projectors, join_features, pool, projected_widths, projectors_cost

CLASSES = 3129  # VQAv2's answers


def mean(logits: Sequence[Tensor]) -> Tensor:
    """The average of the modalities' logits, each [B, C]."""
    return functools.reduce(torch.add, logits) / len(logits)


def vote(logits: Sequence[Tensor]) -> Tensor:
    """The share of votes per class [B, C], summing to 1: one vote per modality, split evenly over equal maxima.

    Two modalities that disagree leave a tie of 0.5 each. Comparisons have no gradient.
    """
    tops = [(x == x.amax(dim=-1, keepdim=True)).to(x.dtype) for x in logits]
    return mean([top / top.sum(dim=-1, keepdim=True) for top in tops])


def multiply(logits: Sequence[Tensor]) -> Tensor:
    """The log of the renormalised product of the modalities' probabilities [B, C]."""
    # log_softmax of the sum: each modality's own normaliser is a constant per row, which the last one cancels
    return functools.reduce(torch.add, logits).log_softmax(dim=-1)


class Weighted(nn.Module):
    """Σ softmax(w)_m · logits_m with a learned weight per modality; a modality that is alone has weight 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, logits: Sequence[Tensor]) -> Tensor:
        if len(logits) == 1:
            return logits[0]
        weights: Tensor = self.weights.softmax(dim=0)
        return weights[0] * logits[0] + weights[1] * logits[1]


class Heads(nn.Module):
    """A classifier per modality, and a rule that combines their logits."""

    def __init__(self, rule: Callable[[Sequence[Tensor]], Tensor], case: Case) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.image, self.text, self.rule = nn.Linear(image_width, CLASSES), nn.Linear(text_width, CLASSES), rule

    def forward(self, image: Tensor | None, text: Tensor | None) -> Tensor:
        pairs = ((self.image, image), (self.text, text))
        return self.rule([head(features) for head, features in pairs if features is not None])


class ConcatHead(nn.Module):
    """One classifier over both feature vectors side by side; a missing modality counts as the zero vector."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.widths = projected_widths(case)
        self.head = nn.Linear(sum(self.widths), CLASSES)

    def forward(self, image: Tensor | None, text: Tensor | None) -> Tensor:
        logits: Tensor = self.head(join_features(image, text, self.widths))
        return logits


class Similarity(nn.Module):
    """CLIP's logits per image [B, B]: scaled cosines between every image and every text of the batch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.image = nn.Linear(image_width, case.shape.width, bias=False)
        self.text = nn.Linear(text_width, case.shape.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's initial temperature

    def forward(self, image: Tensor | None, text: Tensor | None) -> Tensor:
        if image is None or text is None:
            raise MissingModalityError("late:similarity compares two modalities and was given one")
        return self.log_scale.exp() * (unit(self.image(image)) @ unit(self.text(text)).T)


def unit(x: Tensor) -> Tensor:
    """Vectors [B, D] scaled to length 1; the zero vector, which pooling no tokens gives, stays what it is."""
    # eps and not F.normalize's 1e-12, which is 0 in fp16 and makes gradients of 1e12 elsewhere
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=torch.finfo(x.dtype).eps)


def heads_cost(case: Case, kept: int = 0, params: int = 0, for_params: int = 0) -> Cost:
    """``Heads`` with a rule of ``params`` parameters for which autograd keeps ``kept`` elements, of which
    ``for_params`` serve the gradients of those parameters alone."""
    b, (image, text) = case.shape.batch, projected_widths(case)
    rule = Cost(params=params, weights_read=params, saved=kept, other_inputs=for_params)
    return linear(b, image, CLASSES) + linear(b, text, CLASSES) + rule


def concat_head_cost(case: Case) -> Cost:
    b, features = case.shape.batch, sum(projected_widths(case))
    return copy(b * features) + linear(b, features, CLASSES)


def similarity_cost(case: Case) -> Cost:
    """Per modality autograd keeps the embedding, the quotient and two norms; of the end exp(scale) and the cosines."""
    b, width = case.shape.batch, case.shape.width
    towers = [linear(b, features, width, bias=False) for features in projected_widths(case)]
    kept = 2 * (2 * b * width + 2 * b) + 1 + b * b
    return (
        towers[0] + towers[1] + product(1, b, width, b) + Cost(params=1, weights_read=1, saved=kept, other_inputs=b * b)
    )


@dataclass(frozen=True)
class Combination:
    """How pooled features become the result, and what that costs."""

    build: Callable[[Case], nn.Module]
    cost: Callable[[Case], Cost]


def _weighted_cost(case: Case) -> Cost:
    logits = 2 * case.shape.batch * CLASSES
    return heads_cost(case, logits + 2, params=2, for_params=logits)  # both logits, and the two weights


COMBINATIONS = {
    "mean": Combination(lambda case: Heads(mean, case), heads_cost),
    "weighted": Combination(lambda case: Heads(Weighted(), case), _weighted_cost),
    "vote": Combination(lambda case: Heads(vote, case), heads_cost),
    "product": Combination(lambda case: Heads(multiply, case), lambda c: heads_cost(c, c.shape.batch * CLASSES)),
    "concat_head": Combination(ConcatHead, concat_head_cost),
    "similarity": Combination(Similarity, similarity_cost),
}


def refuses(case: Case, combine: str = "mean") -> str | None:
    if combine == "vote" and case.mode == "fwd_bwd":
        return "late:vote counts votes, which have no gradient (use mode 'fwd')"
    return None


def cost(case: Case, impl: str, combine: str = "mean") -> Cost:
    s, (image_width, text_width) = case.shape, projected_widths(case)
    encoders = encoder_cost(case, s.image, image_width, impl) + encoder_cost(case, s.text, text_width, impl)
    total = projectors_cost(case) + encoders + COMBINATIONS[combine].cost(case)
    no_gradient = {"backward_flops": 0, "saved": 0, "saved_bytes": 0}
    return msgspec.structs.replace(total, **no_gradient) if combine == "vote" else total


@strategy(
    "late",
    impls=ATTENTION_IMPLS,
    cost=cost,
    variants={name: {"combine": name} for name in COMBINATIONS if name != "mean"},
    refuses=refuses,
)
class Late(nn.Module):
    """Encode each modality with ``depth`` layers, pool it, judge it alone, and combine only the two results.

    ``combine``: ``mean``, ``weighted`` (learned), ``vote`` or ``product`` of two classifiers' outputs [B, C];
    ``concat_head`` [B, C], one classifier over both pooled vectors; ``similarity`` [B, B], scaled cosines. A
    missing modality leaves the other's verdict alone, except under ``similarity``, which raises.
    """

    def __init__(self, case: Case, impl: str, combine: str = "mean") -> None:
        super().__init__()
        image_width, text_width = projected_widths(case)
        self.project = Projectors(case)
        self.image_encoder = Encoder(case, image_width, impl)
        self.text_encoder = Encoder(case, text_width, impl)
        self.combine = COMBINATIONS[combine].build(case)

    def forward(
        self, image: Tensor | None, text: Tensor | None, image_mask: Mask = None, text_mask: Mask = None
    ) -> Tensor:
        if image is None and text is None:
            raise MissingModalityError("late needs at least one modality")
        image, text = self.project(image, text)
        image = None if image is None else pool(self.image_encoder(image, image_mask), image_mask)
        text = None if text is None else pool(self.text_encoder(text, text_mask), text_mask)
        verdict: Tensor = self.combine(image, text)
        return verdict
