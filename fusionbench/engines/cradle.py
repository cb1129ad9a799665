"""What a fork server imports at the least so that no worker has to: torch and all strategies."""

import atexit
import gc
import importlib

from .. import backends, registry
from . import family

atexit.register(family.end_all)  # the server ends when the runner does, however that ended

importlib.import_module("fusionbench.worker")
for strategy in registry.strategies().values():
    _ = strategy.source  # hashed now: the files may change while the sweep runs, the imported code does not
backends.kernels_source()

gc.freeze()  # a collection in a worker need not walk what was imported here: 3 ms instead of 230 (measured)
