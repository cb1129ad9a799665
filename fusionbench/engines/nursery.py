"""What the fork server imports once so that no worker has to: torch, its profiler's dependencies, all strategies."""

import atexit
import contextlib
import gc
import importlib

from .. import backends, registry
from . import family

atexit.register(family.end_all)  # the server ends when the runner does, however that ended

importlib.import_module("fusionbench.worker")
for strategy in registry.strategies().values():
    _ = strategy.source  # hashed now: the files may change while the sweep runs, the imported code does not
backends.kernels_source()

# The first profile() of a process imports dynamo and inductor, 0.95 s (measured); torch.compile 1.9 s.
with contextlib.suppress(ImportError):  # not ours: a torch that moves them is slower, not broken
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch._inductor.compile_fx")

gc.freeze()  # a collection in a worker need not walk what was imported here: 3 ms instead of 230 (measured)
