"""What Ray takes for a visit, on this machine: `python scale_ray.py BYTES_ASKED BYTES_ANSWERED` prints it as JSON.

One local cluster and one actor that answers at once: the network between machines is not in it.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from statistics import median
from time import perf_counter, thread_time

import ray

CALLS = 1_000
ACTORS = 4
LOOKS, LOOK_S = 40, 0.25


@ray.remote(num_cpus=0)
class Slot:
    """A device slot; it imports what a worker needs."""

    def __init__(self, answer: int) -> None:
        import fusionbench.engines.cradle  # noqa: F401

        self.answer = bytes(answer)

    def measure(self, request: bytes) -> bytes:
        return self.answer

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def main(asked: int, answered: int, folder: str) -> dict[str, object]:
    ray.init(
        address="local",  # not the cluster of somebody else on this machine
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.2",
        _temp_dir=folder,
    )
    request = bytes(asked)
    starts, creates = [], []
    for _ in range(ACTORS):
        start, computed = perf_counter(), thread_time()
        slot = Slot.remote(answered)
        creates.append(thread_time() - computed)
        ray.get(slot.measure.remote(request))
        starts.append(perf_counter() - start)
    calls, trips = _trips(slot, request)
    looks = _looks(slot)
    return {
        "version": ray.__version__,
        "calls_s": calls,
        "trip_s": trips,
        "look_s": median(looks),
        "create_s": median(creates[1:]),  # the first one brings the class to the cluster
        "start_s": starts[1:],
    }


def _trips(slot: object, request: bytes) -> tuple[list[float], list[float]]:
    """What the driver's own thread computes for a visit, and the rest of the time until the answer is there."""
    own, rest = [], []
    for _ in range(CALLS):
        start, computed = perf_counter(), thread_time()
        reference = slot.measure.remote(request)  # type: ignore[attr-defined]
        ray.wait([reference])
        ray.get(reference)
        own.append(thread_time() - computed)
        rest.append(max(0.0, perf_counter() - start - own[-1]))
    return own[len(own) // 10 :], rest[len(rest) // 10 :]  # the first ones find nothing prepared


def _looks(slot: object) -> list[float]:
    """What the driver computes each time that it looks in vain for an answer."""
    answer = slot.sleep.remote(LOOKS * LOOK_S + 5)  # type: ignore[attr-defined]
    looks = []
    for _ in range(LOOKS):
        computed = thread_time()
        ray.wait([answer], timeout=LOOK_S)
        looks.append(thread_time() - computed)
    return looks


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="scale", ignore_cleanup_errors=True) as folder:
        found = main(int(sys.argv[1]), int(sys.argv[2]), folder)
        ray.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")
