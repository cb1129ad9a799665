"""Every test computes on one thread, and keeps rooflines away from the user's own cache."""

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FUSIONBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
