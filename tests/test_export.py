"""Exports: what goes in comes out, whole, and a spreadsheet runs nothing."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import msgspec
import pandas as pd
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionbench.errors import StoreError
from fusionbench.export import to_csv, to_json, to_parquet
from fusionbench.record import Accuracy, Deviation, Energy, Memory, Record, Timing
from fusionbench.report.frame import frame
from fusionbench.sealed import seal, unseal
from fusionbench.spec import NAME_PATTERN, Case, Job, Shape
from tests.hostile import TEXTS, hostile_records
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
_timing = st.builds(
    Timing, samples_ns=st.lists(_int, min_size=1, max_size=8).map(tuple), run_delay_ns=_integers, **_counts
)
_accuracy = st.builds(
    Accuracy, samples=_positive, output=_deviation, yardstick=_deviation, gradient=st.none() | _deviation
)
_record = st.builds(
    Record,
    job=st.builds(Job, strategy=_name, backend=_name, case=_case),
    reason=_text,
    time=st.none() | _timing,
    memory=st.none() | st.builds(Memory, peak_bytes=_int, resting_bytes=_int),
    energy=st.none() | st.builds(Energy, joules=_float, calls=_int, window_s=_float),
    accuracy=st.none() | _accuracy,
    kernels=st.lists(_text, max_size=3).map(tuple),
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
    with pytest.raises(Exception, match=r"(?i)json|column|int"):
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
def test_a_damaged_byte_never_raises_anything_but_a_store_error(tmp_path: Path, seed: int) -> None:
    path = seal(records(50), ENVIRONMENTS, tmp_path / "run.parquet")
    data = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(20):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    with contextlib.suppress(StoreError):
        unseal(path)


def test_csv_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path) -> None:
    table = frame(hostile_records(), ENVIRONMENTS)
    table.loc[0, "reason"] = "-2+3"
    table.loc[1, "reason"] = "@SUM(A1)"
    table.loc[2, "reason"] = "\tx"
    read = pd.read_csv(to_csv(table, tmp_path / "t.csv"), keep_default_na=False)
    assert read["reason"][:3].tolist() == ["'-2+3", "'@SUM(A1)", "'\tx"]
    assert "'" + TEXTS[3] in set(read["reason"])
    assert not read["strategy"].str.startswith(("=", "+", "-", "@")).any()
    assert len(read) == len(table)


def test_numbers_in_csv_stay_numbers(tmp_path: Path) -> None:
    table = frame(records(30), ENVIRONMENTS)
    table["cosine"] = -table["cosine"]
    read = pd.read_csv(to_csv(table, tmp_path / "t.csv"))
    assert (read["cosine"].dropna() < 0).all()


def test_json_is_valid_where_a_number_is_not_finite(tmp_path: Path) -> None:
    items = [msgspec.structs.replace(r, wall_s=float("nan")) for r in records(3)]
    read = json.loads(to_json(items, tmp_path / "r.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert [r["wall_s"] for r in read] == [None] * 3


def test_the_flat_parquet_keeps_missing_values_missing(tmp_path: Path) -> None:
    table = frame(records(60), ENVIRONMENTS)
    read = pd.read_parquet(to_parquet(table, tmp_path / "f.parquet"))
    assert (read["median_ms"].isna() == table["median_ms"].isna()).all()
