"""The report file: whole, self-contained, and without a way out for text from results."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fusionbench.errors import StoreError
from fusionbench.record import Record, Roofline
from fusionbench.report import page
from fusionbench.report.frame import frame
from tests.hostile import TEXTS, hostile_environments, hostile_records
from tests.synthetic import ENVIRONMENTS, records, smoke


def written(path: Path, items: list[Record], **options: Any) -> str:
    return page.write(path / "r.html", frame(items, ENVIRONMENTS), ENVIRONMENTS, **options).read_text("utf-8")


def payload(html: str) -> dict[str, Any]:
    found = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', html)
    assert found
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return data


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


def test_the_same_results_make_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, smoke()) == written(tmp_path, smoke())


def test_numbers_keep_six_digits_and_missing_ones_are_null(tmp_path: Path) -> None:
    items = records(200)
    columns = payload(written(tmp_path, items))["columns"]
    expected = frame(items, ENVIRONMENTS)["median_ms"]
    for got, wanted in zip(columns["median_ms"]["numbers"], expected, strict=True):
        assert got is None if wanted != wanted else got == pytest.approx(wanted, rel=1e-5)


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
