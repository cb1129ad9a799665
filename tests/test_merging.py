"""Merged runs: the same in any order and however often, refused where sweeps differ, with every environment kept."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from fusionbench import launch, present, store
from fusionbench.errors import FusionbenchError, NothingError, StoreError
from fusionbench.merging import merge
from fusionbench.slices import Slices
from tests import comparing
from tests.command import call

SUITE = """
title = "Small"
[budget]
measure_s = 0.01
rounds = 1
[[sweep]]
strategies = ["concat", "concat_attention", "cross_attention"]
backends = ["eager", "triton"]
image = [4, 8, 16]
text = [4]
image_width = [16]
text_width = [16]
width = [16]
heads = [2]
"""


def sliced(folder: Path, *numbers: int, of: int = 3, jobs: tuple[int, ...] = (), **more: Any) -> store.Run:
    """A run of some slices; without ``jobs``, slice n has the jobs 10 n and 10 n + 1."""
    jobs = jobs or tuple(10 * n + each for n in numbers for each in (0, 1))
    label = f"{'-'.join(map(str, numbers))}-{of}"
    return comparing.run(
        folder / label, *(comparing.record(n) for n in jobs), slices=Slices(of=of, numbers=numbers), **more
    )


def content(path: Path) -> Any:
    run = store.read(path)
    return run.manifest, run.environments, run.rooflines, run.records


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three slices, each from a machine of its own, the last two of the same kind."""
    machines = [
        comparing.here(machine=f"m{n}", cpu="EPYC" if n > 1 else "Xeon", memory_bytes=n << 34) for n in (1, 2, 3)
    ]
    return [sliced(tmp_path, n, where=where).path for n, where in enumerate(machines, 1)]


def test_the_order_of_runs_changes_nothing(parts: list[Path], tmp_path: Path) -> None:
    found = [content(merge(order, tmp_path / f"m{i}").path) for i, order in enumerate(itertools.permutations(parts))]
    assert all(each == found[0] for each in found)
    manifest, environments, _, records = found[0]
    assert manifest.slices is None
    assert manifest.planned == len(records) == 6
    machines = {r.job.case.shape.batch // 10: environments[r.environment].machine for r in records}
    assert machines == {1: "m1", 2: "m2, m3", 3: "m2, m3"}  # the latter are one environment: their times compare
    assert len(environments) == 2


def test_a_run_given_again_or_merged_before_changes_nothing(parts: list[Path], tmp_path: Path) -> None:
    whole = merge(parts, tmp_path / "whole").path
    first = merge(parts[:2], tmp_path / "first").path
    assert content(merge([first, parts[2]], tmp_path / "a").path) == content(whole)
    assert content(merge([parts[2], first, parts[1], first], tmp_path / "b").path) == content(whole)
    assert content(merge([whole, parts[0]], tmp_path / "c").path) == content(whole)
    assert content(merge([whole], tmp_path / "d").path) == content(whole)


def test_merging_again_into_the_same_folder_is_fine_and_into_another_run_is_not(
    parts: list[Path], tmp_path: Path
) -> None:
    whole = merge(parts, tmp_path / "whole").path
    before = sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*"))
    merge(list(reversed(parts)), whole)
    assert sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*")) == before
    with pytest.raises(StoreError, match="is there and is not this merged run; choose another folder"):
        merge(parts[:2], whole)
    with pytest.raises(StoreError, match="is there"):
        merge(parts, parts[0])


def test_some_of_the_slices_are_a_run_that_knows_which(parts: list[Path], tmp_path: Path) -> None:
    merged = merge([parts[2], parts[0]], tmp_path / "m")
    assert merged.manifest.slices == Slices(of=3, numbers=(1, 3))
    assert merged.manifest.slices.label == "1,3/3"
    assert merged.manifest.planned == 4
    assert merged.missing == [2]


def test_slices_that_overlap_have_a_planned_number_only_where_it_follows(tmp_path: Path) -> None:
    one, two = sliced(tmp_path, 1, 2).path, sliced(tmp_path, 2, 3).path
    assert merge([one, two], tmp_path / "m").manifest.planned is None
    assert merge([one, sliced(tmp_path, 2).path], tmp_path / "n").manifest.planned == 4


def test_whole_runs_of_two_machines_keep_the_records_of_both(tmp_path: Path) -> None:
    records = [comparing.record(n) for n in (1, 2)]
    runs = [comparing.run(tmp_path / m, *records, where=comparing.here(cpu=m)).path for m in "ab"]
    run = store.read(merge(runs, tmp_path / "m").path)
    assert len(run.records) == 4
    assert run.manifest is not None
    assert run.manifest.planned == 2
    assert store.complete(run)


@pytest.mark.parametrize("swap", [False, True])
def test_of_one_identity_the_finished_one_counts_and_then_the_one_begun_last(tmp_path: Path, swap: bool) -> None:
    def at(day: int, ms: float, **changes: Any) -> store.Run:
        started = f"2026-11-{day}T00:00:00.000+00:00"
        return comparing.run(tmp_path / f"{day}", comparing.record(1, ms, started_at=started, **changes))

    older, newer = at(20, 1.0).path, at(21, 2.0).path
    merged = store.read(merge([newer, older] if swap else [older, newer], tmp_path / "m").path)
    assert [r.started_at[:10] for r in merged.records] == ["2026-11-21"]


def differing(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    record = comparing.record(1)
    return {
        "suite": (comparing.run(tmp_path / "a", record, name="lengths").path, "its suite is lengths, not smoke"),
        "text": (comparing.run(tmp_path / "b", record, suite_hash="f" * 16).path, "its text of the suite is ffff"),
        "only": (comparing.run(tmp_path / "c", record, only={"dtypes": ["bf16"]}).path, "its --only is"),
        "limit": (comparing.run(tmp_path / "d", record, limit=3).path, "its --limit is 3, not None"),
    }


@pytest.mark.parametrize("what", ["suite", "text", "only", "limit"])
def test_runs_of_other_sweeps_are_refused_by_what_differs(tmp_path: Path, what: str) -> None:
    other, told = differing(tmp_path)[what]
    base = comparing.run(tmp_path / "base", comparing.record(1)).path
    with pytest.raises(FusionbenchError, match=told):
        merge([base, other], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_slices_of_another_number_are_refused_and_a_whole_run_takes_any(tmp_path: Path) -> None:
    three, four = sliced(tmp_path, 1, of=3).path, sliced(tmp_path, 1, of=4).path
    with pytest.raises(FusionbenchError, match=r"its number of slices \(--shard\) is 4, not 3"):
        merge([three, four], tmp_path / "m")
    whole = comparing.run(tmp_path / "whole", comparing.record(1)).path
    assert merge([whole, three], tmp_path / "n").manifest.slices is None


def test_what_cannot_be_merged_says_why(tmp_path: Path) -> None:
    run = comparing.run(tmp_path / "r", comparing.record(1))
    (shard,) = (run.path / store.SHARDS).iterdir()
    with pytest.raises(StoreError, match="cannot be merged without its manifest"):
        merge([shard], tmp_path / "m")
    with pytest.raises(StoreError, match="no run at"):
        merge([tmp_path / "nowhere"], tmp_path / "m")
    empty = store.create(tmp_path / "e", store.new_manifest(suite_name="smoke", suite_hash=comparing.HASH), "text")
    with pytest.raises(NothingError, match="nothing was measured yet"):
        merge([empty], tmp_path / "m")


def test_a_damaged_run_is_merged_as_far_as_it_goes_and_exits_with_6(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = sliced(tmp_path, 1).path, sliced(tmp_path, 2).path
    (shard,) = (two / store.SHARDS).iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([lines[0], lines[1].replace(b"concat", b"concut"), *lines[2:]]))
    code, out, err = call("merge", one, two, "-o", tmp_path / "m", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 6
    assert out == f"{tmp_path / 'm'}\n"
    assert "damaged, its checksum does not match" in err
    assert len(store.read(tmp_path / "m").records) == 3


def test_a_failing_write_leaves_nothing_behind(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_atomically", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match="no space left on device; free some space"):
        merge(parts, tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == before


def test_slices_measured_one_by_one_and_merged_are_the_run_of_one_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)

    def run(folder: str, *more: str) -> Path:
        arguments = ("run", path, "--results", tmp_path / folder, "-q", *more)
        code, _, err = call(*arguments, capsys=capsys, monkeypatch=monkeypatch)
        assert code == 0, err
        return next(iter(store.runs(tmp_path / folder)))

    alone = run("alone")
    slices = [run(f"s{n}", "--shard", f"{n}/2") for n in (1, 2)]
    assert run("s1", "--shard", "1/2") == slices[0] or len(store.runs(tmp_path / "s1")) == 2  # done: a new one begins
    code, out, err = call("merge", *slices, "-o", tmp_path / "m", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, out, err) == (0, f"{tmp_path / 'm'}\n", "")
    merged, whole = store.read(tmp_path / "m"), store.read(alone)
    assert {(r.identity, r.status) for r in merged.records} == {(r.identity, r.status) for r in whole.records}
    assert store.complete(merged)
    assert (tmp_path / "m" / present.SEALED).exists()
    assert call("show", tmp_path / "m", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    code, _, err = call("resume", tmp_path / "m", "-q", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, err
    assert len(store.read(tmp_path / "m").records) == len(whole.records)


def test_an_unfinished_slice_is_resumed_and_only_by_its_own_number(tmp_path: Path) -> None:
    chosen = launch.suite.parse(SUITE, "small", "small")

    def new(slices: Slices | None) -> launch.Launch:
        return launch.new(chosen, tmp_path, budget=chosen.budget, only={}, slices=slices, warn=lambda text: None)

    first = new(Slices(of=2, numbers=(1,)))
    assert new(Slices(of=2, numbers=(1,))).folder == first.folder
    assert new(Slices(of=2, numbers=(2,))).folder != first.folder
    assert new(None).folder != first.folder
    again = launch.resume(first.folder, warn=lambda text: None)
    assert [job.key for job in again.jobs()] == [job.key for job in first.jobs()]


def test_the_manifest_of_a_merged_run_reads_back(parts: list[Path], tmp_path: Path) -> None:
    path = merge(parts[:2], tmp_path / "m").path
    manifest = store.read_manifest(path)
    assert manifest.slices == Slices(of=3, numbers=(1, 2))
    assert manifest.id.startswith(store.read_manifest(parts[0]).id.rpartition("-")[0])
    damaged = re.sub(r"1,\s+2", "2, 9", (path / store.MANIFEST).read_text())
    (path / store.MANIFEST).write_text(damaged)
    with pytest.raises(StoreError, match="numbers of slices must rise"):
        store.read_manifest(path)
