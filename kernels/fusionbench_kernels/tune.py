"""Find better block sizes on the GPU at hand: ``python -m fusionbench_kernels.tune``.

Each row of the table is a bucket. Its configuration and a few neighbours are compiled in parallel, checked against the
reference, then timed in turns; a neighbour takes the row only where it is faster by more than the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from . import table
from .descriptor import _with_workspace
from .runtime import Launch, Target, compiling_for, has_triton, target
from .static import MULTIPROCESSORS, Profile, _without_interpreter, compiled, products_of
from .table import Config
from .work import WORK, Where, Work

MOST = 6  # candidates per bucket, the present one among them; a compilation takes 2 to 6 s
GAIN = 0.03  # a winner is faster by at least this share, and its interval lies below that of the present one
# Heads of SD 1.5 and of 77 keys, where padding to a power of two costs most.
NARROW = {("head_dim", 64): 40, ("head_dim", 128): 80, ("head_dim", 256): 160, ("keys", 128): 77, ("keys", 256): 154}
# Relative L2 against the fp32 reference, by bytes of an element: rounding fp16 alone gives 3e-4, and among integers of
# deviation 40 one in a thousand that rounds to the other side 8e-4.
ERROR = {1: 1e-3, 2: 5e-3, 4: 1e-4}
SWITCHES = frozenset({"ONE_EXP"})  # 0 or 1, and worth trying the other way round
# Tiles that hold whole blocks of 64 rows which share a scale (``granularity="block"``), where a row serves those too.
WHOLE = {"int8_forward": "BLOCK_Q", "quantize_keys": "BLOCK_K"}
SPLITS = ("split_heads", "split_keys")
SPLITTING = frozenset({"streaming_forward", "resident_forward", "backward_keys", "backward_queries"})
QUEUED = 10  # samples that are queued before the host waits, so that its waiting is not in them


@dataclass(frozen=True)
class Bucket:
    """One row of the table; ``narrow`` asks for tiles narrower than 64 instead of other sizes (``--narrow``)."""

    arch: str
    kernel: str
    row: int
    where: Where
    config: Config
    narrow: bool = False

    @property
    def sizes(self) -> Where:
        """The sizes at which it is timed: the row's bounds; with ``narrow`` sizes which narrow tiles compute faster."""
        if not self.narrow:
            return self.where
        return {name: NARROW.get((name, size), size) for name, size in self.where.items()}

    @property
    def key(self) -> str:
        bounds = ",".join(f"{name}={size}" for name, size in self.where.items())
        return f"{self.kernel}/{self.arch}/{bounds or 'any'}"


@dataclass(frozen=True)
class Timed:
    """What became of one candidate: its samples, or why it has none."""

    config: Config
    samples_ns: tuple[float, ...] = ()
    reason: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 done, 1 a present configuration is wrong, 2 it cannot run here."""
    options = _options(arguments)
    arch = _device_arch()
    if not options.dry_run and arch is None:
        return _refuse("no CUDA device here (--dry-run lists the candidates and compiles them without one)")
    if not has_triton():
        return _refuse("Triton is not installed here")
    wanted = options.arch or ([arch] if arch else list(table.architectures()))
    for name in wanted:
        if name not in table.architectures():
            return _refuse(f"no table for '{name}' (has: {', '.join(table.architectures())})")
        if not options.dry_run and name != arch:
            return _refuse(f"'{name}' is not the device here, which is {arch}")
    found = buckets(wanted, options.kernel, options.shapes, narrow=options.narrow)
    if not found:
        return _refuse("no row of the table is asked for")
    found.sort(key=in_fp32)  # what time may not suffice for comes last: fp32 compiles longest
    with compiling(found) as profiles:
        if options.dry_run:
            return _list(found, profiles)
        return _tune(found, profiles, options)


def buckets(
    arches: Sequence[str], kernels: Sequence[str] = (), shapes: Sequence[str] = (), *, narrow: bool = False
) -> list[Bucket]:
    """The rows of these architectures; ``kernels`` keeps some by name, ``shapes`` ("head_dim=64") by their bounds.

    ``narrow`` keeps the 16-bit rows whose tiles are padded to 64 and could be narrower.
    """
    wanted = [(name, int(size)) for name, _, size in (shape.partition("=") for shape in shapes)]
    return [
        Bucket(arch, kernel, row, where, config, narrow)
        for arch in arches
        for kernel, rows in table.rows(arch).items()
        if not kernels or kernel in kernels
        for row, (where, config) in enumerate(rows)
        if all(where.get(name) == size for name, size in wanted)
        and (not narrow or (kernel in SPLITTING and config.edge > 16 and where.get("bytes") == 2))
    ]


def in_fp32(bucket: Bucket) -> bool:
    """Whether a row is for elements of 4 bytes, by its bound or because others of its kernel are for less."""
    bounds = [where.get("bytes", 4) for where, _ in table.rows(bucket.arch)[bucket.kernel]]
    return bucket.where.get("bytes", 4) == 4 and min(bounds) < 4


def candidates(bucket: Bucket) -> list[Config]:
    """The present configuration, then its neighbours: one step in warps, stages or a block; MOST at most."""
    now = bucket.config
    if bucket.narrow:
        both = [(True, False), (False, True), (True, True)] if bucket.kernel == "resident_forward" else [(True, False)]
        return [now, *(replace(now, edge=16, split_heads=heads, split_keys=keys) for heads, keys in both)]
    edges = [name for name in now.blocks if name.startswith("BLOCK_")]  # the others are switches
    first, last = edges[0], edges[-1]
    warps = 8 if now.num_warps == 4 else 4
    other = replace(now, num_warps=warps)
    tried = [
        *(replace(now, blocks={**now.blocks, name: 1 - now.blocks[name]}) for name in SWITCHES & now.blocks.keys()),
        _scaled(other, first, 2 if warps == 8 else 0.5),  # a tile's rows and the warps that share them
        replace(now, num_stages=now.num_stages + 1),
        other,
        _scaled(now, last, 2),
        replace(now, num_stages=now.num_stages - 1),
        _scaled(now, last, 0.5),
        _scaled(now, first, 2),
        _scaled(now, first, 0.5),
    ]
    found = [now]
    for config in tried:
        if config not in found and _sensible(config, bucket):
            found.append(config)
    return found[:MOST]


def _scaled(config: Config, block: str, factor: float) -> Config:
    blocks = {**config.blocks, block: int(config.blocks[block] * factor)}
    if block == "BLOCK_N" and "PIECES" in blocks:  # as many columns in all, or a few more
        blocks["PIECES"] = math.ceil(blocks["PIECES"] / factor)
    return replace(config, blocks=blocks)


def _sensible(config: Config, bucket: Bucket) -> bool:
    # Tiles narrower than 64 have read outside of shared memory on sm_90 (triton #10486): only where one is now.
    least = 64 if bucket.where.get("bytes", 4) <= 2 else 16
    whole = WHOLE.get(bucket.kernel) if bucket.where.get("grain") != 1 else None
    edges = [
        (max(64, least) if name == whole else min(least, bucket.config.blocks[name]), size)
        for name, size in config.blocks.items()
        if name.startswith("BLOCK_")
    ]
    return 1 <= config.num_stages <= 5 and all(low <= size <= 256 for low, size in edges)


def launched(
    bucket: Bucket, config: Config, work: Work, on: Target, start: Callable[[Launch], None]
) -> tuple[Launch, Sequence[Tensor]]:
    """The launch of the bucket's kernel, among those that ``work`` makes and ``start`` gets, and what came out."""
    found: list[Launch] = []

    def record(launch: Launch) -> None:
        start(launch)
        found.append(launch)

    with compiling_for(on, record), table.forced(**{bucket.kernel: config}), products_of(bucket.where):
        result = work.call()
    for launch in found:
        if launch.kernel.__name__ == bucket.kernel:
            return launch, result
    raise LookupError(f"the work of '{bucket.kernel}' launches {[launch.kernel.__name__ for launch in found]} instead")


def tolerance(bucket: Bucket, work: Work, out: Sequence[Tensor]) -> float:
    """The relative error that a result may have; products in tf32 have the digits of fp16."""
    tf32 = bucket.where.get("ieee") == 0 and bucket.where.get("bytes") == 4
    return work.error or ERROR[2 if tf32 else min(x.element_size() for x in out)]


# --- compiling -----------------------------------------------------------------------------------------------------


Profiles = dict[tuple[str, int], "Future[Profile]"]  # by the bucket's key and the candidate's number


@contextlib.contextmanager
def compiling(found: Sequence[Bucket]) -> Iterator[Profiles]:
    """Every candidate's profile, on its way; Triton's cache on disk then spares the device's process the compiling."""
    with _without_interpreter():
        pool = ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn"))
        try:
            yield {
                (bucket.key, number): pool.submit(profiled, bucket, config)
                for bucket in found
                for number, config in enumerate(candidates(bucket))
            }
        finally:
            pool.shutdown(cancel_futures=True)


def profiled(bucket: Bucket, config: Config) -> Profile:
    """What the compiler makes of a candidate, at the sizes at which it is timed; no GPU is needed."""
    empty = Profile(bucket.kernel, bucket.arch, bucket.row, bucket.where, {"blocks": dict(config.blocks)})
    try:
        work = WORK[bucket.kernel](bucket.sizes, "meta")
        on = Target(bucket.arch, MULTIPROCESSORS.get(bucket.arch, 100))
        return compiled(launched(bucket, config, work, on, lambda launch: None)[0], bucket.arch, empty)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return replace(empty, error=f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])


def objection(profile: Profile, present: Profile) -> str:
    """Why a candidate is not even run, or nothing."""
    if profile.error:
        return profile.error
    if not profile.fits:
        return f"needs {profile.shared_bytes} bytes of shared memory"
    if profile.spill_bytes > present.spill_bytes:
        return f"spills {profile.spill_bytes} bytes a thread"
    return ""


def _list(found: Sequence[Bucket], profiles: Profiles) -> int:
    for bucket in found:
        _say(bucket.key)
        if bucket.kernel not in WORK:
            _say("    not tuned: no line in WORK")
            continue
        present = profiles[bucket.key, 0].result()
        for number, config in enumerate(candidates(bucket)):
            profile = profiles[bucket.key, number].result()
            problem = objection(profile, present)
            fit = f"{profile.registers} registers, {profile.shared_bytes} B shared, {profile.spill_bytes} B spilled"
            _say(f"    {brief(config):34} {problem or fit}{'' if number else '  (present)'}")
    return 0


# --- timing --------------------------------------------------------------------------------------------------------


def _tune(found: Sequence[Bucket], profiles: Profiles, options: argparse.Namespace) -> int:
    deadline, wrong, left = monotonic() + options.seconds, 0, 0
    winners: list[tuple[Bucket, Config]] = []
    for number, bucket in enumerate(found):
        if bucket.kernel not in WORK:
            _say(f"{bucket.key}: not tuned, no line in WORK")
            continue
        remaining = deadline - monotonic()
        try:
            known = [profiles[bucket.key, i].result(max(0.0, remaining)) for i in range(len(candidates(bucket)))]
        except TimeoutError:
            left += 1
            continue
        seconds = min(options.bucket_seconds, max(0.0, deadline - monotonic()) / (len(found) - number))
        results = compete(bucket, [objection(profile, known[0]) for profile in known], seconds)
        best = winner([result.samples_ns for result in results])
        wrong += not results[0].samples_ns
        _say(_verdict(bucket, results, best))
        _log(options.log, bucket, results, best)
        if best:
            winners.append((bucket, results[best].config))
    if left:
        _say(f"{left} buckets not measured: {options.seconds:g} s are over")
    if options.write and winners:
        write(options.write, rewritten(winners, _provenance()))
        _say(f"{len(winners)} rows changed in {options.write}")
    return 1 if wrong else 0


def compete(bucket: Bucket, objections: Sequence[str], seconds: float) -> list[Timed]:
    """Check each candidate that nothing speaks against, then time them in turns for ``seconds``."""
    results = [Timed(config, reason=reason) for config, reason in zip(candidates(bucket), objections, strict=True)]
    torch.manual_seed(0)
    work, device = WORK[bucket.kernel](bucket.sizes, "cuda"), torch.device("cuda")
    truth = [x.float() for x in work.truth()]
    ready: dict[int, Callable[[], None]] = {}
    for number, result in enumerate(results):
        if result.reason:
            continue
        try:
            launch, out = launched(bucket, result.config, work, target(device), start)
            torch.cuda.synchronize()
        except Exception as error:  # out of shared memory, illegal access: this candidate's loss
            results[number] = replace(result, reason=f"{type(error).__name__}: {error}".splitlines()[0][:300])
            continue
        worst = max(deviation(x, y) for x, y in zip(out, truth, strict=True))
        if not worst <= tolerance(bucket, work, out):
            results[number] = replace(result, reason=f"wrong: relative error {worst:.2g}")
            continue
        ready[number] = replay_of(launch)
    taken = sample(list(ready.values()), seconds)
    for number, samples in zip(ready, taken, strict=True):
        results[number] = replace(results[number], samples_ns=tuple(samples))
    return results


def start(launch: Launch) -> None:
    """Launch as ``runtime.launch`` does, with the workspace that descriptors ask for."""
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    given = {**launch.config.blocks, **launch.constants, **options}
    _with_workspace(lambda: launch.kernel[(launch.programs,)](*launch.arguments, **given))


def deviation(x: Tensor, truth: Tensor) -> float:
    """‖x − truth‖ / ‖truth‖; infinite where x is not finite and the truth is."""
    error, size = (x.float() - truth).norm().item(), truth.norm().item()
    return error / size if size and math.isfinite(error) else math.inf


def replay_of(launch: Launch) -> Callable[[], None]:
    """The replay of a CUDA graph of one launch: no launch overhead in the time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        start(launch)
    return graph.replay


def sample(replays: Sequence[Callable[[], None]], seconds: float) -> list[list[float]]:
    """Nanoseconds per replay over a flushed L2, QUEUED at a time in turns, so that all see the same clocks."""
    taken: list[list[float]] = [[] for _ in replays]
    size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    cache = torch.empty(max(size, 32 << 20), dtype=torch.uint8, device="cuda")
    end = monotonic() + seconds
    while replays and (len(taken[0]) < 3 * QUEUED or (monotonic() < end and len(taken[0]) < 40 * QUEUED)):
        for replay, samples in zip(replays, taken, strict=True):
            events = [(_event(), _event()) for _ in range(QUEUED)]
            for before, after in events:
                cache.zero_()
                before.record()
                replay()
                after.record()
            torch.cuda.synchronize()
            samples += [before.elapsed_time(after) * 1e6 for before, after in events]
    return taken


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


# --- judging -------------------------------------------------------------------------------------------------------


def winner(samples: Sequence[Sequence[float]]) -> int:
    """The number of the candidate that takes the row; 0, the present one, unless another is faster beyond doubt.

    Faster means: a median lower by GAIN or more, and the 95 % intervals of the two medians apart.
    """
    if not samples[0]:
        return 0
    now = interval(samples[0])
    timed = [(interval(values), number) for number, values in enumerate(samples) if number and values]
    for (middle, _, high), number in sorted(timed):
        if middle <= (1 - GAIN) * now[0] and high < now[1]:
            return number
    return 0


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high): the median and its distribution-free 95 % interval."""
    ordered, n = sorted(values), len(values)
    rank = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return middle, ordered[rank], ordered[n - 1 - rank]


def brief(config: Config) -> str:
    blocks = " ".join(f"{name.removeprefix('BLOCK_')}={size}" for name, size in config.blocks.items())
    tiles = [f"edge={config.edge}"] * (config.edge != 16) + [name for name in SPLITS if getattr(config, name)]
    return " ".join([blocks, f"warps={config.num_warps}", f"stages={config.num_stages}", *tiles])


def _verdict(bucket: Bucket, results: Sequence[Timed], best: int) -> str:
    lines = [bucket.key]
    for number, result in enumerate(results):
        shown = result.reason
        if result.samples_ns:
            middle, low, high = (x / 1e3 for x in interval(result.samples_ns))
            shown = f"{middle:9.2f} µs [{low:.2f}, {high:.2f}]"
        lines.append(f"    {brief(result.config):34} {shown}{'  <- taken' if number == best and best else ''}")
    return "\n".join(lines)


def _log(path: Path | None, bucket: Bucket, results: Sequence[Timed], best: int) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for number, result in enumerate(results):
            fact = {
                "bucket": bucket.key, "candidate": number, "taken": number == best, "config": _row({}, result.config),
                "samples_ns": [round(x) for x in result.samples_ns], "reason": result.reason,
            }  # fmt: skip
            file.write(json.dumps(fact) + "\n")


# --- the file ------------------------------------------------------------------------------------------------------


def shipped() -> dict[str, Any]:
    """The table as it is in the package."""
    text = resources.files(__package__).joinpath("configs.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def rewritten(winners: Sequence[tuple[Bucket, Config]], provenance: Mapping[str, str]) -> dict[str, Any]:
    """The shipped table with the winners in their rows, and where they come from under "tuned"."""
    tables = shipped()
    for bucket, config in winners:
        tables["tables"][bucket.arch][bucket.kernel][bucket.row] = _row(bucket.where, config)
    origins = {**tables.get("tuned", {}), **{bucket.arch: dict(provenance) for bucket, _ in winners}}
    return {"schema": tables["schema"], "tuned": origins, "tables": tables["tables"]}


def _row(where: Where, config: Config) -> dict[str, Any]:
    row: dict[str, Any] = {"where": dict(where), "blocks": dict(config.blocks)}
    row |= {"num_warps": config.num_warps, "num_stages": config.num_stages}
    row |= {name: True for name in SPLITS if getattr(config, name)}
    row |= {"edge": config.edge} if config.edge != 16 else {}
    return row | ({"preferred": True} if config.preferred else {})


def render(tables: Mapping[str, Any]) -> str:
    """The table as its file holds it: one row per line, in the order given."""
    parts = [f'"schema": {tables["schema"]}']
    if tables.get("tuned"):
        origins = [f"  {json.dumps(arch)}: {json.dumps(origin)}" for arch, origin in tables["tuned"].items()]
        parts.append('"tuned": {\n' + ",\n".join(origins) + "\n}")
    arches = []
    for arch, kernels in tables["tables"].items():
        blocks = [
            f"    {json.dumps(kernel)}: [\n" + ",\n".join(f"      {json.dumps(row)}" for row in rows) + "\n    ]"
            for kernel, rows in kernels.items()
        ]
        arches.append(f"  {json.dumps(arch)}: {{\n" + ",\n".join(blocks) + "\n  }")
    parts.append('"tables": {\n' + ",\n".join(arches) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(path: Path, tables: Mapping[str, Any]) -> None:
    """Replace the file at once: a reader sees the old table or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(render(tables))
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _provenance() -> dict[str, str]:
    import triton

    return {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "commit": _commit(), "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "fusionbench_kernels.tune", *sys.argv[1:]]),
    }  # fmt: skip


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


# --- the command line ----------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fusionbench_kernels.tune", description=__doc__)
    parser.add_argument("--arch", action="append", default=[], help="sm_90, …; the device's by default")
    parser.add_argument("--kernel", action="append", default=[], help="only this kernel; may be repeated")
    parser.add_argument("--shapes", action="append", default=[], metavar="NAME=SIZE", help="only rows of this bound")
    parser.add_argument(
        "--narrow", action="store_true",
        help="try tiles narrower than 64 instead, which have read outside of shared memory on sm_90 (triton #10486): "
        "first run it under compute-sanitizer, and write its rows only where that found nothing",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after this long (default 600)")
    parser.add_argument("--bucket-seconds", type=float, default=2.0, help="time one bucket for at most this long")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates and compile them; needs no GPU")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table with the winners here")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append every candidate's samples here, as JSON lines")
    options = parser.parse_args(arguments)
    for shape in options.shapes:
        if not shape.partition("=")[2].isdecimal():
            parser.error(f"--shapes '{shape}' is not of the form NAME=SIZE")
    return options


def _device_arch() -> str | None:
    return target(torch.device("cuda", 0)).arch if torch.cuda.device_count() else None


def _refuse(reason: str) -> int:
    sys.stderr.write(f"tune: {reason}\n")
    return 2


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
