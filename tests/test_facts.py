"""Facts that no noise moves: what of a record they are, and what counts as worse."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fusionbench import facts
from fusionbench.delta import Change
from fusionbench.facts import Facts
from tests.comparing import COSTS, failed, here, record

KNOWN = Facts(
    flops=1000, params=200, min_bytes=300, activation_bytes=400, counted_flops=1000, peak_bytes=5000, launches=42,
    kernels=("flash",),
)  # fmt: skip


def test_the_facts_of_a_record_are_its_costs_its_peak_its_launches_and_its_kernels() -> None:
    assert facts.of(record(costs=replace(COSTS, counted_flops=1000))) == KNOWN


def test_what_a_record_does_not_say_is_none_and_a_failed_job_says_nothing() -> None:
    assert facts.of(record(costs=None, memory=None, launches=None)) == Facts(kernels=("flash",))
    assert facts.of(failed()) == Facts()


@pytest.mark.parametrize("name", [name for name in facts.NAMES if name != "kernels"])
def test_one_more_is_worse_and_one_less_is_told(name: str) -> None:
    value = getattr(KNOWN, name)
    more, less = (replace(KNOWN, **{name: value + by}) for by in (1, -1))
    assert facts.changes(KNOWN, more, alike=True) == (Change(fact=name, base=value, head=value + 1, worse=True),)
    assert facts.changes(KNOWN, less, alike=True) == (Change(fact=name, base=value, head=value - 1, worse=False),)
    assert facts.changes(KNOWN, KNOWN, alike=True) == ()


@pytest.mark.parametrize("kernels", [("flash", "math"), ("math",), ()])
def test_another_set_of_kernels_is_worse_whichever_it_is(kernels: tuple[str, ...]) -> None:
    (change,) = facts.changes(KNOWN, replace(KNOWN, kernels=kernels), alike=True)
    assert (change.fact, change.base, change.worse) == ("kernels", "flash", True)
    assert change.head == (", ".join(kernels) or "none")


def test_what_the_toolchain_decides_is_compared_only_under_the_same_one() -> None:
    other = replace(KNOWN, flops=1001, peak_bytes=9999, launches=1, kernels=("math",))
    assert [change.fact for change in facts.changes(KNOWN, other, alike=False)] == ["flops"]
    assert facts.compared(KNOWN, other, alike=False) == facts.CLOSED_FORMS


def test_a_fact_that_one_side_lacks_is_named_and_not_compared() -> None:
    older = replace(KNOWN, launches=None)
    assert facts.changes(older, KNOWN, alike=True) == ()
    assert facts.lacking(older, KNOWN, alike=True) == facts.lacking(KNOWN, older, alike=True) == ("launches",)
    assert facts.lacking(older, KNOWN, alike=False) == ()


def test_flops_that_nobody_can_count_are_not_missed() -> None:
    """In compiled code: its other facts are compared."""
    unseen = replace(KNOWN, counted_flops=None)
    assert facts.lacking(unseen, unseen, alike=True) == ()
    assert facts.lacking(unseen, KNOWN, alike=True) == ("counted_flops",)


def test_work_that_the_closed_form_does_not_know_of_is_worse() -> None:
    base, head = (facts.of(record(costs=replace(COSTS, counted_flops=count))) for count in (1000, 2000))
    assert facts.changes(base, head, alike=True) == (Change(fact="counted_flops", base=1000, head=2000, worse=True),)


@pytest.mark.parametrize(
    ("changes", "on_cpu", "on_cuda"),
    [
        ({"torch": "2.14.0"}, ("torch 2.13.0 → 2.14.0",), ("torch 2.13.0 → 2.14.0",)),
        ({"triton": ""}, ("triton 3.7.1 → none",), ("triton 3.7.1 → none",)),
        ({"cpu_flags": ("avx2", "avx512f")}, ("cpu flags avx2 → avx2 avx512f",), ()),
        ({"system": "Linux 6.8.0-1 aarch64"}, ("architecture x86_64 → aarch64",), ()),
        ({"capability": "9.0"}, (), ("capability none → 9.0",)),
        ({"system": "Linux 6.9.1 x86_64", "cores": 64, "machine": "other", "cpu": "Xeon"}, (), ()),
    ],
)
def test_a_toolchain_is_the_libraries_and_what_the_device_can_do(
    changes: dict[str, object], on_cpu: tuple[str, ...], on_cuda: tuple[str, ...]
) -> None:
    assert facts.unlike(here(), here(**changes), "cpu") == on_cpu
    assert facts.unlike(here(), here(**changes), "cuda:0") == on_cuda


def test_a_change_is_told_with_its_share() -> None:
    assert facts.told(Change(fact="flops", base=1000, head=1015, worse=True)) == "flops 1,000 → 1,015 (+1.50%)"
    assert facts.told(Change(fact="launches", base=0, head=3, worse=True)) == "launches 0 → 3"
    assert facts.told(Change(fact="kernels", base="flash", head="none", worse=True)) == "kernels flash → none"


def test_names_of_kernels_from_elsewhere_are_printable_and_bounded() -> None:
    hostile = record(kernels=("\x1b[31mred", "x" * 5000))
    assert all(name.isprintable() and len(name) <= 200 for name in facts.of(hostile).kernels or ())
