"""Modes of generation: what one step takes in, and which keys and values it is given instead of making them.

``decode`` makes one new text token per sample. ``shape.text`` counts it: the new token is the last of them and the last
of all, and keys and values of what came before stand in a cache. ``decode_uncached`` gives the same result
without the cache of the image, whose tokens come in behind their projector (it runs once per image, in no mode here):
cross-attention makes keys and values of them again for every token, and a stream that holds them runs whole and
returns its last token. ``cached`` has all queries, and a context whose keys and values are given: a step of diffusion
after the first, since the prompt stays. Nothing is trained in these modes.

A cache has keys and values, [B, Hk, L, d] each, for every attention that need not make them, in the order in which
they run. Where they are of the new token's own stream, that token's slot is the last: the forward pass writes it in
place, as static caches do (a ``cat`` would copy the whole cache for one token), and a second call writes the same
again. Padding of text stands in front of it in ``decode`` and ``decode_uncached``, so that the new token is the last
for every sample.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from torch import Tensor

from .spec import Case

KeysAndValues = tuple[Tensor, Tensor]  # [B, Hk, L, d] each
Cache = tuple[KeysAndValues, ...]

# The modes, and what a strategy must have for each.
NEEDS = {
    "decode": "a cache of what came before the new token",
    "decode_uncached": "layers that make one text token after the others",
    "cached": "a context beside the queries, of which keys and values can be given",
}
CACHING = tuple(NEEDS)
DECODING = ("decode", "decode_uncached")

Direction = Literal["text_to_image", "image_to_text"]


class Step(Struct, frozen=True, kw_only=True):
    """What one call is given, in tokens per sample.

    ``image`` and ``text`` tokens pass their projectors, ``projected`` image tokens have passed theirs. Each of
    ``layers`` layers is given keys and values of ``own`` tokens, which are the stream of its queries and have slots for
    those, and of ``context`` tokens.
    """

    image: int = 0
    text: int = 0
    projected: int = 0
    own: int = 0
    context: int = 0
    layers: int = 1

    @property
    def caches(self) -> tuple[int, ...]:
        """The tokens of each pair of keys and values, in the order in which they are read."""
        return tuple(tokens for tokens in (self.own, self.context) if tokens) * self.layers


def whole(case: Case) -> Step:
    """All tokens, as every mode takes them in that is none of generation."""
    return Step(image=case.shape.image, text=case.shape.text)


def reading_step(
    case: Case, direction: Direction = "text_to_image", *, layers: int = 1, attends_itself: bool = False
) -> Step:
    """The step of layers in which one modality's tokens query the other's, and before that their own or not."""
    s, own = case.shape, case.shape.text if attends_itself else 0
    if case.mode == "cached" and direction == "image_to_text":
        return Step(image=s.image, context=s.text, layers=layers)
    steps = {
        "decode": Step(text=1, own=own, context=s.image, layers=layers),
        "decode_uncached": Step(text=1, projected=s.image, own=own, layers=layers),
        "cached": Step(text=s.text, context=s.image, layers=layers),
    }
    return steps.get(case.mode, whole(case))


def stream_step(case: Case) -> Step:
    """The step of ``depth`` layers of self-attention over image and text tokens as one stream."""
    s = case.shape
    steps = {
        "decode": Step(text=1, own=s.image + s.text, layers=s.depth),
        "decode_uncached": Step(text=s.text, projected=s.image),
    }
    return steps.get(case.mode, whole(case))


def image_asks(case: Case, direction: Direction) -> str | None:
    """The refusal of layers whose queries are no text: they make no token of it."""
    if case.mode in DECODING and direction == "image_to_text":
        return f"mode '{case.mode}' makes a text token, and here image tokens query (use mode 'cached')"
    return None


def sees_ahead(case: Case) -> str | None:
    """The refusal of self-attention that is not causal: a new token would change what came before it."""
    if case.mode in DECODING and not case.design.causal:
        return f"mode '{case.mode}' needs a causal design, whose earlier tokens a new one leaves as they are"
    return None
