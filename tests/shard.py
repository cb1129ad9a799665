"""A pytest plugin for ``make gpu``: one share of the tests, and of a long grid a few cases (``-p tests.shard``)."""

from __future__ import annotations

import itertools

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="1/1", help="I/N: the Ith of N shares of the tests")
    parser.addoption(
        "--chunk", type=int, default=4, help="neighbours in one share: they need the same kernels compiled"
    )
    parser.addoption("--cases", type=int, default=0, help="at most so many cases of a test, evenly spaced; 0 for all")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share, shares = (int(part) for part in config.getoption("--shard").split("/"))
    chunk = config.getoption("--chunk")
    kept = brief(items, config.getoption("--cases"))
    mine = [item for number, item in enumerate(kept) if number // chunk % shares == share - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine


def brief(items: list[pytest.Item], most: int) -> list[pytest.Item]:
    """At most ``most`` cases of each test, and none in fp32 where there are others: it compiles longest."""
    if most == 0:
        return items
    found: list[pytest.Item] = []
    for _, cases in itertools.groupby(items, key=lambda item: item.nodeid.partition("[")[0]):
        every = list(cases)
        narrow = [item for item in every if torch.float32 not in parameters(item)] or every
        step = max(1.0, (len(narrow) - 1) / max(1, most - 1))
        found += [narrow[round(number * step)] for number in range(min(most, len(narrow)))]
    return found


def parameters(item: pytest.Item) -> list[object]:
    call = getattr(item, "callspec", None)
    return [value for value in call.params.values() if isinstance(value, torch.dtype)] if call else []
