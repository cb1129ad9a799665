"""The store: what is written is read back, the same once and for ever, and a run is found again to be resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fusionbench import store
from fusionbench.errors import StoreError
from fusionbench.record import STATUSES, VERSION, Accuracy, Deviation, Energy, Environment, Record, Timing
from fusionbench.shard import MAX_LINE
from fusionbench.spec import Budget, Case, Job, Shape
from fusionbench.store import Writer

SUITE = "# as it was read\n[[sweep]]\n"
ENVIRONMENT = Environment(
    id="e1", machine="m", system="s", python="3", torch="2", triton="3", cpu="c", cores=2, memory_bytes=1
)
SHAPE = Shape(batch=1, image=8, text=4, image_width=16, text_width=16, width=16, heads=2)


def record(batch: int = 1, **changes: Any) -> Record:
    case = Case(shape=replace(SHAPE, batch=batch))
    plain = Record(job=Job(strategy="concat", backend="eager", case=case), status="ok", source="s1", environment="e1")
    return replace(plain, **changes)


def create(results: Path, **facts: Any) -> Path:
    return store.create(results, store.new_manifest(**{"suite_name": "quick", "suite_hash": "h"} | facts), SUITE)


def write(run: Path, *records: Record, environment: Environment = ENVIRONMENT) -> Path:
    with Writer(run, environment) as writer:
        for item in records:
            writer.append(item)
    return writer.path


def sealed(line: dict[str, Any]) -> bytes:
    body = json.dumps(line).encode()
    return body + b"\t%08x\n" % zlib.crc32(body)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.floats(allow_nan=False, allow_infinity=False)
naturals = st.integers(0, 2**62)
maybe = st.none() | numbers
timings = st.builds(
    Timing,
    timer=st.sampled_from(["wall", "cuda_event"]),
    cache=st.sampled_from(["hot", "cold"]),
    loops=st.integers(1, 2**62),
    samples_ns=st.lists(naturals, min_size=1, max_size=40).map(tuple),
    stop=st.sampled_from(["precise", "budget"]),
    first_call_ns=naturals,
    warmup_calls=naturals,
    threads=st.integers(1, 4096),
)
records = st.builds(
    record,
    batch=st.integers(1, 5),
    status=st.sampled_from(STATUSES),
    reason=texts,
    phase=texts,
    time=st.none() | timings,
    energy=st.none() | st.builds(Energy, joules=numbers, calls=naturals, window_s=numbers, meter=st.just("nvml")),
    notes=st.lists(texts, max_size=3).map(tuple),
    source=texts,
    wall_s=numbers,
    phases_s=st.dictionaries(texts, numbers, max_size=4),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(records, max_size=8))
def test_what_is_written_is_read_back(tmp_path: Path, written: list[Record]) -> None:
    run = create(tmp_path)
    write(run, *written)
    found = store.read(run)
    assert found.records == list({item.identity: item for item in written}.values())
    assert found.duplicates == len(written) - len(found.records)
    assert found.environments == {"e1": ENVIRONMENT}
    assert found.problems == []


def test_new_run_holds_its_suite_and_manifest(tmp_path: Path) -> None:
    manifest = store.new_manifest(
        suite_name="a:b",
        suite_hash="h",
        command=("fusionbench", "run", "caf\udce9.toml"),  # a file name that is not UTF-8
        only={"strategies": ("concat",)},
        limit=3,
        budget=Budget(threads=2),
        plugins=("mine.py",),
        planned=7,
    )
    run = store.create(tmp_path / "results", manifest, SUITE)
    assert run == tmp_path / "results" / manifest.id
    assert (run / "suite.toml").read_text() == SUITE
    assert store.read(run).manifest == store.read_manifest(run) == manifest
    assert manifest.command[2] == r"caf\udce9.toml"
    assert "-a_b-" in run.name
    assert sorted(path.name for path in run.iterdir()) == ["manifest.json", "shards", "suite.toml"]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    manifest = store.new_manifest(suite_name="quick", suite_hash="h")
    store.create(tmp_path, manifest, SUITE)
    with pytest.raises(StoreError, match=r"^cannot create run '.*': file exists; nothing is overwritten"):
        store.create(tmp_path, manifest, "other")
    assert (tmp_path / manifest.id / "suite.toml").read_text() == SUITE


def test_a_file_in_place_of_the_results_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    with pytest.raises(StoreError, match=r"not a directory; choose a folder, not a file$"):
        create(tmp_path / "results")


@pytest.mark.parametrize("facts", [{"id": "../../escape"}, {"id": "a/b"}, {"id": "a\n"}, {"suite_name": "<script>"}])
def test_a_manifest_with_a_hostile_name_is_not_stored(tmp_path: Path, facts: dict[str, str]) -> None:
    manifest = replace(store.new_manifest(suite_name="quick", suite_hash="h"), **facts)
    with pytest.raises(StoreError, match="cannot be stored"):
        store.create(tmp_path / "results", manifest, SUITE)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_would_not_read_back_is_not_stored(tmp_path: Path) -> None:
    nan = record(energy=Energy(joules=float("nan"), calls=1, window_s=1.0, meter="nvml"))
    long = record(3, reason="x" * MAX_LINE)
    run = create(tmp_path)
    with Writer(run, ENVIRONMENT) as writer:
        for bad in (nan, long, record(2, reason="\udce9")):
            with pytest.raises(StoreError, match="cannot be stored"):
                writer.append(bad)
        writer.append(record())
    assert store.read(run).records == [record()]


def test_values_that_are_not_finite_become_none_where_none_is_allowed(tmp_path: Path) -> None:
    run = create(tmp_path)
    deviation = Deviation(max_abs=float("inf"), mean_abs=float("nan"), rel_l2=None, cosine=0.5)
    write(run, record(accuracy=Accuracy(reference="fp64", samples=1, output=deviation, yardstick=deviation)))
    (found,) = store.read(run).records
    assert found.accuracy is not None
    assert found.accuracy.output == Deviation(max_abs=None, mean_abs=None, rel_l2=None, cosine=0.5)


def test_every_writer_has_a_shard_of_its_own(tmp_path: Path) -> None:
    run = create(tmp_path)
    with Writer(run, ENVIRONMENT) as first, Writer(run, ENVIRONMENT) as second:
        second.append(record(2))
        first.append(record(1))
    assert first.path != second.path
    assert first.path.stat().st_mode & 0o077 == 0
    assert store.read(run).records == [record(1), record(2)]


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    run = create(tmp_path)
    for attempt in range(12):
        path = write(run, record(reason=f"attempt {attempt}"))
        number = path.stem.rpartition("-")[2]
        path.rename(path.with_name(f"{'zyxwvutsrqpo'[attempt]}-1-{int(number)}.jsonl"))  # another host each time
    found = store.read(run)
    assert found.records == [record(reason="attempt 11")]
    assert found.duplicates == 11


def test_the_last_record_counts_in_the_place_of_the_first(tmp_path: Path) -> None:
    run = create(tmp_path)
    write(run, record(1, status="error"), record(2), record(1, source="other"))
    write(run, record(1))
    found = store.read(run)
    assert found.records == [record(1), record(2), record(1, source="other")]
    assert found.duplicates == 1


def test_host_names_cannot_lead_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "../../é host-1.local" + "x" * 300)
    run = create(tmp_path)
    path = write(run, record())
    assert path.parent == run / "shards"
    assert path.name.startswith("________host_1_local")
    assert store.read(run).records == [record()]


def test_environments_may_be_interleaved(tmp_path: Path) -> None:
    other = replace(ENVIRONMENT, id="e2", machine="n")
    run = create(tmp_path)
    with Writer(run, ENVIRONMENT) as writer:
        writer.append(record(1))
        writer.append(other)
        writer.append(record(1, environment="e2"))
        writer.append(record(2))
    found = store.read(run)
    assert [item.environment for item in found.records] == ["e1", "e2", "e1"]
    assert found.environments == {"e1": ENVIRONMENT, "e2": other}


def test_an_environment_that_nobody_describes_is_told(tmp_path: Path) -> None:
    run = create(tmp_path)
    write(run, record(environment="e9"), record(2, environment="", status="skipped"))
    assert store.read(run).problems == ["environment 'e9' is named by records, and no shard describes it"]


def test_a_single_shard_can_be_read(tmp_path: Path) -> None:
    shard = write(create(tmp_path), record())
    found = store.read(shard)
    assert (found.records, found.manifest, found.problems) == ([record()], None, [])


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_is_no_run_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"^(no run at|'.*' is not a run).*; give a run folder"):
        store.read(tmp_path / name)


def test_a_closed_writer_refuses(tmp_path: Path) -> None:
    writer = Writer(create(tmp_path), ENVIRONMENT)
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="is closed; open a new writer"):
        writer.append(record())


def test_a_writer_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a run"):
        Writer(tmp_path, ENVIRONMENT)


def test_finished_leaves_out_failures_to_be_tried_again(tmp_path: Path) -> None:
    run = create(tmp_path)
    write(run, *(record(batch, status=status) for batch, status in enumerate(STATUSES, 1)))
    found = store.read(run)
    assert store.finished(found, Budget()) == {item.identity for item in found.records}
    kept = [item for item in found.records if item.status in ("ok", "skipped")]
    assert store.finished(found, Budget(), retry_failed=True) == {item.identity for item in kept}


def test_latest_is_the_newest_incomplete_run_of_the_same_plan(tmp_path: Path) -> None:
    assert store.latest(tmp_path, "h") is None
    create(tmp_path, planned=2)
    newest = create(tmp_path, planned=2)
    create(tmp_path, planned=2, suite_hash="other")
    create(tmp_path, planned=2, limit=1)
    narrow = create(tmp_path, planned=2, only={"dtypes": ["bf16", "fp32"]})
    assert store.latest(tmp_path, "h") == newest
    assert store.latest(tmp_path, "h", {"dtypes": ("fp32", "bf16")}) == narrow
    assert store.latest(tmp_path, "h", limit=2) is None
    assert store.latest(tmp_path, "h", budget=Budget()) == newest
    assert store.latest(tmp_path, "h", budget=Budget(threads=2)) is None


def test_a_complete_run_is_not_resumed_except_for_its_failures(tmp_path: Path) -> None:
    run = create(tmp_path, planned=2)
    write(run, record(1))
    assert store.latest(tmp_path, "h") == run
    write(run, record(2, status="oom"))
    assert store.latest(tmp_path, "h") is None
    assert store.latest(tmp_path, "h", retry_failed=True) == run


def test_a_run_that_nobody_counted_may_be_resumed(tmp_path: Path) -> None:
    run = create(tmp_path)
    write(run, record())
    assert store.latest(tmp_path, "h") == run


def test_broken_folders_are_passed_over_with_a_reason(tmp_path: Path) -> None:
    whole = create(tmp_path)
    newer_shard = create(tmp_path)
    (newer_shard / "shards" / "a-1-1.jsonl").write_bytes(sealed({"kind": "record", "v": VERSION + 1, "record": {}}))
    broken = create(tmp_path)
    (broken / "manifest.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(whole)
    (tmp_path / "README").touch()
    reasons: list[str] = []
    assert store.latest(tmp_path, "h", ignored=reasons.append) == whole
    assert [text for text in reasons if "is damaged" in text and broken.name in text]
    assert [text for text in reasons if "no such file" in text and "empty" in text]
    assert [text for text in reasons if f"schema {VERSION + 1} is newer" in text]
    assert len(reasons) == 3


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    made = [create(tmp_path) for _ in range(3)]
    assert list(store.runs(tmp_path)) == made[::-1]


def test_the_store_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, fusionbench.store; sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
