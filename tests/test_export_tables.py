"""Exports: numbers stay numbers, what is missing stays missing, and a spreadsheet runs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from fusionbench.export.tables import to_csv, to_json, to_parquet
from fusionbench.report.frame import frame
from tests.hostile import TEXTS, hostile_records
from tests.synthetic import ENVIRONMENTS, records


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
