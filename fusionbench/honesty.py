"""Does a call do its work each time: results that are cached, borrowed, random or empty are found, not timed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import registry
from .spec import Budget, Job
from .subject import Subject
from .verify import check

# Two calls on the same inputs may differ by the order in which atomics add, some roundings (0.4 % in bf16), not more.
RANDOM = 0.05
# How often the inputs turn before a result that stays the same is called independent of them: a vote may stay.
TURNS = 4
# Cores beside those that the suite allows, and the shortest call that tells how many are at work.
SPARE_CORES, TELLING_NS = 0.5, 2_000_000
# Linux adds up the core time of a thread that runs on another core at its ticks, 1 to 10 ms apart: two threads seemed
# to use up to 2.9 cores in 1 % of windows of 2.2 ms (M1, 250 Hz).
TICK_NS = 10_000_000
# How long work may go on in other streams after a call's own is done: more than the host's second wait can take.
STRAY_NS, STRAY_SHARE = 200_000, 0.2

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def before(job: Job, subject: Subject) -> tuple[str | None, tuple[str, ...]]:
    """Look at three calls of a subject that was called before: (the reason why its result is wrong, notes).

    The inputs are turned at the end. In training the third call is a forward pass.
    """
    held = Held.of(job, subject)
    first = _called(subject)
    second = _called(subject)
    problem = (
        held.changed()
        or _borrowed(subject, first, second)
        or empty(first.outputs)
        or _elsewhere(subject.device, first, second)
        or _random(first, second)
    )
    note = _difference(first, second)
    del first
    problem = problem or _same_again(job, subject, second.outputs)
    return problem, (note,) if note and not problem else ()


def after(job: Job, subject: Subject, budget: Budget) -> str | None:
    """The reason why a result that was right before it was timed is wrong now; None: it still is right.

    The call that follows the last timed one is compared with the reference, at one sample; then the inputs turn.
    """
    held = Held.of(job, subject, weights=False)  # weights that changed give another result than the reference's
    problem = check(job, subject, budget, at_most=1)[1] or held.changed()
    if problem is None:
        outputs = tuple(t.detach() for t in subject.outputs())
        problem = empty(outputs) or _same_again(job, subject, outputs)
    return f"right before the timing and wrong after it: {problem}" if problem else None


@dataclass(frozen=True)
class Call:
    """What one call gave, and what it took: its own time, and the core time (CPU) or the time of other streams."""

    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    own_ns: int
    beside_ns: int


def _called(subject: Subject) -> Call:
    device = subject.device
    _synchronize(device)
    started, used = time.perf_counter_ns(), time.process_time_ns()
    outputs = subject.outputs()
    gradients = subject.gradients(outputs, subject.cotangents, subject.optimizer) if subject.training else ()
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
        own = time.perf_counter_ns() - started
        _synchronize(device)
        beside = time.perf_counter_ns() - started - own
    else:
        own, beside = time.perf_counter_ns() - started, time.process_time_ns() - used
    return Call(tuple(t.detach() for t in outputs), gradients, own, beside)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- what a call must leave alone ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What the memory held that a call may only read: copies of the inputs, sums of weights and caches."""

    job: Job
    subject: Subject
    inputs: dict[str, Tensor]
    sums: list[tuple[str, int]]

    @classmethod
    def of(cls, job: Job, subject: Subject, *, weights: bool = True) -> Held:
        copies = {name: t.detach().clone() for name, t in _inputs(subject)}
        return cls(job, subject, copies, _sums(job, subject) if weights else [])

    def changed(self) -> str | None:
        for name, t in _inputs(self.subject):
            if not _equal(t, self.inputs[name]):
                return f"a call changes {name}"
        if self.sums:
            now = _sums(self.job, self.subject)
            for (name, was), (_, found) in zip(self.sums, now, strict=False):
                if was != found:
                    return f"a call changes {name}"
            if len(now) != len(self.sums):
                return f"a call changes how many weights there are, from {len(self.sums)} to {len(now)}"
        return None


def _inputs(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    given = subject.inputs
    names = ("the input image", "the input text", "the mask of the image", "the mask of the text")
    for name, t in zip(names, (given.image, given.text, given.image_mask, given.text_mask), strict=True):
        if t is not None:
            yield name, t


def _sums(job: Job, subject: Subject) -> list[tuple[str, int]]:
    """A sum of the words of each weight, and of what of each cache a step must not write.

    Not a copy: weights can be all the memory there is. Buffers may change in training, as batch norms' do.
    """
    named = list(_weights(subject, buffers=not subject.training))
    step = registry.get(job.strategy).given(job.case)
    own = [kind == "own" for kind in ("own", "context") if getattr(step, kind)]  # whose last slot is the new token's
    for number, (name, t) in enumerate(_caches(subject)):
        named.append((name, t[:, :, : -1 if own[number // 2 % len(own)] else None]))
    sums = [_sum_of_words(t) for _, t in named]
    return list(zip((name for name, _ in named), torch.stack(sums).tolist() if sums else [], strict=True))


def _weights(subject: Subject, *, buffers: bool = True) -> Iterator[tuple[str, Tensor]]:
    module = subject.module
    for name, t in (*module.named_parameters(), *(module.named_buffers() if buffers else ())):
        if _plain(t):
            yield f"the weight '{name}'", t


def _plain(t: Tensor) -> bool:
    """Whether it is memory as torch's own: packed sparse weights are not."""
    return type(t) in (Tensor, torch.nn.Parameter) and t.layout == torch.strided and t.numel() > 0


def _sum_of_words(t: Tensor) -> Tensor:
    """A sum of 8-byte words where they fit: 100 MB take 3 ms, and 117 ms as words of 4 bytes (M1)."""
    flat = t.detach().contiguous().flatten()
    if flat.nbytes % 8 == 0 and flat.storage_offset() * flat.itemsize % 8 == 0:
        return flat.view(torch.int64).sum()
    return _bits(flat).sum()


# --- what a result must be -------------------------------------------------------------------------------------------


def _borrowed(subject: Subject, first: Call, second: Call) -> str | None:
    """Memory of a result that is none of its own. An input may pass through beside an output that is new."""
    given = [*_inputs(subject), *_caches(subject)]
    weights = list(_weights(subject))
    passed = []
    for what, t in _named(first):
        if (owner := _owner(t, weights)) is not None:
            return f"{what} is the memory of {owner}: a view costs nothing and cannot be timed"
        if (owner := _owner(t, given)) is not None:
            passed.append(f"{what} is the memory of {owner}: a view costs nothing and cannot be timed")
    if passed and (len(passed) == len(first.outputs) or "gradient" in passed[-1]):
        return passed[-1]
    return _kept(subject, first, second, [t for _, t in given])


def _kept(subject: Subject, first: Call, second: Call, given: Sequence[Tensor]) -> str | None:
    """The memory of a call before that is given out again while that call's result is in use.

    Gradients may be views of the gradients of the outputs, which are made once, as those of a concatenation are.
    """
    shared = [("", t) for t in (*given, *(subject.cotangents if subject.training else ()))]
    old = list(_named(first))
    for what, t in _named(second):
        if _owner(t, old) is not None and _owner(t, shared) is None:
            return f"{what} is the memory of the result of the call before, which is still in use"
    return None


def _caches(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    for number, pair in enumerate(subject.inputs.cache, 1):
        yield from ((f"{name} of cache {number}", t) for name, t in zip(("keys", "values"), pair, strict=True))


def _named(call: Call) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"output {number}", t) for number, t in enumerate(call.outputs, 1))
    yield from ((f"gradient {number}", t) for number, t in enumerate(call.gradients, 1))


def _owner(t: Tensor, owners: Iterable[tuple[str, Tensor]]) -> str | None:
    """Whose memory it lies in."""
    begin, end = _extent(t)
    for name, other in owners:
        first, last = _extent(other)
        if t.device == other.device and begin < last and first < end:
            return name
    return None


def _extent(t: Tensor) -> tuple[int, int]:
    """Where its storage begins and ends; nowhere for a sparse tensor."""
    if t.layout != torch.strided:
        return 0, 0
    storage = t.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def empty(outputs: Sequence[Tensor]) -> str | None:
    for number, t in enumerate(outputs, 1):
        if not bool(t.any()):
            return f"output {number} is all zeros"
    return None


def _elsewhere(device: torch.device, first: Call, second: Call) -> str | None:
    """Work where the timer does not look: on cores that are not allowed, or in other streams."""
    call = min(first, second, key=lambda call: call.beside_ns)
    if device.type == "cuda":
        if call.beside_ns > max(STRAY_NS, STRAY_SHARE * call.own_ns):
            return f"a call is done in its own stream, and {call.beside_ns / 1e6:.3g} ms of work go on in another"
        return None
    allowed = torch.get_num_threads()
    cores = (call.beside_ns - (allowed - 1) * TICK_NS) / max(1, call.own_ns)
    if call.own_ns >= TELLING_NS and cores > allowed + SPARE_CORES:
        return f"a call runs on {cores:.1f} cores, and the threads are set to {allowed}"
    return None


def _random(first: Call, second: Call) -> str | None:
    worst = max(_apart(first, second), default=0.0)
    if worst > RANDOM:
        return f"two calls on the same inputs differ by {worst:.2g} (relative L2): random, or not done each time"
    return None


def _difference(first: Call, second: Call) -> str | None:
    worst = max(_apart(first, second), default=0.0)
    told = f"two calls on the same inputs differ by {worst:.2g} (relative L2), as sums in another order do"
    return f"{told}; where results must repeat, choose another backend" if worst else None


def _apart(first: Call, second: Call) -> list[float]:
    """How far each output differs between two calls, and all gradients together: some are nothing but rounding."""
    pairs = [([a], [b]) for a, b in zip(first.outputs, second.outputs, strict=False)]
    pairs.append((list(first.gradients), list(second.gradients)))
    return [_distance(a, b) for a, b in pairs if not all(_equal(x, y) for x, y in zip(a, b, strict=False))]


def _distance(results: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Relative L2, 0 where something is not finite, of which the reference knows more; 1 for other shapes."""
    error = one = other = 0.0
    for a, b in zip(results, others, strict=False):
        if a.shape != b.shape:
            return 1.0
        error = math.hypot(error, float((a.double() - b.double()).norm()))
        one, other = math.hypot(one, float(a.double().norm())), math.hypot(other, float(b.double().norm()))
    larger = max(one, other)
    return error / larger if larger and math.isfinite(error / larger) else 0.0


def _same_again(job: Job, subject: Subject, outputs: tuple[Tensor, ...]) -> str | None:
    """Whether an output stays the same to the bit when the inputs turn, or inputs do not stay as they turned.

    An input that passes through is no output here, and of what is not finite the reference knows more.
    """
    given = [*_inputs(subject), *_caches(subject)]
    made = [n for n, t in enumerate(outputs) if t.is_floating_point() and _owner(t, given) is None]
    waiting = [n for n in made if bool(outputs[n].isfinite().all())]
    for _ in range(TURNS):
        if not waiting:
            break
        subject.turn()
        held = Held.of(job, subject, weights=False)  # what changes its inputs once for all did so in the first call
        now = subject.outputs()
        if problem := held.changed():
            return problem
        waiting = [n for n in waiting if n < len(now) and _equal(outputs[n], now[n].detach())]
    if not waiting:
        return None
    which = f"output {waiting[0] + 1}" if len(outputs) > 1 else "the result"
    return f"{which} does not change with its inputs"


def _equal(a: Tensor, b: Tensor) -> bool:
    """To the bit, so that a NaN equals itself."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a.detach()), _bits(b.detach()))


def _bits(t: Tensor) -> Tensor:
    return t.view(_WORDS[t.itemsize]) if t.itemsize in _WORDS else torch.view_as_real(t)
