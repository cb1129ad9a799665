"""The report file: whole, self-contained, and without a way out for text from results."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace

from fusionbench.errors import StoreError
from fusionbench.record import Record, Roofline
from fusionbench.report import packing, page
from fusionbench.report.frame import frame
from tests.hostile import TEXTS, hostile_environments, hostile_records
from tests.synthetic import ENVIRONMENTS, records, smoke


def written(path: Path, items: list[Record], **options: Any) -> str:
    return page.write(path / "r.html", frame(items, ENVIRONMENTS), ENVIRONMENTS, **options).read_text("utf-8")


def payload(html: str) -> dict[str, Any]:
    """What the page's script reads, by the same rules; numbers that are none are None."""
    found = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', html)
    assert found
    packed = gzip.decompress(base64.b64decode(found[1]))
    at = 4 + int.from_bytes(packed[:4], "little")
    data: dict[str, Any] = json.loads(packed[4:at])
    for column in data["columns"].values():
        arrays = []
        for each in column.pop("arrays"):
            kind, length = np.dtype(each["type"]), each["length"]
            if "all" in each:
                arrays.append(np.full(length, each["all"], kind))
                continue
            planes = np.frombuffer(packed, np.uint8, length * kind.itemsize, at).reshape(kind.itemsize, length)
            arrays.append(np.ascontiguousarray(planes.T).view(kind).reshape(length))
            at += planes.size
        _restore(column, arrays)
    for column in data["columns"].values():
        if "of" in column:
            by = np.array(data["columns"][column["of"]]["numbers"], np.float64)
            column["numbers"] = _plain(np.array(column["numbers"], np.float64) * by ** column["power"])
    assert at == len(packed)
    return data


def _restore(column: dict[str, Any], arrays: list[Any]) -> None:
    if column["kind"] == "numbers":
        column["numbers"] = _plain(arrays[0].astype(np.float64))
    elif column["kind"] == "moments":
        column["numbers"] = [column["first"] + each if each >= 0 else None for each in arrays[0].tolist()]
    else:
        column["codes"] = arrays[0].tolist()
    if "words" in column:
        ends = np.cumsum(arrays[2])
        words = [column["words"][code] for code in arrays[1]]
        column["values"] = ["".join(words[end - n : end]) for end, n in zip(ends, arrays[2], strict=True)]


def _plain(values: Any) -> list[float | None]:
    return [None if v != v else v for v in values.tolist()]


def test_the_page_names_no_other_file_and_forbids_the_network(tmp_path: Path) -> None:
    html = written(tmp_path, smoke())
    assert "default-src 'none'" in html
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", own)
    assert "url(" not in own
    assert "@import" not in own


def test_text_from_results_is_in_the_file_only_as_packed_data(tmp_path: Path) -> None:
    table = frame(hostile_records(), hostile_environments())
    path = page.write(tmp_path / "r.html", table, hostile_environments(), TEXTS, title=TEXTS[0], command=TEXTS[1])
    html = path.read_text("utf-8")
    for text in TEXTS:
        assert text not in html
    assert html.count("</html>") == 1


def test_plotly_is_the_published_file_and_travels_with_its_licence(tmp_path: Path) -> None:
    carried = files("fusionbench.report").joinpath("plotly-cartesian.min.js").read_bytes()
    published = (
        "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"  # of plotly.js-cartesian-dist-min 4.1.1
    )
    assert hashlib.sha256(carried).hexdigest() == published
    found = re.findall(r'id="plotly">([A-Za-z0-9+/=]*)</script>', written(tmp_path, smoke()))
    assert len(found) == 1
    script = gzip.decompress(base64.b64decode(found[0]))
    assert script.endswith(carried)
    assert b"Permission is hereby granted, free of charge" in script[:2000]


def test_the_same_results_make_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, smoke()) == written(tmp_path, smoke())


def texts(column: dict[str, Any]) -> list[Any]:
    return [None if code < 0 else column["values"][code] for code in column["codes"]]


def test_numbers_keep_five_digits_and_missing_ones_are_none(tmp_path: Path) -> None:
    items = records(200)
    columns = payload(written(tmp_path, items))["columns"]
    jobs = zip(*(texts(columns[name]) for name in ("name", "backend", "case")), strict=True)
    table = frame(items, ENVIRONMENTS).set_index("key").loc[["/".join(job) for job in jobs]]
    for name in ("median_ms", "low_ms", "high_ms", "rel_l2", "tflops", "flops", "samples", "peak_mib"):
        for got, wanted in zip(
            columns[name]["numbers"], table[name].to_numpy(np.float64, na_value=np.nan), strict=True
        ):
            assert got is None if wanted != wanted else got == pytest.approx(wanted, rel=1e-5), name


def test_numbers_beyond_a_short_float_keep_their_size() -> None:
    values = np.array([1e-42, 3e38 * 10, 0.0, np.nan, -np.inf])
    packed = packing.numbers(values).arrays[0]
    assert packed.dtype == np.float64
    np.testing.assert_array_equal(packed, [1e-42, 3e39, 0.0, np.nan, np.nan])
    assert packing.numbers(values[2:]).arrays[0].dtype == np.float32


def test_codes_take_the_smallest_width_and_none_where_all_are_alike() -> None:
    assert [packing.signed(np.array([-1]), n).dtype.itemsize for n in (0, 128, 129, 2**15, 2**15 + 1)] == [
        1,
        1,
        2,
        2,
        4,
    ]
    alike = packing.texts(pd.Series(["cpu"] * 1000))
    mixed = packing.texts(pd.Series(["cpu", "cuda"] * 500))
    assert len(packing.pack({"columns": {"device": mixed}})) - len(packing.pack({"columns": {"device": alike}})) > 980


def test_a_column_of_many_texts_is_spelled_from_few_words(tmp_path: Path) -> None:
    table = frame(records(2001), ENVIRONMENTS)
    keys = [f"{case}/ {row}-" for row, case in enumerate(table["case"])]
    html = page.write(tmp_path / "r.html", table.assign(case=keys), ENVIRONMENTS).read_text("utf-8")
    column = payload(html)["columns"]["case"]
    assert sorted(texts(column)) == sorted(keys)
    assert len(column["words"]) < 2001 + 100


def test_times_of_day_are_seconds_and_what_is_no_time_stays_text(tmp_path: Path) -> None:
    times = pd.Series(["2026-03-02T10:00:05.900+00:00", "", "2026-03-02T10:00:00Z", None])
    assert packing.moments(times).arrays[0].tolist() == [5, -1, 0, -1]
    assert packing.moments(times).facts["first"] == 1772445600
    assert packing.moments(pd.Series(["yesterday", "2026-03-02T10:00:00Z"])).facts["values"][0] == "yesterday"
    assert packing.moments(pd.Series(["0001-01-01", "9999-12-31"])).facts["kind"] == "texts"
    assert packing.moments(pd.Series(["", ""])).facts["kind"] == "texts"


def test_a_failed_job_shares_the_condition_of_its_neighbours(tmp_path: Path) -> None:
    items = [r for r in records(1200) if r.job.case.dtype == "bf16"]
    assert {r.status for r in items} > {"ok"}
    assert set(payload(written(tmp_path, items))["columns"]["condition"]["codes"]) == {0}


def test_only_ceilings_that_a_row_was_measured_under_are_carried(tmp_path: Path) -> None:
    own = Roofline(
        device="cpu", dtype="bf16", threads=1, environment="h100-a", flops_per_s=1e11,
        bytes_per_s=((1 << 18, 9e10), (1 << 28, 2e10)), measured_at="2026-03-02T10:00:00Z",
    )  # fmt: skip
    others = [
        replace(own, environment="<img src=x>"),
        replace(own, threads=7),
        replace(own, flops_per_s=float("inf")),  # no device's: the sound one stays
    ]
    items = [r for r in records(1200) if r.job.case.dtype == "bf16"]
    items = [replace(r, job=replace(r.job, case=replace(r.job.case, device="cpu"))) for r in items]
    carried = payload(written(tmp_path, items, rooflines=[own, *others]))["rooflines"]
    assert [(c["environment"], c["threads"], c["flops_per_s"]) for c in carried] == [("h100-a", 1, 1e11)]
    assert payload(written(tmp_path, items))["rooflines"] == []


def test_an_older_record_of_the_same_job_is_left_out_and_counted(tmp_path: Path) -> None:
    items = smoke()
    data = payload(written(tmp_path, items + items[:3]))
    assert (data["rows"], data["superseded"]) == (30, 3)


def test_no_records_still_make_a_page(tmp_path: Path) -> None:
    assert payload(written(tmp_path, []))["rows"] == 0


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(tmp_path, smoke())
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(StoreError, match="no space"):
        written(tmp_path, smoke(), title="new")
    monkeypatch.undo()
    assert (tmp_path / "r.html").read_text("utf-8") == before
    assert len(list(tmp_path.iterdir())) == 1
