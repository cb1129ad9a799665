"""The guard of the "descriptor" variant: whether warp specialisation engaged, and computes what it should.

Triton calls it Blackwell-only, yet compiles it for sm_90 in one narrow form and drops it silently in others, so it is
looked for in the binary. ``python -m fusionbench_kernels.descriptor_check`` checks every row on this machine's GPU.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import descriptor, reference
from .runtime import Launch, compiling_for, target
from .static import Profile, as_shown, profile_of
from .table import SHARED_MEMORY_BYTES, Config, rows, table_of

REPEATS = 10


@dataclass(frozen=True)
class Shape:
    """Sizes to check: even and uneven tiles, shared heads, lengths, enough programs to fill the device."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    lens: tuple[int, ...] = ()


SHAPES = (
    Shape(2, 8, 8, 1024, 1024),
    Shape(1, 4, 2, 200, 333),
    Shape(2, 2, 1, 129, 1000, lens=(0, 577)),
    Shape(1, 2, 2, 1, 1),
)

_checked: dict[tuple[Any, ...], tuple[str, ...]] = {}  # per process, so a Triton of another version is another check


def faults_on(device: torch.device, config: Config, head_dim: int, dtype: torch.dtype) -> tuple[str, ...]:
    """What is wrong with a configuration on this GPU, found out once per process; empty where all is well.

    Raises RuntimeError while a CUDA graph is being captured, unless it was found out before.
    """
    key = _key(device, config, head_dim, dtype)
    if key not in _checked:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("variant 'descriptor' is not checked yet: call it once before capturing a CUDA graph")
        _checked[key] = tuple(_check(device, config, head_dim, dtype))
    return _checked[key]


def known(device: torch.device, config: Config, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether ``faults_on`` has its answer already."""
    return _key(device, config, head_dim, dtype) in _checked


def engaged(profile: Profile) -> list[str]:
    """What shows that the binary is not the one intended; empty where TMA and, if asked for, specialisation engaged."""
    config, count = profile.config, profile.instructions.get
    if profile.error:
        return [f"no binary to look at: {profile.error}"]
    found = []
    if not count("UTMALDG", 0):
        found.append("no TMA load (UTMALDG)")
    if config.get("WARP_SPECIALIZE") and not count("USETMAXREG", 0):
        found.append("warps are not specialised (no USETMAXREG)")
    if profile.spill_bytes:
        found.append(f"{profile.spill_bytes} bytes of registers spilled")
    if not profile.fits:
        found.append(f"{profile.shared_bytes} bytes of shared memory; there are {SHARED_MEMORY_BYTES[profile.arch]}")
    if profile.arch == "sm_90" and not 0 < count("HGMMA", 0) < 2 * _products(profile):
        found.append(f"{count('HGMMA', 0)} tensor-core products (HGMMA), expected {_products(profile)}")
    return found


def _products(profile: Profile) -> int:
    """How many HGMMA a loop takes: each sums 16 products for 64 rows, for every 64 rows that have code of their own.

    Both consumers of a specialised kernel have, and the tiles of one group of 4 warps; 8 plain warps share theirs.
    With BLOCK_Q 64 each consumer would hold 32 rows in a tile of 64: twice the products.
    """
    config = profile.config
    groups = config["BLOCK_Q"] // 64
    if not config.get("WARP_SPECIALIZE"):
        groups = max(1, groups * 4 // config["num_warps"])
    return int(groups * (descriptor.width(profile.where["head_dim"]) + config["BLOCK_K"]) // 16)


def _check(device: torch.device, config: Config, head_dim: int, dtype: torch.dtype) -> list[str]:
    """Compile, look, launch, compare with fp64, repeat; the first shape that fails ends it."""
    for shape in SHAPES:
        q, k, v, lens = _inputs(shape, head_dim, dtype, device)
        found = engaged(_profile(q, k, v, lens, config)) or _wrong(q, k, v, lens, config)
        if found:
            return [f"{fault} at {shape}" for fault in found]
    return []


def _profile(q: Tensor, k: Tensor, v: Tensor, lens: Tensor | None, config: Config) -> Profile:
    """The profile of the very kernel that a launch on these tensors runs."""
    launches: list[Launch] = []
    real = target(q.device)
    with compiling_for(real, launches.append):
        descriptor.run(q, k, v, *_outputs(q), lens, q.shape[-1] ** -0.5, config)
    (launch,) = launches
    empty = Profile("descriptor_forward", table_of(real.arch), 0, {"head_dim": q.shape[-1]}, as_shown(config))
    try:
        with torch.cuda.device(q.device):
            binary = launch.kernel.warmup(
                *launch.arguments, grid=(launch.programs,), **config.blocks, **launch.constants,
                num_warps=config.num_warps, num_stages=config.num_stages,
            )  # fmt: skip
            return profile_of(binary, empty)
    except Exception as error:  # a compiler's crash is an answer: this configuration is not to be used
        return replace(empty, error=f"{type(error).__name__}: {error}".splitlines()[0][:300])


def _wrong(q: Tensor, k: Tensor, v: Tensor, lens: Tensor | None, config: Config) -> list[str]:
    """How the results differ from fp64 by more than twice what PyTorch's own do in this type, or from themselves."""
    scale = q.shape[-1] ** -0.5
    results = []
    for _ in range(REPEATS):
        out, lse = _outputs(q)
        descriptor.run(q, k, v, out, lse, lens, scale, config)
        results.append((out, lse))
    true, true_lse = reference.attention(q.double(), k.double(), v.double(), None, lens, None, scale)
    (out, lse), *others = results
    found = []
    allowed = 2 * _largest(_eager(q, k, v, lens, scale) - true) + 4 * torch.finfo(q.dtype).eps * _largest(true)
    error = _largest(out - true)
    if not error <= allowed:
        found.append(f"out differs by {error:.2g}, allowed {allowed:.2g}")
    empty = true_lse == -math.inf
    lse_error = _largest((lse - true_lse).masked_fill(empty, 0))
    if not lse_error <= 1e-4 or not bool((lse == -math.inf)[empty].all()):
        found.append(f"lse differs by {lse_error:.2g}, allowed 0.0001")
    if any(not torch.equal(out, again) or not torch.equal(lse, lse_again) for again, lse_again in others):
        found.append(f"{REPEATS} repeats are not bit-equal")
    return found


def _inputs(
    shape: Shape, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Random q, k, v with NaN at the keys beyond the lengths, which no result may show."""
    random = torch.Generator(device).manual_seed(0)

    def normal(heads: int, tokens: int) -> Tensor:
        return torch.randn((shape.batch, heads, tokens, head_dim), generator=random, device=device).to(dtype)

    q, k, v = (normal(h, n) for h, n in ((shape.heads, shape.queries), *[(shape.kv_heads, shape.keys)] * 2))
    for sample, length in enumerate(shape.lens):
        k[sample, :, length:] = v[sample, :, length:] = math.nan
    return q, k, v, torch.tensor(shape.lens, device=device) if shape.lens else None


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(q, math.nan), q.new_full(q.shape[:3], math.nan, dtype=torch.float32)


def _eager(q: Tensor, k: Tensor, v: Tensor, lens: Tensor | None, scale: float) -> Tensor:
    """Attention in the tensors' own type, every step rounded: the error a user accepts already."""
    keep = reference.keep_mask(None, lens, k.shape[2], q.device)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if keep is None:
        return (q @ k.mT * scale).softmax(-1) @ v
    k, v = (x.masked_fill(~keep[:, None, :, None], 0) for x in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~keep[:, None, None, :], -math.inf)
    return scores.softmax(-1).nan_to_num(0) @ v


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _key(device: torch.device, config: Config, head_dim: int, dtype: torch.dtype) -> tuple[Any, ...]:
    # The index of None is the current device, as everywhere in PyTorch.
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, tuple(sorted(config.blocks.items())), config.num_warps, config.num_stages, head_dim, dtype


# --- every row, for people and the tuner ---------------------------------------------------------------------------


def self_check(device: torch.device | str = "cuda") -> dict[str, tuple[str, ...]]:
    """Row by row what is wrong on this GPU: at each row's largest head dim and one that needs padding, both types."""
    device = torch.empty(0, device=device).device  # with its index
    found = {}
    for where, config in rows(target(device).arch).get("descriptor_forward", ()):
        for head_dim in (where["head_dim"], where["head_dim"] - 24):
            for dtype in (torch.float16, torch.bfloat16):
                form = "specialised" if config.blocks["WARP_SPECIALIZE"] else "plain"
                found[f"{form}, head dim {head_dim}, {dtype}"] = faults_on(device, config, head_dim, dtype)
    return found


def main() -> int:
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA device to check the 'descriptor' variant on\n")
        return 2
    found = self_check()
    sys.stdout.write(f"{torch.cuda.get_device_name()}, {len(found)} checks\n")
    for name, faults in found.items():
        sys.stdout.write(f"{name}: {'; '.join(faults) or 'ok'}\n")
    return 0 if found and not any(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
