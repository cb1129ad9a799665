"""The descriptor variant as compiled for sm_90 and sm_100, without a GPU: warps specialised, TMA used, nothing spilled."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fusionbench_kernels import descriptor_check, table
from fusionbench_kernels.attention_launch import forward
from fusionbench_kernels.runtime import INTERPRETED, Launch, Target, compiling_for
from fusionbench_kernels.static import Profile, as_shown, compiled

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter's kernels cannot be compiled")
ROWS = [
    (arch, index)
    for arch in table.architectures()
    for index in range(len(table.rows(arch).get("descriptor_forward", ())))
]


def row(arch, index):
    return table.rows(arch)["descriptor_forward"][index]


def profile(arch, config, head_dim, batch=2, heads=8, kv_heads=8, queries=1024, keys=1024, lens=None):
    """What a call of these sizes would launch, compiled."""
    q, k = (
        torch.empty(batch, h, n, head_dim, dtype=torch.float16, device="meta")
        for h, n in ((heads, queries), (kv_heads, keys))
    )
    lens = None if lens is None else torch.empty(batch, dtype=lens, device="meta")
    launches: list[Launch] = []
    with compiling_for(Target(arch, 132), launches.append), table.forced(descriptor_forward=config):
        forward(q, k, k, None, lens, None, 0.125, "descriptor")
    (launch,) = launches
    return compiled(launch, arch, Profile("descriptor_forward", arch, 0, {"head_dim": head_dim}, as_shown(config)))


CALLS = {"even": {}, "lengths": {"keys": 1000, "kv_heads": 2, "lens": torch.int32}}


@pytest.mark.parametrize(
    ("arch", "index", "call"),
    [(*at, call) for at in ROWS for call in CALLS if call == "even" or row(*at)[1].blocks["WARP_SPECIALIZE"]],
)
def test_every_row_engages(arch, index, call):
    where, config = row(arch, index)
    found = profile(arch, config, where["head_dim"], **CALLS[call])
    assert descriptor_check.engaged(found) == []
    assert found.fits
    assert found.spill_bytes == 0
    assert found.instructions["UTMALDG"] >= 3, "q, k and v come by TMA"
    assert found.instructions.get("USETMAXREG", 0) > 0 or not config.blocks["WARP_SPECIALIZE"]
    assert found.instructions["HGMMA" if arch == "sm_90" else "tcgen05"] > 0


@pytest.mark.parametrize(
    "call",
    [
        {"batch": 1, "heads": 1, "kv_heads": 1, "queries": 1, "keys": 1},
        {"queries": 129, "keys": 333},
        {"keys": 1000, "lens": torch.int64},
    ],
    ids=["ones", "tails", "long_lengths"],
)
def test_sizes_that_triton_specialises_on_stay_specialised_in_warps(call):
    found = profile("sm_90", row("sm_90", 0)[1], 64, **call)
    assert descriptor_check.engaged(found) == []
    assert found.instructions["USETMAXREG"] > 0


def test_a_padded_head_dim_engages():
    assert descriptor_check.engaged(profile("sm_90", row("sm_90", 1)[1], 80, keys=1000)) == []


def test_the_guard_sees_that_eight_warps_lose_the_specialisation():
    where, config = row("sm_90", 0)
    found = profile("sm_90", replace(config, num_warps=8), where["head_dim"])
    assert "USETMAXREG" not in found.instructions
    assert "warps are not specialised (no USETMAXREG)" in descriptor_check.engaged(found)


def test_the_guard_sees_doubled_products():
    where, config = row("sm_90", 0)
    found = profile("sm_90", replace(config, blocks={**config.blocks, "BLOCK_Q": 64}), where["head_dim"])
    assert descriptor_check.engaged(found) == ["24 tensor-core products (HGMMA), expected 12"]


def test_the_guard_sees_spills_and_too_much_shared_memory():
    seen = replace(
        Profile("descriptor_forward", "sm_90", 0, {"head_dim": 64}, as_shown(row("sm_90", 0)[1])),
        spill_bytes=8, shared_bytes=232_449, instructions={"HGMMA": 24, "USETMAXREG": 8},
    )  # fmt: skip
    assert descriptor_check.engaged(seen) == [
        "no TMA load (UTMALDG)",
        "8 bytes of registers spilled",
        "232449 bytes of shared memory; there are 232448",
    ]
    assert descriptor_check.engaged(replace(seen, error="no")) == ["no binary to look at: no"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "gfx942"])
def test_an_architecture_without_tma_has_no_rows_and_is_refused(arch):
    assert "descriptor_forward" not in table.rows(arch)
    q = torch.empty(1, 8, 2048, 64, dtype=torch.float16, device="meta")
    with (
        compiling_for(Target(arch, 100), lambda launch: None),
        pytest.raises(ValueError, match=f"'descriptor' has no configuration for head dim 64 .* on {arch}"),
    ):
        forward(q, q, q, None, None, None, 0.125, "descriptor")


class _Driver:
    """As much of a GPU as compiling for a launch asks about; no real device has this number, so no cache is shared."""

    def get_current_device(self):
        return 99

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("num_warps", [4, 8])
def test_the_guard_looks_at_the_kernel_that_a_launch_compiles(num_warps, monkeypatch):
    monkeypatch.setattr(descriptor_check, "target", lambda device: Target("sm_90", 132))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    config = replace(row("sm_90", 0)[1], num_warps=num_warps)
    q, k, v, lens = descriptor_check._inputs(descriptor_check.SHAPES[2], 64, torch.float16, torch.device("cpu"))
    driver.set_active(_Driver())
    try:
        faults = descriptor_check.engaged(descriptor_check._profile(q, k, v, lens, config))
    finally:
        driver.set_active(None)
    assert faults == ([] if num_warps == 4 else ["warps are not specialised (no USETMAXREG)"])


def test_the_guard_survives_a_compiler_that_does_not(monkeypatch):
    monkeypatch.setattr(descriptor_check, "target", lambda device: Target("sm_90", 132))

    def broken(device):
        raise RuntimeError("PassManager::run failed\nand more")

    monkeypatch.setattr(torch.cuda, "device", broken)
    found = descriptor_check._check(torch.device("cpu"), row("sm_90", 0)[1], 64, torch.float16)
    assert len(found) == 1, "the first shape that fails ends it"
    assert found[0].startswith("no binary to look at: RuntimeError: PassManager::run failed at Shape(")


def test_the_command_says_what_failed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert descriptor_check.main() == 2
    assert "no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    for faults, status in (((), 0), (("no TMA load (UTMALDG)",), 1)):
        monkeypatch.setattr(descriptor_check, "self_check", lambda faults=faults: {"plain, head dim 64": faults})
        assert descriptor_check.main() == status
        assert capsys.readouterr().out == f"NVIDIA H200, 1 checks\nplain, head dim 64: {'; '.join(faults) or 'ok'}\n"
    monkeypatch.setattr(descriptor_check, "self_check", dict)
    assert descriptor_check.main() == 1, "a GPU without rows passes nothing"
