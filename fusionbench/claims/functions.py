"""Claims about which function an operation is: two forms of it are held against each other, or its inputs exchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..attention import attend
from ..blocks import Attention
from ..ledger import Figure
from ..registry import get
from ..spec import Case, Shape
from ..streams import Projector
from .check import Answer, Check, Lab, judged
from .costs import case
from .paired import compare

ROUNDING = 1e-12  # relative: far above what the order of an fp64 sum changes, far below any other function


def patches(lab: Lab) -> Answer:
    """C6: one weight, [768, 3, 16, 16] for the convolution and [768, 768] for the Linear over unfolded patches."""
    side, width = 16, 768
    generator = torch.Generator().manual_seed(lab.seed)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator).double()

    image, weight, bias = integers(1, 3, 96, 96), integers(width, 3, side, side), integers(width)

    def linear(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        flat = nn.functional.unfold(image, side, stride=side).transpose(1, 2)  # [B, patches, 3·P·P]
        return nn.functional.linear(flat, weight.flatten(1), bias)

    def convolution(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.conv2d(image, weight, bias, stride=side).flatten(2).transpose(1, 2)

    equal = [torch.equal(linear(*given), convolution(*given)) for given in
             ((image, weight, bias), tuple(x.float() for x in (image, weight, bias)))]  # fmt: skip
    real = [torch.randn(x.shape, generator=generator) for x in (torch.empty(1, 3, 224, 224), weight, bias)]
    difference = _relative(linear(*real), convolution(*real))
    with torch.no_grad():
        timed = compare(lambda: linear(*real), lambda: convolution(*real), lab.seconds / 3)
    return Answer(
        judged(equal),
        (
            Figure(what="dtypes in which every output of integers is equal", value=sum(equal), unit=f"of {len(equal)}"),
            Figure(what="largest relative difference, fp32, random numbers", value=difference),
            timed.figure("time of unfold + Linear over Conv2d, 224² pixels, 1 thread"),
        ),
        "with the convolution's weight flattened; on other numbers up to the rounding of another order of summation",
    )


def _relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return _largest(a - b) / _largest(b)


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max())


def with_itself(lab: Lab) -> Answer:
    """C8: the context is another tensor with the same numbers."""
    width, heads = 48, 4
    x = torch.randn(2, 33, width, dtype=torch.float64)
    of = case(33, 33, width, heads)
    cross = Attention(of, width, width, "eager").double()
    official = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        official.in_proj_weight.copy_(torch.cat([cross.q.weight, cross.k.weight, cross.v.weight]))
        official.in_proj_bias.copy_(torch.cat([cross.q.bias, cross.k.bias, cross.v.bias]))
        official.out_proj.load_state_dict(cross.out.state_dict())
    attended, itself = cross(x, x.clone()), cross(x, x)
    difference = _relative(attended, official(x, x, x, need_weights=True)[0])
    return Answer(
        judged([torch.equal(attended, itself), difference < ROUNDING]),
        (
            Figure(what="largest difference between cross(x, copy of x) and self(x)",
                   value=_largest(attended - itself)),
            Figure(what="largest relative difference from nn.MultiheadAttention, fp64", value=difference),
        ),
        "with the same weights and one LayerNorm for both roles",
    )  # fmt: skip


def interaction(lab: Lab) -> Answer:
    """C9: what the text can change of the image tokens, after the cat and after one self-attention layer."""
    shape = Shape(batch=2, image=9, text=5, image_width=16, text_width=16, width=16, heads=2)
    found = {name: _influence(name, Case(shape=shape, projector="identity")) for name in ("concat", "concat_attention")}
    return Answer(
        judged(value == 0 for value in found.values()),
        tuple(Figure(what=f"largest |∂ image output / ∂ text|, {name}", value=x) for name, x in found.items()),
        "of the cat alone; the first self-attention over the joint tokens lets every one see every other",
    )


def _influence(name: str, of: Case) -> float:
    s = of.shape
    image, text = torch.randn(2, s.image, s.width), torch.randn(2, s.text, s.width, requires_grad=True)
    fused = get(name).module(of, "eager")(image, text)[:, : s.image]
    (gradient,) = torch.autograd.grad((fused * torch.randn_like(fused)).sum(), text)
    return _largest(gradient)


def divisor(lab: Lab) -> Answer:
    """C14: scores of 32 heads of 128 are divided by √128."""
    heads, width = 32, 4096
    q, k, v = (torch.randn(1, heads, 6, width // heads, dtype=torch.float64) for _ in range(3))
    real = (attend(q, k, v, "eager"), nn.functional.scaled_dot_product_attention(q, k, v))

    def off(divided_by: int) -> float:
        formula = (q @ k.transpose(-2, -1) / math.sqrt(divided_by)).softmax(dim=-1) @ v
        return max(_relative(formula, each) for each in real)

    by_head, by_width = off(width // heads), off(width)
    return Answer(
        judged([by_width < ROUNDING]),
        (
            Figure(what="largest relative error of softmax(QKᵀ/√4096)V", value=by_width),
            Figure(what="largest relative error of softmax(QKᵀ/√128)V", value=by_head),
        ),
        f"d_k is the width of one head, 4096 / 32 = {width // heads}" if by_head < ROUNDING else "",
    )


def scale(lab: Lab) -> Answer:
    """C23: scores of two vectors with unit variance deviate by √D, so without a scale the softmax saturates."""
    keys, usable, figures = 64, {}, []
    for width in (4, 16, 64, 256, 1024, 4096):
        scores = torch.randn(256, width) @ torch.randn(width, keys)
        entropy = _entropy(scores)
        usable[width] = entropy >= 0.5
        figures.append(Figure(what=f"entropy over log {keys}, no scale, width {width}", value=entropy))
    figures.append(Figure(what=f"the same with 1/√D, width {width}", value=_entropy(scores / math.sqrt(width))))
    widest = max((width for width, fine in usable.items() if fine), default=0)
    return Answer(
        judged(usable.values()),
        tuple(figures),
        f"up to width {widest} of those tried; beyond, softmax picks few tokens or one (entropy below half of "
        f"log {keys})",
    )


def _entropy(scores: Tensor) -> float:
    """The mean entropy of the rows' softmax, 1 where all keys weigh the same."""
    p = scores.double().softmax(dim=-1)
    return float(-(p * p.clamp(min=1e-300).log()).sum(dim=-1).mean()) / math.log(scores.shape[-1])


def type_embedding(lab: Lab) -> Answer:
    """C25: attention can tell modalities apart if exchanging them does more than reorder its outputs."""
    shape = Shape(batch=2, image=6, text=6, image_width=16, text_width=16, width=16, heads=2)
    moved = {
        (projector, types): _moved(Case(shape=shape, projector=projector, type_embedding=types))
        for projector in ("identity", "linear")
        for types in (False, True)
    }
    tells = {key: value > ROUNDING for key, value in moved.items()}
    needed = [tells[projector, True] and not tells[projector, False] for projector in ("identity", "linear")]
    names = {False: "without", True: "with"}
    return Answer(
        judged(needed),
        (
            *(Figure(what=f"change when modalities are exchanged, projector {projector}, {names[types]} type embedding",
                     value=value) for (projector, types), value in moved.items()),
            Figure(what="difference of a type embedding from a bias that holds it", value=_folded()),
        ),
        "where nothing else differs between the modalities; behind a projector of its own each modality is told apart "
        "already, and the embedding is one more bias",
        "whether it helps accuracy needs the quality track",
    )  # fmt: skip


def _moved(of: Case) -> float:
    s = of.shape
    module = get("concat_attention").module(of, "eager").double()
    first, second = (torch.randn(2, s.image, s.image_width, dtype=torch.float64) for _ in range(2))
    for parameter in (p for name, p in module.named_parameters() if name.endswith("type_embedding")):
        nn.init.normal_(parameter)
    exchanged = module(second, first)
    return _relative(torch.cat([exchanged[:, s.text :], exchanged[:, : s.text]], dim=1), module(first, second))


def _folded() -> float:
    """A projector with a type embedding against the same one with that vector in its bias, in fp64."""
    shape = Shape(batch=1, image=6, text=6, image_width=20, text_width=20, width=16, heads=2)
    typed = Projector("linear", 20, shape.width, Case(shape=shape, type_embedding=True)).double()
    plain = Projector("linear", 20, shape.width, Case(shape=shape)).double()
    state = typed.state_dict()
    state["layers.0.bias"] = state["layers.0.bias"] + state.pop("type_embedding")
    plain.load_state_dict(state)
    x = torch.randn(1, 6, 20, dtype=torch.float64)
    return _relative(plain(x), typed(x))


CHECKS: Mapping[str, Check] = {
    "C6": patches,
    "C8": with_itself,
    "C9": interaction,
    "C14": divisor,
    "C23": scale,
    "C25": type_embedding,
}
