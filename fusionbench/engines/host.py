"""A revision of the code at work: started with that revision's Python, it measures what another process asks for.

It speaks through a socket whose number is its first argument: a Hello, then an answer to every message. A Begin starts
a worker; ``true`` gives that worker a turn and ``false`` says that there is no other. Answers are what the worker
sends, a Turn or a Record, or the record of its death.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection

import msgspec

from .. import __version__
from ..environment import capture
from ..record import Environment, Record, Status, encode_record
from ..spec import Budget, Visit
from ..turns import Turn, Turns
from . import local

PROTOCOL = 1
PRELOADS = {"full": local.NURSERY, "light": local.CRADLE}


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """What every protocol begins with."""

    v: int = PROTOCOL
    fusionbench: str


class Hello(Who, frozen=True, kw_only=True):
    """Who answers, and where."""

    environment: Environment


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """Measure this visit by turns, in a process of its own."""

    visit: Visit
    budget: Budget
    turns: Turns


def main(arguments: list[str]) -> None:
    """``host.py DESCRIPTOR PRELOAD [PLUGIN ...]``: answer until the other side closes its end."""
    pipe, preload = Connection(int(arguments[0])), PRELOADS[arguments[1]]
    os.dup2(2, 1)  # whatever is printed belongs into the log
    local.start_server(preload)  # it imports torch; this process does not
    pipe.send_bytes(msgspec.json.encode(Hello(fusionbench=__version__, environment=capture())))
    _serve(pipe, tuple(arguments[2:]))


def _serve(pipe: Connection, plugins: tuple[str, ...]) -> None:
    while True:
        try:
            begin = msgspec.json.decode(pipe.recv_bytes(), type=Begin)
            _measure(pipe, begin, plugins)
        except (EOFError, OSError, local.Cancelled):  # whoever asked has gone
            return


def _measure(pipe: Connection, begin: Begin, plugins: tuple[str, ...]) -> None:
    """One worker from its first message to its record."""
    # Nobody sends anything while an answer is awaited, so what comes then is the end of the other side.
    gone: Callable[[], bool] = lambda: pipe.poll(0)  # noqa: E731
    worker = local.Worker((begin.visit.job.strategy, begin.visit.job.backend, begin.visit.job.case.device, 0), plugins)
    message: object = begin
    try:
        while as_turn(answer := _answer(worker, message, begin, gone)) is not None:
            pipe.send_bytes(answer)
            message = msgspec.json.decode(pipe.recv_bytes(), type=bool)
    finally:
        worker.close()
    pipe.send_bytes(answer)  # now that the worker's core and memory are free


def _answer(worker: local.Worker, message: object, begin: Begin, gone: Callable[[], bool]) -> bytes:
    answer = worker.answer(message, begin.budget.timeout_s, gone)
    return encode_record(_death(begin.visit, *answer)) if isinstance(answer, tuple) else answer


def as_turn(answer: bytes) -> Turn | None:
    """The turn that an answer is, after which another may follow; None for the record that ends a visit."""
    try:
        return msgspec.json.decode(answer, type=Turn)
    except msgspec.MsgspecError:
        return None


def _death(visit: Visit, status: Status, reason: str) -> Record:
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Record(job=visit.job, status=status, reason=reason, phase="run", started_at=started_at)


if __name__ == "__main__":
    main(sys.argv[1:])
