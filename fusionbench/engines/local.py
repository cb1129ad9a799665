"""Workers on this machine, forked from a server that has torch imported and never touches CUDA (12 ms each)."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic

import msgspec

from ..record import Record, Status, decode_record
from ..spec import Budget, Job, Visit

WORKER = "fusionbench.worker"  # started by name: the runner never imports it
NURSERY = "fusionbench.engines.nursery"
TAIL_BYTES = 64_000
INTERRUPT_GRACE_S = 5.0  # after Ctrl-C, how long a running job may take to finish its sample

_ENDING = {signal.SIGINT, signal.SIGTERM}

_encoder = msgspec.json.Encoder()
_context = multiprocessing.get_context("forkserver")


class Cancelled(Exception):  # noqa: N818 - not an error: the user asked
    """The job was given up because the user asked to stop."""


def start_server() -> None:
    """Start the fork server now, so that it imports torch while the plan is made."""
    # Else torch asks the CUDA driver itself whether there is a device, after which no fork may use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    _context.set_forkserver_preload([NURSERY])
    # Blocked until a worker listens: Ctrl-C reaches the whole process group, and the server is still importing.
    resource_tracker.ensure_running()  # first: when it starts, it unblocks these signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with _no_main():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Keep multiprocessing from importing the user's main script again in every worker (70 ms for our own CLI)."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def run(
    visits: Iterable[Visit],
    budget: Budget,
    plugins: Sequence[str],
    started: Callable[[Job], None],
    stopping: Callable[[], bool],
) -> Iterator[tuple[Visit, Record]]:
    """One record for each visit, in order. ``started`` is told of each job as its visit begins; once ``stopping``
    says so, the running visit ends after its sample and no other begins."""
    start_server()
    held: dict[str, Worker] = {}  # by device: a CUDA worker waits while a job runs on the CPU
    try:
        for visit in visits:
            if stopping():
                return
            job = visit.job
            device = "cuda:0" if job.case.device == "cuda" else job.case.device
            if device in held and not held[device].serves(job):
                held.pop(device).close()
            if device not in held:
                held[device] = Worker(job, plugins)
            started(job)
            try:
                record = held[device].measure(visit, budget, stopping)
            except Cancelled:
                return
            if record.status != "ok" or device == "cpu":
                held.pop(device).close()
            yield visit, record
    finally:
        for worker in held.values():
            worker.close()


class Worker:
    """One process. On CUDA it may serve every job of one strategy and backend, as a context costs about a second."""

    def __init__(self, job: Job, plugins: Sequence[str]) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.serving = (job.strategy, job.backend, job.case.device)
        self.pipe, theirs = _context.Pipe()
        log_path = f"/proc/{os.getpid()}/fd/{self.log.fileno()}"
        self.process: BaseProcess = _context.Process(
            target=_enter, args=(theirs, log_path, tuple(plugins)), daemon=True
        )
        with _no_main():
            self.process.start()
        theirs.close()

    def serves(self, job: Job) -> bool:
        return self.serving == (job.strategy, job.backend, job.case.device)

    def measure(self, visit: Visit, budget: Budget, stopping: Callable[[], bool]) -> Record:
        """The visit's record, written by the worker or, if that died or hung, by us. Raises Cancelled."""
        start, started_at = monotonic(), datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self.pipe.send_bytes(_encoder.encode({"visit": visit, "budget": budget}))
            answer = self._await(start + budget.timeout_s, stopping)
        except (BrokenPipeError, EOFError, ConnectionResetError):
            answer = None
        status: Status = "crash"
        if isinstance(answer, bytes):
            try:
                return decode_record(answer)
            except msgspec.MsgspecError as error:
                reason = f"worker sent no record: {error}"
        elif answer == "timeout":
            status, reason = "timeout", f"no result after {budget.timeout_s:g} s (budget timeout_s)"
        else:
            reason = self._cause_of_death()
        wall_s = monotonic() - start
        return Record(job=visit.job, status=status, reason=reason, phase="run", started_at=started_at, wall_s=wall_s)

    def _await(self, deadline: float, stopping: Callable[[], bool]) -> bytes | str | None:
        """The worker's answer; "timeout"; or None when it died."""
        give_up: float | None = None
        while True:
            # A quarter of a second is how late Ctrl-C may be noticed; an answer wakes us at once.
            ready = wait([self.pipe, self.process.sentinel], timeout=0.25)
            if self.pipe in ready:
                return self.pipe.recv_bytes()
            if ready:
                return None
            now = monotonic()
            if now > deadline:
                self._kill()
                return "timeout"
            if give_up is None and stopping():
                give_up = now + INTERRUPT_GRACE_S
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.process.pid or 0, signal.SIGINT)
            if give_up is not None and now > give_up:
                self._kill()
                raise Cancelled

    def _cause_of_death(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is None:
            self._kill()
            death = "worker closed its pipe without a result"
        elif code < 0:
            death = f"worker was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                death += " (by hand, or by the kernel when memory ran out)"
        else:
            death = f"worker exited with code {code} without a result"
        last = self._last_words()
        return f"{death}: {last}" if last else death

    def _last_words(self) -> str:
        """The last line that the worker printed."""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - TAIL_BYTES))
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines or [""])[-1][:500]

    def _kill(self) -> None:
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        """End the process, kindly when it waits for work and at once when it does not."""
        self.pipe.close()
        self.process.join(0.5 if self.serving[2] == "cpu" else 5)  # a CUDA context takes its time to go
        if self.process.is_alive():
            self._kill()
        self.process.close()
        self.log.close()


def _enter(pipe: Connection, log_path: str, plugins: tuple[str, ...]) -> None:
    """The worker's first step: die with the runner, print into its log, then serve."""
    for number in _ENDING:  # SIGINT until serve() listens, SIGTERM for good: the runner ends its workers itself
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    _die_with_parent()
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable(file=sys.__stderr__ or 2)
    importlib.import_module(WORKER).serve(pipe, plugins)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the fork server ends, as it does when the runner is killed."""
    import ctypes

    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)
