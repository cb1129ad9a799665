"""What the fork server of a run imports once: beside torch and the strategies the profiler's and compiler's modules."""

import contextlib
import gc
import importlib

from . import cradle as cradle

# The first profile() of a process imports dynamo and inductor, 0.95 s (measured); torch.compile 1.9 s.
with contextlib.suppress(ImportError):  # not ours: a torch that moves them is slower, not broken
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch._inductor.compile_fx")

gc.freeze()
