"""Every note that a record can carry says what it is about and, behind a semicolon, what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from fusionbench import honesty, remarks
from fusionbench.environment import native
from fusionbench.meters import device, memory
from fusionbench.record import DeviceState, Environment, Timing
from fusionbench.settings import Kept
from tests.synthetic import ENVIRONMENTS

HERE = ENVIRONMENTS["h100-a"]
TIME = Timing(
    timer="wall", cache="hot", loops=1, samples_ns=(10**6, 10**6, 10**10), run_delay_ns=(10**6, 0, 0), stop="samples",
    first_call_ns=1, warmup_calls=1, threads=1,
)  # fmt: skip


def on(**changes: Any) -> Environment:
    return replace(HERE, **changes)


def leaking() -> tuple[str, ...]:
    held: list[torch.Tensor] = []
    return memory.measure(lambda: held.append(torch.ones(1 << 20)), torch.device("cpu"), 0).notes


def unlike() -> str | None:
    first, second = (honesty.Call((torch.tensor([value]),), (), 1, 1) for value in (1.0, 2.0))
    return honesty._difference(first, second)


NOTES: dict[str, Callable[[], tuple[str, ...] | str | None]] = {
    "waiting": lambda: remarks.waiting(replace(TIME, samples_ns=(10**6,) * 3, run_delay_ns=(10**6,) * 3)),
    "suspension": lambda: remarks.suspension(TIME),
    "tf32 on a CPU": lambda: native("tf32", "cpu", HERE),
    "a CPU without the dtype": lambda: native("fp16", "cpu", on(cpu_flags=("avx2",))),
    "a CPU without flags": lambda: native("bf16", "cpu", on(cpu_flags=())),
    "a GPU without the dtype": lambda: native("bf16", "cuda", on(capability="7.5")),
    "a GPU without a capability": lambda: native("bf16", "cuda", on(capability="")),
    "throttled": lambda: device.notes(DeviceState(throttle=("sw_power_cap",)), "cuda"),
    "crowded": lambda: device.notes(DeviceState(foreign=2), "cuda"),
    "a setting": lambda: Kept({}, {name: object() for name in _household()}).notes()[:1],
    "memory": leaking,
    "two results": unlike,
}


def _household() -> list[str]:
    from fusionbench.settings import HOUSEHOLD

    return list(HOUSEHOLD)


def made_by(make: Callable[[], tuple[str, ...] | str | None]) -> tuple[str, ...]:
    found = make()
    assert found
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", NOTES)
def test_a_note_has_a_cause_and_a_remedy(name: str) -> None:
    (note,) = made_by(NOTES[name])
    cause, semicolon, remedy = note.rpartition("; ")
    assert semicolon
    assert len(cause) > 20
    assert len(remedy) > 10
