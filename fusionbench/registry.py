"""Which strategies exist: the decorator that declares one, and the look-up by name."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from . import adapt, prune
from .cost import Cost
from .errors import FusionbenchError, UnknownNameError, printable
from .generation import NEEDS, Cache, Step, whole
from .spec import NAME_PATTERN, Case

Built = TypeVar("Built", bound=type[nn.Module])
CostFunction = Callable[..., Cost]  # (case, impl, **options) -> Cost
Refusal = Callable[..., str | None]  # (case, **options) -> the reason why a case makes no sense
InputsFunction = Callable[[Case, torch.Generator], "Inputs"]
StepFunction = Callable[..., Step]  # (case, **options) -> what one call is given

STRATEGIES = "strategies"  # the folder below this package whose files register themselves
MEASURING = (
    "adapt", "prune", "generation", "attention", "parts", "streams", "blocks", "joint", "vectors", "backends", "int8",
    "inputs", "subject", "verify", "honesty", "settings", "measuring", "cost", "stats", "nvml",
)  # fmt: skip
WHOLE = ("fwd", "fwd_bwd", "step")  # the modes that every strategy has
ATTENTION_IMPLS = ("eager", "sdpa", "flex", "triton", "triton_int8", "sage")


@dataclass(frozen=True)
class Inputs:
    """What a strategy's ``forward`` is called with; masks are True at real tokens, None without padding.

    A ``cache`` of keys and values [B, Hk, L, d] comes in modes of generation only (see generation.py).
    """

    image: torch.Tensor | None
    text: torch.Tensor | None
    image_mask: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    cache: Cache = ()

    def args(self) -> tuple[torch.Tensor | Cache | None, ...]:
        four = (self.image, self.text, self.image_mask, self.text_mask)
        return (*four, self.cache) if self.cache else four

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from (t for t in (self.image, self.text, self.image_mask, self.text_mask) if t is not None)
        yield from (t for pair in self.cache for t in pair)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """The inputs with every tensor changed."""

        def changed(t: torch.Tensor | None) -> torch.Tensor | None:
            return None if t is None else change(t)

        return Inputs(
            changed(self.image), changed(self.text), changed(self.image_mask), changed(self.text_mask),
            tuple((change(k), change(v)) for k, v in self.cache),
        )  # fmt: skip


@functools.lru_cache(maxsize=1024)  # planning, slicing and estimating ask for the same ones, one case after the other
def _costs(cost: Callable[..., Cost], options: tuple[tuple[str, Any], ...], case: Case, impl: str) -> Cost:
    return adapt.adapted_cost(cost(prune.narrowed(case), impl, **dict(options)), case.adapt)


@dataclass(frozen=True)
class Strategy:
    """One way in which two modalities become one: a family of modules and its closed-form cost."""

    name: str
    build: Callable[..., nn.Module]
    impls: tuple[str, ...]
    cost: CostFunction
    options: Mapping[str, Any] = field(default_factory=dict)
    refuses: Refusal | None = None
    inputs: InputsFunction | None = None
    summary: str = ""
    modes: tuple[str, ...] = WHOLE
    step: StepFunction | None = None

    def module(self, case: Case, impl: str) -> nn.Module:
        """A fresh module in fp32 on the current default device, initialised from torch's global seed.

        Its weights are pruned and frozen, and adapters added, as the case asks.
        """
        module = self.build(prune.narrowed(case), impl, **self.options)
        prune.mask_weights(module, case.prune)
        return adapt.adapted(module, case.adapt)

    def costs(self, case: Case, impl: str) -> Cost:
        """What that module costs."""
        return _costs(self.cost, tuple(self.options.items()), case, impl)

    def given(self, case: Case) -> Step:
        """What one call takes in and what it need not compute."""
        return whole(case) if self.step is None else self.step(case, **self.options)

    def refusal(self, case: Case) -> str | None:
        """Why the strategy cannot take the case, or None."""
        return (
            self._mode_refusal(case)
            or prune.refusal(case)
            or self._own_refusal(prune.narrowed(case))
            or self._adapt_refusal(case)
        )

    def _mode_refusal(self, case: Case) -> str | None:
        if case.mode in self.modes:
            return None
        needs = f", which needs {NEEDS[case.mode]}" if case.mode in NEEDS else ""
        return f"'{self.name}' has no mode '{case.mode}'{needs} (has: {', '.join(self.modes)})"

    def _adapt_refusal(self, case: Case) -> str | None:
        if case.adapt == "full" and case.mode != "step":
            return None
        cost = self.cost(prune.narrowed(case), "eager", **self.options)
        return adapt.refusal(case, cost, own_inputs=self.inputs is not None)

    def _own_refusal(self, case: Case) -> str | None:
        if self.refuses is None:
            return None
        try:
            reason = self.refuses(case, **self.options)
        except Exception as error:
            raise FusionbenchError(f"strategy '{self.name}': its refuses() raised {error!r}") from error
        if reason is not None and not isinstance(reason, str):
            raise FusionbenchError(f"strategy '{self.name}': its refuses() gave {reason!r}, not a reason or None")
        return reason

    @functools.cached_property
    def source_files(self) -> tuple[Path, ...]:
        """The file that defines the strategy, and every file of the package that decides what is measured."""
        here = Path(__file__).parent
        own = Path(inspect.getfile(self.build))
        return (own, *(here / f"{name}.py" for name in MEASURING), *sorted((here / "meters").glob("*.py")))

    @functools.cached_property
    def source(self) -> str:
        """A hash of that code: records of older code do not count as done."""
        digest = hashlib.blake2b(digest_size=8)
        for file in self.source_files:
            digest.update(file.read_bytes() if file.exists() else b"")
        return digest.hexdigest()


_REGISTERED: dict[str, Strategy] = {}


def strategy(
    name: str,
    *,
    impls: tuple[str, ...],
    cost: CostFunction,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    refuses: Refusal | None = None,
    inputs: InputsFunction | None = None,
    modes: tuple[str, ...] = WHOLE,
    step: StepFunction | None = None,
) -> Callable[[Built], Built]:
    """Register an ``nn.Module`` class as the strategy ``name`` and return it unchanged.

    The class is built as ``cls(case, impl, **options)``; ``forward(image, text, image_mask, text_mask)``
    takes image [B, Li, image_width] and text [B, Lt, text_width]. ``variants`` maps a suffix to options:
    ``variants={"vote": {"combine": "vote"}}`` on ``late`` also registers ``late:vote``. ``cost`` and
    ``refuses`` receive the same options. The docstring's first line is the summary that users read. ``modes`` of
    generation need a ``step``, and a ``forward`` that takes a cache behind the masks (see generation.py).

    Raises FusionbenchError for a name that is taken or not fit for a file name, and for such modes without a step.
    """

    def register(cls: Built) -> Built:
        first_line = (inspect.getdoc(cls) or "").partition("\n")[0].replace("``", "")
        entries: dict[str, dict[str, Any]] = {name: {}}
        entries |= {f"{name}:{suffix}": dict(options) for suffix, options in (variants or {}).items()}
        for full_name, options in entries.items():
            _add(Strategy(full_name, cls, impls, cost, options, refuses, inputs, first_line, modes, step))
        return cls

    return register


def _add(entry: Strategy) -> None:
    if not re.fullmatch(NAME_PATTERN, entry.name):
        raise FusionbenchError(f"strategy name {entry.name[:80]!r} does not match {NAME_PATTERN}")
    generates = [mode for mode in entry.modes if mode in NEEDS]
    if generates and entry.step is None:
        raise FusionbenchError(f"strategy '{entry.name}' has mode '{generates[0]}' and no step to say what it is given")
    taken = _REGISTERED.get(entry.name)
    if taken is not None and inspect.getfile(taken.build) != inspect.getfile(entry.build):
        raise FusionbenchError(f"strategy '{entry.name}' is registered twice: {taken.build} and {entry.build}")
    _REGISTERED[entry.name] = entry


def strategies() -> Mapping[str, Strategy]:
    """All strategies by name: the built-in ones, installed plugins, and files given to load_plugin."""
    _discover()
    return dict(sorted(_REGISTERED.items()))


def get(name: str) -> Strategy:
    """The strategy called ``name``; raises UnknownNameError with the nearest one."""
    _discover()
    if name not in _REGISTERED:
        raise UnknownNameError("strategy", name, _REGISTERED)
    return _REGISTERED[name]


@functools.cache
def _discover() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).with_name(STRATEGIES))]):
        importlib.import_module(f"{__package__}.{STRATEGIES}.{module.name}")
    for entry in importlib.metadata.entry_points(group="fusionbench.strategies"):
        entry.load()


def load_plugin(path: Path) -> None:
    """Register the strategies of a Python file that the user named on the command line (so it is trusted)."""
    resolved = path.resolve()
    if not resolved.is_file():
        raise FusionbenchError(f"plugin '{path}' is not a file")
    name = f"fusionbench_plugin_{hashlib.blake2b(str(resolved).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise FusionbenchError(f"plugin '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FusionbenchError:
        raise
    except (Exception, SystemExit) as error:
        what = printable(" ".join(str(error).split()), 300)
        raise FusionbenchError(f"plugin '{path}' failed to load: {type(error).__name__}: {what}") from error
