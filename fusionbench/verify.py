"""Is a job's result right? Compare it, and eager PyTorch in the same dtype, with the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from . import registry
from .attention import in_chunks
from .meters import accuracy
from .record import Accuracy, Deviation
from .registry import Inputs
from .spec import Budget, Job, Shape
from .subject import Subject, compute_dtype, cotangents, select, twin

# The reference is computed for as many samples of the batch as it can afford: about half a second of fp64 on one
# CPU core (37 GFLOP/s measured).
REFERENCE_FLOPS = {"cpu": 2e10, "cuda": 2e12}

OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0  # how much worse than eager a right result may be


class ReferenceFailed(Exception):  # noqa: N818 - the job did not fail
    """The reference or the yardstick could not be computed, which says nothing about the job."""


def check(job: Job, subject: Subject, budget: Budget) -> tuple[Accuracy, str | None]:
    """The errors against the reference, and the reason why the result is wrong (None: it is right).

    The subject runs on its whole batch, as it is timed; the samples that are compared are spread over it.
    """
    outputs, batch = subject.outputs(), job.case.shape.batch
    affordable = affordable_samples(job)
    # A strategy that compares the samples of a batch with each other has outputs that only the whole batch gives.
    for samples in dict.fromkeys((affordable, batch)):
        chosen = torch.linspace(0, batch - 1, samples, device=outputs[0].device).round().long()
        pairs = _pairs(job, subject, budget, outputs, chosen)
        if [t.shape for t in pairs[0][0]] == [t.shape for t in pairs[0][1]]:
            break
    else:
        shapes = [[tuple(t.shape) for t in tensors] for tensors in pairs[0][:2]]
        raise RuntimeError(f"output shapes {shapes[0]} differ from the reference's {shapes[1]}")
    found, problem = _judge(job, budget, pairs[0], OUTPUT_FACTOR, "output")
    gradient: tuple[Deviation, Deviation] | tuple[None, None] = (None, None)
    if len(pairs) > 1:
        gradient, gradient_problem = _judge(job, budget, pairs[1], GRADIENT_FACTOR, "gradient")
        problem = problem or gradient_problem
    if not all(bool(t.isfinite().all()) for t in outputs):
        problem = problem or "output: not finite in a sample that was not compared"
    errors = Accuracy(
        reference="fp64" if _reference_dtype(job, samples) == torch.float64 else "fp32",
        samples=samples,
        output=found[0],
        yardstick=found[1],
        gradient=gradient[0],
        gradient_yardstick=gradient[1],
    )
    return errors, problem


Triple = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]  # result, truth, yardstick


def _pairs(
    job: Job, subject: Subject, budget: Budget, outputs: tuple[Tensor, ...], chosen: Tensor
) -> tuple[Triple, ...]:
    """(result, truth, yardstick) of the outputs and, in training, of the gradients, at the chosen samples."""
    inputs, own = select(subject.inputs, chosen), compute_dtype(job.case)
    results = [tuple(t[chosen] for t in outputs)]
    try:
        truth = _twin(job, subject, budget, _reference_dtype(job, len(chosen)), inputs)
        yardstick = _twin(job, subject, budget, own, inputs)
    except (RuntimeError, MemoryError) as error:
        raise ReferenceFailed(f"the reference could not be computed: {error}") from error
    if subject.training and [t.shape for t in results[0]] == [t.shape for t in truth[0]]:
        weights = [torch.zeros_like(t) for t in outputs]
        for weight, rows in zip(weights, cotangents(results[0], own), strict=True):
            weight[chosen] = rows
        gradients = subject.gradients(outputs, weights)
        results.append(tuple(g[chosen] if i < subject.rows else g for i, g in enumerate(gradients)))
    return tuple(zip(results, truth, yardstick, strict=False))


def _twin(job: Job, subject: Subject, budget: Budget, dtype: torch.dtype, inputs: Inputs) -> list[tuple[Tensor, ...]]:
    """Outputs and, in training, gradients of the same weights through eager attention in ``dtype``."""
    with in_chunks():
        other = twin(job, budget.seed, dtype, inputs)
        outputs = other.outputs()
        if not subject.training:
            return [outputs]
        gradients = other.gradients(outputs, cotangents(outputs, compute_dtype(job.case)))
        return [tuple(t.detach() for t in outputs), gradients]  # else they would keep the module's weights


def _judge(
    job: Job, budget: Budget, tensors: Triple, factor: float, what: str
) -> tuple[tuple[Deviation, Deviation], str | None]:
    """((error, yardstick's error), reason)."""
    result, truth, yardstick = tensors
    errors = accuracy.deviation(result, truth), accuracy.deviation(yardstick, truth)
    if job.case.dtype == "int8":
        reason = accuracy.int8_verdict(errors[0], budget.int8_rel_l2, budget.int8_cosine)
    else:
        terms, tf32 = _longest_sum(job.case.shape), job.case.dtype == "tf32"
        allowed = accuracy.allowance(compute_dtype(job.case), terms, tf32=tf32)
        reason = accuracy.verdict(result, yardstick, truth, allowed, factor)
    return errors, f"{what}: {reason}" if reason else None


def _longest_sum(shape: Shape) -> int:
    """How many numbers the longest sum of a strategy adds: over features, keys, or the rows of a weight gradient."""
    features = max(shape.image_width, shape.text_width, shape.width, shape.units(shape.width))
    return max(features, shape.batch * (shape.image + shape.text))


def affordable_samples(job: Job) -> int:
    """How many samples of the batch the reference is computed for."""
    shape, cost = job.case.shape, registry.get(job.strategy).costs(job.case, "eager")
    flops = cost.flops + (cost.backward_flops if job.case.training else 0)
    affordable = REFERENCE_FLOPS[torch.device(job.case.device).type] // max(1, flops // shape.batch)
    return int(max(1, min(shape.batch, affordable)))


def _reference_dtype(job: Job, samples: int) -> torch.dtype:
    """fp64, or fp32 for a half-precision job whose reference would take ten times what it can afford."""
    case = job.case
    flops = registry.get(job.strategy).costs(case, "eager").flops * samples // case.shape.batch
    too_large = flops > 10 * REFERENCE_FLOPS[torch.device(case.device).type]
    return torch.float32 if too_large and case.dtype in ("fp16", "bf16", "int8") else torch.float64
