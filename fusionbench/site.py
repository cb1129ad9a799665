"""Where a run is measured: the slots that each measure one job at a time, on this machine or on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import plan
from .ceilings import Prober
from .environment import capture
from .errors import FusionbenchError
from .record import Environment
from .runner import Engine
from .spec import Job


class SiteLostError(FusionbenchError):
    """All slots are gone at once, and no result can come any more; what is stored stays."""


@dataclass
class Slot:
    """One place that measures a job at a time; ``device`` is "cpu" or "cuda", which GPU is the slot's own affair.

    Its engine raises SlotLostError where the place itself went away; ``reopen`` then says whether it is back.
    """

    name: str
    device: str
    environment: Environment
    engine: Engine
    prober: Prober
    reopen: Callable[[], bool] = lambda: False

    def takes(self, job: Job) -> bool:
        return job.case.device.partition(":")[0] == self.device


@dataclass(frozen=True)
class Site:
    """All slots of a run. ``devices`` is what the plan asks what there is; None for this machine's own."""

    environments: tuple[Environment, ...]
    slots: Sequence[Slot] = field(default_factory=tuple)  # none: this machine, one job after the other
    devices: plan.Devices | None = None


def here(machine: str | None = None) -> Site:
    """This machine, called ``machine``, or what it calls itself."""
    return Site((capture(machine),))
