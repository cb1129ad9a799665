"""A process that measures what it is asked to: each request comes through a pipe and leaves as one answer."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from . import registry
from .measuring import Interrupt, measure
from .meters import roofline
from .meters.sampler import Sample
from .record import encode_record
from .roofline import Probe
from .spec import Budget, Visit
from .turns import Turn, Turns


class Request(msgspec.Struct, frozen=True):
    """What the runner sends: a visit of a job, alone or by turns with another process, or a look at what the device
    can do at best."""

    visit: Visit | None = None
    budget: Budget = Budget()
    turns: Turns | None = None
    probe: Probe | None = None


class PipeTurns:
    """Turns that the other end of the pipe gives: it is told what the last one brought, and answers whether another
    follows."""

    def __init__(self, pipe: Connection, turns: Turns) -> None:
        self.pipe, self.slice_s, self.root = pipe, turns.slice_s, turns.root

    def next(self, taken: list[Sample], loops: int, throttled: bool) -> bool:
        self.pipe.send_bytes(msgspec.json.encode(Turn(loops=loops, samples=tuple(taken), throttled=throttled)))
        return msgspec.json.decode(self.pipe.recv_bytes(), type=bool)


def serve(pipe: Connection, plugins: Sequence[str] = ()) -> None:
    """Answer requests with records and rooflines until the other side closes the pipe."""
    interrupt = Interrupt()
    signal.signal(signal.SIGINT, interrupt.note)
    for plugin in plugins:
        registry.load_plugin(Path(plugin))
    while True:
        try:
            request = msgspec.json.decode(pipe.recv_bytes(), type=Request)
        except EOFError:
            return
        pipe.send_bytes(_answer(request, interrupt, pipe))


def _answer(request: Request, interrupt: Interrupt, pipe: Connection) -> bytes:
    if request.visit is not None:
        turns = PipeTurns(pipe, request.turns) if request.turns else None
        if request.turns and request.turns.cores:
            os.sched_setaffinity(0, request.turns.cores)
        return encode_record(measure(request.visit, request.budget, interrupt, turns))
    if request.probe is not None:
        probe = request.probe
        try:
            found = roofline.measure(probe.device, probe.dtype, probe.threads, probe.environment)
        except Exception as error:  # whoever asked goes on without one, and says why
            traceback.print_exc()
            return msgspec.json.encode(f"{type(error).__name__}: {error}".partition("\n")[0])
        return msgspec.json.encode(found)
    raise ValueError("a request asks for nothing")
