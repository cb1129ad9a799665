"""Two revisions held against each other: two processes of one job, alive together, that sample by turns on one core.

What the machine does meanwhile it does to both: pinned to one core and ten milliseconds apart, two processes of the
same code differ by 2 % (standard deviation); free to run on any core, by 9 % (METHODOLOGY.md). All workers of a fork
server have its addresses, which alone make code faster or slower: every round has new servers.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from socket import socketpair
from statistics import median
from time import monotonic
from typing import IO

import msgspec

from ..errors import FusionbenchError, printable
from ..paired import standard_error
from ..record import Environment, Record, decode_record
from ..spec import Budget, Job, Visit
from ..turns import Turn, Turns
from .host import PROTOCOL, Begin, Hello, Who, as_turn
from .local import Cancelled

HOST = "fusionbench.engines.host"
START_S = 300.0  # until a host has imported torch: 3 s here, minutes from a cold network disk
SLICE_S = 0.01
# Of each side in a round: until its effect is known to PRECISION. On a busy machine two neighbouring turns differ by 10
# to 15 %; eight of them leave 5 %, and what a process costs before its first turn pays for twenty more.
LEAST_TURNS, MOST_TURNS = 8, 40
ROUND_S = 0.4
PRECISION = 0.01  # standard error of a round's effect
LOOK_S = 0.25
# What a side may be only because the other one has the memory: it is asked again when that is free.
BESIDE = ("oom", "error", "crash")
GRACE_S = 60.0  # more than a job's own timeout, which the host enforces


@dataclass(frozen=True)
class Pair:
    """One round of a job on both sides: what came back, and the medians in ns of a call, turn by turn; ``reason`` says
    why there are none where both sides went well."""

    base: Record
    head: Record
    turns: tuple[tuple[float, float], ...] = ()  # (base, head), neighbours in time; none where a side failed
    loops: int = 0
    throttled: bool = False  # the GPU was held down in most turns, so that these count for want of better ones
    reason: str = ""


@dataclass(frozen=True)
class Code:
    """How the code of one revision is started: Python and its arguments, environment variables, plugin files."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    plugins: tuple[str, ...] = ()


class HostLostError(FusionbenchError):
    """The process with the code of a revision has ended, which none of its jobs can do to it."""


class Host:
    """A process with the code of one revision."""

    def __init__(self, code: Code, preload: str) -> None:
        self.name = printable(code.name)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        ours, theirs = socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*code.argv, "-m", HOST, str(theirs.fileno()), preload, *code.plugins],
                env=dict(code.env), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                pass_fds=(theirs.fileno(),), start_new_session=True,  # Ctrl-C is for us alone: a turn ends in peace
            )  # fmt: skip
        self._pipe = Connection(ours.detach())

    def greeted(self, stopping: Callable[[], bool]) -> Environment:
        """Wait until it answers; raises FusionbenchError where its code is not what it should be."""
        try:
            answer = self._receive(START_S, stopping)
            who = msgspec.json.decode(answer, type=Who)
            if who.v == PROTOCOL:
                return msgspec.json.decode(answer, type=Hello).environment
        except (EOFError, OSError, msgspec.MsgspecError):
            raise FusionbenchError(f"revision '{self.name}' cannot be measured: {self._last_words()}") from None
        raise FusionbenchError(
            f"revision '{self.name}' has fusionbench {printable(who.fusionbench)}, which measures pairs in another way "
            f"(protocol {who.v}, here {PROTOCOL}); choose a later base"
        )

    def ask(self, message: object, timeout_s: float, stopping: Callable[[], bool]) -> Turn | Record:
        """A turn, or the record that ends the visit. Raises HostLostError where the host is gone, and FusionbenchError
        where it says what nobody here understands."""
        try:
            self._pipe.send_bytes(msgspec.json.encode(message))
            answer = self._receive(timeout_s + GRACE_S, stopping)
        except (EOFError, OSError):
            raise HostLostError(f"the process of revision '{self.name}' has ended: {self._last_words()}") from None
        try:
            return as_turn(answer) or decode_record(answer)
        except msgspec.MsgspecError as error:
            told = f"revision '{self.name}' writes records that this fusionbench cannot read ({printable(str(error))})"
            raise FusionbenchError(f"{told}; measure with the later one of the two") from None

    def _receive(self, timeout_s: float, stopping: Callable[[], bool]) -> bytes:
        deadline = monotonic() + timeout_s
        while not self._pipe.poll(LOOK_S):
            if stopping():
                raise Cancelled
            if monotonic() > deadline:
                raise FusionbenchError(f"the process of revision '{self.name}' does not answer")
        return self._pipe.recv_bytes()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if any(re.search(r"No module named '?fusionbench\.engines", line) for line in lines):
            return "its fusionbench is older than measuring by turns; choose a later base"
        return printable(lines[-1]) if lines else f"exit code {self._process.poll()}"

    def close(self) -> None:
        """End the process: it sees that we are gone, and its worker dies with it."""
        self._pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Twins:
    """Both sides at work. Raises FusionbenchError where one of them cannot be measured."""

    def __init__(
        self,
        base: Code,
        head: Code,
        budget: Budget,
        stopping: Callable[[], bool] = lambda: False,
        *,
        compiles: bool = False,
    ) -> None:
        """``compiles``: some of the jobs do, so that every host has the compiler ready."""
        self.codes, self.budget, self.stopping, self.compiles = (base, head), budget, stopping, compiles
        self.environments: tuple[Environment, Environment]  # of base and head, since they were entered
        self._hosts: tuple[Host, ...] = ()
        self._number = -1  # of the round that the hosts were started for

    def __enter__(self) -> Twins:
        try:
            self._renew(0)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _renew(self, number: int) -> None:
        """New hosts for a new round, importing side by side. The first round profiles, which takes more modules."""
        self._close()
        for code in self.codes:
            self._hosts += (Host(code, "full" if number == 0 or self.compiles else "light"),)
        base, head = (host.greeted(self.stopping) for host in self._hosts)
        self.environments = base, head
        self._number = number

    def _close(self) -> None:
        hosts, self._hosts = self._hosts, ()
        for host in hosts:
            host.close()

    def round(self, job: Job, number: int, loops: int = 0) -> Pair:
        """One round: two fresh processes, turns in the order ABBA or BAAB. ``loops`` are those of the rounds before.

        A host that is lost, killed by hand or for its memory, costs this round another beginning; one that is lost
        again ends the trial with HostLostError. Raises Cancelled when the user asked to stop.
        """
        if number != self._number:
            self._renew(number)
        try:
            return self._round(job, number, loops)
        except HostLostError:
            self._renew(number)
            return self._round(job, number, loops)

    def _round(self, job: Job, number: int, loops: int) -> Pair:
        base, head = self._hosts
        order = (base, head) if number % 2 == 0 else (head, base)
        answers: dict[Host, Turn | Record] = {}
        for host in order:
            answer = answers[host] = self._begun(host, Visit(job=job, round=number, loops=loops))
            loops = answer.loops if isinstance(answer, Turn) else loops
        reason = self._one_by_one(order, answers, Visit(job=job, round=number, loops=loops))
        turns: list[tuple[float, float]] = []
        throttled = False
        if _ready(answers):
            turns, throttled = self._alternate(order, answers)
        records = {host: self._end(host, answers[host], fed=bool(turns)) for host in order}
        return Pair(records[base], records[head], tuple(turns), loops, throttled, reason)

    def _begun(self, host: Host, visit: Visit) -> Turn | Record:
        """The visit's process is built and warm, or has failed."""
        turns = Turns(slice_s=SLICE_S, cores=_cores(visit.job, self.budget.threads, visit.round), root=os.getpid())
        return host.ask(Begin(visit=visit, budget=self.budget, turns=turns), self.budget.timeout_s, self.stopping)

    def _one_by_one(self, order: tuple[Host, Host], answers: dict[Host, Turn | Record], visit: Visit) -> str:
        """Ask a side that failed beside the other one again when it is alone; what failed, where it has."""
        first, second = (answers[host] for host in order)
        if isinstance(first, Record) or isinstance(second, Turn) or second.status not in BESIDE:
            return ""
        answers[order[0]] = self._end(order[0], first, fed=False)
        answers[order[1]] = self._end(order[1], self._begun(order[1], visit), fed=False)
        return f"{order[1].name} goes well alone, and not beside the other side: {second.status}, {second.reason}"

    def _alternate(
        self, order: Sequence[Host], answers: dict[Host, Turn | Record]
    ) -> tuple[list[tuple[float, float]], bool]:
        """Turn by turn, the median of a call, in the order ABBA until the round is precise or has had its time; and
        whether the device was throttled. None where a side died in the middle: ``answers`` gets its record."""
        pairs: list[tuple[float, float]] = []
        throttled: list[bool] = []
        most = MOST_TURNS
        while _another(pairs, throttled, most):
            turns: dict[Host, Turn] = {}
            for host in order if len(pairs) % 2 == 0 else reversed(order):
                answer = answers[host] = host.ask(True, self.budget.timeout_s, self.stopping)
                if isinstance(answer, Record):
                    return [], False
                turns[host] = answer
            if not pairs:
                most = _most_turns(self.budget, turns[order[-1]])
            base, head = (median(_on_core(turns[host], self.budget.threads)) for host in self._hosts)
            pairs.append((base, head))
            throttled.append(any(turn.throttled for turn in turns.values()))
        calm = _calm(pairs, throttled)
        return (calm, False) if 2 * len(calm) >= len(pairs) else (pairs, True)

    def _end(self, host: Host, answer: Turn | Record, *, fed: bool) -> Record:
        """The record of a visit; of one that has had no turn, after the one that a record needs."""
        if isinstance(answer, Record):
            return answer
        for message in (False,) if fed else (True, False):
            answer = host.ask(message, self.budget.timeout_s, self.stopping)
            if isinstance(answer, Record):
                return answer
        raise FusionbenchError(f"the process of revision '{host.name}' does not end its visit")


def _ready(answers: Mapping[Host, Turn | Record]) -> bool:
    return all(isinstance(answer, Turn) for answer in answers.values())


def _most_turns(budget: Budget, first: Turn) -> int:
    """How many turns each side has at the most: the budget's share of a round, in turns as long as the first one."""
    turn_s = max(SLICE_S, sum(ns for ns, _ in first.samples) / 1e9)
    wanted = max(budget.measure_s / budget.rounds, ROUND_S) / turn_s
    return 2 * round(min(max(wanted, LEAST_TURNS), MOST_TURNS) / 2)


def _another(pairs: Sequence[tuple[float, float]], throttled: Sequence[bool], most: int) -> bool:
    """Whether both sides take another turn: until the effect of those that were not throttled is known."""
    if len(pairs) < LEAST_TURNS or len(pairs) % 2:
        return True
    calm = _calm(pairs, throttled)
    return len(pairs) < most and (len(calm) < LEAST_TURNS or not _precise(calm))


def _calm(pairs: Sequence[tuple[float, float]], throttled: Sequence[bool]) -> list[tuple[float, float]]:
    """The turns of each whole ABBA in which nothing held the device down."""
    return [pair for n in range(0, len(pairs) - 1, 2) if not any(throttled[n : n + 2]) for pair in pairs[n : n + 2]]


def _precise(turns: Sequence[tuple[float, float]]) -> bool:
    """Whether the effect of these turns is known well enough; asked after pairs of turns, so that ABBA is whole."""
    return len(turns) % 2 == 0 and standard_error(turns) <= PRECISION


def _on_core(turn: Turn, threads: int) -> list[float]:
    """The time of a call in each sample; those that waited for a core are left out where others did not."""
    alone = [ns - (waited or 0) if threads == 1 else ns for ns, waited in turn.samples]
    undisturbed = [ns for ns, waited in turn.samples if not waited]
    times = undisturbed if 2 * len(undisturbed) >= len(alone) else [max(ns, 1) for ns in alone]
    return [ns / turn.loops for ns in times]


def _cores(job: Job, threads: int, number: int) -> tuple[int, ...]:
    """The cores that both sides of a round share, others in the next one; none where the device is a GPU."""
    if job.case.device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    first = number * threads % len(allowed)
    return tuple(sorted({allowed[(first + place) % len(allowed)] for place in range(threads)}))
