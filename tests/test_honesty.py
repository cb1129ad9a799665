"""A strategy that only looks as if it worked is found out, and what it does to its process is put back."""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fusionbench import backends, honesty, registry, settings
from fusionbench.honesty import Call
from fusionbench.measuring import measure
from fusionbench.record import Record
from fusionbench.registry import Inputs, strategies
from fusionbench.spec import Budget, Case, Dtype, Job, Mode, Shape
from fusionbench.subject import Subject, build

BUDGET = Budget(measure_s=0.02, warmup_s=0.0, min_samples=6, max_samples=10)
SHAPE = Shape(batch=2, image=7, text=5, image_width=8, text_width=8, width=8, heads=2)


@pytest.fixture(autouse=True)
def cheats(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The cheats, registered for one test: others ask the registry for everything that is in it."""
    registry.strategies()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    loaded = set(sys.modules)
    registry.load_plugin(Path(__file__).with_name("cheats.py"))
    (name,) = set(sys.modules) - loaded
    yield sys.modules[name]
    del sys.modules[name]


def run(name: str, mode: Mode = "fwd", dtype: Dtype = "fp32") -> Record:
    backend = "sdpa" if name.endswith(":sdpa") else "eager"
    return measure(Job(strategy=name, backend=backend, case=Case(shape=SHAPE, mode=mode, dtype=dtype)), BUDGET)


FOUND = {
    "cached": "is the memory of the result of the call before",
    "cached_copy": "the result does not change with its inputs",
    "static_buffer": "is the memory of the result of the call before",
    "by_pointer": "the result does not change with its inputs",
    "by_version": "the result does not change with its inputs",
    "once_per_storage": "the result does not change with its inputs",
    "half_cached": "output: max error",
    "view": "output 1 is the memory of the input image: a view costs nothing and cannot be timed",
    "weight": "output 1 is the memory of the weight 'layer.weight'",
    "mutates": "a call changes the input image",
    "sorts": "a call changes the input text",
    "trains": "a call changes the weight 'layer.weight'",
    "rolls_dice": "random, or not done each time",
    "zeros": "output 1 is all zeros",
    "constant": "the result does not change with its inputs",
    "breaks": "output: not finite",
    "overflows": "output: not finite",
    "coarse": "output 1 is float16",
    "tires": "right before the timing and wrong after it: ",
    "tires_late": "right before the timing and wrong after it: ",
    "slackens": "right before the timing and wrong after it: output: max error",
    "shrinks": "right before the timing and wrong after it: output shapes",
    "wears_out": "right before the timing and wrong after it: output: max error",
}


@pytest.mark.parametrize("impl", ["", ":sdpa"], ids=["its own yardstick", "beside an honest one"])
@pytest.mark.parametrize("name", FOUND)
def test_a_cheat_is_wrong_and_says_how(name: str, impl: str) -> None:
    record = run(name + impl)
    assert (record.status, record.time) == ("wrong", None), record
    assert FOUND[name] in record.reason


def test_a_result_of_another_shape_is_wrong() -> None:
    record = run("misshapen:sdpa")
    assert (record.status, record.phase, record.accuracy) == ("wrong", "accuracy", None)
    assert record.reason == "output shapes [(2, 11, 8)] differ from the reference's [(2, 12, 8)]"


def test_a_strategy_that_tires_together_with_its_yardstick_is_wrong(cheats: types.ModuleType) -> None:
    for name in ("all_tire", "all_tire:sdpa"):
        cheats._all_calls = iter(range(10**9))
        record = run(name)
        assert record.status == "wrong", record
        assert record.reason.startswith("right before the timing and wrong after it"), record.reason


@pytest.mark.parametrize("impl", ["", ":sdpa"])
@pytest.mark.parametrize("name", ["stale_gradients", "mutates", "sorts", "trains", "slackens", "wears_out", "coarse"])
def test_a_cheat_in_training_is_wrong(name: str, impl: str) -> None:
    record = run(name + impl, "fwd_bwd")
    assert (record.status, record.time) == ("wrong", None), record
    assert FOUND.get(name, "gradient: ") in record.reason


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
def test_honest_work_is_ok(mode: Mode) -> None:
    for name in ("works", "works:sdpa", "reluctant"):
        record = run(name, mode)
        assert (record.status, record.reason) == ("ok", "")


def test_a_difference_of_rounding_between_two_calls_is_a_note() -> None:
    record = run("wavers")
    assert record.status == "ok"
    assert record.notes[0].startswith("two calls on the same inputs differ by 1.")
    assert "e-07 (relative L2), " in record.notes[0]


def test_a_leak_is_a_note_with_its_size() -> None:
    record = run("leaks")
    assert record.status == "ok"
    assert any(note.startswith("keeps 8.39 MB more with each call; ") for note in record.notes)
    assert not any("keeps" in note for note in run("works").notes)


UGLY = {
    "one token each": Shape(batch=1, image=1, text=1, image_width=8, text_width=8, width=8, heads=2),
    "many queries, one key": Shape(batch=2, image=1, text=63, image_width=8, text_width=8, width=8, heads=2),
    "head dim 1": Shape(batch=2, image=7, text=5, image_width=8, text_width=8, width=8, heads=8),
    "head dim 7": Shape(batch=2, image=9, text=5, image_width=21, text_width=14, width=21, heads=3),
    "head dim 256": Shape(batch=1, image=5, text=3, image_width=8, text_width=8, width=256, heads=1, ffn=0),
}


@pytest.mark.parametrize("strategy", ["cross_attention", "concat_attention", "late:similarity"])
@pytest.mark.parametrize("what", UGLY)
def test_ugly_sizes_are_right_padded_or_not(what: str, strategy: str) -> None:
    for padding, mode in ((0.0, "fwd"), (0.9, "fwd_bwd")):
        case = Case(shape=UGLY[what], padding=padding, mode=mode)  # type: ignore[arg-type]
        record = measure(Job(strategy=strategy, backend="sdpa", case=case), BUDGET)
        assert (record.status, record.reason) == ("ok", "")


@pytest.mark.parametrize(
    ("dtype", "backend", "reason"),
    [
        ("int8", "sdpa", "backend 'sdpa' has no int8 kernels (use backend 'int8')"),
        ("fp32", "int8", "backend 'int8' computes in int8, not in fp32 (use dtype 'int8')"),
        ("tf32", "sdpa", "tf32 is a format of NVIDIA's tensor cores; a CPU has none"),
    ],
)
def test_a_dtype_that_nothing_computes_in_is_a_skip_with_its_reason(dtype: Dtype, backend: str, reason: str) -> None:
    record = measure(Job(strategy="cross_attention", backend=backend, case=Case(shape=SHAPE, dtype=dtype)), BUDGET)
    assert (record.status, record.reason) == ("skipped", reason)


# --- settings of the process ------------------------------------------------------------------------------------------

MEDDLING: dict[str, Callable[[], object]] = {
    "torch.set_num_threads from 1 to 2": lambda: torch.set_num_threads(2),
    "torch.set_default_dtype from torch.float32 to torch.float64": lambda: torch.set_default_dtype(torch.float64),
    "torch.set_grad_enabled from False to True": lambda: torch.set_grad_enabled(True),
    "torch.autocast('cpu') from False to True": lambda: torch.set_autocast_enabled("cpu", True),
    "torch.set_float32_matmul_precision from highest to medium": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.use_deterministic_algorithms from False to True": lambda: torch.use_deterministic_algorithms(True),
    "torch.backends.cudnn.allow_tf32 from True to False": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "torch.backends.cudnn.benchmark from False to True": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cuda.enable_flash_sdp from True to False": lambda: torch.backends.cuda.enable_flash_sdp(False),
}


@pytest.mark.parametrize("what", MEDDLING)
@pytest.mark.parametrize("first", [1, 10], ids=["at once", "while it is timed"])
def test_a_changed_setting_is_wrong_and_put_back(what: str, first: int, cheats: types.ModuleType) -> None:
    calls = iter(range(1, 10**9))
    cheats.faults.append(lambda: MEDDLING[what]() if next(calls) >= first else None)
    torch.set_num_threads(1)
    before = settings._read(settings.MEASURED)
    record = run("meddles")
    assert (record.status, record.reason) == ("wrong", f"changed {what} while it was measured")
    assert settings._read(settings.MEASURED) == before


def test_a_precision_set_in_two_ways_is_wrong_and_put_back(cheats: types.ModuleType) -> None:
    cheats.faults.append(lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"))
    record = run("meddles")
    assert record.status == "wrong"
    assert record.reason.startswith("changed torch.set_float32_matmul_precision from highest to something that cannot")
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_the_working_directory_and_handlers_of_signals_are_put_back_with_a_note(
    cheats: types.ModuleType, tmp_path: Path
) -> None:
    cheats.faults += [lambda: os.chdir(tmp_path), lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)]
    before = Path.cwd(), signal.getsignal(signal.SIGINT)
    record = run("meddles")
    assert record.status == "ok"
    assert any(note.startswith("changed the working directory; it is put back") for note in record.notes)
    assert any(note.startswith("changed the handler of SIGINT; it is put back") for note in record.notes)
    assert (Path.cwd(), signal.getsignal(signal.SIGINT)) == before


def test_a_seed_that_a_strategy_sets_changes_nothing(cheats: types.ModuleType) -> None:
    cheats.faults.append(lambda: torch.manual_seed(1))
    record = run("meddles")
    assert (record.status, record.accuracy) == ("ok", run("works").accuracy)


# --- the parts --------------------------------------------------------------------------------------------------------


def subject_of(name: str, mode: Mode = "fwd", shape: Shape = SHAPE, padding: float = 0.0) -> tuple[Job, Subject] | None:
    """The strategy with the first projector that it takes, through sdpa where it has it."""
    entry = strategies()[name]
    backend = "sdpa" if "sdpa" in entry.impls else "eager"
    for projector in ("linear", "identity"):
        job = Job(
            strategy=name, backend=backend, case=Case(shape=shape, mode=mode, projector=projector, padding=padding)
        )  # type: ignore[arg-type]
        if not entry.refusal(job.case):
            return job, build(job, backend, backends.get(backend), seed=0, inputs_seed=1)
    return None


SHIPPED = sorted(strategies())
# 12 = 3 x 2 x 2 is a patch, and one token of one sample the least that there is
SHAPES = [
    Shape(batch=2, image=6, text=5, image_width=12, text_width=12, width=12, heads=3, depth=2),
    Shape(batch=1, image=1, text=1, image_width=12, text_width=12, width=12, heads=1),
]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.key)
def test_every_strategy_is_honest_in_every_mode(name: str, shape: Shape) -> None:
    for mode in strategies()[name].modes:
        for padding in (0.0, 0.5):
            found = subject_of(name, mode, shape, padding)  # type: ignore[arg-type]
            if found is None:
                continue
            with torch.set_grad_enabled(found[0].case.training):
                found[1].call()
                assert honesty.before(*found) == (None, ()), (mode, padding)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_turn_changes_inputs_in_place_unseen_and_with_them_the_result(name: str) -> None:
    found = subject_of(name, "fwd_bwd") or subject_of(name) or subject_of(name, shape=SHAPES[0])
    assert found is not None
    subject = found[1]
    before = [(t.data_ptr(), t._version, t.requires_grad, t.is_leaf) for t in subject.inputs.tensors()]
    old = [t.detach().clone() for t in subject.inputs.tensors()]
    result = [t.detach().clone() for t in subject.outputs()]
    subject.turn()
    assert [(t.data_ptr(), t._version, t.requires_grad, t.is_leaf) for t in subject.inputs.tensors()] == before
    for was, now in zip(old, subject.inputs.tensors(), strict=True):
        assert not torch.equal(was, now)
        if was.is_floating_point():  # the same numbers, but for order and sign
            torch.testing.assert_close(now.detach().abs().flatten().sort()[0], was.abs().flatten().sort()[0])
        else:
            assert was.min() <= now.min() <= now.max() <= was.max()
    if name != "late:vote":
        for was, now in zip(result, subject.outputs(), strict=True):
            assert not torch.equal(was, now.detach())


def test_masks_stay_when_inputs_turn() -> None:
    found = subject_of("cross_attention", padding=0.5)
    assert found is not None
    before = [m.clone() for m in (found[1].inputs.image_mask, found[1].inputs.text_mask) if m is not None]
    found[1].turn()
    after = [m for m in (found[1].inputs.image_mask, found[1].inputs.text_mask) if m is not None]
    assert len(before) == 2
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))


def test_a_mean_over_tokens_differs_from_each_of_the_last_hundred() -> None:
    """Else what was cached a few turns ago would be right again."""
    subject = Subject(nn.Identity(), Inputs(torch.randn(1, 64, 128), torch.randn(1, 4, 128)), training=False)
    seen: list[Tensor] = []
    for _ in range(100):
        assert subject.inputs.image is not None
        mean = subject.inputs.image.mean(dim=1)
        assert all((mean - other).norm() > 0.1 * mean.norm() for other in seen)
        seen.append(mean)
        subject.turn()


@pytest.mark.parametrize(
    "given",
    [
        torch.rand(2, 3, 4),
        torch.rand(2, 4, 3).transpose(1, 2),
        torch.rand(1, 3, 4).expand(2, 3, 4),
        torch.randint(5, 9, (2, 6)),
        torch.randint(0, 255, (2, 3, 4), dtype=torch.uint8),
        torch.tensor([[1, 1, 1, 0]]).bool(),
        torch.rand(5, dtype=torch.float16) + 1,
        -torch.rand(4, 2).bfloat16(),
    ],
    ids=lambda t: f"{t.dtype} {list(t.stride())}",
)
def test_inputs_of_a_strategys_own_stay_in_their_range(given: Tensor) -> None:
    low, high, old = given.float().min(), given.float().max(), given.clone()
    subject = Subject(nn.Identity(), Inputs(given, None), training=False)
    subject.turn()
    assert not torch.equal(old, given)
    for _ in range(20):
        subject.turn()
        assert low <= given.float().min() <= given.float().max() <= high


def test_the_inputs_have_a_seed_of_their_own() -> None:
    job = Job(strategy="cross_attention", backend="sdpa", case=Case(shape=SHAPE))
    one, other, same = (build(job, "sdpa", backends.get("sdpa"), 3, seed) for seed in (3, 4, None))
    weights = [[p.detach() for p in subject.module.parameters()] for subject in (one, other, same)]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*weights, strict=True))
    images = [subject.inputs.image for subject in (one, other, same)]
    assert all(image is not None for image in images)
    assert not torch.equal(images[0], images[1])  # type: ignore[arg-type]
    assert torch.equal(images[0], images[2])  # type: ignore[arg-type]


def call(beside_ns: int, own_ns: int = 10_000_000) -> Call:
    return Call((torch.ones(1),), (), own_ns, beside_ns)


def test_core_time_of_another_threads_last_tick_is_not_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    late = call(round(2.9 * 2_200_000), own_ns=2_200_000)
    assert honesty._elsewhere(torch.device("cpu"), late, late) is None
    long = call(3_000_000_000, own_ns=1_000_000_000)
    assert "on 3.0 cores" in str(honesty._elsewhere(torch.device("cpu"), long, long))


def test_work_on_more_cores_than_the_suite_allows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device, allowed = torch.device("cpu"), 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: allowed)
    two_more = call(10_000_000 * (allowed + 2))
    reason = honesty._elsewhere(device, two_more, two_more)
    assert reason == f"a call runs on {allowed + 2:.1f} cores, and the threads are set to {allowed}"
    assert honesty._elsewhere(device, two_more, call(10_000_000 * allowed)) is None  # once is chance
    short = call(1_000_000 * (allowed + 2), own_ns=1_000_000)
    assert honesty._elsewhere(device, short, short) is None


def test_work_in_a_stream_that_is_not_timed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:0")
    stray = call(5_000_000)
    reason = honesty._elsewhere(device, stray, stray)
    assert reason == "a call is done in its own stream, and 5 ms of work go on in another"
    assert honesty._elsewhere(device, stray, call(20_000)) is None

    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("device"))
    stream = types.SimpleNamespace(synchronize=lambda: log.append("stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(Subject, "device", device)
    module = nn.Identity()
    module.forward = lambda *args: (log.append("call"), torch.ones(1))[1]  # type: ignore[assignment, misc, func-returns-value]
    honesty._called(Subject(module, Inputs(torch.ones(1), None), training=False))
    assert log == ["device", "call", "stream", "device"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are CUDA's")
def test_work_in_another_stream_is_wrong_on_a_device(cheats: types.ModuleType) -> None:
    def aside() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            torch.cuda._sleep(20_000_000)

    cheats.faults.append(aside)
    record = measure(Job(strategy="meddles", backend="eager", case=Case(shape=SHAPE, device="cuda")), BUDGET)
    assert record.status == "wrong"
    assert "go on in another" in record.reason
