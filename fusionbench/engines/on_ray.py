"""Slots on a Ray cluster: one actor for each GPU and for each node's CPU, which Ray gives to nobody else meanwhile."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

# Read when ray is imported: its warnings would end up in the progress.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Of a cluster that is started here: what measures would otherwise wait for whatever else runs, at a niceness of 15.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .. import __version__
from ..errors import FusionbenchError, UnfitError, printable
from ..pool import LOOK_S, SlotLostError
from ..record import Record, Roofline, decode_record
from ..roofline import Probe
from ..site import Site, SiteLostError, Slot
from ..spec import Budget, Job, Visit
from . import local
from .measurer import Hello, Measurer, Order

BEGIN_S = 120.0  # until an actor has imported torch: 5 s here, more from a cold network disk
MARGIN_S = 60.0  # beyond a job's own time-out, until its node counts as lost
GONE_S = 15.0  # how long the head may not answer; Ray itself ends this process after 60

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class Wanted:
    """Which slots of a cluster to use."""

    devices: frozenset[str]  # of "cpu", "cuda"
    accelerator: str = ""  # a type of GPU as Ray calls it, such as H100
    resource: str = ""  # a custom resource, of which each slot takes one
    strict: bool = False


@contextlib.contextmanager
def connected(address: str | None, *, insecure: bool = False) -> Iterator[str]:
    """A connection to the cluster at ``address`` (None: one of this machine alone); gives its dashboard's URL or "".

    Raises FusionbenchError where there is none, it refuses the token, or it would be reached without one.
    """
    _check_secure(address, insecure)
    _check_there(address)
    options: dict[str, Any] = {"namespace": "fusionbench", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options["include_dashboard"] = None
    elif _is_loopback(address) and not address.startswith("ray://"):
        options["_node_ip_address"] = _host(address)  # else Ray takes another address of this machine's, and waits
    with _unheard() as said:
        try:
            context = ray.init(address=address, **options)
        except (exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            said.seek(0)
            raise FusionbenchError(_refused(address, error, said.read().decode(errors="replace"))) from None
    try:
        yield f"http://{context.dashboard_url}" if getattr(context, "dashboard_url", "") else ""
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _unheard() -> Iterator[Any]:
    """A file that takes what Ray's C++ writes to the terminal meanwhile."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _refused(address: str | None, error: Exception, said: str = "") -> str:
    shown = printable(address or "this machine")
    if "unauthenticated" in said.lower():
        return f"the ray cluster at '{shown}' refuses the token; set its RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token"
    text = printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 300)
    return f"no ray cluster at '{shown}': {text}; start one with: ray start --head"


def _check_secure(address: str | None, insecure: bool) -> None:
    if address in (None, "auto", "local") or insecure or _is_loopback(address or ""):
        return
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise FusionbenchError(
            f"'{printable(address or '')}' is reached without a token, and a ray cluster runs whatever it is sent; "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN there and here, or say --insecure"
        )


def _check_there(address: str | None) -> None:
    """Ray itself waits for minutes where nobody listens."""
    port = (address or "").rpartition(":")[2]
    if address is None or not port.isdecimal():
        return
    try:
        socket.create_connection((_host(address), int(port)), timeout=BEGIN_S / 10).close()
    except (OSError, OverflowError) as error:
        raise FusionbenchError(_refused(address, error)) from None


def _host(address: str) -> str:
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")


def _is_loopback(address: str) -> bool:
    host = _host(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def site(wanted: Wanted, plugins: Sequence[Path], note: Callable[[str], object]) -> Site:
    """The slots of the connected cluster that answer; ``note`` is told of those that do not. Raises UnfitError where
    none does, with what the cluster has."""
    files = [(path.name, path.read_bytes()) for path in plugins]
    nodes = _nodes()
    places = [place for node in nodes for place in _places(node, wanted)]
    head = _Head()
    actors = [Actor(place, wanted, files, head) for place in places]
    for actor in actors:
        actor.begin()
    slots, hellos = [], []
    for actor in actors:
        try:
            hello = actor.hello()
        except (FusionbenchError, SlotLostError) as error:
            note(f"{actor.place.name}: {error}")
            actor.end()
            continue
        for line in hello.remarks:
            note(f"{actor.place.name}: {line}")
        hellos.append((actor.place.device, hello))
        slots.append(
            Slot(actor.place.name, actor.place.device, hello.environment, actor.run, actor.probe, actor.reopen)
        )
    if not slots:
        raise UnfitError(
            f"the ray cluster has nothing to measure on: {_wish(wanted)} asked for, there is {_offer(nodes)}"
        )
    environments = {slot.environment.id: slot.environment for slot in slots}
    return Site(tuple(environments.values()), slots, Cluster(hellos))


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive, with what they offer."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Cluster:
    """What the plan asks of the devices of a cluster."""

    hellos: Sequence[tuple[str, Hello]]

    def missing(self, device: str) -> str | None:
        kind, _, number = device.partition(":")
        if number:
            return f"device '{device}' is not for a cluster: there Ray chooses the GPU (use 'cuda')"
        known = any(found == kind for found, _ in self.hellos)
        return None if known else f"device '{device}' is not available: no slot of the ray cluster has one"

    def memory(self, device: str) -> int | None:
        """The least of any slot: whatever is planned fits everywhere."""
        found = [hello.memory_bytes for kind, hello in self.hellos if kind == device.partition(":")[0]]
        return None if None in found or not found else min(each for each in found if each is not None)


@dataclass(frozen=True)
class Place:
    """A slot as Ray sees it."""

    name: str
    device: str
    node: str
    resources: dict[str, float]


def _places(node: dict[str, Any], wanted: Wanted) -> Iterator[Place]:
    """A place for each GPU of a node, and one for its CPU: whoever shares a socket shares its caches."""
    has: dict[str, float] = node["Resources"]
    accelerator = f"accelerator_type:{wanted.accelerator}"
    if wanted.accelerator and accelerator not in has:
        return
    counts = {"cuda": int(has.get("GPU", 0)), "cpu": min(1, int(has.get("CPU", 0)))}
    name = str(node.get("NodeManagerHostname") or node["NodeManagerAddress"])
    extra = {wanted.resource: 1.0} if wanted.resource else {}
    room = int(has.get(wanted.resource, 0)) if wanted.resource else math.inf
    for device in sorted(wanted.devices, reverse=True):
        for number in range(counts[device]):
            if room < 1:
                return
            room -= 1
            shown = f"{name} ({node['NodeManagerAddress']}), {device}" + (f" {number}" if counts[device] > 1 else "")
            yield Place(shown, device, node["NodeID"], extra)


def _wish(wanted: Wanted) -> str:
    parts = [
        *sorted(wanted.devices),
        f"accelerator {wanted.accelerator}" if wanted.accelerator else "",
        wanted.resource,
    ]
    return printable(", ".join(part for part in parts if part))


def _offer(nodes: Sequence[dict[str, Any]]) -> str:
    def told(has: dict[str, float]) -> str:
        return ", ".join(
            f"{name} {count:g}" for name, count in sorted(has.items())
            if not name.startswith(("node:", "object_store_memory", "memory"))
        )  # fmt: skip

    return printable("; ".join(f"{node['NodeManagerAddress']}: {told(node['Resources'])}" for node in nodes), 1000)


class _Head:
    """Whether the cluster's head answers, asked at most every other second."""

    def __init__(self) -> None:
        with contextlib.suppress(Exception):  # a ray:// client has no such address, and raises ConnectionError itself
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            self.address: tuple[str, int] | None = (host, int(port))
            self.seen = self.asked = monotonic()
            return
        self.address = None

    def check(self) -> None:
        """Raises SiteLostError once it has not answered for GONE_S."""
        now = monotonic()
        if self.address is None or now - self.asked < 2:
            return
        self.asked = now
        try:
            socket.create_connection(self.address, timeout=2).close()
            self.seen = monotonic()
        except OSError:
            if now - self.seen > GONE_S:
                raise SiteLostError("the head of the ray cluster is gone") from None


@dataclass
class Actor:
    """The measuring process of one place, and how its answers are awaited."""

    place: Place
    wanted: Wanted
    plugins: Sequence[tuple[str, bytes]]
    head: _Head
    handle: Any = None
    first: Any = field(default=None, repr=False)

    def begin(self) -> None:
        options = {
            "num_cpus": 1,
            "num_gpus": 1 if self.place.device == "cuda" else 0,
            "resources": self.place.resources or None,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 2,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(self.place.node, soft=False),
        }
        self.handle = ray.remote(Measurer).options(**options).remote(self.place.device, list(self.plugins))
        self.first = self.handle.introduce.remote(self.wanted.strict)

    def hello(self) -> Hello:
        """Who it is; raises SlotLostError or FusionbenchError where it cannot measure."""
        hello = msgspec.json.decode(self._await(self.first, BEGIN_S, None), type=Hello)
        if hello.missing:
            raise FusionbenchError(hello.missing)
        if hello.fusionbench != __version__:
            raise FusionbenchError(f"it has fusionbench {printable(hello.fusionbench)}, this machine {__version__}")
        return hello

    def run(
        self,
        visits: Iterable[Visit],
        budget: Budget,
        plugins: Sequence[str],
        started: Callable[[Job], None],
        stopping: Callable[[], bool],
    ) -> Generator[tuple[Visit, Record], None, None]:
        """The engine of this slot; raises SlotLostError."""
        for visit in visits:
            if stopping():
                return
            self.head.check()  # slots answer without a head, until Ray ends this process
            started(visit.job)
            order = _encoder.encode(Order(visit=visit, budget=budget))
            answer = self._await(self.handle.measure.remote(order), budget.timeout_s + MARGIN_S, visit.job, stopping)
            if answer is None:
                return
            yield visit, decode_record(answer)

    def probe(self, probes: Sequence[Probe]) -> Iterator[tuple[Probe, Roofline | str]]:
        """What the slot's device can do at best."""
        answer = self._await(
            self.handle.probe.remote(_encoder.encode(list(probes))), 2 * local.PROBE_S * len(probes), None
        )
        yield from zip(probes, msgspec.json.decode(answer, type=list[Roofline | str]), strict=True)

    def reopen(self) -> bool:
        """Whether a new actor answers in the same place."""
        self.end()
        if self.place.node not in {node["NodeID"] for node in _nodes()}:
            return False
        self.begin()
        try:
            self.hello()
        except FusionbenchError:
            return False
        return True

    def end(self) -> None:
        with contextlib.suppress(exceptions.RayError, ValueError):
            ray.kill(self.handle)

    def _await(self, answer: Any, limit_s: float, job: Job | None, stopping: Callable[[], bool] = lambda: False) -> Any:
        """What the actor answers; None where the user stopped and it did not end in time. Raises SlotLostError."""
        deadline, give_up = monotonic() + limit_s, math.inf
        while True:
            try:
                return ray.get(answer, timeout=LOOK_S)  # one call: to wait first and get then takes twice as long
            except exceptions.GetTimeoutError:
                self.head.check()
            except exceptions.RayTaskError as error:  # ours: what a job does wrong is in its record
                cause = error.cause if isinstance(error.cause, FusionbenchError) else error
                text = str(cause).strip().splitlines() or [type(cause).__name__]
                raise SlotLostError(printable(text[-1], 300), job) from None
            except exceptions.RayError as error:
                raise SlotLostError(_lost(error), job) from None
            now = monotonic()
            if now > deadline:
                self.end()
                raise SlotLostError(f"no answer for {limit_s:g} s", job)
            if stopping() and give_up == math.inf:
                self.handle.stop.remote()
                give_up = now + local.INTERRUPT_GRACE_S + 1
            if now > give_up:
                self.end()
                return None


def _lost(error: Exception) -> str:
    """Ray's words for the death of an actor, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next(
        (line for line in lines if "cause" in line.lower() or "died" in line.lower()), lines[0] if lines else ""
    )
    return printable(told or type(error).__name__, 300)
