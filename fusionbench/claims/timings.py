"""Claims about latency: timed here, on one thread of the CPU, side by side with what they are compared to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from ..int8 import Int8Linear
from ..ledger import Figure
from ..meters.time import measure
from ..record import Timing
from ..spec import Budget
from ..stats import least_samples, median_interval, percentile
from .check import Answer, Check, Lab, judged
from .costs import BOTH, CONCAT, SHAPES, TEXT_ASKS, call, case, size
from .paired import Ratio, compare

FRAME_MS = 1000 / 30
BUSY = 0.05  # share of waiting from which a latency says more about the neighbours
HIGHER = (0.9, 0.99)  # percentiles, where there are samples enough


@torch.no_grad()
def smaller_numbers(lab: Lab) -> Answer:
    """C5: int8 with its quantisation, a weight that is mostly zero, and a layer that is really half as wide."""
    rows, widths, seconds = 64, (64, 128, 256, 512, 1024), lab.seconds / 2
    int8 = {width: _int8_over_fp32(rows, width, seconds) for width in widths}
    dense, masked, half = nn.Linear(768, 768), nn.Linear(768, 768), nn.Linear(768, 384)
    masked.weight.mul_(torch.rand_like(masked.weight) > 0.9)
    x = torch.randn(1, rows, 768)
    unstructured = compare(lambda: masked(x), lambda: dense(x), seconds)
    structured = compare(lambda: half(x), lambda: dense(x), seconds)
    return Answer(
        judged(ratio.faster for ratio in (*int8.values(), unstructured, structured)),
        (
            *(ratio.figure(f"time of int8 over fp32, Linear {w}→{w}, {rows} rows") for w, ratio in int8.items()),
            unstructured.figure("time with 90 % of the weights zero over dense, Linear 768→768"),
            structured.figure("time with half of the outputs removed over dense, Linear 768→768"),
        ),
        f"int8: {_crossover(int8)}; zeroed weights: {_saved(unstructured)}; removed outputs: {_saved(structured)}",
        "int8 is the backend int8: weights per channel, activations quantised in every call, that time included",
    )


def _int8_over_fp32(rows: int, width: int, seconds: float) -> Ratio:
    layer, x = nn.Linear(width, width), torch.randn(1, rows, width)
    quantized = Int8Linear(layer)
    return compare(lambda: quantized(x), lambda: layer(x), seconds)


def _crossover(ratios: Mapping[int, Ratio]) -> str:
    """From which width on int8 is clearly the faster one, without a relapse."""
    pays: list[int] = []
    for width, ratio in sorted(ratios.items(), reverse=True):
        if not ratio.faster:
            break
        pays.append(width)
    widest = max(ratios)
    if not pays:
        return f"not faster here, up to width {widest}"
    return f"faster here from width {min(pays)} on" if min(pays) > min(ratios) else "faster here at every width tried"


def _saved(ratio: Ratio) -> str:
    return f"{100 * (1 - ratio.middle):.0f} % of the time saved" if ratio.faster else "no time saved"


@torch.no_grad()
def real_time(lab: Lab) -> Answer:
    """C20: from one layer to a whole stack, against the time of a video frame."""
    subjects = (
        # The first is short enough for the samples that a p99 needs.
        ("one co-attention layer", BOTH, (36, 20, 256, 4), 1),
        ("one co-attention layer", BOTH, SHAPES[2], 1),
        ("one cross-attention layer", TEXT_ASKS, (576, 64, 1024, 16), 1),
        ("12 layers over the concatenation", CONCAT, SHAPES[2], 12),
    )
    figures: list[Figure] = []
    heavy: dict[str, bool] = {}
    waited = sampled = 0
    for what, name, shape, depth in subjects:
        named = f"{what}, {size(*shape)}"
        budget = Budget(measure_s=lab.seconds, min_samples=6, max_samples=least_samples(HIGHER[-1]), ci=1e-9)
        timing = measure(call(name, case(*shape, depth=depth), lab), budget, torch.device("cpu"), lambda: False)
        found = _percentiles(timing, named)
        figures += found
        waited, sampled = waited + sum(timing.run_delay_ns), sampled + sum(timing.samples_ns)
        heavy[named] = found[0].low is not None and found[0].low > FRAME_MS
    late = [what for what, slow in heavy.items() if slow]
    return Answer(
        judged(heavy.values()),
        (*figures, Figure(what="of the time spent waiting for a core", value=100 * waited / sampled, unit="%")),
        f"too slow on one thread here: {'; '.join(late)}; the others end within {FRAME_MS:.1f} ms" if late else
        f"all of these end within {FRAME_MS:.1f} ms on one thread here",
        "fp32, SDPA; encoders and language models come on top"
        + ("; the machine was busy, on a quiet one these are faster" if waited > BUSY * sampled else ""),
    )  # fmt: skip


def _percentiles(timing: Timing, what: str) -> list[Figure]:
    """The median with its interval, and those higher percentiles that there are samples enough for."""
    per_call = [sample / timing.loops / 1e6 for sample in timing.samples_ns]
    middle, low, high = median_interval(per_call)
    figures = [Figure(what=f"p50 of {what}", value=middle, unit="ms", low=low, high=high)]
    for share in HIGHER:
        if (value := percentile(per_call, share)) is not None:
            figures.append(Figure(what=f"p{share * 100:.0f} of {what}", value=value, unit="ms"))
    return figures


@torch.no_grad()
def sparse(lab: Lab) -> Answer:
    """C24: what a mask, the best keys and a window leave of the time of dense attention, at a short and a long length.

    The mask and the best keys keep an eighth of all keys, the window one in length / 32.
    """
    ratios: dict[str, Ratio] = {}
    for length in (64, 512):
        q, k, v = (torch.randn(1, 4, length, 64) for _ in range(3))
        for name, attention in _sparse(q, k, v).items():
            ratios[f"{name}, {length}×{length} tokens"] = compare(attention, lambda: sdpa(q, k, v), lab.seconds / 2)  # noqa: B023
    pays = [name for name, ratio in ratios.items() if ratio.faster]
    return Answer(
        judged(ratio.faster for ratio in ratios.values()),
        tuple(ratio.figure(f"time over dense: {name}, 4 heads of 64") for name, ratio in ratios.items()),
        f"here only as: {'; '.join(pays)}" if pays else "nowhere here",
        "plain PyTorch; a mask or a choice of keys saves time only where a kernel skips what it leaves out",
    )


def _sparse(q: Tensor, k: Tensor, v: Tensor, window: int = 32) -> dict[str, Callable[[], Tensor]]:
    """q, k, v [B, H, L, d]: a mask over dense scores, the best of dense scores, and blocks of ``window`` tokens."""
    length = q.shape[2]
    kept = torch.rand(length, length) < 1 / 8
    kept.fill_diagonal_(True)

    def masked() -> Tensor:
        return sdpa(q, k, v, kept)

    def best() -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        values, keys = scores.topk(max(1, length // 8), dim=-1)
        return torch.zeros_like(scores).scatter_(-1, keys, values.softmax(dim=-1)) @ v

    def windowed() -> Tensor:
        blocks = (q.shape[0], -1, window, q.shape[-1])  # [B, H·L/w, w, d]
        return sdpa(q.view(blocks), k.view(blocks), v.view(blocks)).view(q.shape)

    return {"mask": masked, "top-k": best, f"windows of {window}": windowed}


CHECKS: Mapping[str, Check] = {"C5": smaller_numbers, "C20": real_time, "C24": sparse}
