"""A suite file as tests: one item for each job of its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from .. import suite
from ..errors import FusionbenchError
from ..launch import load_plugins
from ..plan import Plan
from ..record import Record
from ..spec import Budget, Job, Skip
from . import measure, replay


class SuiteFile(pytest.File):
    """A suite; one that cannot be read or planned is an error of collection."""

    budget: Budget

    def collect(self) -> Iterator[JobItem]:
        try:
            load_plugins([str(path) for path in self.config.getini("fusionbench_plugins")])
            chosen = suite.read(str(self.path))
            plan = Plan(chosen)
            plan.check()
        except FusionbenchError as error:
            raise self.CollectError(str(error)) from None
        self.budget = chosen.budget
        for found in plan:
            yield _item(self, found)


class JobItem(pytest.Function):
    """One job. It is a function with the fixture ``benchmark``, where a plugin has one, so that tools which look for
    that find it."""

    job: Job
    parent: SuiteFile

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name

    def measured(self, budget: Budget) -> Record:
        """The job's record, which is ok; else the test is skipped or fails with the reason."""
        plugins = [str(path) for path in self.config.getini("fusionbench_plugins")]
        record = measure.measure(self.job, budget, plugins)
        if record.status == "skipped":
            pytest.skip(record.reason)
        if record.status != "ok":
            where = f" ({record.phase})" if record.phase else ""
            again = f"fusionbench run {self.path.name} --job '{self.job.key}'"
            raise measure.JobFailedError(f"{record.status}{where}: {record.reason}\nrepeat it with: {again}")
        return record

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, FusionbenchError):  # the reason; how the plugin came to it is nobody's concern
            return f"{self.job.key}\n{excinfo.value}"
        return super().repr_failure(excinfo)


def _item(parent: SuiteFile, found: Job | Skip) -> JobItem:
    job = found.job if isinstance(found, Skip) else found
    item: JobItem = JobItem.from_parent(parent, name=job.key, callobj=_way(parent.config))
    item.job = job
    if isinstance(found, Skip):
        item.add_marker(pytest.mark.skip(reason=found.reason))
    elif item.function is with_samples:
        item.add_marker(pytest.mark.benchmark(group=job.case.question))  # a table holds what may be compared
        replay.take_samples(item)
    return item


def _way(config: pytest.Config) -> Callable[..., None]:
    """How jobs become tests: by who measures what ``benchmark`` is given."""
    if config.pluginmanager.hasplugin("pytest-benchmark"):
        return with_samples
    if getattr(config.pluginmanager.get_plugin("codspeed_plugin"), "is_codspeed_enabled", False):
        return with_calls
    return alone


def with_samples(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """Measure the job in worker processes; pytest-benchmark gets the samples."""
    item: JobItem = request.node
    budget = item.parent.budget if benchmark.enabled else replace(item.parent.budget, rounds=1)
    with replay.nothing_else(benchmark):
        record = item.measured(budget)
    replay.feed(benchmark, record)


def with_calls(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """Let another tool measure the call itself, which therefore runs in this process."""
    from . import here

    item: JobItem = request.node
    if item.job.case.device != "cpu":
        pytest.skip("only calls on the CPU are measured in this process")
    with here.call(item.job, item.parent.budget) as call:
        benchmark(call)


def alone(request: pytest.FixtureRequest) -> None:
    """Measure the job in worker processes; there is nobody to give the samples to."""
    item: JobItem = request.node
    item.measured(item.parent.budget)
