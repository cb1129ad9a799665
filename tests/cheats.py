"""Strategies that look faster than they are: for the tests of honesty, loaded as a plugin, never shipped.

Each cheat is there twice: as ``name``, whose only impl is eager, so that it is also its own yardstick, and as
``name:sdpa``, which is honest in eager and cheats in sdpa.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusionbench.cost import Cost
from fusionbench.registry import Inputs, strategy
from fusionbench.spec import Case


class Work(nn.Module):
    """One Linear over both modalities side by side: what honest calls do."""

    def __init__(self, case: Case, impl: str, only: str = "eager") -> None:
        super().__init__()
        self.layer = nn.Linear(case.shape.image_width, case.shape.image_width)
        self.cheats = impl == only
        self.calls, self.memo, self.held = 0, {}, []  # type: ignore[var-annotated]

    def work(self, image: Tensor, text: Tensor) -> Tensor:
        result: Tensor = self.layer(torch.cat([image, text], dim=1))
        return result

    def trick(self, image: Tensor, text: Tensor) -> Tensor:
        return self.work(image, text)

    def forward(self, image: Tensor, text: Tensor, image_mask: object = None, text_mask: object = None) -> Tensor:
        self.calls += 1
        return self.trick(image, text) if self.cheats else self.work(image, text)


Trick = Callable[[Work, Tensor, Tensor], Tensor]


def nothing(case: Case, impl: str, only: str = "eager") -> Cost:
    return Cost()


def cheat(trick: Trick) -> Trick:
    """Register the trick as a strategy of its name, alone and beside an honest eager impl."""
    members = {"trick": trick, "__doc__": trick.__doc__, "__module__": __name__}
    for suffix, impls in (("", ("eager",)), (":sdpa", ("eager", "sdpa"))):
        cls = type(trick.__name__, (Work,), members)
        only = impls[-1]
        cls.__init__ = lambda self, case, impl, only=only: Work.__init__(self, case, impl, only)  # type: ignore[misc]
        strategy(trick.__name__ + suffix, impls=impls, cost=nothing)(cls)
    return trick


# --- honest ----------------------------------------------------------------------------------------------------------


@cheat
def works(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Does its work."""
    return self.work(image, text)


@cheat
def wavers(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Adds in another order each time, as atomics do."""
    return self.work(image, text) * (1 + 1e-7 * (self.calls % 2))


def reluctant(case: Case, generator: torch.Generator) -> Inputs:
    """Pixels in [0, 1] that are not contiguous, and one text for the whole batch."""
    s = case.shape
    pixels = torch.rand(s.batch, s.image_width, s.image, generator=generator).transpose(1, 2)
    text = torch.rand(1, s.text, s.image_width, generator=generator).expand(s.batch, -1, -1)
    return Inputs(pixels, text)


@strategy("reluctant", impls=("eager",), cost=nothing, inputs=reluctant)
class Reluctant(Work):
    """Takes inputs that no other strategy has, and roots of them."""

    def work(self, image: Tensor, text: Tensor) -> Tensor:
        return super().work(image.sqrt(), text.sqrt())


# --- results that are there already ----------------------------------------------------------------------------------


@cheat
def cached(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns the tensor of its first call."""
    if not self.memo:
        self.memo[0] = self.work(image, text).detach()
    return self.memo[0]


@cheat
def cached_copy(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns a copy of the tensor of its first call."""
    return cached(self, image, text).clone()


@cheat
def static_buffer(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Does its work, and writes it where the last result is."""
    return cached(self, image, text).copy_(self.work(image, text).detach())


@cheat
def by_pointer(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Computes once for each address."""
    key = image.data_ptr(), text.data_ptr()
    if key not in self.memo:
        self.memo[key] = self.work(image, text)
    return self.memo[key].clone()


@cheat
def by_version(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Computes once for each address and version of what is there."""
    key = image.data_ptr(), image._version, text.data_ptr(), text._version
    if key not in self.memo:
        self.memo[key] = self.work(image, text)
    return self.memo[key].clone()


@cheat
def half_cached(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Computes the text's part once."""
    if not self.memo:
        self.memo[0] = self.layer(text)
    return torch.cat([self.layer(image), self.memo[0]], dim=1)


@cheat
def view(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns its input."""
    return image[:, 1:]


@cheat
def weight(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns a weight."""
    return self.layer.weight.expand(len(image), -1, -1)


# --- what is not to be touched ---------------------------------------------------------------------------------------


@cheat
def mutates(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Scales its input in place."""
    result = self.work(image, text)
    image.data.mul_(0.5)
    return result


@cheat
def sorts(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Sorts its input in place."""
    result = self.work(image, text)
    text.data.copy_(text.data.sort(dim=-1).values)
    return result


@cheat
def trains(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Makes its weights smaller with every call."""
    result = self.work(image, text)
    self.layer.weight.data.mul_(0.999)
    return result


# --- no work at all --------------------------------------------------------------------------------------------------


@cheat
def rolls_dice(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns random numbers."""
    return torch.randn_like(torch.cat([image, text], dim=1))


@cheat
def zeros(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns zeros."""
    return torch.zeros_like(torch.cat([image, text], dim=1))


@cheat
def constant(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns ones."""
    return torch.ones_like(torch.cat([image, text], dim=1))


@cheat
def breaks(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns NaN."""
    return self.work(image, text) * float("nan")


@cheat
def overflows(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns infinities."""
    return self.work(image, text).exp() * 1e38 * 1e38


@cheat
def coarse(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns half precision."""
    return self.work(image, text).half()


@cheat
def misshapen(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Returns a token less."""
    return self.work(image, text)[:, 1:].clone()


# --- work that ends when nobody seems to look ------------------------------------------------------------------------


@cheat
def tires(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Stops working at its fifth call."""
    return self.work(image, text) if self.calls < 5 else cached_copy(self, image, text)


@cheat
def tires_late(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Stops working when it is timed."""
    return self.work(image, text) if self.calls < 10 else cached_copy(self, image, text)


@cheat
def slackens(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Works on the first sample alone once it is timed."""
    if self.calls < 10:
        return self.work(image, text)
    return self.work(image[:1], text[:1]).expand(len(image), -1, -1).clone()


@cheat
def shrinks(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Leaves out the text once it is timed."""
    result: Tensor = self.work(image, text) if self.calls < 10 else self.layer(image)
    return result


@cheat
def wears_out(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Wears its weights out once it is timed."""
    if self.calls > 10:
        self.layer.weight.data.mul_(0.99)
    return self.work(image, text)


@cheat
def once_per_storage(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Works only for storage that it did not see in the call before."""
    seen, self.held = self.held, [image.untyped_storage().data_ptr()]
    if seen != self.held:
        self.memo[0] = self.work(image, text)
    return self.memo[0].clone()


_all_calls = itertools.count()


@cheat
def all_tire(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Stops working when it was called often, and its yardstick with it."""
    return self.work(image, text) if next(_all_calls) < 40 else torch.ones_like(torch.cat([image, text], 1))


class _Stale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, memo: dict[int, Tensor]) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.memo = memo
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        if not ctx.memo:
            ctx.memo[0] = gradient.clone()
        return ctx.memo[0].clone(), None


@cheat
def stale_gradients(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Computes its gradient once."""
    result: Tensor = _Stale.apply(self.work(image, text), self.memo)  # type: ignore[no-untyped-call]
    return result


# --- bad neighbours --------------------------------------------------------------------------------------------------


@cheat
def leaks(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Keeps 8 MB with each call."""
    self.held.append(torch.zeros(2**21))
    return self.work(image, text)


faults: list[Callable[[], object]] = []


@cheat
def meddles(self: Work, image: Tensor, text: Tensor) -> Tensor:
    """Does to the process what a test has put there."""
    for fault in faults:
        fault()
    return self.work(image, text)
