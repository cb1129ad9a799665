"""Claims about which shapes an operation takes and gives: the operation is called with them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..blocks import Attention
from ..ledger import Figure
from ..registry import get
from ..spec import Case, Shape
from ..streams import pool
from .check import Answer, Check, Lab, judged, runs, times

# Queries x width over context x width, heads, inner width, as published.
UNEQUAL = (
    ("Stable Diffusion 1.5", (4096, 320), (77, 768), 8, 320),
    ("BLIP-2's Q-Former", (32, 768), (257, 1408), 12, 768),
    ("OpenFlamingo 9B", (64, 4096), (64, 1024), 8, 512),
)


def mismatch(lab: Lab) -> Answer:
    """C2: an accuracy "at mismatched dimensions" would need an operation that takes them."""
    image, text = torch.randn(2, 8, 768), torch.randn(2, 8, 4096)
    attempts = {
        "scores QKᵀ": lambda: image @ text.transpose(1, 2),
        "concatenation of tokens": lambda: torch.cat([image, text], dim=1),
        "sum": lambda: image + text,
        "product": lambda: image * text,
        "cosine": lambda: nn.functional.cosine_similarity(image, text, dim=-1),
    }
    took = [name for name, attempt in attempts.items() if runs(attempt)]
    return Answer(
        "needs the quality track" if took else "not testable as stated",
        (Figure(what="operations that refuse widths 768 and 4096", value=len(attempts) - len(took),
                unit=f"of {len(attempts)}"),),
        f"{' and '.join(took)} takes unequal widths" if took else
        "unequal widths do not run, so there is no accuracy to lose; one projector can be compared with another",
    )  # fmt: skip


def widths(lab: Lab) -> Answer:
    """C7: the projections of keys and values take the context's width and give the query's."""
    figures, refused = [], []
    for name, (queries, width), (keys, context_width), heads, inner in UNEQUAL:
        with torch.device("meta"):
            shape = Shape(
                batch=1, image=keys, text=queries, image_width=context_width, text_width=width, width=inner, heads=heads
            )
            attention = Attention(Case(shape=shape), width, context_width, "eager")
            x, context = torch.empty(1, queries, width), torch.empty(1, keys, context_width)
        refused.append(not _serves(attention, x, context))
        weights = attention.k.weight.numel() + attention.v.weight.numel()
        figures.append(
            times(
                f"weights of K and V over those at equal widths, {name}: {width} asks {context_width}",
                weights / (2 * inner * width),
            )
        )
    return Answer(
        judged(refused),
        (Figure(what="unequal widths that run", value=refused.count(False), unit=f"of {len(refused)}"), *figures),
        "only without projections: those of keys and values are rectangular and absorb the difference",
    )


def _serves(attention: Attention, x: Tensor, context: Tensor) -> bool:
    """Whether x gets an output of its own shape."""
    return runs(lambda: attention(x, context)) and attention(x, context).shape == x.shape


def query_shape(lab: Lab) -> Answer:
    """C10: whatever the context, the asking side keeps its shape."""
    kept = []
    for image, text, (image_width, text_width, width, heads), ffn in itertools.product(
        (1, 7, 63), (1, 5, 77), ((12, 12, 12, 3), (20, 8, 16, 4), (8, 24, 24, 1)), (0, 4)
    ):
        of = Case(
            shape=Shape(batch=2, image=image, text=text, image_width=image_width, text_width=text_width, width=width,
                        heads=heads, ffn=ffn),
            projector="identity",
        )  # fmt: skip
        images, texts = torch.randn(2, image, image_width), torch.randn(2, text, text_width)
        for name, query in (("cross_attention", texts), ("cross_attention:image_to_text", images)):
            with torch.no_grad():
                kept.append(get(name).module(of, "sdpa")(images, texts).shape == query.shape)
    return Answer(
        judged(kept),
        (Figure(what="outputs with the query's shape", value=sum(kept), unit=f"of {len(kept)}"),),
        "of the asking side alone: the other one's tokens are not in the output",
    )


def values_of_the_query(lab: Lab) -> Answer:
    """C18: A [Lv, Lt] times V [Lv, d] has no meaning; attention over text takes values from the text."""
    means_something = [_runs_and_is_attention(*lengths) for lengths in ((36, 20), (20, 36), (576, 64), (20, 20))]
    with_text_values = [_is_attention(36, 20, values="text"), _is_attention(20, 20, values="text")]
    total = len(means_something)
    return Answer(
        judged(means_something),
        (
            Figure(what="pairs of lengths where A·V is attention over the text", value=sum(means_something),
                   unit=f"of {total}"),
            Figure(what="pairs of lengths where A·(T·Wv) is", value=sum(with_text_values),
                   unit=f"of {len(with_text_values)}"),
        ),
        "nowhere: at unequal lengths A·V does not run, at equal ones the order of the text tokens changes it. Meant is "
        "A·(T·Wv)",
    )  # fmt: skip


def _runs_and_is_attention(vision: int, text: int) -> bool:
    return runs(lambda: _fused(vision, text, "vision")) and _is_attention(vision, text, values="vision")


def _is_attention(vision: int, text: int, values: str) -> bool:
    """Attention is a weighted sum over a set: exchanging text tokens together with their keys changes nothing."""
    straight, shuffled = _fused(vision, text, values)
    return torch.allclose(straight, shuffled, rtol=1e-9, atol=1e-12)


def _fused(vision: int, text: int, values: str, width: int = 16) -> tuple[Tensor, Tensor]:
    """The formula with V [Lv, d] and T [Lt, d], and with the text tokens in reverse order."""
    generator = torch.Generator().manual_seed(vision * text)
    v, t = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (vision, text))

    def formula(t: Tensor) -> Tensor:
        weights = (v @ t.T / width**0.5).softmax(dim=-1)  # [Lv, Lt]
        fused: Tensor = weights @ (v if values == "vision" else t)
        return fused

    return formula(t), formula(t.flip(0))


def concatenation_axis(lab: Lab) -> Answer:
    """C19: [V; T] is one of two operations, and each wants something made equal first."""
    vision, text = torch.randn(2, 36, 24), torch.randn(2, 20, 16)
    to_text = nn.Linear(24, 16)
    attempts = {
        "tokens, widths as they are": lambda: torch.cat([vision, text], dim=1),
        "tokens, projected to one width": lambda: torch.cat([to_text(vision), text], dim=1),
        "features, lengths as they are": lambda: torch.cat([vision, text], dim=2),
        "features, pooled to one vector each": lambda: torch.cat([pool(vision, None), pool(text, None)], dim=1),
    }
    found = {name: runs(attempt) for name, attempt in attempts.items()}
    return Answer(
        judged(found.values()),
        (Figure(what="readings that run", value=sum(found.values()), unit=f"of {len(found)}"),),
        f"only as: {'; '.join(name for name, ran in found.items() if ran)}",
    )


def patch_vector(lab: Lab) -> Answer:
    """C27: a patch holds P·P numbers per channel."""
    project, side = nn.Linear(256, 768), 16
    figures, found = [], {}
    for name, channels in (("one-channel", 1), ("RGB", 3)):
        patches = nn.functional.unfold(torch.randn(1, channels, 48, 48), side, stride=side).transpose(1, 2)
        numbers = patches.shape[-1]
        found[name] = runs(partial(project, patches))
        figures.append(Figure(what=f"numbers in a 16 × 16 patch, {name}", value=numbers))
        figures.append(Figure(what=f"parameters of its Linear to 768, {name}", value=numbers * 768 + 768))
    return Answer(
        judged(found.values()),
        tuple(figures),
        f"for {' and '.join(name for name, ran in found.items() if ran)} images; RGB gives 16·16·3 = 768 numbers",
    )


class MultiModalTransformer(nn.Module):
    """The joint encoder-decoder as it is printed, but small: project, concatenate, encode, decode."""

    def __init__(self, text_dim: int, image_dim: int, hidden: int) -> None:
        super().__init__()
        self.text_projection, self.image_projection = nn.Linear(text_dim, hidden), nn.Linear(image_dim, hidden)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(hidden, 4, batch_first=True), 1)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(hidden, 4, batch_first=True), 1)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        encoded = self.encoded(text, image)
        decoded: Tensor = self.decoder(encoded)
        return decoded

    def encoded(self, text: Tensor, image: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(torch.cat([self.text_projection(text), self.image_projection(image)], dim=1))
        return tokens


def printed_decoder(lab: Lab) -> Answer:
    """C28: nn.TransformerDecoder attends to a memory, which the printed call leaves out."""
    model = MultiModalTransformer(12, 20, 16)
    text, image = torch.randn(2, 5, 12), torch.randn(2, 9, 20)
    error = ""
    try:
        model(text, image)
    except TypeError as missing:
        error = str(missing)
    memory = model.encoded(text, image)
    mended = model.decoder(memory[:, :5], memory)
    return Answer(
        judged([not error]),
        (
            Figure(what="calls that run as printed", value=float(not error), unit="of 1"),
            Figure(what="calls that run with a memory", value=float(mended.shape == (2, 5, 16)), unit="of 1"),
        ),
        f"PyTorch says: {error}" if error else "",
        "text tokens as the decoder's targets and the encoded stream as its memory make it run",
    )


CHECKS: Mapping[str, Check] = {
    "C2": mismatch,
    "C7": widths,
    "C10": query_shape,
    "C18": values_of_the_query,
    "C19": concatenation_axis,
    "C27": patch_vector,
    "C28": printed_decoder,
}
