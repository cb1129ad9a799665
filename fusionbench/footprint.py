"""How much memory a job needs, from its closed form: what does not fit is refused before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from . import backends, registry
from .attention import CHUNK
from .environment import device_memory
from .presets import shrunk
from .spec import Job
from .verify import affordable_samples

# Of the memory that is there: the rest is for the interpreter, torch's libraries (0.5 GB) and the system.
SHARE = 0.9

ITEMSIZE = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 4}
TRUTH, MADE = 8, 4  # bytes of an element of the reference, fp64, and of the fp32 module that it is made from


def footprint(job: Job) -> int:
    """Bytes that a job holds at its worst, estimated from closed forms: mostly while it is verified.

    Weights with those of the reference, inputs, caches, and what lies between for the job and for the samples that the
    reference computes by eager attention: of a forward pass one layer of it, of training all layers, once more for
    their gradients, and the gradients of the weights. The measured peak of a process above its start was 0.55 to 1.28
    of it in 30 of 31 jobs of 18 MB to 4.6 GB (M1), and 2.5 in one whose elementwise work no product shows.
    """
    case, strategy, backend = job.case, registry.get(job.strategy), backends.get(job.backend)
    s, item = case.shape, ITEMSIZE[case.dtype]
    cost, eager = (strategy.costs(case, impl) for impl in (backend.impl_for(strategy) or "eager", "eager"))
    weights = cost.params * (item + TRUTH + MADE) + cost.trainable * (2 * item + TRUTH) * case.training
    inputs = s.batch * (s.image * s.image_width + s.text * s.text_width) * (item + TRUTH + MADE)
    share = affordable_samples(job) / s.batch
    truth = eager.activation_bytes(TRUTH) * share
    if not case.training:  # eager attention then holds no more scores at a time than a chunk of them
        scores = share * s.batch * s.heads * TRUTH * max(s.image, s.text) ** 2
        truth -= max(0.0, min(truth / 2, scores - CHUNK * TRUTH))
    between = cost.activation_bytes(item) + truth
    return int(
        weights + inputs + cost.cached * (item + TRUTH) + between * (2 if case.training else 1 / max(1, s.depth))
    )


def refusal(job: Job, memory: Callable[[str], int | None] | None = None) -> str | None:
    """Why the job does not fit the memory of its device, with the largest scale of it that does; None if it fits.

    ``memory`` tells how much a device has; without it those of this machine are asked.
    """
    available, needed = (memory or device_memory)(job.case.device), footprint(job)
    if available is None or needed <= SHARE * available:
        return None
    words = f"needs about {_gib(needed)} GiB of memory, and '{job.case.device}' has {_gib(available)} GiB"
    return words + _remedy(job, int(SHARE * available))


def _remedy(job: Job, room: int) -> str:
    """The largest scale that fits; sizes that are no preset's have none."""
    case = job.case
    if not case.preset:
        return ""
    for further in range(2, 1024):
        if footprint(msgspec.structs.replace(job, case=shrunk(case, further))) <= room:
            return f"; the largest scale that fits is 1/{case.shrink * further}"
    return ""


def _gib(count: int) -> str:
    return f"{count / 2**30:,.3g}" if count < 2**40 else f"{count / 2**30:,.0f}"
