"""Claims about how much work a design is: closed forms, held against the FLOPs that PyTorch counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .. import registry, subject
from ..backends import BACKENDS
from ..errors import FusionbenchError
from ..meters.flops import count_flops
from ..spec import Case, Job, Shape
from .check import Answer, Check, Lab, judged, times
from .paired import compare

# Image tokens, text tokens, width, heads: LLaVA-1.5, a small encoder, LXMERT, Stable Diffusion 1.5 at 512 px.
SHAPES = ((576, 64, 4096, 32), (256, 32, 768, 12), (36, 20, 768, 12), (4096, 77, 320, 8))
TEXT_ASKS, IMAGE_ASKS = "cross_attention", "cross_attention:image_to_text"
BOTH, SHARED, CONCAT = "co_attention", "co_attention_shared", "concat_attention"
CLEARLY = 1.1  # a saving below a tenth of the FLOPs is not what "more efficient" promises


def case(image: int, text: int, width: int, heads: int, *, ffn: int = 4, depth: int = 1) -> Case:
    """One sample whose modalities come at the common width, with no projectors in front."""
    shape = Shape(batch=1, image=image, text=text, image_width=width, text_width=width, width=width, heads=heads,
                  ffn=ffn, depth=depth)  # fmt: skip
    return Case(shape=shape, projector="identity")


def flops(name: str, of: Case) -> int:
    """The forward FLOPs of a strategy by its closed form, which must be what PyTorch counts in its module.

    The module runs on the device "meta", which computes shapes only, so that real sizes cost nothing.
    """
    strategy, s = registry.get(name), of.shape
    with torch.device("meta"), torch.no_grad():
        module = strategy.module(of, "eager")
        image, text = torch.empty(1, s.image, s.image_width), torch.empty(1, s.text, s.text_width)
        counted = count_flops(lambda: module(image, text)).flops
    closed = strategy.costs(of, "eager").flops
    if closed != counted:
        raise FusionbenchError(f"'{name}' costs {closed:,} FLOPs by its closed form and {counted:,} as PyTorch counts")
    return closed


def call(name: str, of: Case, lab: Lab) -> Callable[[], object]:
    """The forward pass of a strategy as the backend ``sdpa`` runs it."""
    built = subject.build(Job(strategy=name, backend="sdpa", case=of), "sdpa", BACKENDS["sdpa"], lab.seed)
    return built.outputs


def size(image: int, text: int, width: int, heads: int) -> str:
    return f"{image}×{text} tokens, width {width}"


def bidirectional(lab: Lab) -> Answer:
    """C3: the sub-layer alone, with one affinity for both directions, and whole blocks with a feed-forward layer."""
    alone = [{name: flops(name, case(*s, ffn=0)) for name in (TEXT_ASKS, BOTH, SHARED)} for s in SHAPES]
    double = {found[BOTH] / found[TEXT_ASKS] for found in alone}
    shared = {found[SHARED] / found[TEXT_ASKS] for found in alone}
    blocks = []
    for s in SHAPES:
        both = flops(BOTH, case(*s))
        for asks, name in (("text", TEXT_ASKS), ("image", IMAGE_ASKS)):
            blocks.append(times(f"block with FFN, {asks} asked alone: {size(*s)}", both / flops(name, case(*s))))
    small = case(*SHAPES[1], ffn=0)
    with torch.no_grad():
        timed = compare(call(BOTH, small, lab), call(TEXT_ASKS, small, lab), lab.seconds)
    least, most = (f(figure.value for figure in blocks) for f in (min, max))
    return Answer(
        judged([*(ratio == 2 for ratio in double), *(figure.value == 2 for figure in blocks)]),
        (
            *(times(f"attention sub-layer, own projections: all {len(SHAPES)} shapes", x) for x in double),
            *(times(f"attention sub-layer, one shared affinity: all {len(SHAPES)} shapes", x) for x in shared),
            *blocks,
            timed.figure(f"time of the sub-layer, own projections: {size(*SHAPES[1])}"),
        ),
        "exactly for an attention sub-layer with projections of its own, whatever the lengths; a whole block costs "
        f"{least:.2f} to {most:.2f} times as much, depending on which side asked before",
    )


def efficiency(lab: Lab) -> Answer:
    """C11: one concatenation layer over one layer of cross-attention, asked by text, by image, and by both."""
    figures = []
    for s in SHAPES:
        joint = flops(CONCAT, case(*s))
        for what, name in (("text asks", TEXT_ASKS), ("image asks", IMAGE_ASKS), ("both ask", BOTH)):
            figures.append(times(f"FLOPs of concat over cross, {what}: {size(*s)}", joint / flops(name, case(*s))))
    asked = ((SHAPES[2], "text asks", TEXT_ASKS), (SHAPES[2], "both ask", BOTH))
    with torch.no_grad():
        timed = {
            f"{what}: {size(*s)}": compare(call(CONCAT, case(*s), lab), call(name, case(*s), lab), lab.seconds)
            for s, what, name in asked
        }
    least, most = min(figure.value for figure in figures), max(figure.value for figure in figures)
    slower = [what for what, ratio in timed.items() if ratio.faster]
    return Answer(
        judged([*(figure.value >= CLEARLY for figure in figures), *(ratio.slower for ratio in timed.values())]),
        (
            *figures,
            *(ratio.figure(f"time of concat over cross, {what}") for what, ratio in timed.items()),
        ),
        f"it saves a factor of {least:.3f} to {most:.1f} in FLOPs: most where the few tokens ask, next to nothing "
        "where both sides ask and the width is large"
        + (f". Here it is slower in spite of fewer FLOPs, {'; '.join(slower)}" if slower else ""),
        "cross-attention returns the asking side's tokens only",
    )


CHECKS: Mapping[str, Check] = {"C3": bidirectional, "C11": efficiency}
