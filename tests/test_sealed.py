"""Sealing: what goes in comes out whole, from a run of any size, and a damaged file is never taken for a whole one."""

from __future__ import annotations

import contextlib
import random
import zlib
from pathlib import Path

import msgspec
import pandas as pd
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionbench import sealed, store
from fusionbench.errors import DamagedError, StoreError
from fusionbench.export.tables import to_parquet
from fusionbench.record import VERSION, Accuracy, Deviation, DeviceState, Energy, Memory, Parts, Record, Timing
from fusionbench.report.frame import frame
from fusionbench.sealed import seal, seal_run, unseal
from fusionbench.shard import _line
from fusionbench.spec import NAME_PATTERN, Case, Job, Shape
from fusionbench.survey import survey
from tests.hostile import hostile_records
from tests.storing import ENVIRONMENT, ROOFLINE, create, record, write
from tests.synthetic import ENVIRONMENTS, records


def test_sealed_records_come_back_exactly(tmp_path: Path) -> None:
    good = records(500)
    items = good + [msgspec.structs.replace(r, job=good[0].job) for r in hostile_records()]
    path = seal(items, ENVIRONMENTS, tmp_path / "run.parquet")
    found = unseal(path)
    assert (found.records, found.environments, found.rooflines) == (items, ENVIRONMENTS, [])


def test_a_sealed_run_with_a_name_no_suite_can_have_is_refused(tmp_path: Path) -> None:
    path = seal(hostile_records(), ENVIRONMENTS, tmp_path / "run.parquet")
    with pytest.raises(StoreError, match="matching regex"):
        unseal(path)


def test_an_empty_run_can_be_sealed(tmp_path: Path) -> None:
    found = unseal(seal([], {}, tmp_path / "none.parquet"))
    assert (found.records, found.environments) == ([], {})


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_float = st.floats(allow_nan=False, allow_infinity=False)
_int = st.integers(0, 2**63 - 1)
_positive = st.integers(1, 2**63 - 1)
_name = st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda name: not name.endswith("\n"))
_shape = st.builds(Shape, **{n: st.integers(1, 1024) for n in Shape.__struct_fields__})
_case = st.builds(
    Case, shape=_shape, padding=st.floats(0, 0.99), type_embedding=st.booleans(), device=st.just("cuda:1")
)
_deviation = st.builds(Deviation, **{n: st.none() | _float for n in Deviation.__struct_fields__})
_integers = st.lists(_int, max_size=8).map(tuple)
_counts = {"loops": _positive, "threads": _positive, "first_call_ns": _int, "warmup_calls": _int}
_timing = st.lists(_int, min_size=1, max_size=8).flatmap(
    lambda samples: st.builds(
        Timing,
        samples_ns=st.just(tuple(samples)),
        run_delay_ns=_integers,
        rounds=st.sampled_from([(), (len(samples),), (1,) * len(samples)]),
        seeds=_integers,
        control_ns=_integers,
        discarded=_int,
        **_counts,
    )
)
_clocks = st.none() | st.tuples(_int, _int, _int)
_device = st.builds(
    DeviceState,
    sm_mhz=_clocks,
    memory_mhz=_clocks,
    power_watts=st.none() | _float,
    temperature_c=st.none() | _int,
    throttle=st.lists(_text, max_size=2).map(tuple),
    foreign=_int,
)
_accuracy = st.builds(
    Accuracy, samples=_positive, output=_deviation, yardstick=_deviation, gradient=st.none() | _deviation
)
_record = st.builds(
    Record,
    job=st.builds(Job, strategy=_name, backend=_name, case=_case),
    reason=_text,
    time=st.none() | _timing,
    timers=st.lists(_timing, max_size=2).map(tuple),
    device=st.none() | _device,
    memory=st.none() | st.builds(Memory, peak_bytes=_int, resting_bytes=_int),
    energy=st.none() | st.builds(Energy, joules=_float, calls=_int, window_s=_float),
    accuracy=st.none() | _accuracy,
    kernels=st.lists(_text, max_size=3).map(tuple),
    parts=st.none() | st.builds(Parts, **dict.fromkeys(Parts.__struct_fields__, _int)),
    wall_s=_float,
    phases_s=st.dictionaries(_text, _float, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(items=st.lists(_record, max_size=6))
def test_any_record_survives_sealing(items: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = seal(items, {}, tmp_path_factory.mktemp("seal") / "run.parquet")
    assert unseal(path).records == items


def test_a_sealed_run_holds_facts_alone_and_pandas_reads_it(tmp_path: Path) -> None:
    path = seal(records(20), ENVIRONMENTS, tmp_path / "run.parquet")
    table = pd.read_parquet(path)
    assert list(table.columns) == list(Record.__struct_fields__)
    assert table["job"][0]["case"]["shape"]["image"] == 128
    assert "tflops" not in pyarrow.parquet.read_schema(path).to_string()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = seal(records(5), ENVIRONMENTS, tmp_path / "run.parquet")
    before = path.read_bytes()
    broken = msgspec.structs.replace(records(1)[0], reason=3)
    with pytest.raises(TypeError, match="int"):
        seal([broken], ENVIRONMENTS, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.parquet"]


def test_what_is_no_sealed_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(StoreError, match=r"torn\.parquet"):
        unseal(tmp_path / "torn.parquet")
    other = to_parquet(frame(records(3), ENVIRONMENTS), tmp_path / "flat.parquet")
    with pytest.raises(StoreError, match="no sealed run"):
        unseal(other)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_refused_or_reads_as_before(tmp_path: Path, seed: int) -> None:
    whole = records(50)
    path = seal(whole, ENVIRONMENTS, tmp_path / "run.parquet", [ROOFLINE])
    data = path.read_bytes()
    rng = random.Random(seed)
    for _ in range(20):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with contextlib.suppress(StoreError):
            found = unseal(path)  # a bit in what nothing is read from, such as a column's least and greatest value
            assert (found.records, found.environments, found.rooflines) == (whole, ENVIRONMENTS, [ROOFLINE])


@pytest.mark.parametrize("left", [0, 1, 3, 4, 8, 100, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, left: float) -> None:
    path = seal(records(50), ENVIRONMENTS, tmp_path / "run.parquet")
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if 0 < left < 1 else int(left)])
    with pytest.raises(StoreError, match="cannot be read as a sealed run"):
        unseal(path)


def test_a_file_with_more_rows_than_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = seal(records(5), ENVIRONMENTS, tmp_path / "run.parquet")
    monkeypatch.setattr(sealed, "MAX_ROWS", 4)
    with pytest.raises(StoreError, match="has 5 rows, more than the limit of 4"):
        unseal(path)


def test_a_newer_file_is_refused_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "VERSION", VERSION + 1)
    path = seal(records(5), ENVIRONMENTS, tmp_path / "run.parquet")
    monkeypatch.undo()
    with pytest.raises(
        StoreError, match=rf"schema {VERSION + 1} is newer than this fusionbench \({VERSION}\); upgrade"
    ):
        unseal(path)


def test_a_column_that_is_missing_is_a_default_in_an_earlier_file_and_damage_in_one_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [msgspec.structs.replace(item, launches=7) for item in records(5)]
    today = seal(items, ENVIRONMENTS, tmp_path / "today.parquet")
    monkeypatch.setattr(sealed, "VERSION", VERSION - 1)
    earlier = seal(items, ENVIRONMENTS, tmp_path / "earlier.parquet")
    monkeypatch.undo()
    for path in (today, earlier):
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns(["launches"]), path)
    assert [item.launches for item in unseal(earlier).records] == [None] * 5
    with pytest.raises(DamagedError, match="its columns"):
        unseal(today)


# A run folder, in two passes


def test_a_sealed_folder_holds_what_reading_it_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_BATCH", 7)
    monkeypatch.setattr(sealed, "_ROW_GROUP", 20)
    run = create(tmp_path)
    several = [record(batch, reason=f"{batch}é") for batch in range(1, 51)]
    write(run, *several, ROOFLINE)
    write(run, *(record(batch, reason="again") for batch in (50, 3, 3)), record(1, source="other"))
    found, resealed = store.read(run), unseal(seal_run(run, tmp_path / "run.parquet"))
    assert resealed.records == found.records
    assert [item.reason for item in found.records if item.reason == "again"] == ["again"] * 2
    assert (resealed.rooflines, resealed.environments) == ([ROOFLINE], {"e1": ENVIRONMENT})
    assert pyarrow.parquet.ParquetFile(tmp_path / "run.parquet").num_row_groups == 3


def test_a_sealed_file_does_not_hide_that_its_run_was_damaged(tmp_path: Path) -> None:
    run = create(tmp_path)
    shard = write(run, record(1), record(2))
    shard.write_bytes(shard.read_bytes().replace(b'"batch":1', b'"batch":9'))
    resealed = unseal(seal_run(run, tmp_path / "run.parquet"))
    assert resealed.records == [record(2)]
    assert resealed.damage == store.read(run).damage != []


def test_a_long_record_has_a_row_group_of_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_BATCH_SAMPLES", 10)
    monkeypatch.setattr(sealed, "_GROUP_BYTES", 1)
    items = [item for item in records(30) if item.time]
    path = seal(items, ENVIRONMENTS, tmp_path / "run.parquet")
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == len(items)
    assert unseal(path).records == items


def test_a_shard_that_changes_between_the_passes_is_told(tmp_path: Path) -> None:
    run = create(tmp_path)
    shard = write(run, record(1), record(2))
    found = survey(run)
    shard.write_bytes(shard.read_bytes().replace(b'"batch":2', b'"batch":9'))
    with pytest.raises(StoreError, match="changed while it was read"):
        list(found.records())
    shard.unlink()
    with pytest.raises(StoreError, match=r"cannot read .* was the folder removed"):
        list(found.records())


def test_a_line_with_its_fields_in_another_order_is_sealed_too(tmp_path: Path) -> None:
    run = create(tmp_path)
    item = record(1)
    body = b'{"record":%b , "v":2,"kind":"record","more":1}' % msgspec.json.encode(item)
    (run / "shards" / "a-1-1.jsonl").write_bytes(_line(ENVIRONMENT) + body + b"\t%08x\n" % zlib.crc32(body))
    assert unseal(seal_run(run, tmp_path / "run.parquet")).records == store.read(run).records == [item]
