"""The kinds of notes that records carry: what each one means for its number, and what to do about it.

The patterns are plain enough to mean the same to Python and to the page's JavaScript.
"""

from __future__ import annotations

import re

from msgspec import Struct


class Kind(Struct, frozen=True):
    """Notes with the same cause; ``pattern`` is found somewhere in each of them."""

    title: str
    pattern: str
    cause: str
    remedy: str


KINDS = (
    Kind(
        "waited for a core",
        r"^waited \d+% of the time for a core",
        "Other programs ran on the cores while samples were taken. With one thread that wait is taken off the times, "
        "but what the others did to the caches is not.",
        "close other programs or use fewer threads (--threads), then measure the jobs again",
    ),
    Kind(
        "stood still",
        r"^a sample took .*, as if the process was stopped",
        "One sample is far longer than the rest, as after a suspension. It is kept; the median bears it.",
        "keep the machine awake, and measure again if the interval is wide",
    ),
    Kind(
        "throttled",
        r" throttled \(.*\) while samples were taken",
        "The device lowered its clocks, and no samples without it came in time: the times are too long.",
        "see to cooling and power or lock the clocks (fusionbench doctor), then measure again",
    ),
    Kind(
        "shared the device",
        r" other process(es)? uses? .* and timings share it with them",
        "Other processes were on the same GPU: its time and its memory were divided.",
        "wait for them or choose another device, then measure again",
    ),
    Kind(
        "dtype is emulated",
        r" is emulated on this (CPU|GPU) | is a format of GPUs, ",
        "The hardware has no instructions for this dtype and converts: the error is right, the time says nothing about "
        "hardware that has them.",
        "compare times of this dtype only where it is native",
    ),
    Kind(
        "unclear whether native",
        r"^whether .* is native on this (CPU|GPU) is unclear",
        "What the processor can do could not be read, so that emulation can be neither told nor ruled out.",
        "look the processor up before trusting times of this dtype",
    ),
    Kind(
        "keeps memory",
        r"^keeps .* MB more with each call",
        "Memory that a call allocated is not free after it: a leak, or a cache that grows.",
        "let the module hold no tensors of past calls",
    ),
    Kind(
        "a timer is missing",
        r"^no timer '",
        "One of the timers could not time this call; the others did. A call that synchronises cannot be captured in a "
        "CUDA graph.",
        "see the note for what stood in the way; --timer says which are tried",
    ),
    Kind(
        "differs from call to call",
        r"^two calls on the same inputs differ by ",
        "Two calls on the same inputs gave results that differ by rounding: sums are added in another order each time.",
        "none needed for timing; for results to the bit choose a backend without atomic additions",
    ),
    Kind(
        "FLOPs are counted otherwise",
        r"^FlopCounterMode counts \d+ FLOPs",
        "PyTorch's counter and the closed form disagree, so that rates of this job are in doubt.",
        "correct the strategy's cost function",
    ),
    Kind(
        "changed a setting",
        r"^changed .*; it is put back, ",
        "The job changed something of the process that is no part of its work; what follows is not affected.",
        "leave such settings alone in a plugin",
    ),
)


def kind_of(note: str) -> Kind | None:
    """What is known of a note; None for one that a plugin or a newer version made."""
    return next((kind for kind in KINDS if re.search(kind.pattern, note)), None)
