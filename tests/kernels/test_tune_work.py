"""What the tuner gives each kernel has the truth that it says, with the present row and with every candidate."""

from __future__ import annotations

import pytest
import torch

from fusionbench_kernels import runtime, tune, work
from tests.kernels.conftest import NATIVE

ARCH = tune._device_arch() if NATIVE else "interpreter"
BUCKETS = tune.buckets([ARCH or ""])


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: bucket.key)
def test_every_candidate_gives_what_the_reference_gives(
    bucket: tune.Bucket, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the present rows at the sizes that are timed; in the interpreter small ones, with three candidates."""
    where = bucket.where
    if not NATIVE:
        monkeypatch.setattr(work, "LONG", {2: 40, 4: 40})
        monkeypatch.setattr(work, "HEADS", 1)
        where = {name: min(size, 48) for name, size in {"head_dim": 24, **bucket.where}.items()}
        if bucket.kernel == "co_backward_side":
            pytest.skip("40 tokens fit the one-pass backward; a GPU runs the sizes that do not")
    torch.manual_seed(0)
    given = work.WORK[bucket.kernel](where, device)
    truth = [x.float() for x in given.truth()]
    for config in tune.candidates(bucket)[: 1 if NATIVE else 3]:
        on = runtime.target(torch.device(device))
        launch, found = tune.launched(bucket, config, given, on, tune.start)
        assert launch.config == config
        for x, y in zip(found, truth, strict=True):
            assert tune.deviation(x, y) <= tune.tolerance(bucket, given, found)
