"""A process that measures what it is asked to: each request comes through a pipe and leaves as one answer."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from . import registry
from .measuring import Interrupt, measure
from .meters import roofline
from .record import encode_record
from .roofline import Probe
from .spec import Budget, Visit


class Request(msgspec.Struct, frozen=True):
    """What the runner sends: a visit of a job, or a look at what the device can do at best."""

    visit: Visit | None = None
    budget: Budget = Budget()
    probe: Probe | None = None


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
        pipe.send_bytes(_answer(request, interrupt))


def _answer(request: Request, interrupt: Interrupt) -> bytes:
    if request.visit is not None:
        return encode_record(measure(request.visit, request.budget, interrupt))
    if request.probe is not None:
        probe = request.probe
        found = roofline.measure(probe.device, probe.dtype, probe.threads, probe.environment)
        return msgspec.json.encode(found)
    raise ValueError("a request asks for nothing")
