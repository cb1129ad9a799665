"""The Ray cluster that a verb was told to measure on, for as long as it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import FusionbenchError

if TYPE_CHECKING:
    from rich.console import Console

    from ..site import Site
    from ..suite import Suite


@dataclass(frozen=True)
class Asked:
    """The options of `run` and `resume` that say where jobs run."""

    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    accelerator: str | None = None
    resource: str | None = None
    insecure: bool = False
    strict: bool = False

    def check(self) -> None:
        """Raises FusionbenchError for an option that only a cluster has."""
        given = {"address": self.address, "accelerator": self.accelerator, "resource": self.resource}
        for name, value in given.items():
            if value is not None and self.engine == "local":
                raise FusionbenchError(f"--{name} is for --engine ray")


@contextlib.contextmanager
def site(asked: Asked, chosen: Suite, plugins: Sequence[Path], out: Console) -> Iterator[Site | None]:
    """The slots to measure ``chosen`` on; None for this machine. Raises FusionbenchError, UnfitError."""
    if asked.engine == "local":
        yield None
        return
    try:
        from ..engines import on_ray
    except ModuleNotFoundError as missing:
        if missing.name != "ray":
            raise
        raise FusionbenchError(
            "--engine ray needs ray, which is not installed here: pip install fusionbench[ray]"
        ) from None
    from ..terminal import note

    devices = frozenset(device.partition(":")[0] for sweep in chosen.sweeps for device in sweep.devices)
    wanted = on_ray.Wanted(devices, asked.accelerator or "", asked.resource or "", asked.strict)
    with on_ray.connected(asked.address, insecure=asked.insecure) as dashboard:
        if dashboard:
            note(out, f"dashboard: {dashboard}")
        yield on_ray.site(wanted, plugins, lambda line: note(out, line))
