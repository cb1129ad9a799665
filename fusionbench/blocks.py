"""The parts that strategies are built from, each with its cost beside it: projectors, attention, layers.

A strategy's ``cost`` calls the function ``x_cost`` of every block ``X`` that its module holds, with the
same sizes, so that the two can be read side by side. B batch, Lq/Lk lengths, D width, I inner width.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor, nn

from .attention import WITH_PROJECTIONS, attend
from .cost import Cost, absorbed_attention, attention, copy, linear, projected_attention
from .generation import Cache, KeysAndValues
from .parts import (
    FeedForwardBlock,
    Gate,
    HeadNorm,
    Rotary,
    feed_forward_block_cost,
    gate_cost,
    head_norm_cost,
    norm,
    norm_cost,
    rotary_cost,
    rotated,
)
from .spec import Case
from .streams import Mask, image_case


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


def kv_heads(case: Case) -> int:
    """How many heads keys and values have."""
    return case.design.kv_heads or case.shape.heads


class Attention(nn.Module):
    """Multi-head attention of x [B, Lq, query_width] over context [B, Lk, context_width], d = inner / heads.

    ``own`` says that the context is the stream of x itself: then the design's rope and causal mask apply. A ``cache``
    has keys and values [B, Hk, L, d]: the context's, which then is not read, or the own stream's, where those of x,
    the last tokens, are written into the last slots.
    """

    def __init__(self, case: Case, query_width: int, context_width: int, impl: str, *, own: bool = False) -> None:
        super().__init__()
        s, design = case.shape, case.design
        head_dim = s.width // s.heads
        kv_width = head_dim * kv_heads(case)
        self.heads, self.kv_heads, self.impl = s.heads, kv_heads(case), impl
        self.q = sharpened(nn.Linear(query_width, s.width, bias=design.qkv_bias))
        self.k = sharpened(nn.Linear(context_width, kv_width, bias=design.qkv_bias))
        self.v = nn.Linear(context_width, kv_width, bias=design.qkv_bias)
        self.out = nn.Linear(s.width, query_width, bias=design.out_bias)
        self.q_norm, self.k_norm = HeadNorm(head_dim, case), HeadNorm(head_dim, case)
        self.own, self.causal = own, own and design.causal
        self.turn = Rotary(s.image + s.text, head_dim, case) if own and design.rope else nn.Identity()

    def forward(self, x: Tensor, context: Tensor, mask: Mask = None, cache: KeysAndValues | None = None) -> Tensor:
        k, v = self.keys_and_values(context) if cache is None else cache
        first = k.shape[2] - x.shape[1] if self.own else 0  # the position of x in its stream
        if cache is not None and self.own:
            k[:, :, first:], v[:, :, first:] = self.keys_and_values(x, first)
        if self.impl in WITH_PROJECTIONS:
            return self.read_projected(x, k, v, mask)
        attended: Tensor = self.out(merge_heads(self.read(self.queries(x, first), k, v, mask)))
        return attended

    def queries(self, x: Tensor, first: int = 0) -> Tensor:
        """[B, Lq, query_width], the tokens from position ``first`` on -> [B, H, Lq, d]"""
        return self.turned(self.q_norm(self.q(x).unflatten(-1, (self.heads, -1))), first).transpose(1, 2)

    def keys_and_values(self, context: Tensor, first: int = 0) -> KeysAndValues:
        """[B, Lk, context_width], the tokens from position ``first`` on -> keys and values [B, Hk, Lk, d]."""
        k = self.turned(self.k_norm(self.k(context).unflatten(-1, (self.kv_heads, -1))), first).transpose(1, 2)
        return k, split_heads(self.v(context), self.kv_heads)

    def turned(self, x: Tensor, first: int) -> Tensor:
        return x if isinstance(self.turn, nn.Identity) else self.turn(x, first)

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """What queries [B, H, Lq, d] read from keys and values [B, Hk, Lk, d]: [B, H, Lq, d]."""
        causal = self.causal and q.shape[2] > 1  # one query is the last, which sees every key
        return attend(q, k, v, self.impl, mask, causal=causal)

    def read_projected(self, x: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """``read`` together with the projections of queries and outputs: x [B, Lq, query_width] -> same."""
        return WITH_PROJECTIONS[self.impl](x, k, v, self.q, self.out, mask)


def own_attention(case: Case) -> str | None:
    """The refusal of strategies that read keys in a way of their own."""
    d = case.design
    if d.kv_heads or d.qk_norm or d.causal or d.rope:
        return f"this attention has no shared key heads, head norms, causal mask or rotations ({d.key})"
    return None


def attention_cost(
    case: Case,
    queries: int,
    keys: int,
    query_width: int,
    context_width: int,
    impl: str,
    *,
    saves_context: bool,
    own: bool = False,
    cached: bool = False,
) -> Cost:
    """``Attention`` over ``queries`` x ``keys`` tokens per sample.

    ``saves_context`` is False where the context is also some attention's x, which is counted there. ``cached`` says
    that keys and values are given, but for those of the queries where the stream is their ``own``.
    """
    s, design = case.shape, case.design
    b, inner, head_dim = s.batch, s.width, s.width // s.heads
    kv_width = head_dim * kv_heads(case)
    made = queries if own else keys
    context = linear(b * made, context_width, kv_width, bias=design.qkv_bias, saves_input=saves_context)
    context += linear(b * made, context_width, kv_width, bias=design.qkv_bias, saves_input=False)
    context += head_norm_cost(b, made, kv_heads(case), head_dim, case)
    if cached:
        context = context + copy(2 * b * made * kv_width) if own else context.idle()
        context += Cost(cached=2 * b * keys * kv_width)
    if impl == "triton_projected":
        return context + projected_attention(b, queries, keys, query_width, inner)
    if impl == "triton_absorbed":
        return context + absorbed_attention(b, queries, keys, query_width, inner, s.heads)
    hides = own and design.causal and not cached
    turned = Cost(saved_bytes=queries * keys if hides and impl == "eager" else 0)  # bytes of the mask
    if own and design.rope:
        tables = 2 * (s.image + s.text) * rotated(head_dim, case)  # kept whole, by q and k together
        turned += rotary_cost(b, queries, s.heads, head_dim, case) + Cost(saved=tables)
        turned += rotary_cost(b, made, kv_heads(case), head_dim, case)
    # Eager attention itself has no use for its output: only the gradient of the output projection's weights has.
    nobodys = Cost(linear_inputs=b * queries * inner) if impl == "eager" else Cost()
    return (
        nobodys
        + context
        + linear(b * queries, query_width, inner, bias=design.qkv_bias)
        + head_norm_cost(b, queries, s.heads, head_dim, case)
        + turned
        + attention(b, queries, keys, inner, s.heads, impl, kv_width)
        + linear(b * queries, inner, query_width, bias=design.out_bias, saves_input=False)  # kept by attention itself
    )


class AttentionBlock(nn.Module):
    """x + Attention(norm(x), context) over x [B, Lq, D], or norm(x + Attention(x, context)) in a post-norm design.

    Self-attention without a ``context_width``, cross-attention over context [B, Lk, context_width] with one.
    ``context_norm`` gives the context a norm of its own; a ``cache`` is as of ``Attention``.
    """

    def __init__(
        self, case: Case, width: int, impl: str, *, context_width: int | None = None, context_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm, self.post = norm(width, case), case.design.post_norm
        self.context_norm = norm(context_width or width, case) if context_norm else nn.Identity()
        self.attention = Attention(case, width, context_width or width, impl, own=context_width is None)
        self.gate = Gate(case)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Mask = None, cache: KeysAndValues | None = None
    ) -> Tensor:
        queries = x if self.post else self.norm(x)
        attended = self.attention(queries, queries if context is None else self.context_norm(context), mask, cache)
        y = x + self.gate(attended)
        fused: Tensor = self.norm(y) if self.post else y
        return fused


def attention_block_cost(
    case: Case,
    queries: int,
    width: int,
    impl: str,
    *,
    keys: int | None = None,
    context_width: int | None = None,
    context_norm: bool = False,
    saves_context: bool = True,
    cached: int = 0,
) -> Cost:
    """``AttentionBlock`` over ``queries`` tokens per sample; ``keys`` tokens of context, or None for self-attention.

    ``saves_context`` is False where another attention over the same context keeps it. ``cached`` tokens have keys and
    values given: those of the context, or all of the own stream with the queries' slots.
    """
    own, rows, kv_width = keys is None, case.shape.batch * queries, context_width or width
    context = norm_cost(case.shape.batch * (keys or 0), kv_width, case) if context_norm else Cost()
    attended = attention_cost(
        case, queries, cached or (queries if keys is None else keys), width, kv_width, impl,
        saves_context=not own and saves_context, own=own, cached=cached > 0,
    )  # fmt: skip
    context = context.idle() if cached else context
    return norm_cost(rows, width, case) + context + attended + gate_cost(rows, width, case)


class Layer(nn.Module):
    """One Transformer layer, self-attention without a context, cross-attention with one, then feed-forward.

    x [B, Lq, D], context [B, Lk, context_width]; pre-norm unless the design says otherwise, no feed-forward part
    where the shape has no units for one. ``context_norm`` gives the context a norm of its own; a ``cache`` is as of
    ``Attention``.
    """

    def __init__(
        self, case: Case, width: int, impl: str, *, context_width: int | None = None, context_norm: bool = False
    ) -> None:
        super().__init__()
        self.attention = AttentionBlock(case, width, impl, context_width=context_width, context_norm=context_norm)
        self.ffn = FeedForwardBlock(case, width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Mask = None, cache: KeysAndValues | None = None
    ) -> Tensor:
        y: Tensor = self.ffn(self.attention(x, context, mask, cache))
        return y


def layer_cost(
    case: Case,
    queries: int,
    width: int,
    impl: str,
    *,
    keys: int | None = None,
    context_width: int | None = None,
    context_norm: bool = False,
    saves_context: bool = True,
    cached: int = 0,
) -> Cost:
    """``Layer`` over ``queries`` tokens per sample; arguments as of ``attention_block_cost``."""
    attended = attention_block_cost(
        case, queries, width, impl, keys=keys, context_width=context_width, context_norm=context_norm,
        saves_context=saves_context, cached=cached,
    )  # fmt: skip
    return attended + feed_forward_block_cost(case, queries, width)


class MutualLayer(nn.Module):
    """One layer of attention in both directions, with separate weights per modality (ViLBERT).

    image [B, Li, image_width], text [B, Lt, text_width] -> both, same shapes. Each side's normed tokens are
    its own queries and the other side's context; then the feed-forward part per side, where there is one.
    """

    def __init__(self, case: Case, image_width: int, text_width: int, impl: str) -> None:
        super().__init__()
        self.post = case.design.post_norm
        self.image_norm, self.text_norm = norm(image_width, case), norm(text_width, case)
        self.image_attention = Attention(case, image_width, text_width, impl)
        self.text_attention = Attention(case, text_width, image_width, impl)
        self.image_gate, self.text_gate = Gate(case), Gate(case)
        self.image_ffn = FeedForwardBlock(image_case(case), image_width)
        self.text_ffn = FeedForwardBlock(case, text_width)

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Mask = None, text_mask: Mask = None
    ) -> tuple[Tensor, Tensor]:
        i, t = (image, text) if self.post else (self.image_norm(image), self.text_norm(text))
        image = image + self.image_gate(self.image_attention(i, t, text_mask))
        text = text + self.text_gate(self.text_attention(t, i, image_mask))
        if self.post:
            image, text = self.image_norm(image), self.text_norm(text)
        return self.image_ffn(image), self.text_ffn(text)


def mutual_layer_cost(case: Case, image_width: int, text_width: int, impl: str) -> Cost:
    s = case.shape
    image, text = (s.image, image_width), (s.text, text_width)
    cost = Cost()
    for (queries, width), (keys, context_width) in ((image, text), (text, image)):
        rows = s.batch * queries
        cost += norm_cost(rows, width, case) + gate_cost(rows, width, case)
        cost += attention_cost(case, queries, keys, width, context_width, impl, saves_context=False)
    cost += feed_forward_block_cost(image_case(case), s.image, image_width)
    return cost + feed_forward_block_cost(case, s.text, text_width)


class Encoder(nn.Module):
    """``depth`` self-attention layers over one sequence [B, L, D], or over its last token with a cache of the others.

    The ``cache`` has keys and values [B, Hk, L, d] for each layer, the last slot free for the token.
    """

    def __init__(self, case: Case, width: int, impl: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(case, width, impl) for _ in range(case.shape.depth))

    def forward(self, x: Tensor, mask: Mask = None, cache: Cache = ()) -> Tensor:
        for layer, given in zip_longest(self.layers, cache):
            x = layer(x, None, mask, given)
        return x


def encoder_cost(case: Case, tokens: int, width: int, impl: str, cached: int = 0) -> Cost:
    return layer_cost(case, tokens, width, impl, cached=cached) * case.shape.depth


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward (Vaswani et al. 2017, arXiv 1706.03762).

    x [B, Lq, D], context [B, Lk, context_width]. A rotary or causal design applies to the self-attention. Without
    a context the cross-attention is skipped. Caches are as of ``Attention``.
    """

    def __init__(self, case: Case, width: int, context_width: int, impl: str) -> None:
        super().__init__()
        self.self_attention = AttentionBlock(case, width, impl)
        self.cross_attention = AttentionBlock(case, width, impl, context_width=context_width)
        self.ffn = FeedForwardBlock(case, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask = None,
        context_mask: Mask = None,
        own_cache: KeysAndValues | None = None,
        context_cache: KeysAndValues | None = None,
    ) -> Tensor:
        x = self.self_attention(x, None, mask, own_cache)
        if context is not None or context_cache is not None:
            x = self.cross_attention(x, context, context_mask, context_cache)
        y: Tensor = self.ffn(x)
        return y


class Decoder(nn.Module):
    """``depth`` decoder layers over x [B, Lq, D], which all read the same context [B, Lk, context_width].

    The layers' caches are given apart: keys and values of x's own stream, and of the context.
    """

    def __init__(self, case: Case, width: int, context_width: int, impl: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(case, width, context_width, impl) for _ in range(case.shape.depth))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask = None,
        context_mask: Mask = None,
        own_cache: Cache = (),
        context_cache: Cache = (),
    ) -> Tensor:
        for layer, own, of_context in zip_longest(self.layers, own_cache, context_cache):
            x = layer(x, context, mask, context_mask, own, of_context)
        return x


def decoder_cost(
    case: Case,
    queries: int,
    width: int,
    keys: int,
    context_width: int,
    impl: str,
    *,
    own_cached: int = 0,
    context_cached: int = 0,
) -> Cost:
    layer = layer_cost(case, queries, width, impl, cached=own_cached) + attention_block_cost(
        case, queries, width, impl, keys=keys, context_width=context_width, saves_context=False, cached=context_cached
    )
    read = 0 if context_cached else case.shape.batch * keys * context_width
    context = read if case.shape.depth else 0  # kept once for all layers
    return layer * case.shape.depth + Cost(saved=context, linear_inputs=context)
