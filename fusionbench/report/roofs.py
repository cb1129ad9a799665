"""The measured ceilings that a page's roofline is drawn with: those of its rows' devices, and no others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from ..errors import printable
from ..record import Roofline
from ..roofline import Probe, sound
from .document import LONGEST


def payload(rooflines: Iterable[Roofline], shown: pd.DataFrame) -> list[dict[str, Any]]:
    """Each ceiling that a row of ``shown`` was measured under, once; of two for the same, the later one."""
    keys = shown[list(Probe.__struct_fields__)].dropna().itertuples(index=False, name=None)
    wanted = set(keys)
    known = {Probe.of(each): each for each in rooflines if sound(each)}
    return [_plain(each) for probe, each in known.items() if _key(probe) in wanted]


def _key(probe: Probe) -> tuple[str, str, int, str]:
    return probe.device, probe.dtype, probe.threads, probe.environment


def _plain(roofline: Roofline) -> dict[str, Any]:
    return {
        "device": printable(roofline.device, LONGEST),
        "dtype": roofline.dtype,
        "threads": roofline.threads,
        "environment": printable(roofline.environment, LONGEST),
        "flops_per_s": roofline.flops_per_s,
        "bytes_per_s": roofline.bytes_per_s,
    }
