"""Is a job's result right? Compare it, and eager PyTorch in the same dtype, with the reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from . import registry
from .attention import in_chunks
from .cost import Cost
from .meters import accuracy
from .record import Accuracy, Deviation
from .registry import Inputs
from .spec import Budget, Case, Job, Shape
from .subject import Subject, compute_dtype, cotangents, recast, select, twin

# The reference is computed for as many samples of the batch as it can afford: about half a second of fp64 on one
# CPU core (37 GFLOP/s measured).
REFERENCE_FLOPS = {"cpu": 2e10, "cuda": 2e12}

OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0  # how much worse than eager a right result may be


class ReferenceFailed(Exception):  # noqa: N818 - the job did not fail
    """The reference or the yardstick could not be computed, which says nothing about the job."""


def check(job: Job, subject: Subject, budget: Budget, at_most: int | None = None) -> tuple[Accuracy | None, str | None]:
    """The errors against the reference, and the reason why the result is wrong (None: it is right).

    The subject runs on its whole batch, as it is timed; the samples that are compared, ``at_most`` so many, are spread
    over it. There are no errors where the result and the reference are not of one shape and dtype.
    """
    outputs, batch, eager = subject.outputs(), job.case.shape.batch, _eager_cost(job)
    affordable = min(at_most or batch, _affordable(job, eager))
    # A strategy that compares the samples of a batch with each other has outputs that only the whole batch gives.
    for samples in dict.fromkeys((affordable, batch)):
        chosen = torch.linspace(0, batch - 1, samples, device=outputs[0].device).round().long()
        if at_most:  # seen from the other end: one sample is the last, where the first was compared before
            chosen = (batch - 1 - chosen).flip(0)
        exact = _reference_dtype(job, samples, eager)
        pairs = _pairs(job, subject, budget, outputs, chosen, exact)
        if [t.shape for t in pairs[0][0]] == [t.shape for t in pairs[0][1]]:
            break
    else:
        shapes = [[tuple(t.shape) for t in tensors] for tensors in pairs[0][:2]]
        return None, f"output shapes {shapes[0]} differ from the reference's {shapes[1]}"
    if (unlike := _unlike(pairs[0][0], pairs[0][2], job.case)) is not None:
        return None, unlike
    found, problem = _judge(job, budget, pairs[0], OUTPUT_FACTOR, "output")
    gradient: tuple[Deviation, Deviation] | tuple[None, None] = (None, None)
    if len(pairs) > 1:
        gradient, gradient_problem = _judge(job, budget, pairs[1], GRADIENT_FACTOR, "gradient")
        problem = problem or gradient_problem
    if not all(bool(t.isfinite().all()) for t in outputs):
        problem = problem or "output: not finite in a sample that was not compared"
    errors = Accuracy(
        reference="fp64" if exact == torch.float64 else "fp32",
        samples=samples,
        output=found[0],
        yardstick=found[1],
        gradient=gradient[0],
        gradient_yardstick=gradient[1],
    )
    return errors, problem


def _unlike(results: Sequence[Tensor], yardsticks: Sequence[Tensor], case: Case) -> str | None:
    """Why the outputs are no tensors such as eager PyTorch's, whose dtype must not be coarser than the job's."""
    own = compute_dtype(case)
    for number, (result, yardstick) in enumerate(zip(results, yardsticks, strict=True), 1):
        if result.device != yardstick.device:
            return f"output {number} is on '{result.device}', and the job on '{yardstick.device}'"
        if result.dtype != yardstick.dtype:
            return f"output {number} is {_name(result.dtype)}, and eager's is {_name(yardstick.dtype)}"
        if result.is_floating_point() and torch.finfo(result.dtype).eps > torch.finfo(own).eps:
            return f"output {number} is {_name(result.dtype)}, coarser than the job's {_name(own)}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


Triple = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]  # result, truth, yardstick


def _pairs(
    job: Job, subject: Subject, budget: Budget, outputs: tuple[Tensor, ...], chosen: Tensor, exact: torch.dtype
) -> tuple[Triple, ...]:
    """(result, truth, yardstick) of the outputs and, in training, of the gradients, at the chosen samples."""
    batch, own = job.case.shape.batch, compute_dtype(job.case)
    results = [tuple(t[chosen] if t.shape[:1] == (batch,) else t for t in outputs)]
    try:
        truth, yardstick = _references(job, budget, exact, select(subject.inputs, chosen))
    except (RuntimeError, MemoryError) as error:
        raise ReferenceFailed(f"the reference could not be computed: {error}") from error
    if subject.training and [t.shape for t in results[0]] == [t.shape for t in truth[0]]:
        weights = [torch.zeros_like(t) for t in outputs]
        for weight, rows in zip(weights, cotangents(results[0], own), strict=True):
            weight[chosen if weight.shape[:1] == (batch,) else ...] = rows
        gradients = subject.gradients(outputs, weights)
        results.append(tuple(g[chosen] if i < subject.rows else g for i, g in enumerate(gradients)))
    return tuple(zip(results, truth, yardstick, strict=False))


Results = list[tuple[Tensor, ...]]  # outputs and, in training, gradients


def _references(job: Job, budget: Budget, dtype: torch.dtype, inputs: Inputs) -> tuple[Results, Results]:
    """Results of the same weights through eager attention: the truth in ``dtype``, then the yardstick."""
    yardstick = twin(job, budget.seed, compute_dtype(job.case), inputs)
    return _result(job, _exact(job, budget, yardstick, dtype, inputs)), _result(job, yardstick)


def _exact(job: Job, budget: Budget, yardstick: Subject, dtype: torch.dtype, inputs: Inputs) -> Subject:
    """The yardstick in another dtype. A copy, as drawing random weights takes longer than most references do."""
    try:
        module = copy.deepcopy(yardstick.module)
    except Exception:  # it may hold what cannot be copied, such as a lock: then it is made again
        return twin(job, budget.seed, dtype, inputs)
    return recast(module, dtype, inputs, training=yardstick.training)


def _result(job: Job, other: Subject) -> Results:
    with in_chunks():
        outputs = other.outputs()
        if not other.training:
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
    return _affordable(job, _eager_cost(job))


def _eager_cost(job: Job) -> Cost:
    """Worked out once per check: for the smallest jobs it takes a tenth of it."""
    return registry.get(job.strategy).costs(job.case, "eager")


def _affordable(job: Job, eager: Cost) -> int:
    batch, flops = job.case.shape.batch, eager.flops + (eager.backward_flops if job.case.training else 0)
    affordable = REFERENCE_FLOPS[torch.device(job.case.device).type] // max(1, flops // batch)
    return int(max(1, min(batch, affordable)))


def _reference_dtype(job: Job, samples: int, eager: Cost) -> torch.dtype:
    """fp64, or fp32 for a half-precision job whose reference would take ten times what it can afford."""
    case = job.case
    too_large = eager.flops * samples // case.shape.batch > 10 * REFERENCE_FLOPS[torch.device(case.device).type]
    return torch.float32 if too_large and case.dtype in ("fp16", "bf16", "int8") else torch.float64
