"""One job measured as `run` measures it, in worker processes, while pytest waits."""

from __future__ import annotations

import functools
import signal
from collections.abc import Sequence

from .. import backends, device_lock, registry
from ..ceilings import Ceilings
from ..engines import local
from ..environment import capture
from ..errors import DeviceLostError, FusionbenchError
from ..footprint import footprint
from ..record import Environment, Record
from ..runner import Silent, run
from ..spec import Budget, Job


class JobFailedError(FusionbenchError):
    """A job that did not go well."""


@functools.cache
def environment() -> Environment:
    """The environment of this session."""
    return capture()


def measure(job: Job, budget: Budget, plugins: Sequence[str] = ()) -> Record:
    """The record of a job, with all its rounds. An interruption ends the job after its sample, and then the session.

    Raises UnfitError where another process measures its GPU, DeviceLostError where that is gone.
    """
    records: list[Record] = []
    ceilings = Ceilings(local.probe, lambda roofline: None, lambda text: None, budget.threads, environment().id)
    with device_lock.held([job.case.device]):
        ceilings.prepare([job])
        outcome = run(
            [job],
            local.run,
            environment(),
            records.append,
            Silent(),
            budget=budget,
            plugins=plugins,
            size=footprint,
            source=lambda job: backends.source(registry.get(job.strategy), backends.get(job.backend)),
            judged=ceilings.judged,
        )
    if outcome.signal:
        signal.raise_signal(outcome.signal)
        raise KeyboardInterrupt  # where the signal is handled otherwise
    for device, words in outcome.lost.items():
        raise DeviceLostError(f"device '{device}' was lost ({words})")
    return records[-1]
