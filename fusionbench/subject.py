"""The thing under measurement: a job's module with its weights, its inputs, and the call that is timed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import backends, registry
from .backends import Backend
from .generation import CACHING
from .inputs import make_inputs
from .record import Costs
from .registry import Inputs
from .spec import Case, Job

# Groups of features that change their signs in turn: 2 to this power turns pass before the signs come back.
SIGN_GROUPS = 8

_TORCH_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """A module on its device with the inputs of its case."""

    module: nn.Module
    inputs: Inputs
    training: bool
    optimizer: torch.optim.Optimizer | None = None  # of mode step
    turns: Iterator[int] = field(default_factory=functools.partial(itertools.count, 1))  # numbers of the next ones

    def call(self) -> tuple[Tensor, ...]:
        """The outputs; in training the gradients of inputs and parameters, in mode step after a step."""
        outputs = self.outputs()
        if not self.training:
            return outputs
        if "cotangents" not in self.__dict__:  # from these: a second pass beside them may not fit into memory
            self.__dict__["cotangents"] = cotangents(outputs, self.inputs_dtype)
        return self.gradients(outputs, self.cotangents, self.optimizer)

    def outputs(self) -> tuple[Tensor, ...]:
        result = self.module(*self.inputs.args())
        outputs = result if isinstance(result, tuple) else (result,)
        if not outputs or not all(isinstance(t, Tensor) and t.numel() for t in outputs):
            raise TypeError(
                f"forward must return a tensor or a tuple of tensors, none empty, not {type(result).__name__}"
            )
        return outputs

    def gradients(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> tuple[Tensor, ...]:
        """The gradients of inputs, then parameters, those that anything reaches; with an optimizer after its step."""
        torch.autograd.backward(outputs, cotangents)
        if optimizer is not None:
            optimizer.step()
        found = tuple(leaf.grad for leaf in self.leaves if leaf.grad is not None)
        for leaf in self.leaves:
            leaf.grad = None
        return found

    def turn(self) -> None:
        """Change the values of the inputs in place, so that no result of the values before is right for them.

        Memory, distribution, masks and version counters stay: captured graphs go on, and what was cached by address or
        by version is stale. Tokens move on by one row, and a group of features changes its sign, without which a mean
        over tokens would stay what it was; ids and numbers of one sign are reflected inside their range. Keys and
        values of a cache, whose order means nothing to attention, change signs only. 0.3 ms for 1.8 MB of fp32, 8 ms
        for 19 MB (M1).
        """
        number = next(self.turns)
        for offset, t in enumerate(self._inputs()):
            _roll(t)
            _reflect(t, number + offset)  # not the same features in both: a product would keep its sign
        for t in itertools.chain.from_iterable(self.inputs.cache):
            _group(t, number).neg_()

    @functools.cached_property
    def cotangents(self) -> list[Tensor]:
        """What every timed backward pass begins with; made once, so that it is in no timing."""
        return cotangents(self.outputs(), self.inputs_dtype)

    @functools.cached_property
    def leaves(self) -> list[Tensor]:
        """What wants a gradient: ``rows`` inputs first, then parameters. Walking the module takes 50 µs, so once."""
        return [t for t in (*self._inputs(), *self.module.parameters()) if t.requires_grad]

    @property
    def rows(self) -> int:
        """How many of the leaves are inputs, one row per sample."""
        return sum(t.requires_grad for t in self._inputs())

    @property
    def inputs_dtype(self) -> torch.dtype:
        return next((t.dtype for t in self._inputs() if t.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next(self.inputs.tensors()).device

    def _inputs(self) -> list[Tensor]:
        return [t for t in (self.inputs.image, self.inputs.text) if t is not None]

    @property
    def resting_bytes(self) -> int:
        states = self.optimizer.state.values() if self.optimizer else ()
        held = [*self.module.parameters(), *self.module.buffers(), *self.inputs.tensors()]
        held += [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in held)


def _roll(t: Tensor) -> None:
    """Move features [..., W] on by one row, over the ends of samples too, and ids by one place."""
    data = _written_once(t)
    rows = data.flatten(0, -2) if t.is_floating_point() and t.dim() > 1 else data.flatten()
    data.copy_(rows.roll(1, 0).view(data.shape))


def _reflect(t: Tensor, number: int) -> None:
    """Change the signs of a group of features; where all numbers have one sign or are ids, make x low + high - x."""
    if t.dtype == torch.bool or t.is_complex():
        return
    low, high = t.data.aminmax()
    part = _group(t, number) if t.is_floating_point() else _written_once(t)
    if t.is_floating_point() and (bool(low < 0) == bool(high > 0) or bool(low == high)):
        part.neg_()
    else:
        part.copy_((low + high - part).clamp_(low, high))


def _group(t: Tensor, number: int) -> Tensor:
    """The features whose signs change in turn ``number``: Gray's code, so that the signs do not come back soon."""
    data = _written_once(t)
    width = data.shape[-1]
    groups = min(SIGN_GROUPS, max(2, width // SIGN_GROUPS), width)
    return data[..., ((number & -number).bit_length() - 1) % groups :: groups]


def _written_once(t: Tensor) -> Tensor:
    """The memory of ``t`` without its version counter and its history, every element of an expanded tensor once."""
    data: Tensor = t.data if t.dim() else t.data.view(1)
    return data[tuple(slice(1) if stride == 0 else slice(None) for stride in data.stride())]


def cotangents(outputs: Sequence[Tensor], rounded: torch.dtype) -> list[Tensor]:
    """Gradients of the outputs: standard normal, the same for the same shapes on any device, rounded to ``rounded``
    before they take on the dtype of their output, as weights and inputs are."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(t.shape, generator=generator).to(rounded).to(t.device, t.dtype) for t in outputs]


def compute_dtype(case: Case) -> torch.dtype:
    """The dtype of tensors; int8 products are carried by fp32 on the CPU, which may only emulate bf16, else by bf16."""
    if case.dtype == "int8":
        return torch.float32 if case.device == "cpu" else torch.bfloat16
    return _TORCH_DTYPES[case.dtype]


def build(job: Job, impl: str, backend: Backend, seed: int, inputs_seed: int | None = None) -> Subject:
    """The prepared module with random weights from ``seed`` and random inputs from ``inputs_seed`` (None: ``seed``)."""
    strategy, case, dtype = registry.get(job.strategy), job.case, compute_dtype(job.case)
    torch.manual_seed(seed)
    module = strategy.module(case, impl).to(device=case.device, dtype=dtype)
    of_inputs = seed if inputs_seed is None else inputs_seed
    inputs = make_inputs(strategy, case, of_inputs, dtype, torch.device(case.device))
    prepared = backend.prepare(module.train(case.training))
    return Subject(prepared, inputs, case.training, adamw(prepared, case) if case.mode == "step" else None)


def adamw(module: nn.Module, case: Case) -> torch.optim.Optimizer:
    """AdamW over what is trained, its states in the dtype of the weights, at a learning rate of 0.

    It computes what every step computes, and the weights stay what was verified.
    """
    dtype = compute_dtype(case)
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.0, eps=torch.finfo(dtype).eps, capturable=case.device != "cpu")


def twin(job: Job, seed: int, dtype: torch.dtype, inputs: Inputs) -> Subject:
    """The same weights (rounded to the job's dtype first) and inputs through eager attention in ``dtype``."""
    case = job.case
    torch.manual_seed(seed)
    module = registry.get(job.strategy).module(case, "eager").to(device=case.device, dtype=compute_dtype(case))
    return recast(module.train(case.training), dtype, inputs, training=case.training)


def recast(module: nn.Module, dtype: torch.dtype, inputs: Inputs, *, training: bool) -> Subject:
    """The module in another dtype, in place, with the same inputs in it."""

    def cast(t: Tensor) -> Tensor:
        return t.detach().to(dtype).requires_grad_(t.requires_grad) if t.is_floating_point() else t

    return Subject(module.to(dtype), inputs.each(cast), training)


def select(inputs: Inputs, samples: Tensor) -> Inputs:
    """These samples of the batch, as leaves of their own."""
    return inputs.each(lambda t: t.detach()[samples].requires_grad_(t.requires_grad))


def closed_form(job: Job, impl: str, counted_flops: int | None) -> Costs:
    """What the job must cost, at the sizes of its dtype."""
    case = job.case
    cost, itemsize = registry.get(job.strategy).costs(case, impl), compute_dtype(case).itemsize
    return Costs(
        flops=cost.flops + (cost.backward_flops if case.training else 0),
        params=cost.params,
        trainable_params=cost.trainable,
        optimizer_bytes=2 * cost.trainable * itemsize if case.training else 0,
        min_bytes=cost.min_bytes(itemsize, 1 if case.dtype == "int8" else itemsize),
        activation_bytes=0 if case.mode in CACHING else cost.activation_bytes(itemsize),  # generation keeps none
        cache_bytes=cost.cached * itemsize,
        counted_flops=counted_flops,
    )


def resolve(job: Job) -> tuple[Backend, str | None, str | None]:
    """(backend, impl, reason): the impl that serves the job, or the reason why none does."""
    strategy, backend = registry.get(job.strategy), backends.get(job.backend)
    return backend, backend.impl_for(strategy), backends.refusal(strategy, backend, job.case)
