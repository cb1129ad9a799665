"""Claims about accuracy: what can be known of them without training, and never a guess at the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..blocks import encoder_cost
from ..cost import linear
from ..ledger import Figure, Verdict
from ..registry import get
from .check import Answer, Check, Lab, times
from .costs import CONCAT, SHAPES, TEXT_ASKS, case, flops, size

UNTRAINED: Verdict = "needs the quality track"


def accuracy(lab: Lab) -> Answer:
    """C1: at one width the two differ in cost, so that a difference in accuracy alone would say nothing."""
    of = case(*SHAPES[0])
    concat, cross = (get(name).costs(of, "eager").params for name in (CONCAT, TEXT_ASKS))
    return Answer(
        UNTRAINED,
        (
            times(f"FLOPs of concat over cross-attention, one layer, {size(*SHAPES[0])}",
                  flops(CONCAT, of) / flops(TEXT_ASKS, of)),
            times("parameters of concat over cross-attention, the same layers", concat / cross),
        ),
        "an accuracy means something beside its parameters, its FLOPs and what was frozen: published differences "
        "change sign with these (Idefics2's table 3: cross-attention +6.4 points frozen, −2.2 with LoRA)",
    )  # fmt: skip


def cosines(lab: Lab) -> Answer:
    """C4: independent features of width D have a mean |cos| of √(2/πD); only the start can be known."""
    figures = []
    for width in (768, 4096):
        x, y = torch.randn(2, 2000, width)
        figures.append(Figure(what=f"mean |cos| of independent features, width {width}", value=_mean_cosine(x, y)))
        figures.append(Figure(what=f"√(2/πD), width {width}", value=math.sqrt(2 / (math.pi * width))))
    gelu = nn.functional.gelu
    figures.append(Figure(what=f"mean |cos| after a GELU, width {width}", value=_mean_cosine(gelu(x), gelu(y))))
    return Answer(
        UNTRAINED,
        tuple(figures),
        "a start at 0.1 is no property of random initialisation: centred features begin far below it, features with a "
        "common mean above it, matched or not. The end at 0.85 needs training",
    )


def _mean_cosine(x: Tensor, y: Tensor) -> float:
    return float(nn.functional.cosine_similarity(x, y, dim=-1).abs().mean())


def best_stage(lab: Lab) -> Answer:
    """C12: late fusion can encode images before it knows the text, mid fusion cannot."""
    images, of = 1000, case(196, 32, 512, 8, depth=6)
    s = of.shape
    mid = images * flops("mid", of)
    text_tower = encoder_cost(of, s.text, s.width, "eager").flops + linear(1, s.width, s.width).flops
    late = text_tower + images * 2 * s.width
    return Answer(
        UNTRAINED,
        (times(f"FLOPs to rank {images:,} encoded images for a text, mid over late, {size(196, 32, 512, 8)}, 6 layers",
               mid / late),),
        "which stage is best depends on the task: where many candidates are ranked, only late fusion leaves a product "
        "of vectors per pair. Accuracy by stage needs training",
    )  # fmt: skip


def coupling(lab: Lab) -> Answer:
    """C13: a sum of two logits, one per modality, against a function of both, on every labelling of two bits."""
    points = list(itertools.product((0, 1), repeat=2))
    grid = [x / 2 for x in range(-3, 4)]
    # score = a·image + b·text + c covers every sum of a function of one bit and a function of the other
    additive = {tuple(a * i + b * t + c > 0 for i, t in points) for a, b, c in itertools.product(grid, grid, grid)}
    xor = tuple(bool(i ^ t) for i, t in points)
    image_alone = tuple(bool(i) for i, _ in points)
    return Answer(
        UNTRAINED,
        (
            Figure(what="labellings of two bits that late fusion by a sum of logits can represent", value=len(additive),
                   unit=f"of {2 ** len(points)}"),
            Figure(what="its best accuracy where the label is the XOR of both", value=_best(additive, xor), unit="%"),
            Figure(what="its best accuracy where the label is one of them", value=_best(additive, image_alone),
                   unit="%"),
        ),
        "supported at its extreme: no late sum of logits can represent a label that only both modalities together "
        "determine, and any early fusion can. Real data lies between and needs training",
    )  # fmt: skip


def _best(functions: set[tuple[bool, ...]], label: tuple[bool, ...]) -> float:
    """The highest share of points, in percent, that any of the functions labels right."""
    return max(100 * sum(f == y for f, y in zip(function, label, strict=True)) / len(label) for function in functions)


CHECKS: Mapping[str, Check] = {"C1": accuracy, "C4": cosines, "C12": best_stage, "C13": coupling}
