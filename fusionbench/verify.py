"""Is a job's result right? Compare it, and eager PyTorch in the same dtype, with the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from . import registry
from .meters import accuracy
from .record import Accuracy, Deviation
from .spec import Budget, Job, Shape
from .subject import Subject, compute_dtype, first, twin

# The reference is checked on as many samples of the batch as it can afford: about half a second of fp64 on
# one CPU core (37 GFLOP/s measured), and 1 GiB for the scores that eager attention writes in fp64.
REFERENCE_FLOPS = {"cpu": 2e10, "cuda": 2e12}
REFERENCE_SCORES = 2**27

OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0  # how much worse than eager a right result may be


def check(job: Job, subject: Subject, budget: Budget) -> tuple[Accuracy, str | None]:
    """The errors against the reference, and the reason why the result is wrong (None: it is right)."""
    samples = _affordable_samples(job)
    reference = _reference_dtype(job, samples)
    inputs = subject.inputs if samples == job.case.shape.batch else first(subject.inputs, samples)
    result = Subject(subject.module, inputs, subject.training)
    truth = twin(job, budget.seed, reference, inputs)
    yardstick = twin(job, budget.seed, compute_dtype(job.case), inputs)
    outputs = [s.outputs() for s in (result, truth, yardstick)]
    found, problem = _judge(job, budget, outputs, OUTPUT_FACTOR, "output")
    gradient: tuple[Deviation, Deviation] | tuple[None, None] = (None, None)
    if subject.training:
        gradients = [s.gradients(o) for s, o in zip((result, truth, yardstick), outputs, strict=True)]
        gradient, gradient_problem = _judge(job, budget, gradients, GRADIENT_FACTOR, "gradient")
        problem = problem or gradient_problem
    errors = Accuracy(
        reference="fp64" if reference == torch.float64 else "fp32",
        samples=samples,
        output=found[0],
        yardstick=found[1],
        gradient=gradient[0],
        gradient_yardstick=gradient[1],
    )
    return errors, problem


def _judge(
    job: Job, budget: Budget, tensors: list[tuple[Tensor, ...]], factor: float, what: str
) -> tuple[tuple[Deviation, Deviation], str | None]:
    """((error, yardstick's error), reason) of (result, truth, yardstick)."""
    result, truth, yardstick = tensors
    if [t.shape for t in result] != [t.shape for t in truth]:
        raise RuntimeError(f"{what} shapes {[tuple(t.shape) for t in result]} differ from the reference's")
    errors = accuracy.deviation(result, truth), accuracy.deviation(yardstick, truth)
    if job.case.dtype == "int8":
        reason = accuracy.int8_verdict(errors[0], budget.int8_rel_l2, budget.int8_cosine)
    else:
        allowance = accuracy.summation_allowance(
            compute_dtype(job.case), _longest_sum(job.case.shape), tf32=job.case.dtype == "tf32"
        )
        reason = accuracy.verdict(result, yardstick, truth, allowance, factor)
    return errors, f"{what}: {reason}" if reason else None


def _longest_sum(shape: Shape) -> int:
    """How many numbers the longest sum of a strategy adds: over features, keys, or the rows of a weight gradient."""
    features = max(shape.image_width, shape.text_width, max(1, shape.ffn) * shape.width)
    return max(features, shape.batch * (shape.image + shape.text))


def _affordable_samples(job: Job) -> int:
    shape, device = job.case.shape, torch.device(job.case.device).type
    cost = registry.get(job.strategy).costs(job.case, "eager")
    per_sample = max(1, (cost.flops + cost.backward_flops) // shape.batch)
    scores = shape.heads * (shape.image + shape.text) ** 2
    return int(max(1, min(shape.batch, REFERENCE_FLOPS[device] // per_sample, REFERENCE_SCORES // scores)))


def _reference_dtype(job: Job, samples: int) -> torch.dtype:
    """fp64, or fp32 for a half-precision job whose reference would take ten times what it can afford."""
    case = job.case
    flops = registry.get(job.strategy).costs(case, "eager").flops * samples // case.shape.batch
    too_large = flops > 10 * REFERENCE_FLOPS[torch.device(case.device).type]
    return torch.float32 if too_large and case.dtype in ("fp16", "bf16", "int8") else torch.float64
