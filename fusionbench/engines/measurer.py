"""What a Ray actor does on its node: measures one visit after the other, each in a process as on a single machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__, device_lock, fitness
from ..environment import capture, device_memory
from ..plan import missing_device
from ..record import Environment, encode_record
from ..roofline import Probe
from ..spec import Budget, Visit
from . import local

_encoder = msgspec.json.Encoder()


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers, what its device is, and what speaks against it."""

    fusionbench: str
    environment: Environment
    memory_bytes: int | None
    missing: str | None  # why it has no such device
    remarks: tuple[str, ...] = ()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A visit to make."""

    visit: Visit
    budget: Budget


class Measurer:
    """Runs in the actor's process, which imports torch and computes nothing; ``stop`` comes on a second thread."""

    def __init__(self, device: str, plugins: Sequence[tuple[str, bytes]]) -> None:
        self.device = device
        self.stopping = False
        self.order: Order | None = None
        self.held = contextlib.ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="fusionbench-"))
        self.plugins = [_written(folder / str(number), *plugin) for number, plugin in enumerate(plugins)]
        self.made: Any = None
        local.start_server()

    def introduce(self, strict: bool) -> bytes:
        """A Hello; raises FusionbenchError where its GPU is measured by another run, or disturbed under ``strict``."""
        missing = missing_device(self.device)
        told: list[str] = []
        if missing is None:
            self.held.enter_context(device_lock.held([self.device]))
            told = fitness.remarks([self.device], strict=strict)
        hello = Hello(
            fusionbench=__version__,
            environment=capture(),
            memory_bytes=None if missing else device_memory(self.device),
            missing=missing,
            remarks=tuple(told),
        )
        return _encoder.encode(hello)

    def measure(self, order: bytes) -> bytes | None:
        """The record of a visit; None where ``stop`` came first."""
        self.order = msgspec.json.decode(order, type=Order)
        if self.made is None:
            self.made = local.run(self._visits(), self.order.budget, self.plugins, lambda job: None, self._asked)
        found = next(self.made, None)
        if found is None:
            self.made = None
            return None
        return encode_record(found[1])

    def probe(self, probes: bytes) -> bytes:
        """What the device can do at best, for each probe a roofline or why there is none."""
        wanted = msgspec.json.decode(probes, type=list[Probe])
        return _encoder.encode([found for _, found in local.probe(wanted)])

    def stop(self) -> None:
        """End the running visit after its sample, and make no other."""
        self.stopping = True

    def pid(self) -> int:
        return os.getpid()

    def _asked(self) -> bool:
        return self.stopping

    def _visits(self) -> Iterator[Visit]:
        while self.order is not None:
            yield self.order.visit


def _written(folder: Path, name: str, content: bytes) -> str:
    folder.mkdir()
    (folder / name).write_bytes(content)
    return str(folder / name)
