"""The fusion configurations of real systems, read from presets.toml: sizes and designs, whole or shrunk."""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from .errors import SuiteError, UnknownNameError, printable, refuse_unknown
from .spec import PLAIN, Case, Count, Design, Job, Name, Natural, Projector, Shape, Size

Extent = Literal["layer", "stack"]
EXTENTS: tuple[str, ...] = get_args(Extent)


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of layer by which a system fuses: the strategy that realises it, its sizes, how many there are."""

    name: str = ""
    strategy: str = ""  # none: a pair of encoders, which leaves the fusion to the sweep
    layers: Count = 1
    batch: Size = 1
    image: Size
    image_width: Size
    text: Size
    text_width: Size
    width: Size
    heads: Size
    ffn: Count = 4
    hidden: Natural = 0
    projector: Projector = "identity"
    type_embedding: bool = False
    design: Design = PLAIN

    @property
    def summary(self) -> str:
        """Its sizes in words, as a reader compares them."""
        layers = f"{self.layers} x " if self.layers > 1 else ""
        heads = f"{self.heads} heads" + (f" ({self.design.kv_heads} of keys)" if self.design.kv_heads else "")
        tokens = f"{self.image} x {self.image_width} image, {self.text} x {self.text_width} text"
        return f"{layers}{self.strategy}, {tokens}, width {self.width}, {heads}"

    def case(self) -> Case:
        """One layer of it, whole."""
        shape = Shape(
            batch=self.batch, image=self.image, text=self.text, image_width=self.image_width,
            text_width=self.text_width, width=self.width, heads=self.heads, depth=self.depth("layer"), ffn=self.ffn,
            hidden=self.hidden,
        )  # fmt: skip
        return Case(shape=shape, projector=self.projector, type_embedding=self.type_embedding, design=self.design)

    def depth(self, extent: Extent) -> int:
        """How many layers: one, or all of them; 0 where the fusion has none."""
        return min(1, self.layers) if extent == "layer" else self.layers


class Preset(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A system by name: what it is, where its numbers stand, and the parts by which it fuses."""

    title: str
    source: str
    part: Annotated[tuple[Part, ...], Meta(min_length=1)]


class Encoder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a unimodal encoder hands to a fusion: tokens of a width."""

    tokens: Size
    width: Size
    source: str


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("presets.toml").read_text())


@functools.cache
def presets() -> dict[Name, Preset]:
    """All presets by name, in the table's order."""
    return {n: msgspec.convert(t, Preset) for n, t in _table().items() if n != "encoders"}


@functools.cache
def encoders() -> dict[str, Encoder]:
    """The unimodal encoders; ``resnet-50+bert-base`` is the preset of two of them."""
    return msgspec.convert(_table()["encoders"], dict[str, Encoder])


def parts(names: Iterable[str]) -> Iterator[tuple[str, Part]]:
    """(label, part) of each preset in ``names``: all of ``sd15``'s, one of ``sd15:64x64``, a pair of encoders.

    Raises UnknownNameError with the nearest preset, part or encoder, SuiteError for an encoder alone.
    """
    for name in names:
        own, _, wanted = name.partition(":")
        if "+" in name:
            yield name, _pair(*name.split("+", 1))
            continue
        if own in encoders():
            raise SuiteError(f"'{own}' is an encoder; a preset of two joins them, as vit-b16+bert-base")
        if own not in presets():
            raise UnknownNameError("preset", name, presets())
        labelled = {f"{own}:{part.name}" if part.name else own: part for part in presets()[own].part}
        if wanted and name not in labelled:
            raise UnknownNameError("preset", name, labelled)
        yield from ((label, part) for label, part in labelled.items() if not wanted or label == name)


def _pair(image: str, text: str) -> Part:
    refuse_unknown("encoder", (image, text), encoders())
    i, t = encoders()[image], encoders()[text]
    width = max(i.width, t.width)
    return Part(
        image=i.tokens, image_width=i.width, text=t.tokens, text_width=t.width, width=width,
        heads=width // 64, projector="linear",
    )  # fmt: skip


def denominator(scale: str) -> int:
    """8 for ``1/8``; raises SuiteError for what is no whole part of one."""
    top, slash, bottom = scale.partition("/")
    if top != "1" or (slash and not (bottom.isascii() and bottom.isdigit() and 1 <= int(bottom[:6]) <= 1024)):
        raise SuiteError(f"scale '{printable(scale)}' is not 1 or 1/N with N up to 1024 (as 1/8)")
    return int(bottom) if slash else 1


def shrunk(case: Case, by: int) -> Case:
    """The case with tokens, widths, hidden units, latents and layers divided by ``by``; the batch stays.

    Widths stay multiples of 8. Heads keep the width that they have, as nearly as the new width allows, and go on
    sharing keys in the same proportion.
    """
    if by == 1:
        return case
    s, d = case.shape, case.design
    width = _width(s.width, by)
    heads = _heads(width, s.width // s.heads)
    shape = Shape(
        batch=s.batch,
        image=_tokens(s.image, by),
        text=_tokens(s.text, by),
        image_width=_width(s.image_width, by),
        text_width=_width(s.text_width, by),
        width=width,
        heads=heads,
        depth=min(s.depth, _tokens(s.depth, by)),
        ffn=s.ffn,
        hidden=_width(s.hidden, by) if s.hidden else 0,
    )
    design = msgspec.structs.replace(
        d,
        kv_heads=math.gcd(heads, max(1, heads * d.kv_heads // s.heads)) if d.kv_heads else 0,
        latents=_tokens(d.latents, by) if d.latents else 0,
        image_hidden=_width(d.image_hidden, by) if d.image_hidden else 0,
        text_heads=_heads(shape.text_width, s.text_width // d.text_heads) if d.text_heads else 0,
    )
    return msgspec.structs.replace(case, shape=shape, design=design, shrink=case.shrink * by)


def candidate(job: Job) -> str:
    """What is compared with others: a strategy, of which system, how many layers of it, and what was done to it."""
    case, strategy = job.case, job.strategy
    if not case.preset:
        return f"{strategy} {case.treatment}".strip()
    layers = f"x{case.shape.depth}" if case.shape.depth > 1 else ""
    return " ".join(filter(None, (case.preset, strategy, layers, case.treatment, *departures(case))))


def departures(case: Case) -> tuple[str, ...]:
    """In what a case of a preset is not as the preset says, lengths and layers aside, as ``projector=identity``."""
    whole = own(case.preset, case.shrink)
    if whole is None:
        return ()
    sizes = ("image_width", "text_width", "width", "heads", "ffn", "hidden")
    shape, asked = whole.shape, case.shape
    named = [n for n in sizes if getattr(asked, n) != getattr(shape, n) and not (case.match and n == "hidden")]
    changed = [f"{name}={getattr(asked, name)}" for name in named]
    changed += [
        f"{n}={getattr(case, n)}" for n in ("projector", "type_embedding") if getattr(case, n) != getattr(whole, n)
    ]
    return (*changed, *(["design changed"] if case.design != whole.design else []))


@functools.cache
def own(label: str, by: int) -> Case | None:
    """The case of a preset's part as the table has it; None for a name that this table has not."""
    try:
        ((_, part),) = parts([label])
    except (UnknownNameError, ValueError):
        return None
    return shrunk(part.case(), by)


def _tokens(n: int, by: int) -> int:
    return max(1, round(n / by))


def _width(n: int, by: int) -> int:
    return max(8, 8 * round(n / by / 8))


def _heads(width: int, head_dim: int) -> int:
    """How many heads give the head dim nearest to ``head_dim`` on a log scale, an even one, for rotations."""
    possible = [h for h in range(1, width // 2 + 1) if width % (2 * h) == 0]
    return min(possible, key=lambda h: abs(math.log(width / h / head_dim)))
