"""The claims ledger: what is commonly said about fusion, what checking it found, and the file that keeps both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from .disk import explained, opened, refuse_newer, write_atomically
from .errors import StoreError, printable
from .record import Environment
from .remote import refuse_url

VERSION = 1  # of the file; a reader refuses a newer one
MAX_BYTES = 1 << 20  # a full ledger is 40 KB
FILE = "claims.json"  # its name inside a run folder, where a report finds it

Verdict = Literal["exact", "holds under conditions", "refuted", "not testable as stated", "needs the quality track"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FAILED = "error"  # stands in a verdict's place where the check itself failed

Id = Annotated[str, Meta(pattern=r"^C[1-9][0-9]{0,2}\Z")]
Line = Annotated[str, Meta(max_length=300)]
Text = Annotated[str, Meta(max_length=2000)]
Amount = Annotated[float, Meta(ge=0, le=1e18)]


class Claim(Struct, frozen=True, kw_only=True, gc=False):
    """A statement as it is commonly made, where it is made, and how it is checked."""

    id: Id
    said: Line
    source: Line
    method: Line


class Figure(Struct, frozen=True, kw_only=True, gc=False):
    """One number with its unit; ``low`` and ``high`` bound what was measured at 95 % and are None for exact numbers."""

    what: Line
    value: Amount
    unit: Annotated[str, Meta(max_length=20)] = ""
    low: Amount | None = None
    high: Amount | None = None

    @property
    def unclear(self) -> bool:
        """A measured ratio whose interval holds 1: neither side is ahead."""
        return self.unit == "×" and self.low is not None and self.high is not None and self.low <= 1 <= self.high

    @property
    def amount(self) -> str:
        """``2.000 ×``, ``0.335 ×``, ``20,979,712``, ``44.9 ms``."""
        return f"{_number(self.value, self.unit, self.low is not None)} {self.unit}".rstrip()

    @property
    def interval(self) -> str:
        """``[0.331, 0.341]``, ``[0.98, 1.03], unclear``; empty for exact numbers."""
        if self.low is None or self.high is None:
            return ""
        bounds = ", ".join(_number(bound, self.unit, True) for bound in (self.low, self.high))
        return f"[{bounds}]" + (", unclear" if self.unclear else "")


def _number(value: float, unit: str, measured: bool) -> str:
    """Exact ratios with three decimals; measured ones with about three digits; whole numbers whole."""
    if unit == "×" and value < 100:
        return f"{value:.3f}" if value < 1 or not measured else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return f"{value:,.0f}" if value == round(value) or value >= 1000 else f"{value:.3g}"


class Finding(Struct, frozen=True, kw_only=True):
    """What the check of one claim found; ``condition`` says when the claim holds, ``note`` what was left out.

    A check that failed has no verdict and says in ``error`` why.
    """

    id: Id
    verdict: Verdict | None = None
    figures: Annotated[tuple[Figure, ...], Meta(max_length=100)] = ()
    condition: Text = ""
    note: Text = ""
    error: Text = ""
    seconds: Amount = 0.0

    def __post_init__(self) -> None:
        if (self.verdict is None) != bool(self.error):
            raise ValueError(f"finding {self.id} needs either a verdict or an error")

    @property
    def outcome(self) -> str:
        """The verdict, or ``error``."""
        return self.verdict or FAILED


class Ledger(Struct, frozen=True, kw_only=True):
    """Claims with their findings, and where, when and from which seed these were made."""

    v: int = VERSION
    created_at: Line  # UTC, ISO 8601
    seed: Annotated[int, Meta(ge=0, le=2**62)]
    threads: Annotated[int, Meta(ge=1, le=4096)] = 1
    environment: Environment
    claims: Annotated[tuple[Claim, ...], Meta(max_length=1000)]
    findings: Annotated[tuple[Finding, ...], Meta(max_length=1000)]

    def __post_init__(self) -> None:
        for name, items in (("claim", self.claims), ("finding", self.findings)):
            twice = [key for key, count in Counter(item.id for item in items).items() if count > 1]
            if twice:
                raise ValueError(f"{name} {twice[0]} is there twice")
        strays = {finding.id for finding in self.findings} - {claim.id for claim in self.claims}
        if strays:
            raise ValueError(f"finding {min(strays)} is about no claim")

    @property
    def entries(self) -> list[tuple[Claim, Finding]]:
        """Every finding with its claim."""
        claims = {claim.id: claim for claim in self.claims}
        return [(claims[finding.id], finding) for finding in self.findings]

    @property
    def counts(self) -> dict[str, int]:
        """How often each outcome was found, in the order of the verdicts, those never found left out."""
        found = Counter(finding.outcome for finding in self.findings)
        return {outcome: found[outcome] for outcome in (*VERDICTS, FAILED) if found[outcome]}


def encode(ledger: Ledger) -> bytes:
    """The ledger as indented JSON; raises StoreError for one that would not read back."""
    data = msgspec.json.format(msgspec.json.encode(ledger), indent=2) + b"\n"
    if len(data) > MAX_BYTES:
        raise StoreError(f"the ledger is {len(data):,} bytes, more than the limit of {MAX_BYTES:,}")
    try:
        msgspec.json.decode(data, type=Ledger)
    except msgspec.MsgspecError as error:
        raise StoreError(f"the ledger cannot be stored: {error}") from error
    return data


def make_place(path: Path) -> None:
    """Make the folder that ``path`` will be written to; raises StoreError before anything is measured for it."""
    refuse_url(path)
    if path.is_dir():
        raise StoreError(f"cannot write '{printable(str(path))}': it is a folder; name the file in it ({FILE})")
    with explained(f"cannot write '{printable(str(path))}'"):
        path.parent.mkdir(parents=True, exist_ok=True)


def save(ledger: Ledger, path: Path) -> None:
    """Write the ledger whole or not at all; raises StoreError."""
    data = encode(ledger)
    with explained(f"cannot write '{printable(str(path))}'"):
        write_atomically(path, data)


def load(path: Path) -> Ledger:
    """What ``save`` wrote; raises StoreError where it is something else, NewerSchemaError where it is from later."""
    shown = printable(str(path))
    with explained(f"cannot read '{shown}'"), opened(path, MAX_BYTES) as file:
        data = file.read()
    refuse_newer(data, VERSION, shown)
    try:
        return msgspec.json.decode(data, type=Ledger)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise StoreError(
            f"'{shown}' is not what 'fusionbench claims --output' writes: {printable(str(error))}"
        ) from error
