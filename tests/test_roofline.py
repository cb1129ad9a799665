"""Rooflines: what is measured can be a machine's, what is kept survives damage, and no honest time is called a lie."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pandas as pd
import pytest
import torch
from msgspec.structs import replace
from rich.console import Console

from fusionbench import roofline
from fusionbench.meters import roofline as meter
from fusionbench.record import Costs, Memory, Record, Roofline, Timing
from fusionbench.report import page, table
from fusionbench.report.frame import frame
from fusionbench.roofline import MARGIN, NO_PRODUCTS, UNKNOWN, Bound, Probe, bandwidth, bound, impossible
from fusionbench.spec import Case, Design, Job, Shape
from tests.synthetic import ENVIRONMENTS, records
from tests.test_report import payload

# 1 TFLOP/s; 100 GB/s up to 1 MB, 10 GB/s from 100 MB on.
ROOF = Roofline(
    device="cpu",
    dtype="fp32",
    threads=1,
    environment="e",
    flops_per_s=1e12,
    bytes_per_s=((10**6, 1e11), (10**8, 1e10)),
    measured_at="2026-01-01T00:00:00.000+00:00",
)
CASE = Case(shape=Shape(batch=2, image=7, text=5, image_width=24, text_width=16, width=16, heads=2))


def record(
    *,
    taken_s: float = 1.0,
    flops: int = 10**9,
    moved: int = 10**6,
    resting: int = 10**9,
    backend: str = "eager",
    case: Case = CASE,
    **timing: Any,
) -> Record:
    facts: dict[str, Any] = {"timer": "wall", "cache": "hot", "loops": 2, "stop": "precise", "threads": 1}
    samples = (round(2e9 * taken_s),) * 3
    return Record(
        job=Job(strategy="gated", backend=backend, case=case),
        status="ok",
        time=Timing(samples_ns=samples, first_call_ns=1, warmup_calls=1, **(facts | timing)),
        memory=Memory(peak_bytes=0, resting_bytes=resting, meter="cpu_profiler"),
        costs=Costs(flops=flops, params=1, min_bytes=moved, activation_bytes=1),
        environment="e",
    )


# --- bound and share -----------------------------------------------------------------------------------------------


def test_the_longer_of_computing_and_moving_bounds_a_call() -> None:
    products, bytes_ = bound(record(flops=10**12, moved=10**9), ROOF), bound(record(moved=10**10), ROOF)
    assert products == Bound(1.0, "compute")
    assert bytes_ == Bound(pytest.approx(1.0), "memory")


def test_bandwidth_is_straight_between_measured_sets_on_logarithmic_axes() -> None:
    sets = [1, 10**6, 10**7, 10**8, 10**12]
    # Half of the way from 1 MB to 100 MB, half of the way from 100 to 10 GB/s.
    assert bandwidth(ROOF, sets, cold=False) == pytest.approx([1e11, 1e11, 10**10.5, 1e10, 1e10])
    assert float(bandwidth(ROOF, 0, cold=False)) == pytest.approx(1e11)
    assert float(bandwidth(ROOF, 1, cold=True)) == 1e10


def test_a_small_working_set_is_bounded_by_the_cache_and_after_a_flush_by_memory() -> None:
    hot = bound(record(moved=10**9, resting=10**5), ROOF)
    cold = bound(record(moved=10**9, resting=10**5, cache="cold"), ROOF)
    assert isinstance(hot, Bound)
    assert isinstance(cold, Bound)
    assert (hot.seconds, cold.seconds) == (pytest.approx(0.01), pytest.approx(0.1))


def test_there_is_no_bound_without_its_facts_and_the_reason_is_told() -> None:
    assert bound(record(flops=0), ROOF) == NO_PRODUCTS
    assert bound(replace(record(), costs=None), ROOF) == NO_PRODUCTS
    assert bound(record(), None) == UNKNOWN
    assert bound(replace(record(), time=None), ROOF) == "it was not timed"


@pytest.mark.parametrize(
    "damaged",
    [
        replace(ROOF, flops_per_s=0.0),
        replace(ROOF, flops_per_s=float("inf")),
        replace(ROOF, bytes_per_s=()),
        replace(ROOF, bytes_per_s=((10, -1.0),)),
        replace(ROOF, bytes_per_s=((0, 1.0),)),
        replace(ROOF, bytes_per_s=((20, 1.0), (10, 1.0))),
    ],
)
def test_a_roofline_that_cannot_be_one_judges_nobody(damaged: Roofline) -> None:
    assert bound(record(), damaged) == UNKNOWN
    assert impossible(record(taken_s=0), damaged) is None
    assert frame([record()], {}, [damaged])["of_bound"].isna().all()


# --- faster than physics -------------------------------------------------------------------------------------------


def test_products_in_less_time_than_the_device_needs_are_impossible() -> None:
    honest, fast = record(flops=10**12, taken_s=1.01 / MARGIN), record(flops=10**12, taken_s=0.99 / MARGIN)
    assert impossible(honest, ROOF) is None
    assert impossible(fast, ROOF) == (
        "the output is right, but 330 ms is faster than physics: 1 TFLOP need at least 1 s at the 1 TFLOP/s measured on "
        "this device, and 333 ms at 3 times that"
    )


def test_a_time_of_zero_is_impossible_unless_there_is_nothing_to_do() -> None:
    assert impossible(record(taken_s=0), ROOF)
    assert impossible(record(taken_s=0, flops=0), ROOF) is None


def test_after_a_flush_inputs_and_weights_must_have_been_read() -> None:
    def cold(mode: str, **facts: Any) -> str | None:
        case = msgspec.structs.replace(CASE, mode=mode)
        return impossible(record(flops=1, moved=10**10, resting=10**9, cache="cold", case=case, **facts), ROOF)

    told = cold("fwd", taken_s=0.03)
    assert told is not None
    assert "1 GB of inputs and weights need at least 100 ms at the 10 GB/s" in told
    assert cold("fwd_bwd", taken_s=0.03)
    assert cold("fwd", taken_s=0.034) is None
    assert cold("step", taken_s=0.03) is None  # optimizer states rest, too
    assert cold("decode", taken_s=0.03) is None
    assert impossible(record(flops=1, moved=10**10, taken_s=0.001), ROOF) is None  # hot: they may be in a cache


def test_a_table_of_which_few_rows_are_read_is_not_counted_whole() -> None:
    assert impossible(record(flops=1, moved=10**6, resting=10**10, taken_s=1e-3, cache="cold"), ROOF) is None


def test_the_hosts_timer_ends_before_the_work_and_is_not_judged() -> None:
    assert impossible(record(flops=10**12, taken_s=1e-6, timer="host"), ROOF) is None


@pytest.mark.parametrize(
    ("facts", "factor"),
    [
        ({"case": replace(CASE, design=Design(causal=True))}, 2.0),
        ({"backend": "sparse"}, 2.0),
        ({"backend": "sparse", "case": replace(CASE, design=Design(causal=True))}, 2.0),
        ({"case": replace(CASE, padding=0.5)}, 4.0),
        ({"case": replace(CASE, device="cuda")}, 2.5),
        ({"case": replace(CASE, device="cuda", dtype="bf16")}, 1.0),
    ],
    ids=["causal", "sparse", "both", "padding", "3xTF32", "bf16"],
)
def test_work_that_an_honest_kernel_may_leave_out_is_not_demanded(facts: dict[str, Any], factor: float) -> None:
    limit = 1 / MARGIN / factor
    assert impossible(record(flops=10**12, taken_s=1.01 * limit, **facts), ROOF) is None
    assert impossible(record(flops=10**12, taken_s=0.99 * limit, **facts), ROOF)


# --- the cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "rooflines.json"


def test_rooflines_are_kept_one_per_device_dtype_threads_and_environment(cache: Path) -> None:
    notes: list[str] = []
    others = [replace(ROOF, dtype="bf16"), replace(ROOF, threads=2), replace(ROOF, environment="f")]
    newer = replace(ROOF, flops_per_s=2e12)
    roofline.save([ROOF, *others], cache, notes.append)
    roofline.save([newer], cache, notes.append)
    assert roofline.load(cache, notes.append) == {Probe.of(r): r for r in (newer, *others)}
    assert notes == []
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]


def test_nothing_kept_is_nothing_to_tell(cache: Path) -> None:
    assert roofline.load(cache, pytest.fail) == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is damaged"),
        (b"\0\xff" * 100, "is damaged"),
        (b'{"v":1,"rooflines":[{}]}', "is damaged"),
        (b'{"v":1,"rooflines":' + b"[" * 100_000, "is damaged"),
        (b'{"v":9,"rooflines":[]}', "has version 9"),
        (msgspec.json.encode({"v": 1, "rooflines": [replace(ROOF, flops_per_s=1e-300, bytes_per_s=())]}), "impossible"),
        (b" " * (roofline.MAX_BYTES + 1), "more than the limit"),
    ],
    ids=["empty", "bytes", "fields", "depth", "version", "rates", "size"],
)
def test_a_damaged_cache_is_one_note_and_is_whole_after_the_next_save(cache: Path, content: bytes, told: str) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)
    notes: list[str] = []
    assert roofline.load(cache, notes.append) == {}
    assert len(notes) == 1
    assert told in notes[0]
    roofline.save([ROOF], cache, pytest.fail)
    assert roofline.load(cache, pytest.fail) == {Probe.of(ROOF): ROOF}


def test_a_folder_or_a_link_in_place_of_the_cache_is_one_note(cache: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    cache.mkdir(parents=True)
    assert roofline.load(cache, notes.append) == {}
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    assert roofline.load(link, notes.append) == {}
    roofline.save([ROOF], cache, notes.append)
    assert len(notes) == 3
    assert f"cannot be kept in '{cache.parent}'" in notes[2]


def test_the_environment_says_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert roofline.cache_path() == tmp_path / "a" / "rooflines.json"
    monkeypatch.delenv("FUSIONBENCH_CACHE")
    assert roofline.cache_path() == tmp_path / "b" / "fusionbench" / "rooflines.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert roofline.cache_path() == tmp_path / "home" / ".cache" / "fusionbench" / "rooflines.json"


def test_the_oldest_rooflines_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "MOST", 2)
    roofline.save([replace(ROOF, threads=n, measured_at=f"2026-01-0{n}") for n in (3, 1, 2)], cache)
    assert sorted(probe.threads for probe in roofline.load(cache)) == [2, 3]


def test_a_plan_needs_one_probe_per_device_and_dtype() -> None:
    cases = [CASE, replace(CASE, dtype="bf16"), replace(CASE, mode="fwd_bwd"), replace(CASE, device="cuda")]
    jobs = [Job(strategy=s, backend="eager", case=case) for s in ("a", "b") for case in cases]
    expected = [("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "fp32")]
    assert [(p.device, p.dtype) for p in roofline.needed(jobs, 2, "e")] == expected
    assert {(p.threads, p.environment) for p in roofline.needed(jobs, 2, "e")} == {(2, "e")}


def test_measured_twice_the_higher_ceiling_counts() -> None:
    again = replace(ROOF, flops_per_s=5e11, bytes_per_s=((10**6, 9e10), (10**8, 2e10)))
    found = roofline.better(ROOF, again)
    assert (found.flops_per_s, found.bytes_per_s[1][1]) == (1e12, 2e10)
    assert found.bytes_per_s[0][1] == pytest.approx(1e11)


# --- measuring -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fewer tries and 32 MB instead of 256; nothing from other tests."""
    monkeypatch.setattr(meter, "TRY_S", 0.002)
    monkeypatch.setattr(meter, "WORKING_SETS", (256 << 10, 32 << 20))
    meter._products.cache_clear()
    meter._bandwidth.cache_clear()
    yield
    meter._products.cache_clear()
    meter._bandwidth.cache_clear()


@pytest.mark.usefixtures("quick")
def test_what_is_measured_can_be_a_machines() -> None:
    start = perf_counter()
    found = {dtype: meter.measure("cpu", dtype, 1, "e") for dtype in ("fp32", "fp16", "int8")}
    assert perf_counter() - start < 10
    for measured in found.values():
        assert roofline.sound(measured)
        (_, small), (_, large) = measured.bytes_per_s
        assert small >= large  # as measured, or because a smaller set is no slower
        assert 1e8 < large < 1e13
        assert 1e8 < measured.flops_per_s < 1e15
    # A job may convert halves to fp32, and int8 jobs compute attention in it.
    assert min(found["fp16"].flops_per_s, found["int8"].flops_per_s) >= found["fp32"].flops_per_s
    assert Probe.of(found["int8"]) == Probe("cpu", "int8", 1, "e")


@pytest.mark.usefixtures("quick")
def test_small_sets_are_not_measured_to_be_much_slower_than_large_ones() -> None:
    """Without the rule that they are no slower: the calls of a sample outweigh what starting them takes."""
    place = torch.device("cpu")
    small, large = (max(meter._rate(meter._copy, 2, size, place) for _ in range(3)) for size in meter.WORKING_SETS)
    assert small >= 0.3 * large


@pytest.mark.usefixtures("quick")
def test_bandwidth_is_measured_once_for_all_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[int] = []
    monkeypatch.setattr(meter, "_rate", lambda operation, arrays, size, place: rates.append(size) or 1e9)
    for dtype in ("fp32", "int8"):
        meter.measure("cpu", dtype, 1, "e")
    assert rates == [32 << 20, 32 << 20, 256 << 10, 256 << 10]


@pytest.mark.usefixtures("quick")
def test_threads_and_precision_are_as_before_even_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "highest")
        raise RuntimeError("no such product")

    monkeypatch.setattr(meter, "_fastest", fails)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(RuntimeError, match="no such product"):
            meter.measure("cpu", "fp32", 2, "e")
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (before[0], "high")
    finally:
        torch.set_float32_matmul_precision(before[1])


class Event:
    """A CUDA event of a device on which a queue of calls takes 1 ms."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 1.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """A GPU with an L2 of 1 MB whose tensors are on the CPU."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda place: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(L2_cache_size=1 << 20))
    numbers = meter._numbers
    monkeypatch.setattr(meter, "_numbers", lambda count, place: numbers(count, torch.device("cpu")))


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_events_time_sets_around_the_size_of_its_l2() -> None:
    curve = meter._bandwidth("cuda:1", 1)
    assert [size for size, _ in curve] == [1 << 19, 2 << 20, 8 << 20]
    assert [rate for _, rate in curve] == pytest.approx([10 * (8 << 20) / 1e-3] * 3, rel=1e-4)


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_tf32_is_allowed_for_tf32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def product(place: torch.device, dtype: str, *sizes: int) -> object:
        return lambda: seen.append((dtype, torch.get_float32_matmul_precision()))

    monkeypatch.setattr(meter, "_product", product)
    for dtype in ("tf32", "int8", "bf16"):
        assert meter._products("cuda", dtype, 1) == pytest.approx(2 * 8192**3 / 1e-3)
    assert set(seen) == {("tf32", "high"), ("int8", "highest"), ("bf16", "highest")}
    assert meter._ways("int8", torch.device("cuda")) == ("int8", "bf16")


# --- shown ---------------------------------------------------------------------------------------------------------


def rooflines_of(items: list[Record]) -> list[Roofline]:
    probes = {Probe(r.job.case.device, r.job.case.dtype, r.time.threads, r.environment) for r in items if r.time}
    return [replace(ROOF, **msgspec.structs.asdict(probe)) for probe in probes]


def test_the_frame_says_what_bound_says() -> None:
    items = records(400)
    rooflines = rooflines_of(items)
    found = frame(items, ENVIRONMENTS, rooflines)
    of = {Probe.of(r): r for r in rooflines}
    for item, (_, row) in zip(items, found.iterrows(), strict=True):
        if item.time is None:
            assert row[["bound_ms", "bound_by", "of_bound", "no_bound", "gb_per_s"]].isna().all()
            continue
        case = item.job.case
        expected = bound(item, of[Probe(case.device, case.dtype, item.time.threads, item.environment)])
        if isinstance(expected, str):
            assert row["no_bound"] == expected
            assert row[["bound_ms", "bound_by", "of_bound"]].isna().all()
        else:
            assert (row["bound_ms"], row["bound_by"]) == (pytest.approx(1e3 * expected.seconds), expected.by)
            assert row["of_bound"] == pytest.approx(row["bound_ms"] / row["median_ms"])
            assert pd.isna(row["no_bound"])


def test_a_call_without_products_has_no_bound_and_yet_a_rate_of_bytes() -> None:
    still = record(flops=0, moved=10**9, taken_s=2.0)
    trained = record(case=replace(CASE, mode="fwd_bwd"))
    found = frame([still, trained], {}, [ROOF])
    assert found["no_bound"].tolist()[0] == NO_PRODUCTS
    assert found["gb_per_s"][0] == pytest.approx(0.5)
    assert pd.isna(found["gb_per_s"][1])  # its bytes are those of the forward pass
    assert found["of_bound"].notna().tolist() == [False, True]


@pytest.mark.parametrize("other", [{"threads": 2}, {"environment": "f"}, {"dtype": "bf16"}, {"device": "cuda"}])
def test_a_roofline_of_something_else_bounds_nothing(other: dict[str, Any]) -> None:
    row = frame([record()], {}, [replace(ROOF, **other)]).iloc[0]
    assert pd.isna(row["of_bound"])
    assert row["no_bound"] == UNKNOWN


def printed(items: list[Record], rooflines: list[Roofline], width: int = 160) -> str:
    out = io.StringIO()
    shown = table.show(frame(items, {}, rooflines), {}, width=width, command="fusionbench run s")
    Console(file=out, width=width, color_system=None).print(shown, crop=False)
    return out.getvalue()


def test_the_table_shows_the_share_where_it_is_known_and_there_is_room() -> None:
    item = record(flops=10**11, taken_s=0.2)
    assert "of bound" in printed([item], [ROOF])
    assert " 50%" in printed([item], [ROOF])
    assert "of bound" not in printed([item], [])
    assert "of bound" not in printed([item], [ROOF], width=50)


def test_the_page_carries_the_share_and_no_text_of_a_roofline(tmp_path: Path) -> None:
    hostile = replace(ROOF, environment="<img src=x onerror=alert(1)>", measured_at="<script>alert(1)</script>")
    path = page.write(tmp_path / "a.html", frame([record(flops=10**11, taken_s=0.2)], {}, [ROOF, hostile]), {})
    carried = payload(path.read_text("utf-8"))
    assert carried["columns"]["of_bound"]["numbers"] == [pytest.approx(0.5, rel=1e-5)]
    assert carried["columns"]["bound_by"]["values"] == ["compute"]
    assert "alert(1)" not in str(carried)
    columns = payload(page.write(path, frame([record(flops=0)], {}, [ROOF]), {}).read_text("utf-8"))["columns"]
    assert "of_bound" not in columns  # never drawn at 0
    assert columns["no_bound"]["values"] == [NO_PRODUCTS]
