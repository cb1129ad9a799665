"""The fixture ``fusion_job``: one job, named by keywords, measured when a test asks for it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from .. import suite
from ..errors import refuse_unknown
from ..launch import load_plugins
from ..plan import settled
from ..record import Record
from ..spec import Budget, Skip, replace_budget
from . import measure, replay

# One process and as many samples as it takes in a fifth of a second: enough to tell what is right, how much memory it
# takes and about how long. For a time to rely on, ask for rounds=6.
BUDGET = Budget(measure_s=0.2, rounds=1)
SIZES = {"image": 196, "text": 32, "width": 128}
HEAD_DIM = 64

# Options that go by another name in a suite, where an axis has many values.
AXES = {
    "strategy": "strategies", "backend": "backends", "preset": "presets", "projector": "projectors", "dtype": "dtypes",
    "device": "devices", "mode": "modes",
}  # fmt: skip


class Options(TypedDict, total=False):
    """What a job can be asked to be, as in a suite, one value each."""

    backend: str
    preset: str
    extent: str
    scale: str
    batch: int
    image: int
    text: int
    image_width: int
    text_width: int
    width: int
    heads: int
    depth: int
    ffn: int
    projector: str
    type_embedding: bool
    padding: float
    dtype: str
    device: str
    mode: str
    adapt: str
    prune: str
    measure_s: float
    warmup_s: float
    timeout_s: float
    threads: int
    rounds: int
    seed: int
    energy_s: float


@dataclass(frozen=True)
class FusionJob:
    """What the fixture gives; ``plugins`` are the files with strategies of the user's own."""

    plugins: tuple[Path, ...] = ()

    def __call__(self, strategy: str = "", *, benchmark: Any = None, **options: Unpack[Options]) -> Record:
        """Measure a job in a worker process and return its record, whatever its status.

        Without a ``preset``, ``image``, ``text`` and ``width`` are 196, 32 and 128, both inputs as wide as that, heads
        of 64, fp32 on the CPU, forward, backend ``eager``. With ``benchmark``, pytest-benchmark's fixture, its report
        has the samples. Raises UnknownNameError and SuiteError for what does not exist.
        """
        __tracebackhide__ = True
        asked: dict[str, Any] = {**options}
        refuse_unknown("option of fusion_job", asked, Options.__annotations__)
        load_plugins([str(path) for path in self.plugins])
        limits: dict[str, Any] = {field: asked.pop(field) for field in Budget.__struct_fields__ if field in asked}
        budget = replace_budget(BUDGET, **limits)
        found = settled(suite.single(_axes(strategy, asked), "fusion_job"))
        plugins = [str(path) for path in self.plugins]
        with nullcontext() if benchmark is None else replay.nothing_else(benchmark):
            record = _skipped(found) if isinstance(found, Skip) else measure.measure(found, budget, plugins)
        if benchmark is not None:
            _give(benchmark, record, budget)
        return record


def _skipped(found: Skip) -> Record:
    return Record(job=found.job, status="skipped", reason=found.reason, environment=measure.environment().id)


def _axes(strategy: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The axes of a suite that the options stand for, and what goes without saying."""
    sizes: dict[str, Any] = {}
    if "preset" not in asked:
        width = asked.get("width", SIZES["width"])
        heads = width // HEAD_DIM if isinstance(width, int) and width > 0 and width % HEAD_DIM == 0 else 1
        sizes = SIZES | {"image_width": width, "text_width": width, "heads": heads}
    named: dict[str, Any] = {"backend": "eager", **sizes, **asked} | ({"strategy": strategy} if strategy else {})
    return {AXES.get(name, name): value for name, value in named.items()}


def _give(benchmark: Any, record: Record, budget: Budget) -> None:
    """Let the benchmark report the record; tools that measure calls themselves get the call."""
    if type(benchmark).__module__.startswith("pytest_benchmark."):
        replay.feed(benchmark, record)
        return
    from . import here

    with here.call(record.job, budget) as call:
        benchmark(call)
