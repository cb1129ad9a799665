"""The tuner where there is no GPU: its file format, its candidates, its rule, and what it refuses."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionbench_kernels import static, table, tune
from fusionbench_kernels.runtime import Target
from fusionbench_kernels.table import Config

SM_90 = Target("sm_90", 132)
HERE = tune.buckets(["sm_90"])


def test_the_shipped_table_is_rendered_as_it_is() -> None:
    text = resources.files("fusionbench_kernels").joinpath("configs.json").read_text()
    assert tune.render(json.loads(text)) == text


def test_a_winner_takes_its_row_and_nothing_else_changes(tmp_path: Path) -> None:
    bucket = tune.buckets(["sm_90"], ["streaming_forward"])[1]
    config = Config({"BLOCK_Q": 128, "BLOCK_K": 128}, num_warps=8, num_stages=2, split_heads=True)
    found = tune.rewritten([(bucket, config)], {"device": "a GPU", "date": "2026-01-01"})
    path = tmp_path / "deep" / "configs.json"
    tune.write(path, found)
    read, before = json.loads(path.read_text()), tune.shipped()
    assert read["tuned"]["sm_90"] == {"device": "a GPU", "date": "2026-01-01"}
    row = read["tables"]["sm_90"]["streaming_forward"].pop(1)
    assert row == {
        "where": bucket.where, "blocks": {"BLOCK_Q": 128, "BLOCK_K": 128}, "num_warps": 8, "num_stages": 2, "split_heads": True,
    }  # fmt: skip
    del before["tables"]["sm_90"]["streaming_forward"][1]
    assert read["tables"] == before["tables"]
    assert [file.name for file in path.parent.iterdir()] == ["configs.json"]
    changed = [a != b for a, b in zip(tune.render(found).splitlines()[5:], tune.render(tune.shipped()).splitlines()[2:], strict=True)]  # fmt: skip
    assert sum(changed) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tune: no CUDA device here (--dry-run lists the candidates and compiles them without one)\n"),
        (["--dry-run", "--arch", "sm_12"], "tune: no table for 'sm_12' (has: sm_90, "),
        (["--dry-run", "--kernel", "nothing"], "tune: no row of the table is asked for\n"),
    ],
)
def test_what_it_cannot_do_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not arguments and torch.cuda.device_count():
        pytest.skip("there is a CUDA device")
    assert tune.main(arguments) == 2
    written = capsys.readouterr().err
    assert written.startswith(message)
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    "bucket", [b for arch in table.architectures() for b in tune.buckets([arch])], ids=lambda b: b.key
)
def test_candidates_are_few_different_and_within_limits(bucket: tune.Bucket) -> None:
    found = tune.candidates(bucket)
    assert found[0] == bucket.config
    assert 2 <= len(found) <= tune.MOST
    assert all(config not in found[:number] for number, config in enumerate(found))
    for config in found:
        assert config.num_warps in (4, 8, bucket.config.num_warps)
        assert 1 <= config.num_stages <= 5
        assert list(config.blocks) == list(bucket.config.blocks)
        for name, size in config.blocks.items():
            assert size & (size - 1) == 0 or name == "PIECES"
            if not name.startswith("BLOCK_"):
                assert size == bucket.config.blocks[name] or name in tune.SWITCHES | {"PIECES"}
                continue
            assert min(64 if bucket.where.get("bytes", 4) <= 2 else 16, bucket.config.blocks[name]) <= size <= 256
            assert name != tune.WHOLE.get(bucket.kernel) or size >= 64


def test_rows_of_fp32_are_told_from_rows_of_any_type() -> None:
    found = {(b.kernel, b.row) for b in HERE if tune.in_fp32(b)}
    assert ("streaming_forward", 9) in found
    assert ("streaming_forward", 5) in found
    assert not {(b.kernel, b.row) for b in HERE if b.where.get("bytes", 4) <= 2} & found
    assert not {kernel for kernel, _ in found} & {"combine", "quantize_rows", "int8_matmul", "concat_tokens"}


NARROW = tune.buckets(["sm_90"], narrow=True)


def test_narrow_tiles_are_tried_where_asked_and_nowhere_else() -> None:
    assert not any(config.edge < b.config.edge or config.split_heads for b in HERE for config in tune.candidates(b))
    assert {bucket.kernel for bucket in NARROW} == tune.SPLITTING


@pytest.mark.parametrize("bucket", NARROW, ids=lambda bucket: bucket.key)
def test_narrow_tiles_keep_the_rest_and_are_timed_where_they_matter(bucket: tune.Bucket) -> None:
    now, *others = tune.candidates(bucket)
    assert now == bucket.config
    assert all(replace(x, edge=now.edge, split_heads=False, split_keys=False) == now for x in others)
    assert bucket.sizes["head_dim"] < bucket.where["head_dim"]
    work = tune.WORK[bucket.kernel](bucket.sizes, "meta")
    tiles = [tune.launched(bucket, x, work, SM_90, lambda launch: None)[0].constants for x in (now, *others)]
    assert all(found != tiles[0] for found in tiles[1:])


@pytest.mark.parametrize("kernel", sorted({bucket.kernel for bucket in HERE} & set(tune.WORK)))
def test_the_work_of_every_kernel_launches_it_with_the_given_configuration(kernel: str) -> None:
    for bucket in tune.buckets(["sm_90"], [kernel]):
        config = tune.candidates(bucket)[-1]
        work = tune.WORK[kernel](bucket.where, "meta")
        launch, out = tune.launched(bucket, config, work, SM_90, lambda launch: None)
        assert launch.kernel.__name__ == kernel
        assert launch.config == config
        assert [x.shape for x in out] == [x.shape for x in work.truth()]


def test_every_kernel_can_be_tuned() -> None:
    assert set(tune.WORK) == {kernel for arch in table.architectures() for kernel in table.rows(arch)}


@pytest.mark.parametrize("kernel", sorted(table.rows("sm_90")))
def test_a_row_is_written_as_it_stands_in_the_file(kernel: str) -> None:
    before = tune.shipped()
    found = tune.rewritten([(bucket, bucket.config) for bucket in tune.buckets(["sm_90"], [kernel])], {})
    assert found["tables"] == before["tables"]


def test_a_dry_run_compiles_the_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--dry-run", "--arch", "sm_90", "--kernel", "combine", "--shapes", "head_dim=128"]) == 0
    title, first, *others = capsys.readouterr().out.splitlines()
    assert title == "combine/sm_90/head_dim=128"
    assert first.endswith("(present)")
    assert len(others) >= 2
    assert all("0 B spilled" in line for line in (first, *others))


def test_what_is_compiled_ahead_is_what_the_launcher_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton finds a compiled kernel by a hash of its source; the tuner compiles in other processes to fill the cache."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    bucket = tune.buckets(["sm_90"], ["streaming_forward"])[0]
    work = tune.WORK[bucket.kernel](bucket.where, "meta")
    launch, _ = tune.launched(bucket, bucket.config, work, SM_90, lambda launch: None)
    kernel, backend = launch.kernel, make_backend(GPUTarget("cuda", 90, 32))
    given = {**launch.config.blocks, **launch.constants, "num_warps": 4, "num_stages": 3}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(*launch.arguments, **given)
    _, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialization, {})
    ours, _, _ = static._source_and_target(launch, "sm_90")
    theirs = ASTSource(kernel, signature, constants, attributes)
    assert (ours.signature, ours.constants, ours.attrs) == (theirs.signature, theirs.constants, theirs.attrs)
    assert ours.hash() == theirs.hash()


def samples(middle: float, spread: float = 0.01, count: int = 60) -> list[float]:
    rng = random.Random(middle)
    return [middle * (1 + spread * rng.uniform(-1, 1)) for _ in range(count)]


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ([samples(100), samples(90), samples(80)], 2),
        ([samples(100), samples(98)], 0),  # less than the least gain
        ([samples(100, 0.5, 10), samples(93, 0.5, 10)], 0),  # the intervals overlap
        ([samples(100), [], samples(90)], 2),  # one was refused
        ([samples(100), samples(110)], 0),
        ([[], samples(90)], 0),  # the present one is wrong: nothing to compare with, and main() says so
        ([samples(100)], 0),
    ],
)
def test_a_candidate_wins_only_beyond_doubt(given: list[list[float]], number: int) -> None:
    assert tune.winner(given) == number


def test_the_interval_holds_the_median() -> None:
    middle, low, high = tune.interval(list(range(101)))
    assert (middle, low, high) == (50, 40, 60)
    assert tune.interval([7.0]) == (7.0, 7.0, 7.0)


def test_a_result_that_is_not_finite_is_infinitely_wrong() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert tune.deviation(torch.tensor([3.0, 4.5], dtype=torch.float64), truth) == pytest.approx(0.1)
    assert tune.deviation(torch.tensor([3.0, float("nan")]), truth) == float("inf")


def test_candidates_that_do_not_fit_or_spill_more_are_not_run() -> None:
    def profile(**figures: Any) -> static.Profile:
        return static.Profile("k", "sm_90", 0, {}, {}, **figures)

    now = profile(spill_bytes=8)
    assert tune.objection(now, now) == ""
    assert tune.objection(profile(spill_bytes=16), now) == "spills 16 bytes a thread"
    assert tune.objection(profile(shared_bytes=300_000), now) == "needs 300000 bytes of shared memory"
    assert tune.objection(profile(error="CompilationError: no"), now) == "CompilationError: no"
