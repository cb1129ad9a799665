"""Workers on this machine, forked from a server that has torch imported and never touches CUDA (12 ms each)."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic

import msgspec

from ..record import Record, Roofline, Status, decode_record
from ..roofline import Probe
from ..spec import Budget, Job, Visit
from . import family
from .log import Log

WORKER = "fusionbench.worker"  # started by name: the runner never imports it
NURSERY = "fusionbench.engines.nursery"
CRADLE = "fusionbench.engines.cradle"
PROBE_S = 60.0  # for one roofline: half a second on a quiet machine
INTERRUPT_GRACE_S = 5.0  # after Ctrl-C, how long a running job may take to finish its sample
LOOK_S = 0.25  # how late Ctrl-C may be noticed; an answer wakes us at once
ASLEEP_S = 1.5  # a look that comes so late: this process was stopped, as by Ctrl-Z, and the worker perhaps with it
KILL_S = 10.0  # how long a killed process may take to go: one that waits for a driver goes when the driver answers

_ENDING = {signal.SIGINT, signal.SIGTERM}

_encoder = msgspec.json.Encoder()
_context = multiprocessing.get_context("forkserver")


class Cancelled(Exception):  # noqa: N818 - not an error: the user asked
    """The job was given up because the user asked to stop."""


def start_server(preload: str = NURSERY) -> None:
    """Start the fork server now, so that it imports torch while the plan is made.

    With CRADLE it is there after 1.9 s of computing instead of 4.2: for workers that neither compile nor profile.
    """
    set_variables()
    _context.set_forkserver_preload([preload])
    # Blocked until a worker listens: Ctrl-C reaches the whole process group, and the server is still importing.
    resource_tracker.ensure_running()  # first: when it starts, it unblocks these signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with _no_main():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def set_variables() -> None:
    """What torch should know before it looks for a GPU, in this process and in those it starts."""
    # Else torch asks the CUDA driver itself whether there is a device, after which no fork may use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # NVML counts GPUs by bus, CUDA the fastest first: the wrong one would be watched and locked.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


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
) -> Generator[tuple[Visit, Record], None, None]:
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
            if device in held and not held[device].serves(visit):
                held.pop(device).close()
            if device not in held:
                held[device] = Worker(_serving(visit), plugins)
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


def probe(probes: Sequence[Probe]) -> Iterator[tuple[Probe, Roofline | str]]:
    """What devices can do at best, each in a process of its own, or why that could not be found out."""
    start_server()
    for device in dict.fromkeys(each.device for each in probes):
        worker = Worker(("", "", device, 0), ())
        try:
            for each in probes:
                if each.device == device:
                    yield each, worker.probe(each)
        finally:
            worker.close()


Serving = tuple[str, str, str, int]  # strategy, backend, device, round


class Worker:
    """One process. On CUDA it may serve one round of every job of one strategy and backend, as a context costs about a
    second; the next round is another process, even where no other strategy came between."""

    def __init__(self, serving: Serving, plugins: Sequence[str]) -> None:
        self.serving = serving
        self.pipe, theirs = _context.Pipe()
        printed, their_log = _context.Pipe(duplex=False)
        self.log = Log(printed)
        self.process: BaseProcess = _context.Process(
            target=_enter, args=(theirs, their_log, tuple(plugins)), daemon=True
        )
        with _no_main():
            self.process.start()
        theirs.close()
        their_log.close()

    def serves(self, visit: Visit) -> bool:
        return self.serving == _serving(visit)

    def probe(self, probe: Probe) -> Roofline | str:
        """The roofline, or why there is none."""
        try:
            self.pipe.send_bytes(_encoder.encode({"probe": probe}))
            answer = self._await(monotonic() + PROBE_S, lambda: False)
        except (OSError, EOFError):
            answer = None
        if isinstance(answer, bytes):
            try:
                return msgspec.json.decode(answer, type=Roofline | str)
            except msgspec.MsgspecError as error:
                return f"worker sent no roofline: {error}"
        return f"no result after {PROBE_S:g} s" if answer == "timeout" else self._cause_of_death(family.oom_kills())[1]

    def measure(self, visit: Visit, budget: Budget, stopping: Callable[[], bool]) -> Record:
        """The visit's record, written by the worker or, if that died or hung, by us. Raises Cancelled."""
        start, started_at = monotonic(), datetime.now(UTC).isoformat(timespec="milliseconds")
        answer = self.answer({"visit": visit, "budget": budget}, budget.timeout_s, stopping)
        if isinstance(answer, tuple):
            status, reason = answer
        else:
            try:
                return decode_record(answer)
            except msgspec.MsgspecError as error:
                status, reason = "crash", f"worker sent no record: {error}"
        wall_s = monotonic() - start
        return Record(job=visit.job, status=status, reason=reason, phase="run", started_at=started_at, wall_s=wall_s)

    def answer(self, message: object, timeout_s: float, stopping: Callable[[], bool]) -> bytes | tuple[Status, str]:
        """What the worker answers, or how and why it could not. Raises Cancelled."""
        out_of_memory = family.oom_kills()
        try:
            self.pipe.send_bytes(_encoder.encode(message))
            answer = self._await(monotonic() + timeout_s, stopping)
        except (OSError, EOFError):  # it died, perhaps in the middle of its answer
            answer = None
        if isinstance(answer, bytes):
            return answer
        if answer == "timeout":
            return "timeout", f"no result after {timeout_s:g} s (budget timeout_s)"
        return self._cause_of_death(out_of_memory)

    def _await(self, deadline: float, stopping: Callable[[], bool]) -> bytes | str | None:
        """The worker's answer; "timeout"; or None when it died."""
        give_up: float | None = None
        looked = monotonic()
        while True:
            ready = wait(
                [self.pipe, self.process.sentinel, *self.log.sources], timeout=min(LOOK_S, max(0.0, deadline - looked))
            )
            self.log.drain()
            if self.pipe in ready:
                return self.pipe.recv_bytes()
            if self.process.sentinel in ready:
                return None
            now = monotonic()
            if now - looked > ASLEEP_S:  # the whole run was suspended: that is not the job's time
                deadline += now - looked
            looked = now
            if now >= deadline:
                self._kill()
                return "timeout"
            if give_up is None and stopping():
                give_up = now + INTERRUPT_GRACE_S
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.process.pid or 0, signal.SIGINT)
            if give_up is not None and now > give_up:
                self._kill()
                raise Cancelled

    def _cause_of_death(self, out_of_memory: int) -> tuple[Status, str]:
        """How the worker ended, given how many processes the kernel had killed for memory before."""
        self.process.join(5)
        code = self.process.exitcode
        status: Status = "crash"
        if code is None:
            self._kill()
            death = "worker closed its pipe without a result"
        elif code == -signal.SIGKILL and family.oom_kills() > out_of_memory:
            status, death = "oom", "worker was killed by the kernel because memory ran out (oom_kill in /proc/vmstat)"
        elif code < 0:
            death = f"worker was killed by {_signal_name(-code)}"
            if code == -signal.SIGKILL:
                death += " (by hand, or by the kernel when memory ran out)"
        else:
            death = f"worker exited with code {code} without a result"
        last = self.log.last_words()
        return status, f"{death}: {last}" if last else death

    def _kill(self) -> None:
        """Kill the worker and what it has started; one that the kernel does not let go is left behind."""
        family.end(self.process.pid or 0)
        self.process.kill()
        self.process.join(KILL_S)

    def close(self) -> None:
        """End the process, kindly when it waits for work and at once when it does not."""
        self.pipe.close()
        self.log.close()  # before the wait: it may still be printing
        self.process.join(0.5 if self.serving[2] == "cpu" else 5)  # a CUDA context takes its time to go
        if self.process.is_alive():
            self._kill()
        family.end(self.process.pid or 0)
        with contextlib.suppress(ValueError):  # it hangs in the kernel and cannot be killed
            self.process.close()


def _serving(visit: Visit) -> Serving:
    job = visit.job
    return job.strategy, job.backend, job.case.device, visit.round


def _signal_name(number: int) -> str:
    """Its name, or the number of a real-time signal, which has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _enter(pipe: Connection, log: Connection, plugins: tuple[str, ...]) -> None:
    """The worker's first step: die with the runner, print into its log, then serve."""
    for number in _ENDING:  # SIGINT until serve() listens, SIGTERM for good: the runner ends its workers itself
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    family.enter()
    sys.stdout.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    log.close()
    faulthandler.enable(file=sys.__stderr__ or 2)
    importlib.import_module(WORKER).serve(pipe, plugins)
