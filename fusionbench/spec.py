"""What is measured: shapes, cases and jobs, as frozen data with readable keys."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from .errors import FusionbenchError

Mode = Literal["fwd", "fwd_bwd", "step", "decode", "decode_uncached", "cached"]  # the last three: see generation.py
Dtype = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
Projector = Literal["identity", "linear", "linear_norm", "mlp", "patch_merge"]
Norm = Literal["layer", "rms"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "swiglu", "geglu"]
Timer = Literal["cold", "hot", "graph", "kernel", "host"]

MODES: tuple[str, ...] = get_args(Mode)
DTYPES: tuple[str, ...] = get_args(Dtype)
PROJECTORS: tuple[str, ...] = get_args(Projector)
TIMERS: tuple[Timer, ...] = get_args(Timer)

# The one shape of a name: safe as a file name, in HTML, in a shell and in a CSV cell.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}\Z"
PRESET_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9_.:+-]{0,63})?\Z"  # as a name, or none; + joins two encoders
DEVICE_PATTERN = r"^(cpu|cuda(:[0-9]{1,3})?)\Z"

Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=1024)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Adapt = Annotated[str, Meta(pattern=r"^(full|frozen|lora:[1-9][0-9]{0,3})\Z")]
Prune = Annotated[str, Meta(pattern=r"^(none|2:4|(structured|unstructured):0\.(?!0+\Z)[0-9]{1,4})\Z")]
Match = Annotated[str, Meta(pattern=r"^((params|flops)=[A-Za-z0-9][A-Za-z0-9_.:-]{0,63})?\Z")]
PresetName = Annotated[str, Meta(pattern=PRESET_PATTERN)]
Device = Annotated[str, Meta(pattern=DEVICE_PATTERN)]
Fraction = Annotated[float, Meta(ge=0.0, lt=1.0)]


class Shape(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The sizes of one fusion problem: two token sequences that meet at one width.

    ``image`` [batch, image, image_width] and ``text`` [batch, text, text_width] are the inputs,
    ``width`` the inner width of attention (heads x head dim), ``depth`` the number of
    layers where a strategy stacks them, ``ffn`` the feed-forward ratio (0: attention sub-layer only),
    ``hidden`` the feed-forward width itself, where it is no multiple of the stream's (0: ``ffn`` x width). In
    modes of generation not all of the tokens come in (see generation.py).
    """

    batch: Size
    image: Size
    text: Size
    image_width: Size
    text_width: Size
    width: Size
    heads: Size
    depth: Count = 1
    ffn: Count = 4
    hidden: Natural = 0

    @property
    def key(self) -> str:
        ffn = f"u{self.hidden}" if self.hidden else f"f{self.ffn}"
        return (
            f"b{self.batch}-i{self.image}x{self.image_width}-t{self.text}x{self.text_width}"
            f"-w{self.width}-h{self.heads}-n{self.depth}-{ffn}"
        )

    def units(self, width: int) -> int:
        """The feed-forward width of a stream of ``width``; 0: it has no feed-forward layer."""
        return self.hidden or self.ffn * width


class Design(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """How layers are built. The defaults are the plain layer: pre-LayerNorm, GELU, biases, nothing shared or gated.

    ``kv_heads`` are the heads of keys and values (0: as many as queries), ``latents`` the learned queries or
    bottleneck tokens of strategies that have some (0: the strategy's own number), ``image_hidden`` the image
    stream's feed-forward width where it differs, ``text_heads`` the heads of layers that only the text passes
    through, where they differ, ``rope`` the share of each head dim that is rotated, ``eps`` the norms'. ``projects``
    says which modality the projector brings to the other's width: both go to the shape's ``width``, one of them
    alone to the other's.
    """

    norm: Norm = "layer"
    post_norm: bool = False
    activation: Activation = "gelu"
    kv_heads: Count = 0
    qk_norm: Literal["", "layer", "rms"] = ""
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    causal: bool = False
    rope: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    latents: Count = 0
    image_hidden: Natural = 0
    text_heads: Count = 0
    projects: Literal["both", "image", "text"] = "both"
    eps: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-5

    @property
    def key(self) -> str:
        """What departs from the defaults, as ``norm=rms,causal=1``; empty for the plain layer."""
        return ",".join(
            f"{name}={value:g}" if isinstance(value, float | bool) else f"{name}={value}"
            for name in self.__struct_fields__
            if (value := getattr(self, name)) != getattr(PLAIN, name)
        )


PLAIN = Design()


class Case(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A shape together with the conditions under which it is measured.

    ``padding`` is the largest share of a sample's tokens that is padding; 0 means no mask at all. ``preset`` names
    the system whose sizes these are, ``shrink`` by how much they were divided (8: the preset at 1/8). ``match`` says on
    what terms strategies are compared: ``flops=concat_attention`` where the feed-forward width was set so that
    the FLOPs are those of that strategy. ``adapt`` is what is trained: all weights, none, or adapters of a rank;
    ``prune`` which weights are taken away.
    """

    shape: Shape
    dtype: Dtype = "fp32"
    device: Device = "cpu"
    mode: Mode = "fwd"
    projector: Projector = "linear"
    type_embedding: bool = False
    padding: Fraction = 0.0
    design: Design = PLAIN
    preset: PresetName = ""
    shrink: Size = 1
    match: Match = ""
    adapt: Adapt = "full"
    prune: Prune = "none"

    @property
    def training(self) -> bool:
        """Whether the mode has a backward pass."""
        return self.mode in ("fwd_bwd", "step")

    @property
    def treatment(self) -> str:
        """What is done to the strategy's weights, as ``lora:8`` or ``2:4``; empty where nothing is."""
        return "+".join(x for x in (self.adapt, self.prune) if x not in ("full", "none"))

    @property
    def key(self) -> str:
        """What is asked of every strategy and every treatment of it alike."""
        front = self.projector + ("+type" if self.type_embedding else "")
        front += f"+pad{self.padding:g}" if self.padding else ""
        front += f"+{self.match}" if self.match else ""
        preset = f"{self.preset}{f'@1:{self.shrink}' if self.shrink > 1 else ''}/" if self.preset else ""
        design = f"{self.design.key}/" if self.design != PLAIN else ""
        # A matched width follows from the strategy, so that cases of one question keep one key.
        shape = msgspec.structs.replace(self.shape, hidden=0) if self.match else self.shape
        return f"{preset}{shape.key}/{design}{front}/{self.dtype}/{self.device}/{self.mode}"

    @property
    def question(self) -> str:
        """What must agree for two timings to be compared: the whole key, or where systems are held against each other,
        each at its own widths and in its own design, the lengths and conditions alone."""
        if not self.preset:
            return self.key
        s = self.shape
        more = (f"+pad{self.padding:g}" if self.padding else "") + (f"+{self.match}" if self.match else "")
        lengths = f"presets@1:{self.shrink}/b{s.batch}-i{s.image}-t{s.text}{more}"
        return f"{lengths}/{self.dtype}/{self.device}/{self.mode}"


class Job(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """One measurement to make: a strategy (with its variant, ``late:vote``), a backend and a case."""

    strategy: Name
    backend: Name
    case: Case

    @property
    def key(self) -> str:
        """The readable identity of the job: the join key of resume, merge and compare."""
        return self.key_with(self.case.key)

    def key_with(self, case_key: str) -> str:
        """The key, where the case's is known already."""
        treatment = f"{self.case.treatment}/" if self.case.treatment else ""
        return f"{self.strategy}/{self.backend}/{treatment}{case_key}"


class Budget(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """How long one job may take: sampling stops when the median is known, or at the end of the budget."""

    measure_s: Annotated[float, Meta(gt=0, le=3600)] = 0.5
    warmup_s: Annotated[float, Meta(ge=0, le=600)] = 0.05
    min_samples: Annotated[int, Meta(ge=6, le=100_000)] = 10
    max_samples: Annotated[int, Meta(ge=6, le=100_000)] = 400
    ci: Annotated[float, Meta(gt=0, lt=1)] = 0.01  # half-width of the median's 95 % CI, relative
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 300.0
    threads: Annotated[int, Meta(ge=1, le=4096)] = 1
    rounds: Annotated[int, Meta(ge=1, le=100)] = (
        6  # processes that share measure_s; from 6 on they alone give the interval
    )
    timers: Annotated[tuple[Timer, ...], Meta(min_length=1)] = TIMERS  # on CUDA; the first is the one that is ranked
    energy_s: Annotated[float, Meta(ge=0, le=600)] = (
        0.0  # how long calls run back to back for the energy counter; 0: not
    )
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 0
    int8_rel_l2: Annotated[float, Meta(gt=0, lt=1)] = 0.05  # int8 against fp64: what still counts as right
    int8_cosine: Annotated[float, Meta(gt=0, lt=1)] = 0.99


class Visit(Struct, frozen=True, kw_only=True, gc=False):
    """One round of a job, in a process of its own; the first one finds out how many calls make a sample."""

    job: Job
    round: Natural = 0
    loops: Natural = 0  # calls per sample, as in the rounds before; 0: to be found out


class Skip(Struct, frozen=True, kw_only=True, gc=False):
    """A job that makes no sense, with the reason in words."""

    job: Job
    reason: str


def replace_budget(budget: Budget, **changes: float | int | str | list[str] | None) -> Budget:
    """The budget with the given values in place of its own; None leaves a value as it is.

    Raises FusionbenchError for a value that is out of range.
    """
    for name, value in changes.items():
        if value is not None:
            try:
                budget = msgspec.convert(msgspec.to_builtins(budget) | {name: value}, Budget)
            except msgspec.ValidationError as error:
                what = str(error).partition(" - at ")[0].lower()
                raise FusionbenchError(f"--{name.replace('_', '-')}: {what}; got '{value}'") from None
    return budget
