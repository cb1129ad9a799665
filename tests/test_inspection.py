"""Every shipped kernel configuration, compiled for every chip: it fits, it is no worse than it was."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from fusionbench import inspection
from fusionbench.cli import app
from fusionbench.errors import FusionbenchError, StoreError, UnknownNameError
from fusionbench.inspection import Inspected, Inspection

BASELINE = Path(__file__).parents[1] / "results" / "baseline" / "kernels.json"
ONE = Inspected(
    "k", "sm_90", {"head_dim": 64}, {"BLOCK_Q": 64}, 100, 0, 2048, 232448, 4096, {"all": 900, "HGMMA": 8}
)  # fmt: skip


def changed(**fields: object) -> Inspection:
    return Inspection("3.7.1", [msgspec.structs.replace(ONE, **fields)])


@pytest.fixture(scope="module")
def shipped() -> list[Inspected]:
    return list(inspection.inspect(inspection.planned()))


class TestTheShippedConfigurations:
    def test_all_compile(self, shipped: list[Inspected]) -> None:
        assert {p.key: p.error for p in shipped if p.error} == {}

    def test_all_fit_the_shared_memory_of_their_chip(self, shipped: list[Inspected]) -> None:
        assert [(p.key, p.shared_bytes) for p in shipped if p.shared_bytes > p.shared_limit_bytes] == []

    def test_none_got_worse_than_the_committed_baseline(self, shipped: list[Inspected]) -> None:
        base = inspection.load(BASELINE)
        if base.triton != version("triton"):
            pytest.skip(f"the baseline is of triton {base.triton}, here is {version('triton')}; CI runs the former")
        assert inspection.grown(base, inspection.inspection(shipped)) == []

    def test_the_baseline_holds_all_of_them(self, shipped: list[Inspected]) -> None:
        assert {p.key for p in shipped} == {p.key for p in inspection.load(BASELINE).profiles}

    def test_none_uses_atomics(self, shipped: list[Inspected]) -> None:
        assert [p.key for p in shipped if p.instructions.get("atomics")] == []

    def test_products_of_half_precision_run_on_tensor_cores(self, shipped: list[Inspected]) -> None:
        half = [p for p in shipped if p.where.get("bytes") == 2 and "forward" in p.kernel]
        assert half
        assert [p.key for p in half if not any(p.instructions.get(name) for name in inspection.PRODUCTS)] == []


@pytest.mark.parametrize(
    ("fields", "worse"),
    [
        ({}, []),
        ({"registers": 90, "spill_bytes": 0, "shared_bytes": 1024, "instructions": {"all": 1, "HGMMA": 8}}, []),
        ({"registers": 101}, ["registers 100 -> 101"]),
        ({"spill_bytes": 8}, ["spill_bytes 0 -> 8"]),
        ({"shared_bytes": 4096}, ["shared_bytes 2048 -> 4096"]),
        ({"instructions": {"all": 901, "HGMMA": 8}}, ["instructions 900 -> 901"]),
        ({"instructions": {"all": 900}}, ["HGMMA 8 -> 0"]),
        ({"error": "no"}, ["no longer compiles: no"]),
        ({"arch": "sm_80"}, ["is gone"]),
    ],
)
def test_what_counts_as_worse(fields: dict[str, object], worse: list[str]) -> None:
    found = inspection.grown(Inspection("3.7.1", [ONE]), changed(**fields))
    assert found == [f"k/sm_90/head_dim ≤ 64: {line}" for line in worse]


def test_profiles_of_two_compilers_are_not_compared() -> None:
    with pytest.raises(FusionbenchError, match=r"baseline is of triton 3\.7\.1, this is 3\.9"):
        inspection.grown(Inspection("3.7.1", [ONE]), Inspection("3.9", [ONE]))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    inspection.save(changed(), tmp_path / "k.json")
    assert inspection.load(tmp_path / "k.json") == changed()


@pytest.mark.parametrize("text", ["", "[]", '{"v":1,"triton":"3","profiles":[{"kernel":1}]}', "[" * 100_000, "\xff"])
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"k\.json' is not what 'fusionbench inspect --json' writes"):
        inspection.load(tmp_path / "k.json")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no architecture named 'sm_81'; did you mean 'sm_80'"):
        inspection.planned(["sm_81"])
    with pytest.raises(UnknownNameError, match="no kernel named 'combin'; did you mean 'combine'"):
        inspection.planned([], ["combin"])


def test_the_verb_shows_and_writes(tmp_path: Path) -> None:
    written = tmp_path / "k.json"
    done = CliRunner().invoke(app, ["inspect", "--arch", "sm_90", "--kernel", "combine", "--json", str(written)])
    assert done.exit_code == 0, done.output
    assert "combine" in done.output
    assert all(p.kernel == "combine" and p.registers for p in inspection.load(written).profiles)


def test_a_kernel_that_does_not_compile_is_a_row_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rows: list[object]) -> Iterator[Inspected]:
        yield msgspec.structs.replace(ONE, error="CompilationError: [red]no")

    monkeypatch.setattr(inspection, "inspect", broken)
    done = CliRunner().invoke(app, ["inspect", "--kernel", "combine"])
    assert done.exit_code == 3
    assert "CompilationError: [red]no" in done.output
