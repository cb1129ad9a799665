"""What the fork server imports once so that no worker has to: torch, its profiler's dependencies, all strategies."""

import gc
import importlib

from .. import registry

# The first profile() of a process imports dynamo and inductor, 0.95 s (measured); torch.compile 1.9 s.
for module in ("torch._dynamo", "torch._inductor.compile_fx", "torch._inductor.codecache", "fusionbench.worker"):
    importlib.import_module(module)
registry.strategies()

gc.freeze()  # a collection in a worker need not walk what was imported here: 3 ms instead of 230 (measured)
