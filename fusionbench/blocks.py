"""The parts that strategies are built from, each with its cost beside it: projectors, attention, layers.

A strategy's ``cost`` calls the function ``x_cost`` of every block ``X`` that its module holds, with the
same sizes, so that the two can be read side by side. B batch, Lq/Lk lengths, D width, I inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import WITH_PROJECTIONS, attend
from .cost import Cost, absorbed_attention, attention, copy, layer_norm, linear, projected_attention
from .errors import MissingModalityError
from .spec import Case, Shape

Mask = Tensor | None


def projected_width(width: int, case: Case) -> int:
    """The width of a modality after its projector."""
    return width if case.projector == "identity" else case.shape.width


def projected_widths(case: Case) -> tuple[int, int]:
    """The widths of image and text after their projectors."""
    return projected_width(case.shape.image_width, case), projected_width(case.shape.text_width, case)


def equal_widths(case: Case, **options: object) -> str | None:
    """The refusal of strategies that put both modalities into one stream: their widths must meet."""
    shape = case.shape
    if case.projector == "identity" and shape.image_width != shape.text_width:
        return (
            f"projector 'identity' leaves image at width {shape.image_width} and text at {shape.text_width}; "
            "this strategy needs them equal (use 'linear')"
        )
    return None


class Projector(nn.Module):
    """Bring one modality to the common width: identity, linear, linear + LayerNorm, or a 2-layer MLP.

    [B, L, width] -> [B, L, projected_width]; adds a learned modality-type vector when the case asks for one.
    """

    def __init__(self, width: int, case: Case) -> None:
        super().__init__()
        out = projected_width(width, case)
        layers: dict[str, list[nn.Module]] = {
            "identity": [],
            "linear": [nn.Linear(width, out)],
            "linear_norm": [nn.Linear(width, out), nn.LayerNorm(out)],
            "mlp": [nn.Linear(width, out), nn.GELU(), nn.Linear(out, out)],  # LLaVA-1.5's mlp2x_gelu
        }
        self.layers = nn.Sequential(*layers[case.projector])
        self.type_embedding = nn.Parameter(torch.randn(out) * 0.02) if case.type_embedding else None

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.layers(x)
        return projected if self.type_embedding is None else projected + self.type_embedding


def projector_cost(rows: int, width: int, case: Case) -> Cost:
    """``rows`` = batch x tokens."""
    out = projected_width(width, case)
    first = linear(rows, width, out)
    costs = {
        "identity": Cost(),
        "linear": first,
        "linear_norm": first + layer_norm(rows, out),
        "mlp": first + Cost(saved=rows * out) + linear(rows, out, out),  # GELU keeps its input too
    }
    type_vector = Cost(params=out, weights_read=out) if case.type_embedding else Cost()
    return costs[case.projector] + type_vector


class Projectors(nn.Module):
    """A projector for each modality; a missing one stays missing."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.image = Projector(case.shape.image_width, case)
        self.text = Projector(case.shape.text_width, case)

    def forward(self, image: Tensor | None, text: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return None if image is None else self.image(image), None if text is None else self.text(text)


def projectors_cost(case: Case) -> Cost:
    """Both modalities through a projector each."""
    s = case.shape
    return projector_cost(s.batch * s.image, s.image_width, case) + projector_cost(s.batch * s.text, s.text_width, case)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, H·d] -> [B, H, L, d]"""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, L, d] -> [B, L, H·d]"""
    return x.transpose(1, 2).flatten(2)


def sharpened(layer: nn.Linear) -> nn.Linear:
    """Make a fresh query or key projection three times as large: scores of normalised inputs get a deviation of 3.

    As PyTorch initialises it, it is 1/3, and softmax is so flat that wrong scores hide in the rounding of bf16.
    """
    with torch.no_grad():
        layer.weight.mul_(3)
    return layer


class Attention(nn.Module):
    """Multi-head attention of x [B, Lq, query_width] over context [B, Lk, context_width], d = inner / heads."""

    def __init__(self, query_width: int, context_width: int, inner: int, heads: int, impl: str) -> None:
        super().__init__()
        self.heads, self.impl = heads, impl
        self.q = sharpened(nn.Linear(query_width, inner))
        self.k = sharpened(nn.Linear(context_width, inner))
        self.v = nn.Linear(context_width, inner)
        self.out = nn.Linear(inner, query_width)

    def forward(self, x: Tensor, context: Tensor, mask: Mask = None) -> Tensor:
        k, v = split_heads(self.k(context), self.heads), split_heads(self.v(context), self.heads)
        if self.impl in WITH_PROJECTIONS:
            return WITH_PROJECTIONS[self.impl](x, k, v, self.q, self.out, mask)
        q = split_heads(self.q(x), self.heads)
        attended: Tensor = self.out(merge_heads(attend(q, k, v, self.impl, mask)))
        return attended


def attention_cost(
    shape: Shape, queries: int, keys: int, query_width: int, context_width: int, impl: str, *, saves_context: bool
) -> Cost:
    """``Attention`` over ``queries`` x ``keys`` tokens per sample.

    ``saves_context`` is False where the context is also some attention's x, which is counted there.
    """
    b, inner = shape.batch, shape.width
    context = linear(b * keys, context_width, inner, saves_input=saves_context)
    context += linear(b * keys, context_width, inner, saves_input=False)
    if impl == "triton_projected":
        return context + projected_attention(b, queries, keys, query_width, inner)
    if impl == "triton_absorbed":
        return context + absorbed_attention(b, queries, keys, query_width, inner, shape.heads)
    return (
        context
        + linear(b * queries, query_width, inner)
        + attention(b, queries, keys, inner, shape.heads, impl)
        + linear(b * queries, inner, query_width, saves_input=False)  # attention keeps its own output
    )


class FeedForward(nn.Module):
    """Linear, GELU, Linear with a hidden layer of ``ratio`` x width."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(nn.functional.gelu(self.up(x)))
        return y


def feed_forward_cost(rows: int, width: int, ratio: int) -> Cost:
    hidden = ratio * width
    return linear(rows, width, hidden) + Cost(saved=rows * hidden) + linear(rows, hidden, width)


class FeedForwardBlock(nn.Module):
    """x + FFN(LN(x)) over x [B, L, D]; x itself when the shape's ``ffn`` is 0."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), FeedForward(width, shape.ffn)) if shape.ffn else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.ffn is None else x + self.ffn(x)


def feed_forward_block_cost(shape: Shape, tokens: int, width: int) -> Cost:
    rows = shape.batch * tokens
    return layer_norm(rows, width) + feed_forward_cost(rows, width, shape.ffn) if shape.ffn else Cost()


class Layer(nn.Module):
    """One pre-LayerNorm Transformer layer: self-attention without a context, cross-attention with one.

    x [B, Lq, D], context [B, Lk, context_width]; x + Attention(LN(x), context), then x + FFN(LN(x))
    unless the shape's ``ffn`` is 0. ``context_norm`` gives the context a LayerNorm of its own.
    """

    def __init__(
        self, shape: Shape, width: int, impl: str, *, context_width: int | None = None, context_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(context_width or width) if context_norm else nn.Identity()
        self.attention = Attention(width, context_width or width, shape.width, shape.heads, impl)
        self.ffn = FeedForwardBlock(shape, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Mask = None) -> Tensor:
        queries = self.norm(x)
        x = x + self.attention(queries, queries if context is None else self.context_norm(context), mask)
        y: Tensor = self.ffn(x)
        return y


def layer_cost(
    shape: Shape,
    queries: int,
    width: int,
    impl: str,
    *,
    keys: int | None = None,
    context_width: int | None = None,
    context_norm: bool = False,
) -> Cost:
    """``Layer`` over ``queries`` tokens per sample; ``keys`` tokens of context, or None for self-attention."""
    rows, kv_width = shape.batch * queries, context_width or width
    cost = layer_norm(rows, width)
    if context_norm and keys is not None:
        cost += layer_norm(shape.batch * keys, kv_width)
    cost += attention_cost(
        shape, queries, queries if keys is None else keys, width, kv_width, impl, saves_context=keys is not None
    )
    return cost + feed_forward_block_cost(shape, queries, width)


class MutualLayer(nn.Module):
    """One pre-LayerNorm layer of attention in both directions, with separate weights per modality (ViLBERT).

    image [B, Li, image_width], text [B, Lt, text_width] -> both, same shapes. Each side's LayerNorm output is
    its own query and the other side's context; then x + FFN(LN(x)) per side unless the shape's ``ffn`` is 0.
    """

    def __init__(self, shape: Shape, image_width: int, text_width: int, impl: str) -> None:
        super().__init__()
        self.image_norm, self.text_norm = nn.LayerNorm(image_width), nn.LayerNorm(text_width)
        self.image_attention = Attention(image_width, text_width, shape.width, shape.heads, impl)
        self.text_attention = Attention(text_width, image_width, shape.width, shape.heads, impl)
        self.image_ffn, self.text_ffn = FeedForwardBlock(shape, image_width), FeedForwardBlock(shape, text_width)

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor, Tensor]:
        i, t = self.image_norm(image), self.text_norm(text)
        image = image + self.image_attention(i, t, text_mask)
        text = text + self.text_attention(t, i, image_mask)
        return self.image_ffn(image), self.text_ffn(text)


def mutual_layer_cost(shape: Shape, image_width: int, text_width: int, impl: str) -> Cost:
    image, text = (shape.image, image_width), (shape.text, text_width)
    cost = Cost()
    for (queries, width), (keys, context_width) in ((image, text), (text, image)):
        cost += layer_norm(shape.batch * queries, width)
        cost += attention_cost(shape, queries, keys, width, context_width, impl, saves_context=False)
        cost += feed_forward_block_cost(shape, queries, width)
    return cost


class Encoder(nn.Module):
    """``depth`` self-attention layers over one sequence [B, L, D]."""

    def __init__(self, shape: Shape, width: int, impl: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape, width, impl) for _ in range(shape.depth))

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, None, mask)
        return x


def encoder_cost(shape: Shape, tokens: int, width: int, impl: str) -> Cost:
    return layer_cost(shape, tokens, width, impl) * shape.depth


def join(image: Tensor | None, text: Tensor | None) -> Tensor:
    """One stream [B, Li + Lt, D], image tokens first; a missing modality adds no tokens."""
    present = [x for x in (image, text) if x is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)


def join_cost(case: Case) -> Cost:
    """``join`` of both projected modalities, whose widths are equal."""
    s = case.shape
    return copy(s.batch * (s.image + s.text) * projected_width(s.text_width, case))


def join_masks(image: Tensor | None, text: Tensor | None, image_mask: Mask, text_mask: Mask) -> Mask:
    """The key-padding mask of ``join(image, text)``; None when neither modality is padded."""
    if image_mask is None and text_mask is None:
        return None
    masks = []
    for tokens, mask in ((image, image_mask), (text, text_mask)):
        if tokens is not None:
            masks.append(torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask)
    return masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)


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
