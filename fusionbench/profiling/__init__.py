"""One job under a profiler: a trace for Perfetto, and where its time goes, op by op.

The job runs in a process of its own, started for it: a crash costs one line, what the profiler and C++ print ends in a
log, and torch, which takes two seconds to import, is imported once, by that process alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from .. import suite
from ..engines.family import die_with_parent
from ..errors import FusionbenchError, printable
from .request import (
    Answer,
    Failure,
    JobFailedError,
    Profile,
    Request,
    Row,
    SeveralJobsError,
    folder_of,
    refuse_existing,
    unfinished,
)

__all__ = ["JobFailedError", "Profile", "Request", "Row", "SeveralJobsError", "run"]


def run(request: Request) -> Profile:
    """Profile the one job that ``request`` means, and write its trace.

    Raises FusionbenchError for what does not exist or would be overwritten, SeveralJobsError where no job was named and
    there are several, and JobFailedError where the job does not run here, or takes twice its suite's timeout_s.
    """
    limit_s = 2 * suite.narrow(suite.read(request.suite), request.only).budget.timeout_s
    for path in (request.output, request.proton):
        if path is not None:
            refuse_existing(Path(path))
    found = _profile_of(_asked(request, limit_s))
    if request.proton:  # in a process of its own: Kineto and Proton do not share CUPTI, which each wants for itself
        second = msgspec.structs.replace(request, job=found.job, meter="proton")
        return msgspec.structs.replace(found, proton=_profile_of(_asked(second, limit_s)).proton)
    return found


def _profile_of(found: Answer) -> Profile:
    if found.profile is not None:
        return found.profile
    failure = found.failure or Failure(reason="the job's process sent an empty answer", usage=False)
    if failure.keys:
        raise SeveralJobsError(failure.reason, failure.keys)
    raise FusionbenchError(failure.reason) if failure.usage else JobFailedError(failure.reason)


def _asked(request: Request, limit_s: float) -> Answer:
    """The answer of a fresh process, which does not outlive this call."""
    with tempfile.NamedTemporaryFile(prefix="fusionbench-profile-") as log:
        return _answer_of(request, Path(log.name), limit_s)


def _answer_of(request: Request, log: Path, limit_s: float) -> Answer:
    """The same, with what the process prints in ``log``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_enter, args=(theirs, str(log), request, os.getpid()), daemon=True)
    resource_tracker.ensure_running()  # first: when it starts, it unblocks signals
    with _signals_blocked():  # else Ctrl-C while it starts would print its traceback here
        process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise JobFailedError(f"no profile after {limit_s:g} s (twice the suite's budget timeout_s)")
        found = msgspec.json.decode(ours.recv_bytes(), type=Answer)
        process.join(1)  # compilers that it started end with it
        return found
    except EOFError:
        process.join(5)
        raise JobFailedError(_death(process.exitcode, log)) from None
    finally:
        process.kill()
        process.join()
        ours.close()
        unfinished(folder_of(request), process.pid or 0).unlink(missing_ok=True)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _death(code: int | None, log: Path) -> str:
    """One line about a process that ended without an answer."""
    how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"the job's process was {how}" + (f": {printable(lines[-1], 300)}" if lines else "")


def _enter(pipe: Connection, log: str, request: Request, parent: int) -> None:
    """The process's first step: leave the terminal alone, end with the parent, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent(parent)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    from .job import answer  # imports torch

    pipe.send_bytes(msgspec.json.encode(answer(request)))
