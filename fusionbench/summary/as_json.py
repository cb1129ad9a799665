"""A judgement or a comparison as JSON, so that another job can show it; what is read is checked, it may be anyone's."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from msgspec import Struct

from ..delta import VERSION, Comparison, Delta, Judgement, Ruling
from ..disk import explained, opened, refuse_newer
from ..errors import DamagedError, StoreError, printable

MAX_BYTES = 64 << 20  # 1,000 jobs are 0.5 MB
MAX_FACT = 2**63


class _Judged(Struct, frozen=True, kw_only=True):
    """A judgement with the version in front, where a reader looks for it."""

    v: int = VERSION
    exit_code: int
    rulings: tuple[Ruling, ...]
    comparison: Comparison


def encode(found: Judgement | Comparison) -> bytes:
    """On one line; a comparison by itself, for `compare --json`, has the same fields as within a judgement."""
    if isinstance(found, Judgement):
        judged = _Judged(exit_code=found.exit_code, rulings=found.rulings, comparison=found.comparison)
        return msgspec.json.encode(judged) + b"\n"
    return msgspec.json.encode(found) + b"\n"


def load(path: Path) -> Judgement:
    """What `check --json` wrote. Raises StoreError where there is no such file, NewerSchemaError where a newer
    fusionbench wrote it, DamagedError where it is anything else or contradicts itself."""
    shown = printable(str(path))
    if not path.exists():
        raise StoreError(f"no judgement at '{shown}'; write one with: fusionbench check --json FILE")
    with explained(f"cannot read '{shown}'"), opened(path, MAX_BYTES) as file:
        data = file.read()
    return decode(data, f"'{shown}'")


def decode(data: bytes, where: str) -> Judgement:
    """As ``load``; ``where`` names the file in messages."""
    refuse_newer(data, VERSION, where)
    try:
        judged = msgspec.json.decode(data, type=_Judged)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise DamagedError(f"{where} is not what 'fusionbench check --json' writes: {printable(str(error))}") from error
    refuse_newer(b'{"v": %d}' % judged.comparison.v, VERSION, where)
    found = Judgement(comparison=judged.comparison, rulings=judged.rulings, exit_code=judged.exit_code)
    for trouble in (_contradiction(found), *map(_impossible, found.comparison.deltas)):
        if trouble:
            raise DamagedError(f"{where} contradicts itself: {trouble}")
    return found


def decode_comparison(data: bytes, where: str) -> Comparison:
    """What `compare --json` wrote; raises as ``load`` does."""
    refuse_newer(data, VERSION, where)
    try:
        found = msgspec.json.decode(data, type=Comparison)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise DamagedError(
            f"{where} is not what 'fusionbench compare --json' writes: {printable(str(error))}"
        ) from error
    for trouble in map(_impossible, found.deltas):
        if trouble:
            raise DamagedError(f"{where} contradicts itself: {trouble}")
    return found


def _contradiction(judgement: Judgement) -> str:
    """A pass that is none: nobody shall read a green line over a red one."""
    if not 0 <= judgement.exit_code <= 255:
        return f"exit code {judgement.exit_code}"
    outcomes = {ruling.outcome for ruling in judgement.rulings}
    if judgement.exit_code == 0 and ("failed" in outcomes or any(ruling.failures for ruling in judgement.rulings)):
        return "exit code 0, and a gate that failed"
    if judgement.exit_code == 0 and "passed" not in outcomes:
        return "exit code 0, and no gate that passed"
    return ""


def _impossible(delta: Delta) -> str:
    """A number that nothing can have."""
    numbers = (delta.base_ns, delta.head_ns, delta.ratio, delta.low, delta.high, delta.detectable, delta.p)
    if any(number is not None and not (math.isfinite(number) and number >= 0) for number in numbers):
        return f"a negative or infinite number in job '{printable(delta.key)}'"
    facts = [side for change in delta.changes for side in (change.base, change.head) if isinstance(side, int)]
    if delta.rounds < 0 or any(abs(side) >= MAX_FACT for side in facts):
        return f"a count out of range in job '{printable(delta.key)}'"
    return ""
