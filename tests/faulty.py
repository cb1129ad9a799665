"""Strategies that misbehave, for the tests of isolation: loaded with --plugin, never shipped."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import torch
from torch import Tensor, nn

from fusionbench.cost import Cost
from fusionbench.registry import strategy


def nothing(case: object, impl: str) -> Cost:
    return Cost()


class Cat(nn.Module):
    """Concatenate, after ``fault`` has had its turn."""

    def __init__(self, case: object, impl: str) -> None:
        super().__init__()

    def fault(self) -> None:
        pass

    def forward(self, image: Tensor, text: Tensor, image_mask: object = None, text_mask: object = None) -> Tensor:
        self.fault()
        return torch.cat([image, text], dim=1)


@strategy("fine", impls=("eager",), cost=nothing)
class Fine(Cat):
    """Works."""


@strategy("raises", impls=("eager",), cost=nothing)
class Raises(Cat):
    """Raises an exception."""

    def fault(self) -> None:
        raise ValueError("the cat is out\nof the bag")


@strategy("segfaults", impls=("eager",), cost=nothing)
class Segfaults(Cat):
    """Reads address 0."""

    def fault(self) -> None:
        ctypes.string_at(0)


@strategy("hangs", impls=("eager",), cost=nothing)
class Hangs(Cat):
    """Never returns, and ignores polite requests to stop."""

    def fault(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)


@strategy("leaves", impls=("eager",), cost=nothing)
class Leaves(Cat):
    """Ends its process as if all were well."""

    def fault(self) -> None:
        os._exit(0)


@strategy("killed", impls=("eager",), cost=nothing)
class Killed(Cat):
    """Is killed from outside, as by the kernel when memory runs out."""

    def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@strategy("hoards", impls=("eager",), cost=nothing)
class Hoards(Cat):
    """Asks for more memory than there is."""

    def fault(self) -> None:
        torch.empty(2**50, dtype=torch.uint8)


@strategy("floods", impls=("eager",), cost=nothing)
class Floods(Cat):
    """Prints a megabyte on both streams, as C code does too."""

    def fault(self) -> None:
        sys.stdout.write("x" * 1_000_000)
        os.write(2, b"y" * 1_000_000)


@strategy("lies", impls=("eager", "sdpa"), cost=nothing)
class Lies(nn.Module):
    """Is wrong in every impl but eager."""

    def __init__(self, case: object, impl: str) -> None:
        super().__init__()
        self.honest = impl == "eager"

    def forward(self, image: Tensor, text: Tensor, image_mask: object = None, text_mask: object = None) -> Tensor:
        joined = torch.cat([image, text], dim=1)
        return joined if self.honest else joined * 1.01


@strategy("breaks_down", impls=("eager", "sdpa"), cost=nothing)
class BreaksDown(Lies):
    """Gives NaN in every impl but eager."""

    def forward(self, image: Tensor, text: Tensor, image_mask: object = None, text_mask: object = None) -> Tensor:
        joined = torch.cat([image, text], dim=1)
        return joined if self.honest else joined * float("nan")


@strategy("slow", impls=("eager",), cost=nothing)
class Slow(Cat):
    """Takes a fifth of a second."""

    def fault(self) -> None:
        time.sleep(0.2)
