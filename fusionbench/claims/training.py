"""Claims about what training costs: bytes in closed form, a training step timed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .. import registry
from ..adapt import LoraLinear, adapted
from ..blocks import Layer
from ..environment import capture, native
from ..ledger import Figure
from ..meters.flops import count_flops
from ..spec import Case, Dtype, Shape
from .check import Answer, Check, Lab, judged, times
from .costs import case, size
from .paired import compare

RANK = 8
HALF: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _merged(module: nn.Module) -> nn.Module:
    """``module`` with every adapter multiplied out and added to the weight beside it, in place."""
    for name, child in list(module.named_children()):
        setattr(module, name, child.merged() if isinstance(child, LoraLinear) else _merged(child))
    return module


def low_rank(lab: Lab) -> Answer:
    """C21: one self-attention layer with adapters of rank 8 on all six of its Linear layers."""
    shape = Shape(batch=1, image=1, text=64, image_width=512, text_width=512, width=512, heads=8)
    x = torch.randn(1, shape.text, shape.width)

    def layer() -> nn.Module:
        torch.manual_seed(lab.seed)
        return Layer(Case(shape=shape), shape.width, "sdpa")

    full, beside = layer(), adapted(layer(), f"lora:{RANK}")
    merged = _merged(adapted(layer(), f"lora:{RANK}"))
    trainable, everything = (sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (beside, full))
    flops, flops_beside, flops_merged = (count_flops(partial(m, x)).flops for m in (full, beside, merged))
    with torch.no_grad():
        forward = compare(lambda: beside(x), lambda: full(x), lab.seconds)
        difference = float((merged(x) - beside(x)).abs().max() / beside(x).abs().max())
    steps, optimizers = zip(*(_step(module, x) for module in (beside, full)), strict=True)
    step = compare(steps[0], steps[1], lab.seconds)
    states = [_state_bytes(optimizer) for optimizer in optimizers]
    lower = {
        "parameters to train": trainable < everything,
        "optimiser state": states[0] < states[1],
        "time of a training step": step.faster,
        "FLOPs of a forward pass": flops_beside < flops,
    }
    return Answer(
        judged(lower.values()),
        (
            times(f"trainable parameters with rank {RANK} over all", trainable / everything),
            times("bytes of Adam's state", states[0] / states[1]),
            step.figure("time of a training step"),
            times("forward FLOPs with adapters beside the layers", flops_beside / flops),
            times("forward FLOPs once they are merged", flops_merged / flops),
            forward.figure("time of a forward pass with adapters beside the layers"),
            Figure(what="relative difference of merged from beside, fp32", value=difference),
        ),
        f"{_sorted_out(lower)}; once the adapters are merged into the weights, running costs what it did before",
        f"one self-attention layer, {shape.text} tokens, width {shape.width}, 1 thread",
    )


def _sorted_out(lower: Mapping[str, bool]) -> str:
    groups = {"lower": [what for what, is_so in lower.items() if is_so],
              "not lower": [what for what, is_so in lower.items() if not is_so]}  # fmt: skip
    return "; ".join(f"{name}: {', '.join(items)}" for name, items in groups.items() if items)


def _step(module: nn.Module, x: Tensor) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """A training step, made once already so that Adam has its state."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
    batch = x.clone().requires_grad_()  # the layers before this one want their gradient, too

    def step() -> None:
        module(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        batch.grad = None

    step()
    return step, optimizer


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def half_precision(lab: Lab) -> Answer:
    """C22: bytes of one concatenation layer, and the time of its forward and backward pass, over fp32."""
    sizes = (32, 16, 256, 4)  # small, as an emulated dtype can take forty times as long
    of = case(*sizes)
    cost = registry.get("concat_attention").costs(of, "sdpa")
    kept = cost.activation_bytes(2) / cost.activation_bytes(4)
    # weights, gradients and both of Adam's moments; in mixed precision fp32 master weights come on top
    states = (2 + 2 + 4 + 4 + 4) / (4 + 4 + 4 + 4)
    baseline = _backward(of, torch.float32)
    timed = {name: compare(_backward(of, dtype), baseline, lab.seconds) for name, dtype in HALF.items()}
    environment = capture()
    emulated = [note for name in HALF if (note := native(name, "cpu", environment))]
    lower = {
        "bytes of activations": kept < 1,
        "bytes of weights, gradients and optimiser": states < 1,
        **{f"time in {name}": ratio.faster for name, ratio in timed.items()},
    }
    return Answer(
        judged(lower.values()),
        (
            times("bytes kept for the backward pass", kept),
            times("bytes of weights to run it", torch.bfloat16.itemsize / torch.float32.itemsize),
            times("bytes of weights, gradients and Adam with fp32 masters", states),
            *(ratio.figure(f"time forward + backward, {name} over fp32") for name, ratio in timed.items()),
        ),
        f"here {_sorted_out(lower)}",
        "; ".join([f"one layer over the concatenation, {size(*sizes)}, 1 thread", *emulated]),
    )


def _backward(of: Case, dtype: torch.dtype) -> Callable[[], None]:
    s, module = of.shape, registry.get("concat_attention").module(of, "sdpa").to(dtype)
    image, text = (torch.randn(1, n, s.width, dtype=dtype, requires_grad=True) for n in (s.image, s.text))

    def step() -> None:
        module(image, text).sum().backward()
        for leaf in (image, text, *module.parameters()):
            leaf.grad = None

    return step


CHECKS: Mapping[str, Check] = {"C21": low_rank, "C22": half_precision}
