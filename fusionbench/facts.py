"""What of a record no noise moves, and in which of it two records of one job differ."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from .delta import Change
from .errors import printable
from .record import Environment, Natural, Record

KernelName = Annotated[str, Meta(max_length=200)]

CLOSED_FORMS = ("flops", "params", "min_bytes", "activation_bytes")  # the same wherever the job runs
# Decided by the libraries and by what the device can do as much as by the code: compared where those agree.
OF_TOOLCHAIN = ("counted_flops", "peak_bytes", "launches", "kernels")
NAMES = CLOSED_FORMS + OF_TOOLCHAIN
UNSEEN = ("counted_flops",)  # not known of compiled code, on no side


class Facts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whatever the record of a job says of its work; None is what it does not say."""

    flops: Natural | None = None
    params: Natural | None = None
    min_bytes: Natural | None = None
    activation_bytes: Natural | None = None
    counted_flops: Natural | None = None  # of the ops that ran: a closed form is what the code says of itself
    peak_bytes: Natural | None = None
    launches: Natural | None = None
    kernels: Annotated[tuple[KernelName, ...], Meta(max_length=1000)] | None = None


def of(record: Record) -> Facts:
    """The facts of a job that is ok; of any other there are none that mean anything."""
    if record.status != "ok":
        return Facts()
    return Facts(
        **{name: getattr(record.costs, name) for name in (*CLOSED_FORMS, "counted_flops") if record.costs},
        peak_bytes=record.memory.peak_bytes if record.memory else None,
        launches=record.launches,
        kernels=tuple(sorted({printable(name, 199) for name in record.kernels})),
    )


def between(base: Record, head: Record, where: tuple[Environment, Environment]) -> tuple[int, tuple[Change, ...]]:
    """How many facts two records of one job have in common, measured in these environments, and which differ."""
    alike = not unlike(*where, base.job.case.device)
    before, after = of(base), of(head)
    return len(compared(before, after, alike=alike)), changes(before, after, alike=alike)


def changes(base: Facts, head: Facts, *, alike: bool) -> tuple[Change, ...]:
    """Every fact that differs, in the order of NAMES; without tolerance.

    More is worse, and so is another set of kernels: a human must say that it is fine. ``alike`` says that both sides
    have the same libraries on devices that can do the same (see ``unlike``); else only closed forms are compared.
    """
    pairs = ((name, getattr(base, name), getattr(head, name)) for name in compared(base, head, alike=alike))
    return tuple(_change(name, before, after) for name, before, after in pairs if before != after)


def compared(base: Facts, head: Facts, *, alike: bool) -> tuple[str, ...]:
    """The facts that both sides know and that may be held against each other."""
    return tuple(
        name
        for name in (NAMES if alike else CLOSED_FORMS)
        if getattr(base, name) is not None and getattr(head, name) is not None
    )


def lacking(base: Facts, head: Facts, *, alike: bool) -> tuple[str, ...]:
    """The facts that would be compared if both sides knew them."""
    known = compared(base, head, alike=alike)
    unseen = [name for name in UNSEEN if getattr(base, name) is None and getattr(head, name) is None]
    return tuple(name for name in (NAMES if alike else CLOSED_FORMS) if name not in known and name not in unseen)


def unlike(base: Environment, head: Environment, device: str) -> tuple[str, ...]:
    """What differs of that which decides memory, launches and kernels on ``device``, as ``torch 2.11.0 → 2.13.0``."""
    before, after = _toolchain(base, device), _toolchain(head, device)
    return tuple(
        f"{name} {before[name] or 'none'} → {after[name] or 'none'}" for name in before if before[name] != after[name]
    )


def told(change: Change) -> str:
    """``flops 100 → 120 (+20.00%)``."""
    if isinstance(change.base, int) and isinstance(change.head, int):
        share = f" ({(change.head - change.base) / change.base:+.2%})" if change.base else ""
        return f"{change.fact} {change.base:,} → {change.head:,}{share}"
    return f"{change.fact} {change.base} → {change.head}"


def _toolchain(environment: Environment, device: str) -> dict[str, str]:
    libraries = {"torch": environment.torch, "triton": environment.triton}
    if device.startswith("cuda"):
        return libraries | {"capability": environment.capability}
    architecture = environment.system.rpartition(" ")[2]  # "Linux 6.8.0 x86_64"
    return libraries | {"architecture": architecture, "cpu flags": " ".join(sorted(environment.cpu_flags))}


def _change(name: str, before: Any, after: Any) -> Change:
    if name == "kernels":
        return Change(fact=name, base=_listed(before), head=_listed(after), worse=True)
    return Change(fact=name, base=before, head=after, worse=after > before)


def _listed(kernels: tuple[str, ...]) -> str:
    return printable(", ".join(kernels) or "none", 2000)
