"""What one job brought back: a record and its parts, and the only code that knows their wire format.

Facts only: samples are kept raw, and whatever follows from them is computed when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from .spec import Dtype, Job, Timer

# Bounds of what a line may hold: results can come from elsewhere, and Arrow and pandas count in 64 bits.
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]

VERSION = 4  # of the wire format; a reader refuses a newer one

Status = Literal["ok", "skipped", "wrong", "error", "oom", "crash", "timeout"]
Stop = Literal["precise", "budget", "samples", "interrupted"]
Clock = Literal["wall", "cuda_event", "cuda_graph", "kernel", "host"]
Cache = Literal["hot", "cold"]
STATUSES: tuple[str, ...] = get_args(Status)
FAILED: tuple[Status, ...] = ("wrong", "error", "oom", "crash", "timeout")
# What a timer of the budget is called in a timing: which clock, and what it finds in the caches.
TIMED_AS: dict[Timer, tuple[Clock, Cache]] = {
    "cold": ("cuda_event", "cold"),
    "hot": ("cuda_event", "hot"),
    "graph": ("cuda_graph", "cold"),
    "kernel": ("kernel", "hot"),
    "host": ("host", "hot"),
}


class Timing(Struct, frozen=True, kw_only=True, gc=False):
    """Raw samples of one timer. A sample is ``loops`` calls long; ``run_delay_ns`` is the time that the
    sample's threads spent waiting for a core (empty where the kernel does not say)."""

    timer: Clock
    cache: Cache
    loops: Positive
    samples_ns: Annotated[tuple[Natural, ...], Meta(min_length=1)]
    run_delay_ns: tuple[Natural, ...] = ()
    stop: Stop  # why sampling ended
    first_call_ns: Natural  # the first call of all: lazy initialisation and compilation
    warmup_calls: Natural
    threads: Positive
    rounds: tuple[Positive, ...] = ()  # how many of the samples each round took, a process of its own; empty: one round
    seeds: tuple[Natural, ...] = ()  # of the inputs of each round
    control_ns: tuple[Natural, ...] = ()  # of each round: a fixed piece of work, timed beside the samples
    discarded: Natural = 0  # samples thrown away because the device throttled, and taken again

    def __post_init__(self) -> None:
        if self.rounds and sum(self.rounds) != len(self.samples_ns):
            raise ValueError(f"rounds of {sum(self.rounds)} samples in all hold {len(self.samples_ns)}")

    @property
    def round_sizes(self) -> tuple[int, ...]:
        """How many samples each round took, one round where none are named."""
        return self.rounds or (len(self.samples_ns),)

    @property
    def calls_ns(self) -> list[float]:
        """The time of a call in each sample: on the core where that is known, as it passed elsewhere.

        One thread that waited for a core did nothing meanwhile; of several, some went on.
        """
        if self.threads > 1 or len(self.run_delay_ns) != len(self.samples_ns):
            return [ns / self.loops for ns in self.samples_ns]
        pairs = zip(self.samples_ns, self.run_delay_ns, strict=True)
        return [max(ns - waited, 1) / self.loops for ns, waited in pairs]


class Memory(Struct, frozen=True, kw_only=True, gc=False):
    """Peak bytes above what rests: the inputs and the weights."""

    peak_bytes: Natural
    resting_bytes: Natural
    meter: Literal["cuda_allocator", "cpu_profiler"]


class Energy(Struct, frozen=True, kw_only=True, gc=False):
    """Energy over a window of back-to-back calls."""

    joules: float
    calls: Natural
    window_s: float
    meter: Literal["nvml", "rapl"]


class DeviceState(Struct, frozen=True, kw_only=True, gc=False):
    """What NVML said of a GPU while its samples were taken; None or empty where it says nothing."""

    sm_mhz: tuple[Natural, Natural, Natural] | None = None  # lowest, median, highest
    memory_mhz: tuple[Natural, Natural, Natural] | None = None
    power_watts: float | None = None  # mean
    temperature_c: Natural | None = None  # highest
    throttle: tuple[str, ...] = ()  # reasons under which samples were kept after all retries
    foreign: Natural = 0  # processes of others on the GPU, at most at once


class Roofline(Struct, frozen=True, kw_only=True, gc=False):
    """What a device was measured to do at best: products in one dtype, and copies of a working set."""

    device: str
    dtype: Dtype
    threads: Positive
    environment: str  # id of the Environment
    flops_per_s: float
    bytes_per_s: tuple[
        tuple[Natural, float], ...
    ]  # (bytes of the working set, rate), smallest first; the last is memory's
    measured_at: str  # UTC, ISO 8601


class Deviation(Struct, frozen=True, kw_only=True, gc=False):
    """How far a tensor is from the reference; None where it is not finite."""

    max_abs: float | None
    mean_abs: float | None
    rel_l2: float | None
    cosine: float | None


class Accuracy(Struct, frozen=True, kw_only=True, gc=False):
    """Errors against the reference, beside those of eager PyTorch in the same dtype (the yardstick)."""

    reference: Literal["fp64", "fp32"]
    samples: Positive  # how many of the batch were compared
    output: Deviation
    yardstick: Deviation
    gradient: Deviation | None = None
    gradient_yardstick: Deviation | None = None


class Costs(Struct, frozen=True, kw_only=True, gc=False):
    """The closed-form cost of the job, at the sizes of its dtype. FLOPs are those of the whole mode."""

    flops: Natural
    params: Natural
    min_bytes: Natural
    activation_bytes: Natural
    trainable_params: Natural | None = None
    optimizer_bytes: Natural | None = None  # AdamW's two states in the dtype of the weights
    counted_flops: Natural | None = None  # by FlopCounterMode; None where it cannot see (compiled code)
    cache_bytes: Natural = 0  # keys and values that the step is given, of all its layers


# What the time of a call is spent on, as in the fields of Parts.
PARTS = ("attention", "projections", "feed_forward", "other", "compiled", "backward", "optimizer")


class Parts(Struct, frozen=True, kw_only=True, gc=False):
    """What the ops of one call took on the CPU, or its kernels, copies and fills on CUDA, by what they were for.

    What is left of the time of a call is that in which none of them ran.
    """

    attention_ns: Natural = 0  # without its projections, unless one kernel computes both
    projections_ns: Natural = 0  # Linear layers outside of feed-forward layers
    feed_forward_ns: Natural = 0  # with its activation
    other_ns: Natural = 0  # norms, residuals, copies, views
    compiled_ns: Natural = 0  # what torch.compile fused, but for attention that kept an op of its own
    backward_ns: Natural = 0  # of the backward pass what belongs to no op of the forward pass
    optimizer_ns: Natural = 0


class Record(Struct, frozen=True, kw_only=True, gc=False):
    """One job, once: its outcome and everything measured on the way. A failure is a record too."""

    job: Job
    status: Status
    reason: str = ""
    phase: str = ""  # the step that failed: build, accuracy, warm-up, time, memory, flops
    time: Timing | None = None
    timers: tuple[Timing, ...] = ()  # the same call by the other timers of the budget
    device: DeviceState | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    accuracy: Accuracy | None = None
    costs: Costs | None = None
    kernels: tuple[str, ...] = ()  # names of the attention and int8 ops that really ran
    launches: Natural | None = None  # of one call: kernels, copies and fills on CUDA; on the CPU ops that call no other
    parts: Parts | None = None
    notes: tuple[str, ...] = ()
    source: str = ""  # hash of the code that was measured
    environment: str = ""  # id of the Environment
    started_at: str = ""  # UTC, ISO 8601
    wall_s: float = 0.0
    phases_s: dict[str, float] = {}

    @property
    def identity(self) -> tuple[str, str, str]:
        """Two records with the same identity answer the same question."""
        return (self.job.key, self.source, self.environment)


class Environment(Struct, frozen=True, kw_only=True, gc=False):
    """Who measured: the facts that decide whether two timings may be compared, and those that say when and where."""

    id: str
    machine: str  # a name for people; the host name unless the user gives another
    system: str
    python: str
    torch: str
    triton: str
    cpu: str
    cores: Natural
    memory_bytes: Natural
    cpu_flags: tuple[str, ...] = ()  # those that decide which dtypes are native
    gpu: str = ""
    gpu_count: Natural = 0
    capability: str = ""
    driver: str = ""
    cuda: str = ""
    power_limit_w: float | None = None
    commit: str = ""
    dirty: bool = False
    fusionbench: str = ""


class RecordLine(Struct, frozen=True, kw_only=True, gc=False, tag="record", tag_field="kind"):
    v: int
    record: Record


class EnvironmentLine(Struct, frozen=True, kw_only=True, gc=False, tag="environment", tag_field="kind"):
    v: int
    environment: Environment


class RooflineLine(Struct, frozen=True, kw_only=True, gc=False, tag="roofline", tag_field="kind"):
    v: int
    roofline: Roofline


Line = RecordLine | EnvironmentLine | RooflineLine

_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(Record)
_line_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode_record(record: Record) -> bytes:
    return _encoder.encode(record)


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """The record of each key that was begun last: of other code and other environments there may be older ones."""
    found: dict[str, Record] = {}
    for record in records:
        key = record.job.key
        if key not in found or record.started_at >= found[key].started_at:
            found[key] = record
    return found


def decode_record(data: bytes) -> Record:
    """Raises msgspec.ValidationError or msgspec.DecodeError for anything that is not a record."""
    return _record_decoder.decode(data)


def encode_line(item: Record | Environment | Roofline) -> bytes:
    """One line of a shard, without its checksum and line end."""
    if isinstance(item, Record):
        return _encoder.encode(RecordLine(v=VERSION, record=item))
    if isinstance(item, Roofline):
        return _encoder.encode(RooflineLine(v=VERSION, roofline=item))
    return _encoder.encode(EnvironmentLine(v=VERSION, environment=item))


def decode_line(data: bytes) -> Record | Environment | Roofline:
    """Raises msgspec.ValidationError or DecodeError for a damaged line, ValueError for a newer version."""
    line = _line_decoder.decode(data)
    if line.v > VERSION:
        raise ValueError(f"schema {line.v} is newer than this fusionbench ({VERSION}); upgrade to read it")
    if isinstance(line, RooflineLine):
        return line.roofline
    return line.record if isinstance(line, RecordLine) else line.environment
