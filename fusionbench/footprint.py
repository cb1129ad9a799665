"""How much memory a job needs, from its closed form: what does not fit is refused before anything is allocated."""

from __future__ import annotations

import msgspec

from . import backends, registry
from .environment import device_memory
from .presets import shrunk
from .spec import Job

# Of the memory that is there: the rest is for the interpreter, torch's libraries (0.5 GB) and the system.
SHARE = 0.9

ITEMSIZE = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 4}
TRUTH = 8  # bytes of an element of the reference, fp64


def footprint(job: Job) -> int:
    """Bytes that a job holds at its worst, estimated: weights, their reference in fp64, inputs and what lies between.

    A forward pass holds what one of its layers keeps, a backward pass what all of them keep, and the gradients.
    The measured peak is between 0.4 and 1.1 of it for layers of 10 MB to 2 GB.
    """
    case, strategy, backend = job.case, registry.get(job.strategy), backends.get(job.backend)
    cost, s = strategy.costs(case, backend.impl_for(strategy) or "eager"), case.shape
    item, training = ITEMSIZE[case.dtype], case.training
    weights = cost.params * (item + TRUTH) + (cost.params * (2 * item + TRUTH) if training else 0)
    inputs = (s.batch * (s.image * s.image_width + s.text * s.text_width) + cost.cached) * (item + TRUTH)
    layers = 1 if training else max(1, s.depth)
    return weights + inputs + cost.activation_bytes(item) // layers


def refusal(job: Job) -> str | None:
    """Why the job does not fit the memory of its device, with the largest scale of it that does; None if it fits."""
    available, needed = device_memory(job.case.device), footprint(job)
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
