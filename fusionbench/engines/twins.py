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
from dataclasses import dataclass, replace
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
from .host import PROTOCOL, Begin, Hello
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
GRACE_S = 60.0  # more than a job's own timeout, which the host enforces


@dataclass(frozen=True)
class Pair:
    """One round of a job on both sides: what came back, and the medians in ns of a call, turn by turn."""

    base: Record
    head: Record
    turns: tuple[tuple[float, float], ...] = ()  # (base, head), neighbours in time; none where a side failed
    loops: int = 0
    throttled: bool = False  # the GPU was held down in most turns, so that these count for want of better ones


@dataclass(frozen=True)
class Side:
    """How the code of one revision is started: Python and its arguments, environment variables, plugin files."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    plugins: tuple[str, ...] = ()


class Host:
    """A process with the code of one revision."""

    def __init__(self, side: Side, preload: str) -> None:
        self.name = side.name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        ours, theirs = socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*side.argv, "-m", HOST, str(theirs.fileno()), preload, *side.plugins],
                env=dict(side.env), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                pass_fds=(theirs.fileno(),), start_new_session=True,  # Ctrl-C is for us alone: a turn ends in peace
            )  # fmt: skip
        self._pipe = Connection(ours.detach())

    def greeted(self, stopping: Callable[[], bool]) -> Environment:
        """Wait until it answers; raises FusionbenchError where its code is not what it should be."""
        try:
            hello = msgspec.json.decode(self._receive(START_S, stopping), type=Hello)
        except (EOFError, OSError, msgspec.MsgspecError):
            self._process.wait()
            raise FusionbenchError(
                f"revision '{printable(self.name)}' cannot be measured: {self._last_words()}"
            ) from None
        if hello.v != PROTOCOL:
            raise FusionbenchError(
                f"revision '{printable(self.name)}' has fusionbench {printable(hello.fusionbench)}, which measures "
                f"pairs in another way (protocol {hello.v}, here {PROTOCOL}); choose a later base"
            )
        return hello.environment

    def ask(self, message: object, timeout_s: float, stopping: Callable[[], bool]) -> Turn | Record:
        """A turn, or the record that ends the visit. Raises FusionbenchError where the host is gone."""
        try:
            self._pipe.send_bytes(msgspec.json.encode(message))
            answer = self._receive(timeout_s + GRACE_S, stopping)
        except (EOFError, OSError):
            raise FusionbenchError(
                f"the process of revision '{printable(self.name)}' has ended: {self._last_words()}"
            ) from None
        try:
            return msgspec.json.decode(answer, type=Turn)
        except msgspec.MsgspecError:
            return decode_record(answer)

    def _receive(self, timeout_s: float, stopping: Callable[[], bool]) -> bytes:
        deadline = monotonic() + timeout_s
        while not self._pipe.poll(LOOK_S):
            if stopping():
                raise Cancelled
            if monotonic() > deadline:
                raise FusionbenchError(f"the process of revision '{printable(self.name)}' does not answer")
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
        base: Side,
        head: Side,
        budget: Budget,
        stopping: Callable[[], bool] = lambda: False,
        *,
        compiles: bool = False,
    ) -> None:
        """``compiles``: some of the jobs do, so that every host has the compiler ready."""
        self.sides, self.budget, self.stopping, self.compiles = (base, head), budget, stopping, compiles
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
        for side in self.sides:
            self._hosts += (Host(side, "full" if number == 0 or self.compiles else "light"),)
        base, head = (host.greeted(self.stopping) for host in self._hosts)
        self.environments = base, head
        self._number = number

    def _close(self) -> None:
        hosts, self._hosts = self._hosts, ()
        for host in hosts:
            host.close()

    def round(self, job: Job, number: int, loops: int = 0) -> Pair:
        """One round: two fresh processes, turns in the order ABBA or BAAB. ``loops`` are those of the rounds before.

        Raises Cancelled when the user asked to stop.
        """
        if number != self._number:
            self._renew(number)
        base, head = self._hosts
        order = (base, head) if number % 2 == 0 else (head, base)
        answers: dict[Host, Turn | Record] = {}
        for host in order:
            answer = answers[host] = self._begun(host, Visit(job=job, round=number, loops=loops))
            loops = answer.loops if isinstance(answer, Turn) else loops
        turns: list[tuple[float, float]] = []
        throttled = False
        if all(isinstance(answer, Turn) for answer in answers.values()):
            turns, throttled = self._alternate(order, answers)
        records = {host: self._end(host, answers[host], fed=bool(turns)) for host in order}
        pair = Pair(records[base], records[head], tuple(turns), loops, throttled)
        return self._apart(pair, number) if {pair.base.status, pair.head.status} == {"ok", "oom"} else pair

    def _begun(self, host: Host, visit: Visit) -> Turn | Record:
        """The visit's process is built and warm, or has failed."""
        turns = Turns(slice_s=SLICE_S, cores=_cores(visit.job, self.budget.threads, visit.round), root=os.getpid())
        return host.ask(Begin(visit=visit, budget=self.budget, turns=turns), self.budget.timeout_s, self.stopping)

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
                answer = host.ask(True, self.budget.timeout_s, self.stopping)
                if isinstance(answer, Record):
                    answers[host] = answer
                    return [], False
                turns[host] = answer
            if not pairs:
                most = _most_turns(self.budget, turns[order[-1]])
            base, head = (median(_on_core(turns[host], self.budget.threads)) for host in self._hosts)
            pairs.append((base, head))
            throttled.append(any(turn.throttled for turn in turns.values()))
        calm = _calm(pairs, throttled)
        return (calm, False) if 2 * len(calm) >= len(pairs) else (pairs, True)

    def _apart(self, pair: Pair, number: int) -> Pair:
        """The pair with the side that ran out of memory measured by itself: the other may have had what it lacks."""
        self._renew(number)  # and nothing of the other is left
        base, head = self._hosts
        host, record = (base, pair.base) if pair.base.status == "oom" else (head, pair.head)
        alone = self._end(host, self._begun(host, Visit(job=record.job, round=number, loops=pair.loops)), fed=False)
        return replace(pair, base=alone) if host is base else replace(pair, head=alone)

    def _end(self, host: Host, answer: Turn | Record, *, fed: bool) -> Record:
        """The record of a visit; where the other side failed, after the one turn that a record needs."""
        if isinstance(answer, Record):
            return answer
        for message in (False,) if fed else (True, False):
            answer = host.ask(message, self.budget.timeout_s, self.stopping)
            if isinstance(answer, Record):
                return answer
        raise FusionbenchError(f"the process of revision '{printable(host.name)}' does not end its visit")


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
