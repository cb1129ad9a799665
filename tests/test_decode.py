"""Modes of generation: a step gives what the whole pass gives, at the cost that its closed form says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest
import torch
from torch import Tensor, nn

from fusionbench import backends, matching, plan, suite
from fusionbench.blocks import Attention
from fusionbench.errors import FusionbenchError
from fusionbench.footprint import TRUTH, footprint
from fusionbench.generation import CACHING, DECODING, NEEDS
from fusionbench.inputs import make_inputs
from fusionbench.measuring import measure
from fusionbench.meters.flops import count_flops
from fusionbench.record import Costs, Record, Timing, decode_record, encode_record
from fusionbench.registry import Inputs, Strategy, get, strategies, strategy
from fusionbench.report.frame import frame
from fusionbench.spec import Case, Design, Job, Mode, Projector, Shape
from fusionbench.subject import build, closed_form, select, twin
from tests.test_costs import Traffic, shape
from tests.test_worker import BUDGET

SHAPES = (
    shape(3, 7, 20, 5, 12, 16, 4, depth=2, ffn=4),
    shape(1, 17, 8, 2, 16, 8, 1, depth=3, ffn=0),
    shape(2, 1, 24, 9, 24, 24, 2, depth=1, ffn=2),
)
DESIGNS = {
    "plain": Design(causal=True),
    "llama": Design(norm="rms", activation="swiglu", kv_heads=1, qkv_bias=False, out_bias=False, ffn_bias=False,
                    causal=True, rope=1.0, projects="image"),
    "persimmon": Design(activation="relu2", qk_norm="layer", causal=True, rope=0.5, projects="image"),
    "mllama": Design(norm="rms", activation="swiglu", qk_norm="rms", gated=True, kv_heads=2, causal=True, rope=1.0),
    "vaswani": Design(activation="relu", post_norm=True, causal=True),
}  # fmt: skip
GENERATING = [name for name, entry in strategies().items() if set(entry.modes) & set(CACHING)]


def cases(name: str, mode: Mode, padding: float = 0.0) -> Iterator[Case]:
    """Every shape x design that the strategy accepts in the mode, with the projectors in turn."""
    projectors: tuple[Projector, ...] = ("linear", "patch_merge", "identity")
    for i, s in enumerate(SHAPES):
        for j, design in enumerate(DESIGNS.values()):
            turn = (i + j) % 3
            for projector in projectors[turn:] + projectors[:turn]:
                case = Case(shape=s, design=design, mode=mode, padding=padding, projector=projector)
                if not get(name).refusal(case) and s.heads % (design.kv_heads or 1) == 0:
                    yield case
                    break


def modes_of(name: str) -> list[Mode]:
    return [mode for mode in CACHING if next(cases(name, mode), None)]  # type: ignore[arg-type, misc]


EVERY = [pytest.param(name, mode, id=f"{name}-{mode}") for name in GENERATING for mode in modes_of(name)]
every = pytest.mark.parametrize(("name", "mode"), EVERY)


def module_of(entry: Strategy, case: Case, impl: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    return entry.module(case, impl).double()


def whole(case: Case) -> Case:
    return msgspec.structs.replace(case, mode="fwd")


def prefilled(entry: Strategy, case: Case, impl: str) -> tuple[Tensor, Inputs, Inputs]:
    """(result of the whole pass, its inputs, inputs of the step with caches that the whole pass made).

    The new token's slots hold NaN, so that a step that did not write them would show.
    """
    step, module = entry.given(case), module_of(entry, whole(case), impl)
    given = make_inputs(entry, whole(case), 1, torch.float64, "cpu")
    own_mask = make_inputs(entry, case, 1, torch.float64, "cpu").text_mask
    given = Inputs(given.image, given.text, given.image_mask, own_mask)
    made: list[tuple[Tensor, Tensor]] = []

    def note(attention: Attention, args: tuple[Tensor, ...]) -> None:
        if step.own if attention.own else step.context:
            k, v = (t.clone() for t in attention.keys_and_values(args[1]))
            if attention.own:
                k[:, :, -1], v[:, :, -1] = torch.nan, torch.nan
            made.append((k, v))

    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.register_forward_pre_hook(note)
    result = module(*given.args())
    image, text = given.image, given.text
    assert image is not None
    assert text is not None
    if step.projected:
        image = module.project.image(image)  # type: ignore[union-attr, operator]
    needed = Inputs(
        image if step.image or step.projected else None,
        text[:, -step.text :] if step.text else None,
        given.image_mask,
        own_mask,
        tuple(made),
    )
    return result, given, needed


@every
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", [0.0, 0.6])
@torch.no_grad()
def test_a_step_gives_what_the_whole_pass_gives(name: str, mode: Mode, impl: str, padding: float) -> None:
    entry = get(name)
    for case in cases(name, mode, padding):
        expected, _, given = prefilled(entry, case, impl)
        made = make_inputs(entry, case, 1, torch.float64, "cpu")
        assert [t.shape for t in given.tensors()] == [t.shape for t in made.tensors()], case.key
        found = module_of(entry, case, impl)(*given.args())
        if mode in DECODING:
            expected = expected[:, -1:]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=case.key)


@every
@torch.no_grad()
def test_a_second_call_gives_the_same_and_writes_the_same(name: str, mode: Mode) -> None:
    entry, case = get(name), next(cases(name, mode))
    module, given = module_of(entry, case), make_inputs(entry, case, 1, torch.float64, "cpu")
    before = given.each(Tensor.clone)
    first = module(*given.args())
    after = given.each(Tensor.clone)
    assert torch.equal(module(*given.args()), first)
    assert all(torch.equal(a, b) for a, b in zip(after.tensors(), given.tensors(), strict=True))
    step = entry.given(case)
    for (k, v), (old_k, old_v) in zip(given.cache, before.cache, strict=True):
        written = k.shape[2] == step.own and (not step.context or step.own != step.context)
        for new, old in ((k, old_k), (v, old_v)):
            assert torch.equal(new[:, :, :-1], old[:, :, :-1])  # nothing but the slot
            assert written is not torch.equal(new[:, :, -1], old[:, :, -1])


@every
@torch.no_grad()
def test_what_stands_in_padded_tokens_does_not_reach_a_step(name: str, mode: Mode) -> None:
    entry = get(name)
    for impl in ("eager", "sdpa"):
        case = next(cases(name, mode, padding=0.6))
        module, given = module_of(entry, case, impl), make_inputs(entry, case, 1, torch.float64, "cpu")
        clean = module(*given.args())
        assert given.image_mask is not None
        assert given.text_mask is not None
        both = torch.cat([given.image_mask, given.text_mask], dim=1)
        masks = {m.shape[1]: m for m in (given.image_mask, given.text_mask, both)}
        real = masks.get(clean.shape[1], slice(None)) if mode == "cached" else slice(None)
        for pair in given.cache:
            for t in pair:
                t.masked_fill_(~masks[t.shape[2]][:, None, :, None], 1e4)
        if given.image is not None:
            given.image.masked_fill_(~masks[given.image.shape[1]].unsqueeze(-1), 1e4)
        if given.text is not None and given.text.shape[1] > 1:
            given.text.masked_fill_(~given.text_mask.unsqueeze(-1), 1e4)
        torch.testing.assert_close(module(*given.args())[real], clean[real])


def test_text_is_padded_in_front_where_a_token_is_made_and_behind_elsewhere() -> None:
    entry, s = get("cross_attention"), SHAPES[0]
    masks = {
        mode: make_inputs(entry, Case(shape=s, mode=mode, padding=0.6), 0, torch.float32, "cpu").text_mask
        for mode in ("fwd", *DECODING, "cached")
    }
    assert all(mask is not None for mask in masks.values())
    assert masks["decode"][:, -1].all()  # type: ignore[index]
    assert torch.equal(masks["decode"], masks["decode_uncached"])  # type: ignore[arg-type]
    assert torch.equal(masks["decode"], masks["fwd"].flip(1))  # type: ignore[arg-type, union-attr]
    assert torch.equal(masks["cached"], masks["fwd"])  # type: ignore[arg-type]


# --- costs ---------------------------------------------------------------------------------------------------------


class StepTraffic(Traffic):
    """As ``Traffic``, with the writes into a cache: what is read and what is written."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket.__name__ == "copy_":
            self.moved += 2 * args[1].numel()
        return super().__torch_dispatch__(func, types, args, kwargs)


@every
@pytest.mark.parametrize("impl", ["eager", "sdpa", "triton"])
def test_the_closed_form_is_what_a_step_runs(name: str, mode: Mode, impl: str) -> None:
    entry, seen = get(name), set()
    for case in cases(name, mode):
        if impl == "triton" and case.design.causal and mode != "decode":
            continue
        torch.manual_seed(0)
        module, given = entry.module(case, impl), make_inputs(entry, case, 1, torch.float32, "cpu")
        expected = entry.costs(case, impl)
        with torch.no_grad():
            assert count_flops(lambda: module(*given.args())).flops == expected.flops, case.key  # noqa: B023
            with StepTraffic(module) as traffic:
                module(*given.args())
        assert (traffic.moved, traffic.weights_read) == (expected.activations_moved, expected.weights_read), case.key
        assert sum(p.numel() for p in module.parameters()) == expected.params
        assert sum(t.numel() for pair in given.cache for t in pair) == expected.cached
        seen.add(case.shape)
    assert len(seen) == len(SHAPES) or impl == "triton"


@pytest.mark.parametrize("name", ["cross_attention", "gated_cross_attention"])
@pytest.mark.parametrize("impl", ["triton_projected", "triton_absorbed"])
@pytest.mark.parametrize("mode", CACHING)
@torch.no_grad()
def test_kernels_that_fuse_more_take_a_cache_too(name: str, impl: str, mode: Mode) -> None:
    entry, case = get(name), Case(shape=SHAPES[0], mode=mode)
    module, given = module_of(entry, case, impl), make_inputs(entry, case, 1, torch.float64, "cpu")
    torch.testing.assert_close(module(*given.args()), module_of(entry, case)(*given.args()))
    counted = count_flops(lambda: module(*given.args()))
    assert (counted.flops, sum(p.numel() for p in module.parameters())) == (
        entry.costs(case, impl).flops,
        entry.costs(case, impl).params,
    )


B, LI, LT, D, F = 3, 11, 6, 24, 96
EQUAL = Shape(batch=B, image=LI, text=LT, image_width=D, text_width=D, width=D, heads=4, depth=2, ffn=4)
BARE = Design(qkv_bias=False, out_bias=False, ffn_bias=False, causal=True)


def flops(name: str, mode: Mode, design: Design = BARE) -> int:
    return get(name).costs(Case(shape=EQUAL, projector="identity", mode=mode, design=design), "sdpa").flops


@pytest.mark.parametrize("glu", [False, True])
def test_one_token_costs_what_the_research_derived(glu: bool) -> None:
    design = msgspec.structs.replace(BARE, activation="swiglu") if glu else BARE
    products, n = 3 if glu else 2, EQUAL.depth
    ffn = 2 * products * D * F
    assert flops("cross_attention", "decode", design) == B * (4 * D * D + ffn) + 4 * B * LI * D
    assert flops("gated_cross_attention", "decode", design) == n * flops("cross_attention", "decode", design)
    assert flops("concat_attention", "decode", design) == n * (B * (8 * D * D + ffn) + 4 * B * (LI + LT) * D)
    self_attention = B * 8 * D * D + 4 * B * LT * D
    assert flops("transformer_decoder", "decode", design) == n * (
        self_attention + flops("cross_attention", "decode", design)
    )


def test_without_the_images_cache_every_token_costs_its_keys_and_values_again() -> None:
    again = 4 * B * LI * D * D
    for name, layers in (("cross_attention", 1), ("gated_cross_attention", 2), ("transformer_decoder", 2)):
        assert flops(name, "decode_uncached") - flops(name, "decode") == layers * again
    assert flops("concat_attention", "decode_uncached") == flops("concat_attention", "fwd")
    assert flops("cross_attention", "fwd") - flops("cross_attention", "cached") == again


def test_a_cache_holds_two_tensors_of_the_key_heads_per_layer() -> None:
    case = Case(shape=EQUAL, projector="identity", mode="decode", design=msgspec.structs.replace(BARE, kv_heads=2))
    assert get("cross_attention").costs(case, "sdpa").cached == 2 * B * LI * D // 2
    assert get("concat_attention").costs(case, "sdpa").cached == 2 * 2 * B * (LI + LT) * D // 2
    assert get("transformer_decoder").costs(case, "sdpa").cached == 2 * 2 * B * (LI + LT) * D // 2


def test_pruned_heads_are_not_cached() -> None:
    case = Case(shape=EQUAL, projector="identity", mode="decode", design=BARE, prune="structured:0.5")
    entry = get("concat_attention")
    given = make_inputs(entry, case, 1, torch.float32, "cpu")
    assert entry.costs(case, "sdpa").cached == sum(t.numel() for pair in given.cache for t in pair)
    with torch.no_grad():
        assert entry.module(case, "sdpa")(*given.args()).shape == (B, 1, D)


MIB = 2**20


def preset_job(label: str, mode: Mode, **axes: object) -> Job:
    named = "\n".join(f"{axis} = [{value!r}]" for axis, value in axes.items()).replace("'", '"')
    text = (
        f'title = "t"\n[[sweep]]\npresets = ["{label}"]\nbackends = ["sdpa"]\ndtypes = ["bf16"]\nmodes = ["{mode}"]\n'
    )
    (job,) = (job for job in suite.jobs(suite.parse(text + named, "mine", "mine.toml")) if job is not None)
    return job


@pytest.mark.parametrize(("image", "cross", "concat"), [(1601, 50.0, 200.1), (6404, 200.1, 800.5)])
def test_the_image_cache_of_llama_3_2_is_as_large_as_the_real_one(image: int, cross: float, concat: float) -> None:
    job = preset_job("llama-3.2-11b-vision", "decode", extent="stack", image=image)
    assert closed_form(job, "sdpa", None).cache_bytes / MIB == pytest.approx(cross, abs=0.05)
    # the same tokens in one stream through the 32 layers of self-attention; text takes its share of the cache
    design = msgspec.structs.replace(job.case.design, causal=True, gated=False)
    stream = msgspec.structs.replace(job.case, design=design, shape=msgspec.structs.replace(job.case.shape, depth=32))
    held = closed_form(msgspec.structs.replace(job, strategy="concat_attention", case=stream), "sdpa", None).cache_bytes
    assert held * image / (image + stream.shape.text) / MIB == pytest.approx(concat, abs=0.05)


def test_a_token_of_llava_without_a_cache_costs_the_whole_stream_again() -> None:
    job = preset_job("llava-1.5-7b", "decode")
    whole_stream, one = (
        get(job.strategy).costs(msgspec.structs.replace(job.case, mode=mode), "sdpa").flops
        for mode in ("decode_uncached", "decode")
    )
    assert whole_stream / 1e9 == pytest.approx(265.75, abs=0.005)
    assert whole_stream == (576 + 64) * one


def test_a_footprint_holds_the_cache_and_its_reference() -> None:
    job = preset_job("llama-3.2-11b-vision", "decode", image=6404)
    cache = get(job.strategy).costs(job.case, "sdpa").cached
    assert footprint(job) > cache * (2 + TRUTH)
    assert footprint(preset_job("llama-3.2-11b-vision", "decode", image=1)) < footprint(job) - cache * (2 + TRUTH)


# --- measured ------------------------------------------------------------------------------------------------------

SMALL = Shape(batch=2, image=9, text=5, image_width=48, text_width=24, width=32, heads=2, depth=2, ffn=2)


@every
@pytest.mark.parametrize("backend", ["eager", "sdpa", "sdpa-flash", "sdpa-math", "int8"])
def test_a_step_is_measured_whole_on_every_backend(name: str, mode: Mode, backend: str) -> None:
    dtype = "int8" if backend == "int8" else "fp32"
    case = Case(shape=SMALL, mode=mode, dtype=dtype, padding=0.5, design=Design(causal=True, rope=1.0))  # type: ignore[arg-type]
    record = measure(Job(strategy=name, backend=backend, case=case), BUDGET)
    assert (record.status, record.reason, record.notes) == ("ok", "", ())
    assert record.accuracy
    assert record.accuracy.gradient is None
    assert record.costs
    assert record.costs.counted_flops == record.costs.flops or backend == "int8"
    assert record.costs.activation_bytes == 0
    entry = get(name)
    assert record.costs.cache_bytes == 4 * entry.costs(case, "sdpa").cached
    assert decode_record(encode_record(record)) == record


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
@pytest.mark.skipif(backends.missing_compiler() is not None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("name", "mode"), [("transformer_decoder", "decode"), ("concat_attention", "decode_uncached")])
@pytest.mark.parametrize("backend", ["compile", "flex"])
def test_a_compiled_step_is_right_and_writes_its_slot(name: str, mode: Mode, backend: str) -> None:
    case = Case(shape=SMALL, mode=mode, padding=0.5, design=Design(causal=True, rope=1.0))
    record = measure(Job(strategy=name, backend=backend, case=case), BUDGET)
    assert (record.status, record.reason) == ("ok", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
@pytest.mark.skipif(backends.missing_compiler() is not None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_copies_no_cache() -> None:
    s = Shape(batch=1, image=8000, text=1, image_width=16, text_width=16, width=16, heads=2, depth=2, ffn=0)
    case = Case(shape=s, mode="decode", projector="identity", design=Design(causal=True))
    record = measure(Job(strategy="concat_attention", backend="compile", case=case), BUDGET)
    assert record.status == "ok"
    assert record.memory
    assert record.costs
    assert record.memory.peak_bytes < record.costs.cache_bytes / 8


MUTANTS: dict[str, Callable[[Attention], Callable[..., object]]] = {
    "writes nothing": lambda own: lambda x, first: (torch.zeros(()), torch.zeros(())),
    "forgets the position": lambda own: lambda x, first=0: Attention.keys_and_values(own, x, 0),
}


@pytest.mark.parametrize("wrong", MUTANTS)
def test_a_wrong_slot_is_caught(wrong: str) -> None:
    """The reference writes slots of its own: a subject that writes another token than the truth is wrong."""
    s = Shape(batch=2, image=2, text=2, image_width=16, text_width=16, width=16, heads=2)
    case = Case(shape=s, mode="decode", projector="identity", design=Design(causal=True, rope=1.0))
    job = Job(strategy="concat_attention", backend="sdpa", case=case)
    subject = build(job, "sdpa", backends.get("sdpa"), 0)
    own = subject.module.encoder.layers[0].attention.attention  # type: ignore[union-attr, index]
    own.keys_and_values = MUTANTS[wrong](own)  # type: ignore[assignment, arg-type]
    with torch.no_grad():
        truth = twin(job, 0, torch.float64, select(subject.inputs, torch.arange(2))).outputs()
        assert not torch.allclose(subject.outputs()[0].double(), truth[0], atol=1e-3)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", CACHING)
def test_every_other_strategy_refuses_with_what_it_lacks(mode: Mode) -> None:
    for name, entry in strategies().items():
        if mode not in entry.modes:
            has = ", ".join(entry.modes)
            expected = f"'{name}' has no mode '{mode}', which needs {NEEDS[mode]} (has: {has})"
            assert entry.refusal(Case(shape=SMALL, mode=mode)) == expected


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        ("concat_attention", Case(shape=SMALL, mode="decode"), "mode 'decode' needs a causal design, whose earlier tokens a new one leaves as they are"),
        ("transformer_decoder", Case(shape=SMALL, mode="decode_uncached"), "mode 'decode_uncached' needs a causal design, whose earlier tokens a new one leaves as they are"),
        ("cross_attention:image_to_text", Case(shape=SMALL, mode="decode"), "mode 'decode' makes a text token, and here image tokens query (use mode 'cached')"),
        ("transformer_decoder:image_to_text", Case(shape=SMALL, mode="decode"), "mode 'decode' makes a text token, and here image tokens query (use mode 'cached')"),
        ("cross_attention", Case(shape=SMALL, mode="decode", adapt="lora:4"), "'lora:4' is about training, and mode 'decode' generates, with adapters merged (use 'full')"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(name: str, case: Case, reason: str) -> None:
    assert get(name).refusal(case) == reason


def test_modes_of_generation_without_a_step_are_refused_when_they_are_declared() -> None:
    declare = strategy("stepless", impls=("eager",), cost=get("late").cost, modes=("fwd", "decode"))
    with pytest.raises(FusionbenchError, match=r"\Astrategy 'stepless' has mode 'decode' and no step to say what .*\Z"):
        declare(nn.Identity)
    assert "stepless" not in strategies()


def test_triton_takes_one_new_token_of_a_causal_design_and_no_stream() -> None:
    case = Case(shape=SMALL, mode="decode", device="cuda", dtype="bf16", design=Design(causal=True))
    entry, triton = get("concat_attention"), backends.get("triton")
    assert backends.refusal(entry, triton, case) is None
    uncached = msgspec.structs.replace(case, mode="decode_uncached")
    assert backends.refusal(entry, triton, uncached) == "fusionbench_kernels has no causal attention"


# --- around it -----------------------------------------------------------------------------------------------------


def test_a_record_without_a_cache_is_still_a_record() -> None:
    old = b'{"flops": 1, "params": 2, "min_bytes": 3, "activation_bytes": 4}'
    assert msgspec.json.decode(old, type=Costs).cache_bytes == 0


def test_the_frame_has_the_cache_and_nothing_where_there_is_none() -> None:
    timing = Timing(
        timer="wall", cache="hot", loops=1, samples_ns=(9,), stop="precise", first_call_ns=1, warmup_calls=1, threads=1
    )
    jobs = [preset_job("llama-3.2-11b-vision", mode, image=1601) for mode in ("decode", "decode_uncached")]
    rows = frame([Record(job=j, status="ok", time=timing, costs=closed_form(j, "sdpa", None)) for j in jobs], {})
    assert rows["cache_bytes"].tolist() == [2 * 1601 * 1024 * 2, 0]
    assert rows["cache_mib"].tolist()[0] == pytest.approx(6.25, abs=0.01)
    assert rows["cache_mib"].isna().tolist() == [False, True]


def test_steps_are_matched_like_any_other_case() -> None:
    s = msgspec.structs.replace(EQUAL, depth=1)
    case = Case(shape=s, mode="decode", projector="identity", design=BARE, match="flops=concat_attention")
    job = matching.matched(Job(strategy="cross_attention", backend="sdpa", case=case))
    assert isinstance(job, Job)
    target = get("concat_attention").costs(case, "sdpa").flops
    assert get("cross_attention").costs(job.case, "sdpa").flops == pytest.approx(target, rel=0.02)


def test_the_suite_shows_what_each_cache_saves() -> None:
    chosen = suite.narrow(suite.read("decode"), {"devices": ["cpu"]})
    jobs = list(plan.Plan(chosen))
    assert jobs
    assert all(isinstance(job, Job) for job in jobs), [job for job in jobs if not isinstance(job, Job)]
    found = {(job.strategy, job.case.mode) for job in jobs if isinstance(job, Job)}
    assert {("concat_attention", m) for m in DECODING} | {("gated_cross_attention", m) for m in DECODING} <= found
    assert {("transformer_decoder:image_to_text", m) for m in ("fwd", "cached")} <= found
    assert max(footprint(job) for job in jobs if isinstance(job, Job)) < 10 * 2**30
