"""Strategies that misbehave, for the tests of isolation: loaded with --plugin, never shipped."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    """Prints ten megabytes on both streams once, as C code does too."""

    quiet = False

    def fault(self) -> None:
        if not self.quiet:
            sys.stdout.write("x" * 10_000_000)
            os.write(2, b"y" * 10_000_000)
        self.quiet = True


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


@strategy("dies_late", impls=("eager",), cost=nothing)
class DiesLate(Cat):
    """Takes a millisecond, and ends its process in the 70th call: it has been found right, and is being timed."""

    calls = 0

    def fault(self) -> None:
        self.calls += 1
        time.sleep(0.001)
        if self.calls == 70:
            os._exit(0)


@strategy("babbles", impls=("eager",), cost=nothing)
class Babbles(Cat):
    """Prints for ever."""

    def fault(self) -> None:
        while True:
            os.write(1, b"bla " * 16_000)


@strategy("breeds", impls=("eager",), cost=nothing)
class Breeds(Cat):
    """Starts a process of its own and leaves it running."""

    child: object = None

    def fault(self) -> None:
        self.child = self.child or subprocess.Popen(["sleep", "61.25"])


@strategy("breeds_and_hangs", impls=("eager",), cost=nothing)
class BreedsAndHangs(Hangs):
    """Starts a process, then never returns."""

    def fault(self) -> None:
        subprocess.Popen(["sleep", "61.25"])
        super().fault()


@strategy("confined", impls=("eager",), cost=nothing)
class Confined(Cat):
    """Needs 2 GB where its process may have 1 GB more than it has."""

    def fault(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
        torch.ones(1 << 31, dtype=torch.uint8)


@strategy("half_an_answer", impls=("eager",), cost=nothing)
class HalfAnAnswer(Cat):
    """Dies while it sends its record."""

    def fault(self) -> None:
        frame = sys._getframe()
        while frame.f_code.co_name != "serve":
            frame = frame.f_back  # type: ignore[assignment]
        os.write(frame.f_locals["pipe"].fileno(), b"\0\0\1\0 a record of 256 bytes begins here")
        os._exit(0)


@strategy("poisons", impls=("eager",), cost=nothing)
class Poisons(Cat):
    """Leaves a CUDA context in which nothing works any more."""

    def fault(self) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")


@strategy("stops", impls=("eager",), cost=nothing)
class Stops(Cat):
    """Takes a millisecond, and is stopped by someone for 0.8 s in its 10th call."""

    calls = 0

    def fault(self) -> None:
        self.calls += 1
        time.sleep(0.001)
        if self.calls == 10:
            subprocess.Popen(["sh", "-c", f"sleep 0.8; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
