"""The words for a part of a plan: some of the slices that it is cut into, for one of several machines."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from .errors import FusionbenchError, printable

MOST = 10_000  # slices of one plan

Number = Annotated[int, Meta(ge=1, le=MOST)]


class Slices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of ``of`` slices, from 1; more than one where runs were merged."""

    of: Number
    numbers: Annotated[tuple[Number, ...], Meta(min_length=1, max_length=MOST)]

    def __post_init__(self) -> None:
        if list(self.numbers) != sorted(set(self.numbers)) or self.numbers[-1] > self.of:
            raise ValueError(f"the numbers of slices must rise, up to {self.of}")

    @property
    def label(self) -> str:
        """As ``2/8``, and as ``1,2/8`` where runs were merged."""
        return f"{','.join(map(str, self.numbers))}/{self.of}"


def parse(text: str) -> Slices:
    """``2/8`` as the second of eight slices; raises FusionbenchError."""
    found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of <= MOST:
        shown = printable(text)
        raise FusionbenchError(f"--shard '{shown}' is not of the form I/N, with I from 1 to N and N up to {MOST:,}")
    return Slices(of=of, numbers=(number,))
